"""The kernels in numba: serve where the extension cannot be built, and calls from a user's own ``@njit`` code.

Each function has the signature and the convention of its namesake in ``_core.pyi``.
"""

import numpy as np

from xcfast.kernels.numba import rollout
from xcfast.kernels.numba.gae import discounted_returns, gae
from xcfast.kernels.numba.moments import (
    cast_and_track,
    merge_tracked,
    moments_update,
    normalize,
    normalize_and_track,
    normalize_rewards,
    update_and_normalize,
)
from xcfast.kernels.numba.rollout import gather, gaussian_noise, minibatch_indices, store_step, uniform_noise

__all__ = [
    "cast_and_track",
    "discounted_returns",
    "gae",
    "gather",
    "gaussian_noise",
    "merge_tracked",
    "minibatch_indices",
    "moments_update",
    "normalize",
    "normalize_and_track",
    "normalize_rewards",
    "store_step",
    "uniform_noise",
    "update_and_normalize",
    "warmup",
]


def warmup() -> None:
    """Compiles what a training run calls (float32 rollouts, float64 observations)."""
    flat, flags, one = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.bool_), np.zeros(1, np.float32)
    gae(flat, flat, flags, flags, one, flat, None, 0.9, 0.9, flat.copy(), flat.copy())
    discounted_returns(flat, flags, flags, one, flat, None, 0.9, flat.copy())
    mean, var, count, obs = np.zeros(1), np.ones(1), np.zeros(1, np.int64), np.zeros((2, 1))
    update_and_normalize(obs, mean, var, count, 1e-8, 5.0, flat.copy())
    tracked = np.zeros(2, np.int64), np.zeros((2, 1)), np.zeros((2, 1))
    normalize_and_track(obs, mean, var, count, 1e-8, 5.0, *tracked, flat.copy())
    merge_tracked(*tracked, mean, var, count)
    normalize_rewards(flat, flags, 0.9, np.zeros(1), np.zeros((3, 1)), mean, var, count, 1e-8, 5.0, flat.copy())
    indices, offsets = np.zeros(2, np.int64), np.zeros(2, np.int64)
    minibatch_indices(0, 0, 0, 2, 1, 1, 0, indices, offsets, np.zeros(2, np.int64))
    rollout._store(
        0, np.zeros(1), flags[0], flags[1], np.zeros(1), count, one, np.zeros(1, np.int64), np.zeros(1), count
    )
    gaussian_noise(0, 0, count, one.reshape(1, 1))
    uniform_noise(0, 0, count, np.zeros(1))
