"""SASRec and GRU4Rec against RecTools' and RecBole's: same train sequences, sizes, learning rate and frozen slates.

Either side stops by its own validation NDCG@10 and keeps its best epoch. What differs is what their authors chose:
layers, norms, initial values, Adam's second beta (RecTools: 0.98), no clipping of gradients and, for RecTools, its own
training code.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from sirius_rec.data.store import Dataset
from sirius_rec.evaluation.intervals import paired_test
from sirius_rec.evaluation.metrics import METRICS, per_example, target_positions
from sirius_rec.rankers.sequential.chunks import chunks
from sirius_rec.rankers.sequential.options import TUNED, with_options
from sirius_rec.rankers.sequential.ranker import SequentialRanker, Validation
from sirius_rec.schema import CANDIDATES, HISTORY, TARGET, USER_ID, SlateName

Rows = list[np.ndarray]
Score = Callable[[Rows, Rows], Rows]
LENGTH, DROPOUT = 20, 0.2
EPOCHS, PATIENCE = 60, 5
WINDOWS = 256  # a step, of those that train every target on a window of its own
VALIDATION = "val-uniform-20-s0"


def rows_of(data: Dataset, slates: str) -> tuple[Rows, Rows, np.ndarray]:
    """Histories, candidates and the target's column."""
    examples = data.examples(SlateName.parse(slates).split)
    candidates = [c.to_numpy() for c in data.slates(slates)[CANDIDATES]]
    position = target_positions(candidates, examples[TARGET].to_numpy())
    return [h.to_numpy() for h in examples[HISTORY]], candidates, position


def trained_by_validation(
    name: str, epoch: Callable[[], None], module: torch.nn.Module, score: Score, validation: Validation
) -> list[float]:
    """Epochs until PATIENCE of them brought no better NDCG@10; leaves the best weights. The NDCG@10 of every epoch."""
    found: list[float] = []
    best: dict[str, Any] = {}
    while len(found) < EPOCHS and len(found) - (int(np.argmax(found)) + 1 if found else 0) < PATIENCE:
        epoch()
        metrics = per_example(score(validation.histories, validation.candidates), validation.target)
        found.append(float(metrics["ndcg@10"].to_numpy().mean()))
        if found[-1] > max(found[:-1], default=-1.0):
            best = deepcopy(module.state_dict())
        print(f"{name} epoch {len(found)} ndcg@10 {found[-1]:.4f}", flush=True)
    module.load_state_dict(best)
    return found


def against(
    data: Dataset, slates: list[str], seeds: list[int], name: str, theirs: Callable[..., Any], **options: Any
) -> dict[str, Any]:
    """Ours with `options` against `theirs(seed, sequences, n_items, validation)` → (score, NDCG@10 per epoch)."""
    network, rival = name.split(" against ")
    validation = Validation(*rows_of(data, VALIDATION))
    sequences, n_items = data.train_sequences(), data.n_items
    made = with_options(
        TUNED[network], **options, dropout=DROPOUT, length=LENGTH, epochs=EPOCHS, patience=PATIENCE, weight_decay=0.0
    )
    scorers: dict[int, tuple[Score, Score]] = {}
    epochs: dict[str, list[int]] = {"ours": [], rival: []}
    for seed in seeds:
        say = partial(print, f"{network} s{seed} ", flush=True)
        ours = SequentialRanker(made, seed).fit(sequences, n_items, validation, progress=say)
        score, found = theirs(seed, sequences, n_items, validation)
        scorers[seed] = ours.score, score
        epochs["ours"].append(int(np.argmax([point["ndcg@10"] for point in ours.history])) + 1)
        epochs[rival].append(int(np.argmax(found)) + 1)
    out: dict[str, Any] = {"seeds": seeds, "options": asdict(made), "best epoch by validation": epochs}
    return {**out, **compared(data, slates, scorers, rival)}


def compared(data: Dataset, slates: list[str], scorers: dict[int, tuple[Score, Score]], theirs: str) -> dict[str, Any]:
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


def sasrec_against_rectools(data: Dataset, slates: list[str], seeds: list[int]) -> dict[str, Any]:
    """Both on chunks of 21, cut anew in every epoch, 16 a step."""
    return against(data, slates, seeds, "sasrec against rectools", _rectools, batch_size=16)


def sasrec_against_recbole(data: Dataset, slates: list[str], seeds: list[int]) -> dict[str, Any]:
    """Both on one window per target, 256 a step; RecBole's network and loss, without its data and training code."""
    theirs = partial(_recbole, "SASRec")
    return against(data, slates, seeds, "sasrec against recbole", theirs, windows=True, batch_size=WINDOWS)


def gru4rec_against_recbole(data: Dataset, slates: list[str], seeds: list[int]) -> dict[str, Any]:
    """As `sasrec_against_recbole`."""
    theirs = partial(_recbole, "GRU4Rec")
    return against(data, slates, seeds, "gru4rec against recbole", theirs, windows=True, batch_size=WINDOWS)


