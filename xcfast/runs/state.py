"""The state of a run: everything that decides how it continues, from all ranks, for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.output.files import package_versions
from xcfast.output.spaces import space_to_data
from xcfast.runs.evaluation import TEST_RUN, fresh_seeds

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.ranks.group import Ranks
    from xcfast.runs.components import Components
    from xcfast.runs.progress import Progress

_OF_ENVS = ("obs_normalizer", "reward_normalizer", "collector", "episodes")


@dataclass(frozen=True)
class RunState:
    """Everything in a run that has a state. Networks, statistics and counters are the same on every rank."""

    config: Config
    ranks: Ranks
    components: Components
    progress: Progress

    @property
    def step(self) -> int:
        """Environment steps trained on so far, over all environments."""
        return self.progress.iteration * self.config.batch_size

    def gather(self, with_envs: bool = True) -> dict[str, Any] | None:
        """Returns the contents of a checkpoint, taken between iterations; None on ranks other than 0.

        Args:
            with_envs: Whether to include the state of the environments.
        """
        parts, own = self.components, {}
        with self.ranks.together():  # an environment may fail to return its state
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
            "identity_actions": parts.action_map.identity,
            "spaces": {
                "observation": space_to_data(parts.envs.single_observation_space),
                "action": space_to_data(parts.envs.single_action_space),
            },
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
        """Restores what ``gather`` returned, on any number of ranks.

        Returns:
            Whether the environments' state was in it. Otherwise their episodes start anew.
        """
        parts = self.components
        parts.policy.load_state_dict(saved["policy"])
        parts.learner.load_state_dict(saved["learner"])
        parts.learner.adopt()
        self.progress.load_state_dict(saved["progress"])
        rows = self.ranks.rows(self.config.parallels)
        own = share({name: saved[name] for name in _OF_ENVS}, rows)
        parts.obs_normalizer.load_state_dict(own["obs_normalizer"])
        parts.reward_normalizer.load_state_dict(own["reward_normalizer"])
        if not parts.collector.load_state_dict(own["collector"]):
            parts.restart_episodes(self._seeds_of_a_resume(rows))
            return False
        parts.rollout.episode_returns[:] = np.asarray(own["episodes"]["returns"])
        parts.rollout.episode_lengths[:] = np.asarray(own["episodes"]["lengths"])
        collected = saved.get("collected")
        if collected is not None:
            parts.rollout.load_state_dict(collected["rollout"])
            parts.learner.set_behaviour(collected["weights"])
        return True

    def _seeds_of_a_resume(self, rows: range) -> list[int]:
        """Returns reset seeds for environments without a saved state, which differ from iteration to iteration."""
        number = TEST_RUN + 1 + self.progress.iteration
        seeds = fresh_seeds(self.config, number, self.config.parallels)
        return [seeds[i] for i in rows]


def joined(shares: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the state of all environments, joined from the ranks' shares in their order.

    Args:
        shares: Nested dicts of equal form. Arrays and lists have an entry for each environment of the share; numbers,
            texts and entries called ``rms`` concern all environments.
    """
    if len(shares) == 1:
        return shares[0]
    whole: dict[str, Any] = {}
    for key, first in shares[0].items():
        items = [share[key] for share in shares]
        if isinstance(first, dict) and key != "rms":
            whole[key] = joined(items)
        elif isinstance(first, list):
            whole[key] = [entry for item in items for entry in item]
        else:
            whole[key] = np.concatenate(items) if isinstance(first, np.ndarray) else first
    return whole


def share(whole: dict[str, Any], rows: range) -> dict[str, Any]:
    """Returns the state of some environments, cut out of the state of all: the inverse of ``joined``."""
    part: dict[str, Any] = {}
    for key, item in whole.items():
        if isinstance(item, dict) and key != "rms":
            part[key] = share(item, rows)
        else:
            part[key] = item[rows.start : rows.stop] if isinstance(item, list | np.ndarray | torch.Tensor) else item
    return part
