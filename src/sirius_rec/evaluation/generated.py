"""Generated answers as values per row: whether each is valid, and whether it is the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.errors import DataError
from sirius_rec.evaluation.intervals import GroupBootstrap
from sirius_rec.evaluation.metrics import Floats
from sirius_rec.evaluation.tables import user_groups
from sirius_rec.schema import ROW_ID, USER_ID

VALID: Final = "valid_ratio"
GENERATED: Final = "hr@1_generated"
Key = tuple[str, int, str, str]


@dataclass(frozen=True)
class Generated:
    """Greedy generations of one method, valid and hit per row, in the order of row_id."""

    row_ids: npt.NDArray[np.int64]
    values: dict[str, Floats]
    bootstrap: GroupBootstrap


def read_generations(entries: Sequence[Mapping[str, Any]], examples: pl.DataFrame, seed: int) -> dict[Key, Generated]:
    users = examples.select(pl.col(ROW_ID).cast(pl.Int64), USER_ID)
    generated: dict[Key, Generated] = {}
    plans: dict[bytes, GroupBootstrap] = {}
    for entry in entries:
        key = (str(entry["method"]), int(entry["seed"]), str(entry["slates"]), str(entry["checkpoint"]))
        name = f"generation of {key[0]}, seed {key[1]}, {key[2]}, {key[3]}"
        if key in generated:
            raise DataError(f"{name}: given twice")
        ids = np.asarray(entry["row_id"], dtype=np.int64)
        valid, hit = (np.asarray(entry[part], dtype=np.float64) for part in ("valid", "hit"))
        if not ids.size or valid.shape != ids.shape or hit.shape != ids.shape or len(np.unique(ids)) != len(ids):
            raise DataError(f"{name}: row_id, valid and hit must be equally long, not empty, and name each row once")
        wrong = np.flatnonzero(~np.isin(valid, (0, 1)) | ~np.isin(hit, (0, 1)) | (hit > valid))
        if wrong.size:
            raise DataError(f"{name}: row_id {ids[wrong[0]]} is neither 0 nor 1, or a hit without being valid")
        order = np.argsort(ids)
        ids = ids[order]
        joined = pl.DataFrame({ROW_ID: ids}).join(users, on=ROW_ID, how="inner", maintain_order="left")
        if len(joined) != len(ids):
            raise DataError(f"{name}: a row_id is not among the examples; generate for this data's rows")
        if ids.tobytes() not in plans:
            plans[ids.tobytes()] = GroupBootstrap(len(ids), user_groups(joined[USER_ID]), seed=seed)
        generated[key] = Generated(ids, {VALID: valid[order], GENERATED: hit[order]}, plans[ids.tobytes()])
    return generated
