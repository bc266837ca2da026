"""Our rankers and metrics against other people's, on one data folder: figures that should agree, side by side.

Not part of the test suite: it needs packages that pull in hundreds of megabytes. In an environment of its own:

    pip install torch==2.13.0 -e . ranx implicit "rectools[torch]" tensorboard "setuptools<81"
    pip install --no-deps recbole colorlog colorama tabulate thop texttable psutil
    python benchmarks/crosscheck.py runs/compare-movielens/data --out crosscheck.json

A package that is not installed is left out, and the file says so. RecTools' SASRec is trained on the same train
sequences, cut to its length, with the same sizes and epochs, and scored on the same frozen slates; the rest are its own
defaults. Of RecBole its GRU4Rec network and loss are taken, without its data and training code.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.data.store import Dataset, open_dataset
from sirius_rec.evaluation.intervals import paired_test
from sirius_rec.evaluation.metrics import METRICS, per_example, target_positions
from sirius_rec.rankers.floors import ItemKNN
from sirius_rec.rankers.linear import EASE
from sirius_rec.rankers.sequential.ranker import TUNED, SequentialRanker, with_options
from sirius_rec.schema import CANDIDATES, HISTORY, TARGET, USER_ID, SlateName

Rows = list[np.ndarray]


def rows_of(data: Dataset, slates: str) -> tuple[Rows, Rows, np.ndarray]:
    """Histories, candidates and the target's column."""
    examples = data.examples(SlateName.parse(slates).split)
    candidates = [c.to_numpy() for c in data.slates(slates)[CANDIDATES]]
    position = target_positions(candidates, examples[TARGET].to_numpy())
    return [h.to_numpy() for h in examples[HISTORY]], candidates, position


def means(scores: Rows, position: np.ndarray) -> dict[str, float]:
    found = per_example(scores, position)
    return {name: float(found[name].to_numpy().mean()) for name in METRICS}


def compared(data: Dataset, slates: list[str], scorers: dict[int, tuple[Any, Any]], theirs: str) -> dict[str, Any]:
    """Metrics per seed of (ours, theirs), and the difference in HR@1 with its interval over users and seeds."""
    out: dict[str, Any] = {"ours": {}, theirs: {}, "difference in hr@1": {}}
    for name in slates:
        histories, candidates, position = rows_of(data, name)
        hits: dict[str, list[np.ndarray]] = {"ours": [], theirs: []}
        for seed, pair in scorers.items():
            for who, score in zip(("ours", theirs), pair, strict=True):
                found = per_example(score(histories, candidates), position)
                out[who][f"{name} s{seed}"] = {metric: float(found[metric].to_numpy().mean()) for metric in METRICS}
                hits[who].append(found["hr@1"].to_numpy())
        users = data.examples(SlateName.parse(name).split)[USER_ID].to_numpy()
        out["difference in hr@1"][name] = asdict(paired_test(hits["ours"], hits[theirs], users))
    return out


def metrics_against_ranx(scores: Rows, candidates: Rows, position: np.ndarray) -> dict[str, Any]:
    """The same scores through both. Distinct scores only: ranx breaks ties by position, we average over orders."""
    from ranx import Qrels, Run, evaluate

    distinct = [r for r, row in enumerate(scores) if len(np.unique(row)) == len(row)]
    qrels = Qrels({f"q{r}": {str(candidates[r][position[r]]): 1} for r in distinct})
    run = Run({f"q{r}": {str(c): float(s) for c, s in zip(candidates[r], scores[r], strict=True)} for r in distinct})
    names = {"hr@1": "hit_rate@1", "hr@5": "hit_rate@5", "hr@10": "hit_rate@10", "ndcg@5": "ndcg@5",
             "ndcg@10": "ndcg@10", "mrr": "mrr"}  # fmt: skip
    theirs = evaluate(qrels, run, list(names.values()))
    ours = means([scores[r] for r in distinct], position[distinct])
    return {
        "rows": len(distinct),
        "ours": ours,
        "ranx": {key: float(theirs[name]) for key, name in names.items()},
        "largest_difference": max(abs(ours[key] - float(theirs[name])) for key, name in names.items()),
    }


def knn_against_implicit(data: Dataset) -> dict[str, Any]:
    """Largest difference of cosine similarities between items, every pair of the first 300 items."""
    from implicit.nearest_neighbours import CosineRecommender
    from scipy import sparse

    sequences, n = data.train_sequences(), data.n_items
    users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    matrix = sparse.csr_matrix((np.ones(len(users)), (users, np.concatenate(sequences))), shape=(len(sequences), n))
    theirs = CosineRecommender(K=n)
    theirs.fit(matrix, show_progress=False)
    dense = np.asarray(theirs.similarity[:300, :300].todense())
    ours = ItemKNN().fit(sequences, n)
    pairs = ours.score([np.array([i]) for i in range(300)], [np.arange(300) for _ in range(300)])
    off = ~np.eye(300, dtype=bool)
    return {"pairs": int(off.sum()), "largest_difference": float(np.abs(np.array(pairs) - dense)[off].max())}


