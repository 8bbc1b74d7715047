"""The metrics of an update: means of the losses, and how well the values explain the returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from xcfast.learners.kl import KLControl
from xcfast.learners.loss import LOSSES
from xcfast.ranks.group import ALONE, Ranks, merged_moments

Sums = TypeVar("Sums", np.ndarray, Tensor)


def update_metrics(
    means: Sequence[float],
    grad_norm: float,
    values: dict[str, float],
    learning_rate: float,
    control: KLControl,
    epochs: int,
) -> dict[str, float]:
    """Returns all metrics of an update by their names in the logs.

    Args:
        means: Means of the loss's parts in the order of ``LOSSES``, as ``epoch_means`` returns them.
        grad_norm: Mean norm of the gradient before it was limited.
        values: What ``value_metrics`` returned.
        learning_rate: Learning rate of the last gradient step.
        control: The KL control, with the coefficient that was used.
        epochs: Number of epochs that ran.
    """
    *losses, kl = means
    return {
        **{f"losses/{name}": value for name, value in zip(LOSSES[:-1], losses, strict=True)},
        "losses/grad_norm": grad_norm,
        **control.metrics(kl, epochs),
        **values,
        "learning_rate": learning_rate,
    }


def epoch_means(sums: Sums, epochs: int, samples: int) -> Sums:
    """Returns the means of the loss's parts over the epochs that ran; of the last part, the KL, over the last epoch.

    Args:
        sums: Sums over each epoch's samples, [n_epochs, parts].
        epochs: Number of epochs that ran.
        samples: Number of samples in an epoch, on all ranks.
    """
    means = sums[:epochs].sum(0) / (epochs * samples)
    means[-1] = sums[epochs - 1, -1] / samples
    return means


def value_moments(values: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """Returns float64 [3, 3], ``moments_of`` the returns, of returns - values and of the values, on this rank."""
    values, returns = values.astype(np.float64), returns.astype(np.float64)
    return np.array([moments_of(x.reshape(-1)) for x in (returns, returns - values, values)])


def value_metrics(moments: np.ndarray, ranks: Ranks = ALONE) -> dict[str, float]:
    """Returns how well the values explain the returns, and the mean value, over all ranks.

    ``losses/explained_variance`` is 1 - Var[returns - values] / Var[returns], and 0 if the returns do not vary.

    Args:
        moments: What ``value_moments`` returned on this rank.
        ranks: The ranks that learn together.
    """
    (_, _, variance), (_, _, unexplained), (_, mean, _) = joined_moments(moments, ranks).tolist()
    explained = 0.0 if variance == 0.0 else 1.0 - unexplained / variance
    return {"losses/explained_variance": explained, "predict_value": mean}


def moments_of(x: np.ndarray) -> tuple[float, float, float]:
    """Returns number, mean and sum of squared deviations of float64 [B]; zeros if it is empty."""
    if len(x) == 0:
        return 0.0, 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # an update that went wrong is reported by its losses
        mean = float(x.mean())
        return float(len(x)), mean, float(np.square(x - mean).sum())


def joined_moments(parts: np.ndarray, ranks: Ranks) -> np.ndarray:
    """Returns the moments of the whole, of all ranks, from float64 [..., 3] ``moments_of`` this rank's part of it."""
    if ranks.world_size == 1:
        return parts
    return merged_moments(ranks.join(parts[None], range(ranks.rank, ranks.rank + 1), ranks.world_size))
