"""An order of the items learned from sequences alone, for files whose ids are not at hand."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import lsqr

from sirius_rec.audit.slates import NONE, Floats, Int

_STEPS = 2_000_000
_ITERATIONS = 300


def learned_order(sequence_RH: Int, n_items: int) -> Floats | None:
    """float64[n_items]: a place for each item such that sequences ascend as well as can be; NaN for items not seen.

    HodgeRank (Jiang, Lim, Yao & Ye 2011): the least-squares solution of place(b) − place(a) = 1 over all steps a → b
    between neighbours of the sequences (padded with -1). None where there is no step.
    """
    pairs = np.stack([sequence_RH[:, :-1].ravel(), sequence_RH[:, 1:].ravel()], axis=1)
    pairs = pairs[(pairs != NONE).all(axis=1) & (pairs[:, 0] != pairs[:, 1])][:_STEPS]
    if not len(pairs):
        return None
    steps, weight = np.unique(pairs[:, 0] * n_items + pairs[:, 1], return_counts=True)
    before, after, root = steps // n_items, steps % n_items, np.sqrt(weight)
    row = np.arange(len(steps))
    entries = np.concatenate([root, -root]), (np.concatenate([row, row]), np.concatenate([after, before]))
    design = sparse.coo_array(entries, shape=(len(steps), n_items)).tocsr()
    place = lsqr(design, root, damp=1e-3, iter_lim=_ITERATIONS)[0]
    seen = np.zeros(n_items, dtype=bool)
    seen[before] = seen[after] = True
    return np.asarray(np.where(seen, place, np.nan), dtype=np.float64)
