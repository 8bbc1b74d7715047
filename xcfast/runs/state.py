"""The state of a run: what decides how it goes on, of all ranks together, and given out to any number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.output.files import package_versions
from xcfast.output.folders import Mode
from xcfast.runs.evaluation import TEST_RUN, evaluation_seeds
from xcfast.runs.progress import Progress

if TYPE_CHECKING:
    from xcfast.config import Config
    from xcfast.ranks.group import Ranks
    from xcfast.runs.components import RunParts

_OF_ENVS = ("obs_normalizer", "reward_normalizer", "collector", "episodes")


@dataclass(frozen=True)
class RunState:
    """What of a run has a state. Networks, statistics and counters are the same on every rank."""

    config: Config
    mode: Mode
    ranks: Ranks
    parts: RunParts
    progress: Progress

    @property
    def step(self) -> int:
        """Env steps trained on so far, over all envs."""
        return self.progress.iteration * self.config.batch_size

    def gather(self, with_envs: bool = True) -> dict[str, Any] | None:
        """What a checkpoint holds, taken between iterations; None on other ranks than 0.

        Args:
            with_envs: whether the envs' own state is wanted.
        """
        parts, own = self.parts, {}
        with self.ranks.together():  # an env may fail to tell its state
            own = {
                "obs_normalizer": parts.obs_normalizer.state_dict(),
                "reward_normalizer": parts.reward_normalizer.state_dict(),
                "collector": parts.collector.state_dict(with_envs),
                "episodes": {"returns": parts.rollout.episode_returns, "lengths": parts.rollout.episode_lengths},
            }
        shares = self.ranks.gather(own)
        if shares is None:
            return None
        state = {
            **joined(shares),
            "config": self.config.to_dict(),
            "mode": self.mode,
            "identity_actions": parts.action_map.identity,
            "step": self.step,
            "iteration": self.progress.iteration,
            "engines": {
                "collector": parts.collector.name,
                "learner": parts.learner.name,
                "inference": parts.collector.policy.device.type,
            },
            "versions": package_versions(),
            "policy": parts.policy.state_dict(),
            "learner": parts.learner.state_dict(),
            "progress": self.progress.state_dict(),
        }
        behaviour = parts.learner.behaviour
        if with_envs and parts.rollout.full and behaviour is not None:  # collected during the last update
            state["collected"] = {"rollout": parts.rollout.state_dict(), "weights": behaviour}
        return state

    def load(self, saved: dict[str, Any]) -> bool:
        """Go on from what ``gather`` returned, on any number of ranks.

        Returns:
            Whether the envs' state was in it; else their episodes start anew.
        """
        parts = self.parts
        parts.policy.load_state_dict(saved["policy"])
        parts.learner.load_state_dict(saved["learner"])
        parts.adopt_weights()
        self.progress.load_state_dict(saved["progress"])
        rows = self.ranks.rows(self.config.parallels)
        own = share({name: saved[name] for name in _OF_ENVS}, rows)
        parts.obs_normalizer.load_state_dict(own["obs_normalizer"])
        parts.reward_normalizer.load_state_dict(own["reward_normalizer"])
        if not parts.collector.load_state_dict(own["collector"]):
            parts.reward_normalizer.returns[:] = 0.0
            seeds = evaluation_seeds(self.config, TEST_RUN + 1 + self.progress.iteration, self.config.parallels)
            parts.collector.reset([seeds[i] for i in rows])
            return False
        parts.rollout.episode_returns[:] = np.asarray(own["episodes"]["returns"])
        parts.rollout.episode_lengths[:] = np.asarray(own["episodes"]["lengths"])
        collected = saved.get("collected")
        if collected is not None:
            parts.rollout.load_state_dict(collected["rollout"])
            parts.learner.set_behaviour(collected["weights"])
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
