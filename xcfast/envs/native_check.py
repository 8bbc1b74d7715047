"""Compares the native engine with Gymnasium before its first use: another version or CPU may compute differently."""

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from xcfast.envs import env_state
from xcfast.envs.construct import make_env_fn
from xcfast.envs.native import NativeVecEnv
from xcfast.errors import NonFiniteError, NotNativeError, TaskError

_VERDICTS: dict[tuple[Any, ...], str] = {}
_STEPS = 24


def check_against_gymnasium(
    env_id: str | type, env_kwargs: Mapping[str, Any], make_native: Callable[..., NativeVecEnv]
) -> None:
    """Compares a few steps of two environments, with ends of episodes, once per process, id and arguments.

    If `NativeVecEnv.probes` returns further states, it also compares a step from each of them, with the whole state
    afterwards, because observations are rounded.

    Args:
        env_id: Gymnasium's id.
        env_kwargs: Keyword arguments of `gymnasium.make`.
        make_native: A function; make_native(env_id, num_envs, num_threads, **env_kwargs) makes the native environments.

    Raises:
        NotNativeError: The native environments and Gymnasium's differ.
    """
    key = (env_id, *sorted((name, repr(value)) for name, value in env_kwargs.items()))
    if key not in _VERDICTS:
        _VERDICTS[key] = _compare(env_id, env_kwargs, make_native)
    if _VERDICTS[key]:
        raise NotNativeError(f"{_VERDICTS[key]} on this machine")


def _compare(env_id: str | type, env_kwargs: Mapping[str, Any], make_native: Callable[..., NativeVecEnv]) -> str:
    make_env_fn(env_id, **env_kwargs)().close()  # an error here names the arguments that were given, and no others
    # A short time limit, so that truncation and autoreset occur.
    kwargs = {**env_kwargs, "max_episode_steps": _STEPS // 3}
    rng = np.random.default_rng(0)
    ours = make_native(env_id, 2, 1, **kwargs)
    theirs = [make_env_fn(env_id, **kwargs)() for _ in range(2)]
    try:
        if not ours.exact:
            return _difference_of_own_task(ours, theirs, rng)
        difference = _first_difference(ours, theirs, rng)
        probes = ours.probes(rng)
        if difference or not probes:
            return difference
        many = make_native(env_id, len(probes), 1, **kwargs)
        try:
            return _first_difference_from(probes, many, theirs[0], rng)
        finally:
            many.close()
    finally:
        ours.close()
        for env in theirs:
            env.close()


def _difference_of_own_task(ours: NativeVecEnv, theirs: list[gymnasium.Env], rng: np.random.Generator) -> str:
    """Compares the compiled functions of a task of one's own with the same functions as Python.

    These run first, alone: what they raise is an error of the task, and an index out of range would make compiled code
    write into foreign memory.

    Raises:
        TaskError: The task fails in its first steps.
    """
    tried = np.random.default_rng(0)
    try:
        for index, env in enumerate(theirs):
            env.reset(seed=7 + index)
        for _ in range(_STEPS):
            for action, env in zip(random_actions(ours, tried), theirs, strict=True):
                if any(env.step(action)[2:4]):
                    env.reset()
    except Exception as error:
        if isinstance(error, TaskError | NonFiniteError):
            raise TaskError(str(error)) from None
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise TaskError(f"{place.filename}:{place.lineno}: {place.line}: {type(error).__name__}: {error}") from error
    difference = _first_difference(ours, theirs, rng).replace("Gymnasium's", "that of the same functions as Python")
    return f"{difference}; does a function keep something between its calls besides memory?" if difference else ""


def _first_difference(ours: NativeVecEnv, theirs: list[gymnasium.Env], rng: np.random.Generator) -> str:
    same = _same if ours.exact else _nearly_same
    obs, _ = ours.reset(seed=7)
    if not same(obs, np.stack([env.reset(seed=7 + index)[0] for index, env in enumerate(theirs)])):
        return "its reset differs from Gymnasium's"
    for step in range(_STEPS):
        actions = random_actions(ours, rng)
        if step % 5 == 4 and not isinstance(ours.single_action_space, Discrete):
            actions = _bounds(ours)[1] * np.sign(actions)
        obs, rewards, terminated, truncated, infos = ours.step(actions)
        for index, env in enumerate(theirs):
            ob, reward, *ends, _ = env.step(actions[index])
            if not (_same_reward(rewards[index], float(reward)) or same(rewards[index], np.float64(reward))):
                return f"its reward differs from Gymnasium's ({rewards[index]} for {float(reward)})"
            if [bool(terminated[index]), bool(truncated[index])] != ends:
                return "its episodes end at other steps than Gymnasium's"
            if any(ends):
                if not same(infos["final_obs"][index], ob):
                    return "its last observation of an episode differs from Gymnasium's"
                ob, _ = env.reset()
            if not same(obs[index], ob):
                return "its observation differs from Gymnasium's"
    return ""


def _first_difference_from(
    probes: list[dict[str, Any]], ours: NativeVecEnv, theirs: gymnasium.Env, rng: np.random.Generator
) -> str:
    ours.reset(seed=7)
    states = ours.get_state()
    for state, probe in zip(states["envs"], probes, strict=True):
        state.update(probe)
    ours.set_state(states)
    actions = random_actions(ours, rng)
    obs, rewards, terminated, _, infos = ours.step(actions)
    after = ours.get_state()["envs"]
    for index, state in enumerate(states["envs"]):
        env_state.set_state(theirs, state)
        ob, reward, is_terminated, _, _ = theirs.step(actions[index])
        if terminated[index] != is_terminated or not np.array_equal(rewards[index], float(reward), equal_nan=True):
            return f"its step from the state {probes[index]['physics']} differs from Gymnasium's"
        if is_terminated:
            if not _same(infos["final_obs"][index], ob):
                return "its last observation of an episode differs from Gymnasium's"
        elif not _same(obs[index], ob) or not _same(after[index]["physics"], env_state.get_state(theirs)["physics"]):
            return f"its step from the state {probes[index]['physics']} differs from Gymnasium's"
    return ""


def random_actions(envs: NativeVecEnv, rng: np.random.Generator) -> NDArray[Any]:
    """Returns uniform actions for one vector step."""
    space: Any = envs.single_action_space
    if isinstance(space, Discrete):
        return rng.integers(space.start, space.start + space.n, envs.num_envs)
    return rng.uniform(*_bounds(envs)).astype(space.dtype)


def _bounds(envs: NativeVecEnv) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the bounds of the actions, and 1 for those that are infinite."""
    space: Any = envs.action_space
    return np.where(np.isfinite(space.low), space.low, -1), np.where(np.isfinite(space.high), space.high, 1)


def _same(ours: Any, theirs: Any) -> bool:
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=True)


def _nearly_same(ours: Any, theirs: Any) -> bool:
    """Returns whether numbers differ by what a few steps make of a last place, in which compiled code may differ."""
    return ours.dtype == theirs.dtype and np.allclose(ours, theirs, rtol=1e-6, atol=1e-9, equal_nan=True)


def _same_reward(ours: float, theirs: float) -> bool:
    """Returns whether the rewards differ by at most one unit of float32's last place.

    A norm that numpy's BLAS computes depends on the CPU.
    """
    return bool(np.isnan(theirs) and np.isnan(ours)) or abs(ours - theirs) <= np.spacing(np.float32(abs(theirs)))