def _rectools(seed: int, sequences: Rows, n_items: int, validation: Validation) -> tuple[Score, list[float]]:
    from pytorch_lightning import Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset as RecToolsDataset
    from rectools.dataset import IdMap, Interactions
    from rectools.models import SASRecModel

    seed_everything(seed)
    rng = np.random.default_rng(seed)

    def trainer() -> Any:
        return Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                       enable_progress_bar=False, enable_model_summary=False)  # fmt: skip

    model = SASRecModel(
        n_factors=64, n_blocks=2, n_heads=2, dropout_rate=DROPOUT, session_max_len=LENGTH, batch_size=16,
        loss="softmax", lr=1e-3, get_trainer_func=trainer, deterministic=True, train_min_user_interactions=2,
    )  # fmt: skip
    prepare = model.data_preparator

    def pieces_anew(dataset: Any) -> None:
        # RecTools numbers the items anew from every table; the network's rows must stay theirs.
        raw = dataset.get_raw_interactions()
        users, items = IdMap.from_values(raw[Columns.User].values), prepare.item_id_map
        prepare.train_dataset = RecToolsDataset(users, items, Interactions.from_raw(raw, users, items))

    model.fit_partial(RecToolsDataset.construct(_table(sequences, rng)), min_epochs=0, max_epochs=0)
    prepare.process_dataset_train = pieces_anew

    def epoch() -> None:
        torch.set_grad_enabled(True)
        model.fit_partial(RecToolsDataset.construct(_table(sequences, rng)), min_epochs=1, max_epochs=1)

    score = partial(_rectools_scores, model)
    module = model.lightning_model.torch_model
    found = trained_by_validation(f"rectools sasrec s{seed}", epoch, module, score, validation)
    torch.set_grad_enabled(True)
    return score, found


def _table(sequences: Rows, rng: np.random.Generator) -> Any:
    """RecTools reads the newest items of a user alone, so every chunk is a user."""
    import pandas as pd
    from rectools import Columns

    inputs_NT, targets_NT = chunks(sequences, LENGTH, rng, shuffle=False)
    cut = [row[row >= 0] for row in np.concatenate([inputs_NT, targets_NT[:, -1:]], axis=1)]
    return pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(cut)), [len(s) for s in cut]),
            Columns.Item: np.concatenate(cut),
            Columns.Weight: 1.0,
            Columns.Datetime: np.concatenate([np.arange(len(s)) for s in cut]).astype("datetime64[s]"),
        }
    )


def _rectools_scores(model: Any, histories: Rows, candidates: Rows) -> Rows:
    """Scores of its network's last state against its item embeddings; an item that it does not know is last."""
    net = model.lightning_model.torch_model.eval()
    known = model.data_preparator.item_id_map
    inside = dict(zip(known.external_ids.tolist(), range(known.size), strict=True))
    out: Rows = []
    with torch.no_grad():
        table_ID = net.item_model.get_all_embeddings()
        for start in range(0, len(histories), 512):
            part = histories[start : start + 512]
            x_BT = torch.zeros(len(part), LENGTH, dtype=torch.long)
            for b, history in enumerate(part):
                ids = [inside[int(i)] for i in history if int(i) in inside][-LENGTH:]
                if ids:
                    x_BT[b, -len(ids) :] = torch.tensor(ids)
            state_BD = net.encode_sessions({"x": x_BT}, table_ID)[:, -1]
            for state_D, slate in zip(state_BD, candidates[start : start + 512], strict=True):
                ids = [inside.get(int(c), -1) for c in slate]
                scores = (table_ID[ids] @ state_D).numpy().copy()
                scores[np.array(ids) < 0] = -1e9
                out.append(scores)
    return out


def _recbole(kind: str, seed: int, sequences: Rows, n_items: int, validation: Validation) -> tuple[Score, list[float]]:
    """Trained without our clipping of gradients; items that no sequence holds keep their first embedding."""
    from recbole.model import sequential_recommender

    class Settings(dict):  # type: ignore[type-arg]
        def __missing__(self, key: str) -> str:
            return key

    class Catalogue:
        @staticmethod
        def num(field: str) -> int:
            return n_items + 1

    torch.manual_seed(seed)
    settings = Settings(
        embedding_size=64, hidden_size=64, loss_type="CE", device="cpu", MAX_ITEM_LIST_LENGTH=LENGTH,
        LIST_SUFFIX="_list", NEG_PREFIX="neg_",
        **({"num_layers": 1, "dropout_prob": DROPOUT} if kind == "GRU4Rec" else
           {"n_layers": 2, "n_heads": 2, "inner_size": 128, "hidden_dropout_prob": DROPOUT, "attn_dropout_prob": 0.0,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02}),
    )  # fmt: skip
    model = getattr(sequential_recommender, kind)(settings, Catalogue())
    pairs = [(s[:t], int(s[t])) for s in sequences for t in range(1, len(s))]
    x_NT, n_N = _recbole_rows([history for history, _ in pairs])
    target_N = torch.tensor([target + 1 for _, target in pairs])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch() -> None:
        model.train()
        for rows in torch.randperm(len(pairs)).split(WINDOWS):
            loss = model.calculate_loss(
                {model.ITEM_SEQ: x_NT[rows], model.ITEM_SEQ_LEN: n_N[rows], model.POS_ITEM_ID: target_N[rows]}
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.eval()

    score = partial(_recbole_scores, model)
    return score, trained_by_validation(f"recbole {kind} s{seed}", epoch, model, score, validation)


def _recbole_rows(rows: Rows) -> tuple[Any, Any]:
    """RecBole's layout: items from 1, filled up with 0 on the right; and how many there are."""
    x_BT, n_B = torch.zeros(len(rows), LENGTH, dtype=torch.long), torch.ones(len(rows), dtype=torch.long)
    for b, row in enumerate(rows):
        newest = row[-LENGTH:]
        x_BT[b, : len(newest)] = torch.from_numpy(newest.astype(np.int64) + 1)
        n_B[b] = max(len(newest), 1)
    return x_BT, n_B


def _recbole_scores(model: Any, histories: Rows, candidates: Rows) -> Rows:
    out: Rows = []
    with torch.no_grad():
        for start in range(0, len(histories), 512):
            state_BD = model(*_recbole_rows(histories[start : start + 512]))
            for state_D, slate in zip(state_BD, candidates[start : start + 512], strict=True):
                out.append((model.item_embedding.weight[torch.from_numpy(slate + 1)] @ state_D).numpy())
    return out
