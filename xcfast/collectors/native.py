"""NativeCollector: policy and physics in one C++ call, for the native envs and policies without LayerNorm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.collectors.noise import ActionNoise
from xcfast.envs import ClassicControlVecEnv, MujocoVecEnv, NativeVecEnv
from xcfast.policy import GaussianActor
from xcfast.policy.flat import FlatParameters
from xcfast.policy.native_form import network_spec
from xcfast.policy.native_form import reason_not_native as reason_policy_not_native
from xcfast.ranks.group import ALONE, Ranks
from xcfast.rollout import EPISODE_DTYPE

if TYPE_CHECKING:
    from xcfast.envs import VecEnv
    from xcfast.normalize import ObservationNormalizer
    from xcfast.policy import ActionMap, ActorCritic
    from xcfast.rollout import Rollout


def reason_not_native(envs: VecEnv, policy: ActorCritic) -> str | None:
    """Why native code cannot run this policy in these envs, as a phrase; None if it can."""
    if type(envs) not in (MujocoVecEnv, ClassicControlVecEnv):
        return f"it steps MujocoVecEnv and ClassicControlVecEnv; these environments are {type(envs).__name__}"
    return reason_policy_not_native(policy)


class EnvLoop:
    """Policy and envs in one loop in C++; collection and evaluation prepare what it is to do.

    Args:
        envs: all calls go through it, so that one Python thread at a time steps the envs.
        policy: its weights are read, from whatever device they are on, at the start of each call.
        normalizer: of the observations.
        action_map: of the envs' action space.

    Raises:
        ValueError: native code cannot serve; see ``reason_not_native``.
    """

    def __init__(
        self, envs: NativeVecEnv, policy: ActorCritic, normalizer: ObservationNormalizer, action_map: ActionMap
    ) -> None:
        reason = reason_not_native(envs, policy)
        if reason is not None:
            raise ValueError(f"native collection cannot serve: {reason}")
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
            epsilon=normalizer.rms.epsilon,
            clip=normalizer.clip,
        )

    def collect(self, rollout: Rollout, noise: ActionNoise, num_steps: int) -> None:
        """Fill the next rows of the rollout.

        Raises:
            SimulationError: MuJoCo raised an error; the rollout's step has not moved.
        """
        self._load()
        self._core.begin_collection(
            rollout={name: getattr(rollout, name) for name in _ROLLOUT_ARRAYS},
            tracked=self._normalizer.memory(),
            seed=noise.seed % 2**64,
            env_offset=noise.env_offset,
            counters=noise.counters,
            begin=rollout.step,
            end=rollout.step + num_steps,
        )
        self._envs.drive(self._core.run)
        episodes, final_index, final_obs = self._core.end_collection()
        rollout.advance(
            num_steps,
            np.frombuffer(episodes, EPISODE_DTYPE),
            final_index,
            final_obs.reshape(-1, *rollout.obs_shape),
        )

    def evaluate(self, quota: int) -> np.ndarray:
        """Returns float64 [N * quota] of the first ``quota`` episodes of each env from now on, env by env.

        The actions are the policy's most likely ones; nothing is tracked. The envs need a ``reset`` afterwards.
        """
        self._load()
        self._core.begin_evaluation(quota)
        self._envs.drive(self._core.run)
        return self._core.end_evaluation()

    @torch.inference_mode()
    def _load(self) -> None:
        self._weights.read()
        actor = self._policy.actor
        deviation = actor.logstd.exp().cpu().numpy() if isinstance(actor, GaussianActor) else np.empty(0, np.float32)
        self._core.load(self._weights.array, deviation)


class NativeCollector:
    """Collects with a native vector env in one C++ call on its threads; ``TorchCollector`` is its reference.

    Outputs of the network differ from torch's by rounding. A Gaussian action differs as little; a Categorical one is
    the same but where the noise lies as near to a cumulative probability as rounding moves it.

    Each thread takes its envs through all steps without waiting for the others. The result does not depend on the
    number of threads, nor on how a rollout is divided into calls. State is interchangeable with ``TorchCollector``'s.
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
    ) -> None:
        assert isinstance(envs, NativeVecEnv)
        self.envs = envs
        self.policy = policy
        self.noise = ActionNoise(policy, seed, envs.num_envs, env_offset)
        self._ranks = ranks
        self._normalizer = normalizer
        self._loop = EnvLoop(envs, policy, normalizer, action_map)
        self._is_reset = False

    def reset(self, seed: int | list[int] | None) -> None:
        """Start new episodes in every env."""
        self.envs.reset(seed=seed)
        self._is_reset = True

    def collect(self, rollout: Rollout, num_steps: int | None = None) -> None:
        """Fill the next ``num_steps`` rows of the rollout (default: all that are left).

        When the rollout becomes full, ``rollout.last_obs`` is written and the observation statistics are merged.

        Raises:
            NonFiniteError: an env delivered NaN or infinity as an observation.
            RankError: there are several ranks, and something failed on one.
            SimulationError: MuJoCo raised an error in an env.
        """
        if not self._is_reset:
            raise RuntimeError("collect() called before reset()")
        steps = rollout.num_steps - rollout.step if num_steps is None else num_steps
        with self._ranks.together():
            self._loop.collect(rollout, self.noise, steps)
            if rollout.full:
                self._normalizer.normalize(self.envs.observations, out=rollout.last_obs)
        if rollout.full:
            self._normalizer.commit()

    def warm_up(self, rollout: Rollout) -> None:
        """Give the observation statistics a start: one rollout with the current policy, then discarded."""
        self.collect(rollout)
        rollout.clear()

    def state_dict(self, with_envs: bool = True) -> dict[str, Any]:
        """Noise counters, and the envs' state and last observations (else None)."""
        envs = self.envs.get_state() if with_envs else None
        obs = self.envs.observations.copy() if self._is_reset else None
        return {"noise_counters": self.noise.counters.copy(), "envs": envs, "obs": obs}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore any collector's ``state_dict``; False where the envs' state was not saved: they must be reset."""
        self.noise.counters[:] = np.asarray(state["noise_counters"])
        if state["envs"] is None:
            return False
        self.envs.set_state(state["envs"])
        self._is_reset = True
        return True


_ROLLOUT_ARRAYS = ("obs", "actions", "rewards", "terminated", "truncated", "episode_returns", "episode_lengths")
