"""Compares the native engine with Gymnasium before its first use: a MuJoCo or a numpy may compute differently."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from xcfast.envs.mujoco_tasks import NotNativeError
from xcfast.envs.vec_env import VecEnv

_VERDICTS: dict[tuple[Any, ...], str] = {}
_STEPS = 24


def check_against_gymnasium(env_id: str, env_kwargs: Mapping[str, Any], make_native: Callable[..., VecEnv]) -> None:
    """Compares a few steps of two envs, with ends of episodes, once per process, id and arguments.

    Args:
        env_id: Gymnasium's id.
        env_kwargs: for `gymnasium.make`.
        make_native: make_native(env_id, num_envs, num_threads, **env_kwargs) makes the native envs.

    Raises:
        NotNativeError: they differ.
    """
    key = (env_id, *sorted((name, repr(value)) for name, value in env_kwargs.items()))
    if key not in _VERDICTS:
        _VERDICTS[key] = _compare(env_id, env_kwargs, make_native)
    if _VERDICTS[key]:
        raise NotNativeError(f"{_VERDICTS[key]} on this machine")


def make_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """One environment of Gymnasium."""
    from xcfast.envs.make import make_env_fn  # which itself makes native environments

    return make_env_fn(env_id, **env_kwargs)()


def _compare(env_id: str, env_kwargs: Mapping[str, Any], make_native: Callable[..., VecEnv]) -> str:
    # A short time limit, so that truncation and autoreset take part.
    kwargs = {**env_kwargs, "max_episode_steps": _STEPS // 3}
    ours = make_native(env_id, 2, 1, **kwargs)
    theirs = [make_env(env_id, kwargs) for _ in range(2)]
    try:
        return _first_difference(ours, theirs)
    finally:
        ours.close()
        for env in theirs:
            env.close()


def _first_difference(ours: VecEnv, theirs: list[gymnasium.Env]) -> str:
    space: Any = ours.action_space
    rng = np.random.default_rng(0)
    obs, _ = ours.reset(seed=7)
    if not _same(obs, np.stack([env.reset(seed=7 + index)[0] for index, env in enumerate(theirs)])):
        return "its reset differs from Gymnasium's"
    for step in range(_STEPS):
        actions = rng.uniform(space.low, space.high).astype(np.float32)
        if step % 5 == 4:
            actions = space.high * np.sign(actions)
        obs, rewards, terminated, truncated, infos = ours.step(actions)
        for index, env in enumerate(theirs):
            ob, reward, *ends, _ = env.step(actions[index])
            if not _same_reward(rewards[index], float(reward)):
                return f"its reward differs from Gymnasium's ({rewards[index]} for {float(reward)})"
            if [bool(terminated[index]), bool(truncated[index])] != ends:
                return "its episodes end otherwise than Gymnasium's"
            if any(ends):
                if not _same(infos["final_obs"][index], ob):
                    return "its last observation of an episode differs from Gymnasium's"
                ob, _ = env.reset()
            if not _same(obs[index], ob):
                return "its observation differs from Gymnasium's"
    return ""


def _same(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> bool:
    return np.array_equal(ours, theirs, equal_nan=True)


def _same_reward(ours: float, theirs: float) -> bool:
    """Equal, or within one unit of float32's last place: what numpy's BLAS makes of a norm depends on the CPU."""
    return bool(np.isnan(theirs) and np.isnan(ours)) or abs(ours - theirs) <= np.spacing(np.float32(abs(theirs)))
