"""Vector environments with XuanCe's interface, around the ones that xcfast steps."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcfast.config.schema import Config
from xcfast.envs.make import make_envs as make_vec_env
from xcfast.envs.vec_env import VecEnv
from xcfast.errors import ConfigError
from xcfast.ranks.group import Ranks
from xcfast.xuance.arguments import to_config
from xcfast.xuance.checks import values_of
from xcfast.xuance.raw_environment import with_own_environment
from xcfast.xuance.script_ranks import share

_KEYS = (
    *("env_id", "env_name", "env_kwargs", "env_wrappers", "env_seed", "env_timeout"),
    *("vectorize", "native_envs", "parallels", "num_threads", "num_workers"),
)
_MASK_KEYS = ("policy", "use_actions_mask")


class XuanCeVecEnv:
    """XuanCe's vector interface: spaces of one env, a list of infos, the final observation at the end of an episode.

    An agent steps ``vec_env`` directly, in native code where possible. This class is for scripts that look at the
    environments or step them.

    Args:
        vec_env: The Gymnasium vector environment.
        env_seed: The first reset seeds env i with ``env_seed + i``.

    Attributes:
        vec_env: The Gymnasium vector environment.
        num_envs: Number of environments, N.
        observation_space: Observation space of one env.
        action_space: Action space of one env.
        max_episode_steps: The time limit in steps, or None.
        buf_obs: [N, *obs_shape], the observations that the next actions are for.
    """

    def __init__(self, vec_env: VecEnv, env_seed: int = 1) -> None:
        self.vec_env = vec_env
        self.num_envs: int = vec_env.num_envs
        self.observation_space = vec_env.single_observation_space
        self.action_space = vec_env.single_action_space
        spec = vec_env.spec
        self.max_episode_steps: int | None = None if spec is None else spec.max_episode_steps
        self.buf_obs: NDArray[Any] = np.zeros((self.num_envs, *(self.observation_space.shape or ())), np.float32)
        self._seed: int | None = env_seed
        self._actions: NDArray[Any] | None = None

    def reset(self) -> tuple[NDArray[Any], list[dict[str, Any]]]:
        """Begins new episodes in all envs; the first call seeds env i with ``env_seed + i``.

        Returns:
            The observations [N, *obs_shape], and a list of N infos.
        """
        obs, _ = self.vec_env.reset(seed=self._seed)
        self._seed = None
        self.buf_obs = obs.copy()
        return obs.copy(), [{"episode_step": 0} for _ in range(self.num_envs)]

    def step_async(self, actions: Any) -> None:
        """Keeps the actions [N, *action_shape] for ``step_wait``."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """Steps all envs with the actions of ``step_async``; see ``step`` for what it returns.

        Raises:
            RuntimeError: ``step_async`` was not called before.
        """
        if self._actions is None:
            raise RuntimeError("step_wait() called before step_async()")
        actions, self._actions = self._actions, None
        lengths = self.vec_env.episode_lengths + 1
        obs, rewards, terminated, truncated, infos = self.vec_env.step(actions)
        self.buf_obs = obs.copy()
        returned = obs.copy()
        listed: list[dict[str, Any]] = [
            {"episode_step": int(lengths[i]), "episode_score": float(self.vec_env.episode_returns[i])}
            for i in range(self.num_envs)
        ]
        for i in np.flatnonzero(terminated | truncated):
            returned[i] = infos["final_obs"][i]
            listed[i] |= {"episode_score": float(infos["episode"]["r"][i]), "reset_obs": self.buf_obs[i].copy()}
        return returned, rewards.copy(), terminated.copy(), truncated.copy(), listed

    def step(self, actions: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """Steps all envs with actions [N, *action_shape].

        Returns:
            Observations [N, *obs_shape], the final one where an episode ends; rewards, terminated and truncated [N];
            and a list of N infos with ``episode_step`` and ``episode_score``. Where an episode ends, the info also has
            ``reset_obs``, the first observation of the next episode.
        """
        self.step_async(actions)
        return self.step_wait()

    def render(self, mode: str | None = None) -> Any:
        """Returns a list with the picture of the first env.

        Raises:
            RuntimeError: The envs were made without a render mode.
        """
        if self.vec_env.render_mode is None:
            raise RuntimeError(
                "these environments were made without render_mode; an agent whose render is True shows its test in one "
                "of its own"
            )
        return [self.vec_env.render()[0]]

    def close(self) -> None:
        """Closes the envs; calling it again does nothing."""
        self.vec_env.close()


def make_envs(config: Namespace | Config | Any) -> XuanCeVecEnv:
    """Makes the environments that a script's arguments describe (``env_name``, ``env_id``, ``parallels`` and others).

    If torchrun has started the script in several processes, each one makes its share of the training environments. The
    environments of a test (``agent.test(env_fn)``) are not divided.

    Args:
        config: The script's arguments.

    Raises:
        ConfigError: One of these keys has a wrong value, or there are fewer environments than processes.
        EnvError: The environment cannot be made.
    """
    given = config.to_dict() if isinstance(config, Config) else values_of("config", config)
    given = with_own_environment(given)
    names = (*_KEYS, *_MASK_KEYS) if given.get("use_actions_mask") else _KEYS
    keys = {name: given[name] for name in names if name in given}
    # The other keys are not checked: for the few environments of a test they need not fit together.
    small = {"horizon_size": 2, "n_minibatch": 1, "running_steps": 2**40}
    env_config = to_config({**keys, **small, "device": "cpu"})
    rows, sharing = share(env_config.parallels, given.get("device"))
    if not rows:
        raise ConfigError(
            "each process that torchrun has started needs at least one environment",
            key="parallels",
            given=env_config.parallels,
        )
    envs = make_vec_env(env_config, num_envs=len(rows), sharing=sharing)
    return XuanCeVecEnv(envs, env_config.env_seed + rows.start)


def plain(envs: XuanCeVecEnv | VecEnv) -> VecEnv:
    """Returns the vector environment of xcfast inside ``envs``, or ``envs`` itself.

    Raises:
        TypeError: It is neither a ``XuanCeVecEnv`` nor a vector environment of xcfast.
    """
    inner = envs.vec_env if isinstance(envs, XuanCeVecEnv) else envs
    if not isinstance(inner, VecEnv):
        raise TypeError(f"envs must come from make_envs, or be a vector env of xcfast.envs; got {type(envs).__name__}")
    return inner


def total_envs(envs: VecEnv, ranks: Ranks) -> int:
    """Returns the number of environments of all processes together.

    Args:
        envs: The environments of this process.
        ranks: The processes.

    Raises:
        ConfigError: The environments are not divided as ``make_envs`` divides them.
    """
    total = int(ranks.sum_(np.array([envs.num_envs]))[0])
    if ranks.any_(envs.num_envs != len(ranks.rows(total))):
        raise ConfigError(
            "each process must have its share of the environments, as make_envs makes it", key="envs", given=total
        )
    return total
