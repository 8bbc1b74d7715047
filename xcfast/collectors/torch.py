"""TorchCollector: any vector environment and any policy, with the actor in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.collectors.collector import check_autoreset
from xcfast.collectors.noise import ActionNoise
from xcfast.ranks.group import ALONE, Ranks
from xcfast.rollout import check_finite

if TYPE_CHECKING:
    from xcfast.envs.vec_env import VecEnv
    from xcfast.normalize import ObservationNormalizer
    from xcfast.policy.action_map import ActionMap
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout


class TorchCollector:
    """Collects with any vector environment and any policy; the actor runs in torch on the policy's device.

    Observations are normalized with statistics that stay frozen until the rollout is full, then merged.

    Args:
        envs: The vector environment to step.
        policy: The policy that chooses the actions.
        normalizer: The normalizer of the observations.
        action_map: The map from the policy's samples to the environments' actions.
        seed: The seed of the action noise.
        env_offset: The global index of the first environment.
        ranks: The ranks that collect together.
        noise_beta: The exponent of the action noise's spectrum; see `ActionNoise`.

    Raises:
        ValueError: The environments do not reset in the step that ends an episode, or the policy is Categorical and
            `noise_beta` is not 0.
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
        noise_beta: float = 0.0,
    ) -> None:
        check_autoreset(envs)
        self.envs = envs
        self.policy = policy
        self.noise = ActionNoise(policy, seed, envs.num_envs, env_offset, noise_beta)
        self._ranks = ranks
        self._normalizer = normalizer
        self._action_map = action_map
        self._obs: np.ndarray | None = None

    def reset(self, seed: int | list[int] | None) -> None:
        """Starts new episodes in every environment; see `Collector.reset`."""
        self._obs, _ = self.envs.reset(seed=seed)

    @torch.inference_mode()
    def collect(self, rollout: Rollout, num_steps: int | None = None) -> None:
        """Fills the next rows of a rollout; see `Collector.collect`."""
        with self._ranks.together():
            self._fill(rollout, num_steps)
        if rollout.full:
            self._normalizer.commit()

    def _fill(self, rollout: Rollout, num_steps: int | None) -> None:
        if self._obs is None:
            raise RuntimeError("collect() called before reset()")
        obs, normalizer, action_map = self._obs, self._normalizer, self._action_map
        first_env = self.noise.env_offset
        end = rollout.rewards.shape[0] if num_steps is None else rollout.step + num_steps
        for noise in self.noise.steps(end - rollout.step):
            row = rollout.obs[rollout.step]
            normalizer.normalize_and_track(obs, out=row)
            masks = None
            if rollout.action_masks is not None:
                masks = rollout.action_masks[rollout.step]
                masks[:] = self.envs.action_masks
            actions = self._sample(row, noise, masks)
            obs, rewards, terminated, truncated, infos = self.envs.step(action_map(actions))
            final_obs = None
            timed_out = truncated & ~terminated
            if timed_out.any():
                final_obs = np.stack(infos["final_obs"][timed_out])
                check_finite("final observation", final_obs, first_env + np.flatnonzero(timed_out), rollout.step)
                final_obs = normalizer.normalize(final_obs)
            actions = actions.reshape(rollout.actions.shape[1:])
            rollout.store(row, actions, rewards, terminated, truncated, final_obs=final_obs, action_masks=masks)
        self._obs = obs
        if rollout.full:
            check_finite("observation", obs, first_env + np.arange(len(obs)))
            normalizer.normalize(obs, out=rollout.last_obs)

    def _sample(self, obs: np.ndarray, noise: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Returns raw actions for normalized observations [N, ...], both on the CPU."""
        device, policy = self.policy.device, self.policy
        allowed = None if masks is None else torch.from_numpy(masks).to(device)
        output = policy.act(torch.from_numpy(obs).to(device), allowed)
        return policy.actor.sample(output, torch.from_numpy(noise).to(device)).cpu().numpy()

    def state_dict(self, with_envs: bool = True) -> dict[str, Any]:
        """Returns the noise counters, the environments' state (None without one) and their last observations."""
        envs = self.envs.get_state() if with_envs and self.envs.state_supported else None
        return {"noise_counters": self.noise.counters.copy(), "envs": envs, "obs": self._obs}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores what `state_dict` returned; see `Collector.load_state_dict`."""
        self.noise.counters[:] = np.asarray(state["noise_counters"])
        if state["envs"] is None:
            return False
        self.envs.set_state(state["envs"])
        self._obs = np.asarray(state["obs"]).copy()
        return True
