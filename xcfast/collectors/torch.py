"""Collectors: the env loop that fills a rollout."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.collectors.noise import ActionNoise
from xcfast.ranks.group import ALONE, Ranks

if TYPE_CHECKING:
    from xcfast.envs import VecEnv
    from xcfast.normalize import ObservationNormalizer
    from xcfast.policy import ActionMap, ActorCritic
    from xcfast.rollout import Rollout


class TorchCollector:
    """Collects with any vector env and any policy; the actor runs in torch on the policy's device.

    Observations are normalised with statistics that stay frozen until the rollout is full, then merged.
    """

    name = "torch"

    def __init__(
        self,
        envs: VecEnv,
        policy: ActorCritic,
        normalizer: ObservationNormalizer,
        action_map: ActionMap,
        seed: int,
        env_offset: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.envs = envs
        self.policy = policy
        self.noise = ActionNoise(policy, seed, envs.num_envs, env_offset)
        self._ranks = ranks
        self._normalizer = normalizer
        self._action_map = action_map
        self._obs: np.ndarray | None = None

    def reset(self, seed: int | list[int] | None) -> None:
        """Start new episodes in every env."""
        self._obs, _ = self.envs.reset(seed=seed)

    @torch.inference_mode()
    def collect(self, rollout: Rollout, num_steps: int | None = None) -> None:
        """Fill the next ``num_steps`` rows of the rollout (default: all that are left).

        When the rollout becomes full, ``rollout.last_obs`` is written and the observation statistics are merged.

        Raises:
            NonFiniteError: an env delivered NaN or infinity as an observation.
            RankError: there are several ranks, and something failed on one.
            WorkerError: an env failed.
        """
        with self._ranks.together():
            self._fill(rollout, num_steps)
        if rollout.full:
            self._normalizer.commit()

    def _fill(self, rollout: Rollout, num_steps: int | None) -> None:
        if self._obs is None:
            raise RuntimeError("collect() called before reset()")
        obs, normalizer, action_map = self._obs, self._normalizer, self._action_map
        end = rollout.rewards.shape[0] if num_steps is None else rollout.step + num_steps
        while rollout.step < end:
            row = rollout.obs[rollout.step]
            normalizer.normalize_and_track(obs, out=row)
            masks = None
            if rollout.action_masks is not None:
                masks = rollout.action_masks[rollout.step]
                masks[:] = self.envs.action_masks
            actions = self._sample(row, self.noise.next(), masks)
            obs, rewards, terminated, truncated, infos = self.envs.step(action_map(actions))
            final_obs = None
            timed_out = truncated & ~terminated
            if timed_out.any():
                final_obs = normalizer.normalize(np.stack(infos["final_obs"][timed_out]))
            actions = actions.reshape(rollout.actions.shape[1:])
            rollout.store(row, actions, rewards, terminated, truncated, final_obs=final_obs, action_masks=masks)
        self._obs = obs
        if rollout.full:
            normalizer.normalize(obs, out=rollout.last_obs)

    def _sample(self, obs: np.ndarray, noise: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Raw actions for normalised observations [N, ...], both on the CPU."""
        device, policy = self.policy.device, self.policy
        allowed = None if masks is None else torch.from_numpy(masks).to(device)
        output = policy.act(torch.from_numpy(obs).to(device), allowed)
        return policy.actor.sample(output, torch.from_numpy(noise).to(device)).cpu().numpy()

    @torch.inference_mode()
    def inference_seconds(self, repeats: int = 50) -> float:
        """Median time of one vector step's inference, from observations to actions on the CPU."""
        space = self.envs.single_observation_space
        obs = np.zeros((self.envs.num_envs, *(space.shape or ())), np.float32)
        noise = self.noise.zeros()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._sample(obs, noise)
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    def warm_up(self, rollout: Rollout) -> None:
        """Give the observation statistics a start: one rollout with the current policy, then discarded."""
        self.collect(rollout)
        rollout.clear()

    def state_dict(self, with_envs: bool = True) -> dict[str, Any]:
        """Noise counters, and the envs' state and last observations where they can be saved (else None)."""
        envs = self.envs.get_state() if with_envs and self.envs.state_supported else None
        return {"noise_counters": self.noise.counters.copy(), "envs": envs, "obs": self._obs}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore ``state_dict``; returns False where the envs' state was not saved, so that they must be reset."""
        self.noise.counters[:] = np.asarray(state["noise_counters"])
        if state["envs"] is None:
            return False
        self.envs.set_state(state["envs"])
        self._obs = np.asarray(state["obs"]).copy()
        return True
