"""NativeCollector: policy and physics in one C++ call, for native environments and plain networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.collectors.collector import check_autoreset
from xcfast.collectors.noise import ActionNoise
from xcfast.envs.classic import ClassicControlVecEnv
from xcfast.envs.mujoco import MujocoVecEnv
from xcfast.envs.native import NativeVecEnv
from xcfast.errors import NonFiniteError
from xcfast.policy.flat import FlatParameters
from xcfast.policy.native_form import network_spec
from xcfast.policy.native_form import reason_not_native as reason_policy_not_native
from xcfast.policy.networks import GaussianActor
from xcfast.ranks.group import ALONE, Ranks
from xcfast.rollout import EPISODE_DTYPE, check_finite

if TYPE_CHECKING:
    from xcfast.envs.vec_env import VecEnv
    from xcfast.normalize import ObservationNormalizer
    from xcfast.policy.action_map import ActionMap
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout

_TURN_SECONDS = 0.1  # how long native code works before Python may handle signals


def reason_not_native(envs: VecEnv, policy: ActorCritic) -> str | None:
    """Returns why native code cannot run this policy in these environments, as a phrase; None if it can."""
    if type(envs) not in (MujocoVecEnv, ClassicControlVecEnv):
        return f"it steps only MujocoVecEnv and ClassicControlVecEnv, and these environments are {type(envs).__name__}"
    return reason_policy_not_native(policy)


class EnvLoop:
    """Runs policy and environments in one loop in C++, to collect or to evaluate.

    Args:
        envs: The environments. All calls go through this object, so that one Python thread at a time steps them.
        policy: The policy. Its weights are read, from whatever device they are on, at the start of each call.
        normalizer: The normalizer of the observations.
        action_map: The map from the policy's samples to the environments' actions.

    Raises:
        ValueError: Native code cannot be used, see `reason_not_native`, or the environments do not reset in the step
            that ends an episode.
    """

    def __init__(
        self, envs: NativeVecEnv, policy: ActorCritic, normalizer: ObservationNormalizer, action_map: ActionMap
    ) -> None:
        check_autoreset(envs)
        reason = reason_not_native(envs, policy)
        if reason is not None:
            raise ValueError(f"native collection cannot be used: {reason}")
        from xcfast import _core

        self._envs = envs
        self._policy = policy
        self._normalizer = normalizer
        self._weights = FlatParameters(policy)
        bounds = ((), ()) if action_map.discrete else (action_map.low.ravel(), action_map.high.ravel())
        mapping = (action_map.scale, action_map.offset) if action_map.rescales else ((), ())
        self._core = _core.EnvLoop(
            engine=envs.engine,
            **network_spec(policy, self._weights),
            n_parameters=self._weights.array.size,
            low=bounds[0],
            high=bounds[1],
            scale=np.ravel(mapping[0]),
            offset=np.ravel(mapping[1]),
            normalizer=normalizer.memory(),
            normalize=normalizer.enabled,
            clip=normalizer.clip,
        )

    def collect(self, rollout: Rollout, noise: ActionNoise, num_steps: int) -> None:
        """Fills the next rows of a rollout.

        Args:
            rollout: The rollout to fill.
            noise: The noise that actions are sampled with.
            num_steps: The number of rows.

        Raises:
            SimulationError: MuJoCo raised an error. The rollout's step has not changed.
            NonFiniteError: The final observation of an episode that a time limit ended is not finite. The rollout's
                step has not changed.
        """
        self._load()
        self._core.begin_collection(
            rollout={name: getattr(rollout, name) for name in _ROLLOUT_ARRAYS},
            tracked=self._normalizer.memory(),
            seed=noise.seed % 2**64,
            env_offset=noise.env_offset,
            counters=noise.counters,
            ahead=noise.ahead(num_steps),
            begin=rollout.step,
            end=rollout.step + num_steps,
        )
        self._envs.drive(lambda: self._core.run(_TURN_SECONDS))
        episodes, final_index, final_obs, not_finite = self._core.end_collection()
        if not_finite >= 0:
            step, env = divmod(not_finite, self._envs.num_envs)
            raise NonFiniteError.at("final observation", noise.env_offset + env, step)
        rollout.advance(
            num_steps,
            np.frombuffer(episodes, EPISODE_DTYPE),
            final_index,
            final_obs.reshape(-1, *rollout.obs_shape),
        )

    def evaluate(
        self,
        quota: int,
        should_stop: Callable[[], bool] | None = None,
        report: Callable[[int], None] = lambda ended: None,
    ) -> np.ndarray | None:
        """Plays episodes with the policy's most likely actions; no statistics change.

        Args:
            quota: The number of episodes that count in each environment, the first ones from now on.
            should_stop: Called about every 100 ms; True ends the evaluation.
            report: Called as often with the number of episodes that have ended, of those that count.

        Returns:
            The returns of the episodes, float64 [N * quota], environment by environment; None if `should_stop` ended
            the evaluation.

        Note:
            The environments need a `reset` afterwards.
        """
        self._load()
        self._core.begin_evaluation(quota)
        stopped = False

        def run() -> bool:
            nonlocal stopped
            report(self._core.episodes_ended())
            stopped = should_stop is not None and should_stop()
            return stopped or self._core.run(_TURN_SECONDS)

        self._envs.drive(run)
        return None if stopped else self._core.end_evaluation()

    @torch.inference_mode()
    def _load(self) -> None:
        self._weights.read()
        actor = self._policy.actor
        deviation = actor.logstd.exp().cpu().numpy() if isinstance(actor, GaussianActor) else np.empty(0, np.float32)
        rms = self._normalizer.rms
        self._core.load(self._weights.array, deviation, rms.epsilon, rms.epsilon_outside)


class NativeCollector:
    """Collects with a native vector environment in one C++ call on its threads; `TorchCollector` is its reference.

    The network's outputs differ from torch's by rounding, and so do Gaussian actions. A Categorical action differs only
    if the noise is within rounding of a cumulative probability.

    Each thread takes its environments through all steps without waiting for the others. The result depends neither on
    the number of threads nor on how a rollout is divided into calls. `TorchCollector` can load its state.

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
        ValueError: Native code cannot be used, see `EnvLoop`, or the policy is Categorical and `noise_beta` is not 0.
    """

    name = "native"

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
        assert isinstance(envs, NativeVecEnv)
        self.envs = envs
        self.policy = policy
        self.noise = ActionNoise(policy, seed, envs.num_envs, env_offset, noise_beta)
        self._ranks = ranks
        self._normalizer = normalizer
        self._loop = EnvLoop(envs, policy, normalizer, action_map)
        self._is_reset = False

    def reset(self, seed: int | list[int] | None) -> None:
        """Starts new episodes in every environment; see `Collector.reset`."""
        self.envs.reset(seed=seed)
        self._is_reset = True

    def collect(self, rollout: Rollout, num_steps: int | None = None) -> None:
        """Fills the next rows of a rollout; see `Collector.collect`."""
        if not self._is_reset:
            raise RuntimeError("collect() called before reset()")
        steps = rollout.num_steps - rollout.step if num_steps is None else num_steps
        with self._ranks.together():
            self._loop.collect(rollout, self.noise, steps)
            if rollout.full:
                self._finish(rollout)
        if rollout.full:
            self._normalizer.commit()

    def _finish(self, rollout: Rollout) -> None:
        """Checks and normalizes the observations after the last step."""
        obs = self.envs.observations
        check_finite("observation", obs, self.noise.env_offset + np.arange(len(obs)))
        self._normalizer.normalize(obs, out=rollout.last_obs)

    def state_dict(self, with_envs: bool = True) -> dict[str, Any]:
        """Returns the noise counters, the environments' state (None unless wanted) and their last observations."""
        envs = self.envs.get_state() if with_envs else None
        obs = self.envs.observations.copy() if self._is_reset else None
        return {"noise_counters": self.noise.counters.copy(), "envs": envs, "obs": obs}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores what any collector's `state_dict` returned; see `Collector.load_state_dict`."""
        self.noise.counters[:] = np.asarray(state["noise_counters"])
        if state["envs"] is None:
            return False
        self.envs.set_state(state["envs"])
        self._is_reset = True
        return True


_ROLLOUT_ARRAYS = ("obs", "actions", "rewards", "terminated", "truncated", "episode_returns", "episode_lengths")
