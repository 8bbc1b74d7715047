"""Vector environments with XuanCe's interface, around those that xcfast steps."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcfast.config import Config, ConfigError
from xcfast.envs import VecEnv
from xcfast.envs import make_envs as make_vec_env
from xcfast.ranks.group import Ranks
from xcfast.xuance.arguments import to_config
from xcfast.xuance.checks import values_of
from xcfast.xuance.raw_environment import with_own_environment
from xcfast.xuance.script_ranks import share

_KEYS = ("env_id", "env_name", "env_seed", "vectorize", "native_envs", "parallels", "num_threads", "num_workers")
_MASK_KEYS = ("policy", "use_actions_mask")


class XuanCeVecEnv:
    """XuanCe's vector interface: spaces of one env, a list of infos, the final observation where an episode ends.

    An agent steps ``vec_env`` directly, in native code where that can serve; this class is for scripts that look at
    the envs, or step them.

    Attributes:
        vec_env: the Gymnasium vector env.
        num_envs: N.
        observation_space: of one env.
        action_space: of one env.
        max_episode_steps: the time limit, or None.
        buf_obs: [N, *obs_shape], the observations to act on next.
        uses: number of calls of ``reset`` and ``step``: an agent sees by it that others used its envs.
    """

    def __init__(self, vec_env: VecEnv, env_seed: int = 1) -> None:
        self.vec_env = vec_env
        self.num_envs: int = vec_env.num_envs
        self.observation_space = vec_env.single_observation_space
        self.action_space = vec_env.single_action_space
        spec = vec_env.spec
        self.max_episode_steps: int | None = None if spec is None else spec.max_episode_steps
        self.buf_obs: NDArray[Any] = np.zeros((self.num_envs, *(self.observation_space.shape or ())), np.float32)
        self.uses = 0
        self._seed: int | None = env_seed
        self._actions: NDArray[Any] | None = None

    def reset(self) -> tuple[NDArray[Any], list[dict[str, Any]]]:
        """New episodes in all envs; the first time, env i is seeded with env_seed + i."""
        self.uses += 1
        obs, _ = self.vec_env.reset(seed=self._seed)
        self._seed = None
        self.buf_obs = obs.copy()
        return obs.copy(), [{"episode_step": 0} for _ in range(self.num_envs)]

    def step_async(self, actions: Any) -> None:
        """Takes the actions [N, *action_shape] for ``step_wait``."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """See ``step``."""
        if self._actions is None:
            raise RuntimeError("step_wait() called before step_async()")
        actions, self._actions = self._actions, None
        self.uses += 1
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
            Observations [N, *obs_shape], the final one where an episode ends; rewards, terminated and truncated [N]; a
            list of N infos with ``episode_step`` and ``episode_score``, and where an episode ends ``reset_obs``, the
            first observation of the next one.
        """
        self.step_async(actions)
        return self.step_wait()

    def render(self, mode: str | None = None) -> Any:
        """What the first env shows, in a list.

        Raises:
            RuntimeError: the envs do not render.
        """
        if self.vec_env.render_mode is None:
            raise RuntimeError(
                "these environments were made without render_mode; an agent whose render is True shows its test in one "
                "of its own"
            )
        return [self.vec_env.render()]

    def close(self) -> None:
        """Closes the envs; calling it again does nothing."""
        self.vec_env.close()


def make_envs(config: Namespace | Config | Any) -> XuanCeVecEnv:
    """The environments that a script's arguments ask for: env_id, parallels, vectorize, env_seed.

    Where torchrun has started the script several times, each process makes its share of them; those of a test
    (``agent.test(env_fn)``) it makes whole.

    Raises:
        ConfigError: one of these keys cannot be, or there are fewer environments than processes.
        EnvError: the environment cannot be made.
    """
    given = config.to_dict() if isinstance(config, Config) else values_of("config", config)
    given = with_own_environment(given)
    names = (*_KEYS, *_MASK_KEYS) if given.get("use_actions_mask") else _KEYS
    keys = {name: given[name] for name in names if name in given}
    # Of the rest of the arguments a test environment need not make sense.
    small = {"horizon_size": 1, "n_minibatch": 1, "running_steps": 2**40}
    env_config = to_config({**keys, **small, "device": "cpu"})
    rows, sharing = share(env_config.parallels, given.get("device"))
    if not rows:
        raise ConfigError(
            "each process of a script that torchrun started needs one", key="parallels", given=env_config.parallels
        )
    envs = make_vec_env(env_config, num_envs=len(rows), sharing=sharing)
    return XuanCeVecEnv(envs, env_config.env_seed + rows.start)


def plain(envs: XuanCeVecEnv | VecEnv) -> VecEnv:
    """The vector env that is to be stepped.

    Raises:
        TypeError: it is of another kind.
    """
    inner = envs.vec_env if isinstance(envs, XuanCeVecEnv) else envs
    if not isinstance(inner, VecEnv):
        raise TypeError(f"envs must come from make_envs, or be a vector env of xcfast.envs; got {type(envs).__name__}")
    return inner


def total_envs(envs: VecEnv, ranks: Ranks) -> int:
    """Number of environments of all processes, of which this one has ``envs``.

    Raises:
        ConfigError: they are not divided as ``make_envs`` divides them.
    """
    total = int(ranks.sum_(np.array([envs.num_envs]))[0])
    if ranks.any_(envs.num_envs != len(ranks.rows(total))):
        raise ConfigError(
            "each process must have its share of the environments, as make_envs makes it", key="envs", given=total
        )
    return total
