"""What learners report: means over an update, and how well the values explain the returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from torch import Tensor

from xcfast.ranks.group import ALONE, Ranks, merged_moments

if TYPE_CHECKING:
    from xcfast.rollout import Rollout

Sums = TypeVar("Sums", np.ndarray, Tensor)


def epoch_means(sums: Sums, epochs: int, samples: int) -> Sums:
    """Means [parts] of sums [n_epochs, parts] over epochs of that many samples; of the last part the last epoch's."""
    means = sums[:epochs].sum(0) / (epochs * samples)
    means[-1] = sums[epochs - 1, -1] / samples
    return means


def value_metrics(rollout: Rollout, ranks: Ranks = ALONE) -> dict[str, float]:
    """What the values explain of the returns, and their mean; over all ranks.

    ``losses/explained_variance`` is 1 - Var[returns - values] / Var[returns], 0 where the returns do not vary.
    """
    values, returns = rollout.values.astype(np.float64), rollout.returns.astype(np.float64)
    parts = np.array([moments_of(x.reshape(-1)) for x in (returns, returns - values, values)])
    (_, _, variance), (_, _, unexplained), (_, mean, _) = joined_moments(parts, ranks).tolist()
    explained = 0.0 if variance == 0.0 else 1.0 - unexplained / variance
    return {"losses/explained_variance": explained, "predict_value": mean}


def moments_of(x: np.ndarray) -> tuple[float, float, float]:
    """Number, mean and sum of squared deviations of float64 [B]; zeros if it is empty."""
    if len(x) == 0:
        return 0.0, 0.0, 0.0
    mean = float(x.mean())
    return float(len(x)), mean, float(np.square(x - mean).sum())


def joined_moments(parts: np.ndarray, ranks: Ranks) -> np.ndarray:
    """float64 [..., 3] of ``moments_of``, of this rank's part of something, to those of the whole."""
    if ranks.world_size == 1:
        return parts
    return merged_moments(ranks.join(parts[None], range(ranks.rank, ranks.rank + 1), ranks.world_size))