def ease_against_ridge(data: Dataset) -> dict[str, Any]:
    """EASE's column for ten items against ridge regression on the other items, solved anew."""
    from scipy import sparse

    sequences, n = data.train_sequences(), data.n_items
    users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    x = sparse.csr_matrix(
        (np.ones(len(users)), (users, np.concatenate(sequences))), shape=(len(sequences), n)
    ).toarray()
    weights = EASE(l2=100.0).fit(sequences, n).weights_II
    assert weights is not None
    worst = 0.0
    for item in range(0, n, max(1, n // 10)):
        others = np.delete(np.arange(n), item)
        a = x[:, others]
        solved = np.linalg.solve(a.T @ a + 100.0 * np.eye(n - 1), a.T @ x[:, item])
        worst = max(worst, float(np.abs(weights[others, item] - solved).max()))
    return {"largest_difference": worst}


def sasrec_against_rectools(data: Dataset, slates: list[str], epochs: int, seeds: list[int]) -> dict[str, Any]:
    """Both with dimension 64, 2 blocks, 2 heads, sequences of 20, full softmax, batch 16 and as many epochs.

    RecTools reads the newest 20 items of a user alone, so it gets every user cut into pieces of 21, as users. Ours cuts
    anew in every epoch.
    """
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset as RecToolsDataset
    from rectools.models import SASRecModel

    sequences = data.train_sequences()
    pieces = [s[at : at + 21] for s in sequences for at in range(0, max(len(s) - 1, 1), 20)]
    table = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(pieces)), [len(s) for s in pieces]),
            Columns.Item: np.concatenate(pieces),
            Columns.Weight: 1.0,
            Columns.Datetime: np.concatenate([np.arange(len(s)) for s in pieces]).astype("datetime64[s]"),
        }
    )
    scorers: dict[int, tuple[Any, Any]] = {}
    size = {"dimension": 64, "layers": 2, "heads": 2, "dropout": 0.2, "length": 20, "batch_size": 16}
    for seed in seeds:
        options = with_options(TUNED["sasrec"], **size, epochs=epochs, weight_decay=0.0)
        ours = SequentialRanker(options, seed).fit(sequences, data.n_items, progress=print)
        theirs = _fitted_rectools(SASRecModel, table, RecToolsDataset, epochs, seed)
        scorers[seed] = ours.score, partial(rectools_scores, theirs)
    return {"epochs": epochs, "seeds": seeds, **compared(data, slates, scorers, "rectools")}


def _fitted_rectools(model_class: Any, table: Any, dataset_class: Any, epochs: int, seed: int) -> Any:
    import torch
    from pytorch_lightning import Trainer, seed_everything

    seed_everything(seed)

    def trainer() -> Any:
        return Trainer(max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                       enable_progress_bar=False, enable_model_summary=False)  # fmt: skip

    model = model_class(
        n_factors=64, n_blocks=2, n_heads=2, dropout_rate=0.2, session_max_len=20, batch_size=16, loss="softmax",
        lr=1e-3, get_trainer_func=trainer, deterministic=True, train_min_user_interactions=2,
    )  # fmt: skip
    model.fit(dataset_class.construct(table))
    torch.set_grad_enabled(True)
    return model


def rectools_scores(model: Any, histories: Rows, candidates: Rows) -> Rows:
    """Scores of its network's last state against its item embeddings; an item that it does not know is last."""
    import torch

    net = model.lightning_model.torch_model.eval()
    known = model.data_preparator.item_id_map
    inside = dict(zip(known.external_ids.tolist(), range(known.size), strict=True))
    out: Rows = []
    with torch.no_grad():
        table_ID = net.item_model.get_all_embeddings()
        for start in range(0, len(histories), 512):
            part = histories[start : start + 512]
            x_BT = torch.zeros(len(part), 20, dtype=torch.long)
            for b, history in enumerate(part):
                ids = [inside[int(i)] for i in history if int(i) in inside][-20:]
                if ids:
                    x_BT[b, -len(ids) :] = torch.tensor(ids)
            state_BD = net.encode_sessions({"x": x_BT}, table_ID)[:, -1]
            for state_D, slate in zip(state_BD, candidates[start : start + 512], strict=True):
                ids = [inside.get(int(c), -1) for c in slate]
                scores = (table_ID[ids] @ state_D).numpy().copy()
                scores[np.array(ids) < 0] = -1e9
                out.append(scores)
    return out


