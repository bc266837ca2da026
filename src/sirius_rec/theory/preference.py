"""Bradley–Terry preferences and their sensitivity, stable for any finite rewards (float64, nats).

For rewards r_i (positive), r_j (sampled negative), r_k (unsampled negative): p_ij = σ(r_i − r_j).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def preference(difference: npt.ArrayLike) -> Array:
    """p = σ(r_i − r_j), Eq. 4. Any shape; the result lies in [0, 1].

    >>> float(preference(0.0))
    0.5
    """
    x = np.asarray(difference, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -x))


def log_slope(difference: npt.ArrayLike) -> Array:
    """log σ'(x) = −softplus(x) − softplus(−x), finite where σ' itself underflows. Any shape."""
    x = np.asarray(difference, dtype=np.float64)
    return -np.logaddexp(0.0, x) - np.logaddexp(0.0, -x)


def log_sensitivity(r_i: npt.ArrayLike, r_j: npt.ArrayLike, r_k: npt.ArrayLike) -> Array:
    """log |∂p_ik/∂p_ij| = log σ'(r_i − r_k) − log σ'(r_i − r_j), Eq. 15 for Bradley–Terry. Shapes broadcast."""
    r_i = np.asarray(r_i, dtype=np.float64)
    return log_slope(r_i - np.asarray(r_k, dtype=np.float64)) - log_slope(r_i - np.asarray(r_j, dtype=np.float64))


def is_insensitive(r_i: npt.ArrayLike, r_j: npt.ArrayLike, r_k: npt.ArrayLike, epsilon: float) -> npt.NDArray[np.bool_]:
    """Whether (i, j, k) lies in Ω_ε(p_ik, p_ij): |∂p_ik/∂p_ij| < ε (Definition 2). Shapes broadcast; ε > 0.

    >>> bool(is_insensitive(-6, -6.5, -4, 0.2)), bool(is_insensitive(-6, -6.5, -3, 0.2))
    (False, True)
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    return np.asarray(log_sensitivity(r_i, r_j, r_k) < np.log(epsilon))
