"""Our rankers and metrics against other people's, on one data folder: figures that should agree, side by side.

Not part of the test suite: it needs packages that pull in hundreds of megabytes. In an environment of its own:

    pip install torch==2.13.0 -e . ranx implicit "rectools[torch]" tensorboard "setuptools<81"
    pip install --no-deps recbole colorlog colorama tabulate thop texttable psutil
    python benchmarks/crosscheck.py runs/compare-movielens/data --out crosscheck.json

A package that is not installed is left out, and the file says so. `--only TEXT` runs the checks with that text in their
names and keeps the others that the file holds. For the networks see crosscheck_networks.py.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import crosscheck_networks as networks
import numpy as np
from crosscheck_networks import Rows

from sirius_rec.data.store import Dataset, open_dataset
from sirius_rec.evaluation.metrics import METRICS, per_example
from sirius_rec.rankers.linear import EASE
from sirius_rec.rankers.trivial import ItemKNN


def means(scores: Rows, position: np.ndarray) -> dict[str, float]:
    found = per_example(scores, position)
    return {name: float(found[name].to_numpy().mean()) for name in METRICS}


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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="run the checks with this text in their names")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = open_dataset(arguments.data)
    slates = [name for name in data.slate_names if name.startswith("test-uniform")]
    histories, candidates, position = networks.rows_of(data, slates[0])
    knn = ItemKNN(shrinkage=10.0).fit(data.train_sequences(), data.n_items).score(histories, candidates)
    content: dict[str, Any] = (
        json.loads(arguments.out.read_text()) if arguments.only and arguments.out.is_file() else {}
    )
    content |= {
        "data": {"fingerprint": data.fingerprint, "source": data.info["source"]["name"], "slates": slates},
        "python": platform.python_version(),
    }
    trained = (data, slates, arguments.seeds)
    checks: list[tuple[str, tuple[str, ...], Callable[[], dict[str, Any]]]] = [
        ("metrics against ranx", ("ranx",), lambda: metrics_against_ranx(knn, candidates, position)),
        ("item-kNN against implicit", ("implicit",), lambda: knn_against_implicit(data)),
        ("EASE against ridge regression", ("numpy",), lambda: ease_against_ridge(data)),
        ("SASRec against RecTools", ("rectools",), lambda: networks.sasrec_against_rectools(*trained)),
        ("SASRec against RecBole", ("recbole",), lambda: networks.sasrec_against_recbole(*trained)),
        ("GRU4Rec against RecBole", ("recbole",), lambda: networks.gru4rec_against_recbole(*trained)),
    ]
    for name, needs, work in checks:
        if arguments.only in name:
            content[name] = attempt(name, needs, work)
            arguments.out.write_text(json.dumps(content, indent=1) + "\n")  # one that fails costs none of the others
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