def gru4rec_against_recbole(data: Dataset, slates: list[str], epochs: int, seeds: list[int]) -> dict[str, Any]:
    """RecBole's network and loss on one window per item, 256 of them a step; ours on 16 pieces of as many items a step.

    RecBole's is trained without our clipping of gradients, and items that no sequence holds keep their first embedding.
    """
    sequences = data.train_sequences()
    scorers: dict[int, tuple[Any, Any]] = {}
    for seed in seeds:
        options = with_options(TUNED["gru4rec"], epochs=epochs, weight_decay=0.0)
        ours = SequentialRanker(options, seed).fit(sequences, data.n_items, progress=print)
        theirs = _fitted_recbole(sequences, data.n_items, epochs, seed, options.length, options.dropout)
        scorers[seed] = ours.score, partial(recbole_scores, theirs)
    return {"epochs": epochs, "seeds": seeds, **compared(data, slates, scorers, "recbole")}


def _windows(rows: Rows, length: int) -> tuple[Any, Any]:
    """RecBole's layout: items from 1, filled up with 0 on the right; and how many there are."""
    import torch

    x_BT, n_B = torch.zeros(len(rows), length, dtype=torch.long), torch.ones(len(rows), dtype=torch.long)
    for b, row in enumerate(rows):
        newest = row[-length:]
        x_BT[b, : len(newest)] = torch.from_numpy(newest.astype(np.int64) + 1)
        n_B[b] = max(len(newest), 1)
    return x_BT, n_B


def _fitted_recbole(sequences: Rows, n_items: int, epochs: int, seed: int, length: int, dropout: float) -> Any:
    import torch
    from recbole.model.sequential_recommender.gru4rec import GRU4Rec

    class Settings(dict):  # type: ignore[type-arg]
        def __missing__(self, key: str) -> str:
            return key

    class Catalogue:
        @staticmethod
        def num(field: str) -> int:
            return n_items + 1

    torch.manual_seed(seed)
    settings = Settings(
        embedding_size=64, hidden_size=64, num_layers=1, dropout_prob=dropout, loss_type="CE", device="cpu",
        MAX_ITEM_LIST_LENGTH=length, LIST_SUFFIX="_list", NEG_PREFIX="neg_",
    )  # fmt: skip
    model = GRU4Rec(settings, Catalogue())
    pairs = [(s[:t], int(s[t])) for s in sequences for t in range(1, len(s))]
    x_NT, n_N = _windows([history for history, _ in pairs], length)
    target_N = torch.tensor([target + 1 for _, target in pairs])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(pairs)).split(256):
            loss = model.calculate_loss(
                {model.ITEM_SEQ: x_NT[rows], model.ITEM_SEQ_LEN: n_N[rows], model.POS_ITEM_ID: target_N[rows]}
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss) * len(rows)
        print(f"recbole s{seed} epoch {epoch + 1} loss {total / len(pairs):.3f}", flush=True)
    return model.eval()


def recbole_scores(model: Any, histories: Rows, candidates: Rows) -> Rows:
    import torch

    out: Rows = []
    with torch.no_grad():
        for start in range(0, len(histories), 512):
            state_BD = model(*_windows(histories[start : start + 512], model.max_seq_length))
            for state_D, slate in zip(state_BD, candidates[start : start + 512], strict=True):
                out.append((model.item_embedding.weight[torch.from_numpy(slate + 1)] @ state_D).numpy())
    return out


def attempt(name: str, needs: tuple[str, ...], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        found = {package: metadata.version(package) for package in needs}
    except metadata.PackageNotFoundError as error:
        return {"left out": f"{error.name} is not installed"}
    print(f"{name} …", flush=True)
    return {"versions": found, **work()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a data folder with test slates")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = open_dataset(arguments.data)
    slates = [name for name in data.slate_names if name.startswith("test-uniform")]
    histories, candidates, position = rows_of(data, slates[0])
    knn = ItemKNN(shrinkage=10.0).fit(data.train_sequences(), data.n_items).score(histories, candidates)
    content: dict[str, Any] = {
        "data": {"fingerprint": data.fingerprint, "source": data.info["source"]["name"], "slates": slates},
        "python": platform.python_version(),
    }
    checks: list[tuple[str, tuple[str, ...], Callable[[], dict[str, Any]]]] = [
        ("metrics against ranx", ("ranx",), lambda: metrics_against_ranx(knn, candidates, position)),
        ("item-kNN against implicit", ("implicit",), lambda: knn_against_implicit(data)),
        ("EASE against ridge regression", ("numpy",), lambda: ease_against_ridge(data)),
        (
            "SASRec against RecTools", ("rectools",),
            lambda: sasrec_against_rectools(data, slates, arguments.epochs, arguments.seeds),
        ),
        (
            "GRU4Rec against RecBole", ("recbole",),
            lambda: gru4rec_against_recbole(data, slates, arguments.epochs, arguments.seeds),
        ),
    ]  # fmt: skip
    for name, needs, work in checks:
        content[name] = attempt(name, needs, work)
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")  # one that fails costs none of the others
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
