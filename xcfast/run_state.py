"""The state of a run: what decides how it goes on, of all ranks together, and given out to any number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.evaluation import TEST_RUN, evaluation_seeds
from xcfast.progress import Progress
from xcfast.results import package_versions

if TYPE_CHECKING:
    from xcfast.collector import TorchCollector
    from xcfast.collector_native import NativeCollector
    from xcfast.config import Config
    from xcfast.distributed import Ranks
    from xcfast.learner_cuda import CudaLearner
    from xcfast.learner_native import NativeLearner
    from xcfast.normalize import ObservationNormalizer, RewardNormalizer
    from xcfast.policy import ActorCritic
    from xcfast.ppo import TorchLearner
    from xcfast.rollout import Rollout

_OF_ENVS = ("obs_normalizer", "reward_normalizer", "collector", "episodes")


@dataclass(frozen=True)
class RunState:
    """The parts of a run that have a state. Networks, statistics and counters are the same on every rank."""

    config: Config
    ranks: Ranks
    policy: ActorCritic
    learner: TorchLearner | NativeLearner | CudaLearner
    obs_normalizer: ObservationNormalizer
    reward_normalizer: RewardNormalizer
    collector: TorchCollector | NativeCollector
    rollout: Rollout
    progress: Progress

    def gather(self, elapsed_seconds: float, with_envs: bool = True) -> dict[str, Any] | None:
        """What a checkpoint holds, besides the run's mode, taken between iterations; None on other ranks than 0.

        Args:
            elapsed_seconds: wall-clock time of the run so far.
            with_envs: whether the envs' own state is wanted.
        """
        own: dict[str, Any] = {}
        with self.ranks.together():  # an env may fail to tell its state
            own = {
                "obs_normalizer": self.obs_normalizer.state_dict(),
                "reward_normalizer": self.reward_normalizer.state_dict(),
                "collector": self.collector.state_dict(with_envs),
                "episodes": {"returns": self.rollout.episode_returns, "lengths": self.rollout.episode_lengths},
            }
        parts = self.ranks.gather(own)
        if parts is None:
            return None
        return {
            **joined(parts),
            "config": self.config.to_dict(),
            "step": self.progress.iteration * self.config.batch_size,
            "iteration": self.progress.iteration,
            "engines": {
                "collector": self.collector.name,
                "learner": self.learner.name,
                "inference": self.collector.policy.device.type,
            },
            "versions": package_versions(),
            "policy": self.policy.state_dict(),
            "learner": self.learner.state_dict(),
            "progress": {**self.progress.state_dict(), "elapsed_seconds": elapsed_seconds},
        }

    def load(self, saved: dict[str, Any]) -> bool:
        """Go on from what ``gather`` returned, on any number of ranks.

        Returns:
            Whether the envs' state was in it; else their episodes start anew.
        """
        self.policy.load_state_dict(saved["policy"])
        self.learner.load_state_dict(saved["learner"])
        self.progress.load_state_dict(saved["progress"])
        rows = self.ranks.rows(self.config.parallels)
        own = share({name: saved[name] for name in _OF_ENVS}, rows)
        self.obs_normalizer.load_state_dict(own["obs_normalizer"])
        self.reward_normalizer.load_state_dict(own["reward_normalizer"])
        if not self.collector.load_state_dict(own["collector"]):
            self.reward_normalizer.returns[:] = 0.0
            seeds = evaluation_seeds(self.config, TEST_RUN + 1 + self.progress.iteration, self.config.parallels)
            self.collector.reset([seeds[i] for i in rows])
            return False
        self.rollout.episode_returns[:] = np.asarray(own["episodes"]["returns"])
        self.rollout.episode_lengths[:] = np.asarray(own["episodes"]["lengths"])
        return True


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of all envs from those of the ranks' shares of them, in their order.

    Args:
        parts: nested dicts of equal form; arrays and lists have an entry for each env of the share, numbers, strings
            and what is called ``rms`` concern all envs.
    """
    if len(parts) == 1:
        return parts[0]
    whole: dict[str, Any] = {}
    for key, first in parts[0].items():
        items = [part[key] for part in parts]
        if isinstance(first, dict) and key != "rms":
            whole[key] = joined(items)
        elif isinstance(first, list):
            whole[key] = [entry for item in items for entry in item]
        else:
            whole[key] = np.concatenate(items) if isinstance(first, np.ndarray) else first
    return whole


def share(whole: dict[str, Any], rows: range) -> dict[str, Any]:
    """The state of some envs from that of all: the inverse of ``joined``."""
    part: dict[str, Any] = {}
    for key, item in whole.items():
        if isinstance(item, dict) and key != "rms":
            part[key] = share(item, rows)
        else:
            part[key] = item[rows.start : rows.stop] if isinstance(item, list | np.ndarray | torch.Tensor) else item
    return part
