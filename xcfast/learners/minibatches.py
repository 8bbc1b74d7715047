"""The steps of a rollout that form the minibatches of an update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.ranks.group import Ranks
    from xcfast.rollout import Rollout


def minibatch_sizes(config: Config) -> list[int]:
    """Returns the number of steps in each minibatch of an epoch, over all ranks."""
    small, larger = divmod(config.batch_size, config.n_minibatch)
    return [small + (m < larger) for m in range(config.n_minibatch)]


def epoch_minibatches(
    config: Config, rollout: Rollout, ranks: Ranks, iteration: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns this rank's part of an epoch's minibatches.

    Args:
        config: The run's configuration.
        rollout: This rank's rollout.
        ranks: The ranks that learn together.
        iteration: Number of the rollout, from 0.
        epoch: Number of the epoch, from 0.

    Returns:
        Indices and offsets, as ``Rollout.minibatch_indices`` returns them.
    """
    return rollout.minibatch_indices(
        config.seed,
        iteration,
        epoch,
        config.n_minibatch,
        env_offset=ranks.rows(config.parallels).start,
        total_envs=config.parallels,
    )
