"""Tells who asked for DummyVecEnv, once, that native threads would do the same faster."""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from xcfast.envs.classic import ClassicControlVecEnv
from xcfast.envs.errors import EnvError
from xcfast.envs.mujoco import MujocoVecEnv
from xcfast.envs.native_check import make_env, random_actions
from xcfast.envs.registration import CLASSIC_IDS, NATIVE_IDS

_said: set[str] = set()
_ROUNDS, _SECONDS = 3, 0.01  # per round and kind


def native_kind(env_id: str) -> type[MujocoVecEnv] | type[ClassicControlVecEnv]:
    """The native vector environment that serves `env_id`, if one does."""
    return ClassicControlVecEnv if env_id in CLASSIC_IDS else MujocoVecEnv


def mention_native(env_id: str, num_envs: int) -> None:
    """Prints one line on stderr, once per process and id, if the native engine would serve."""
    if env_id not in NATIVE_IDS or env_id in _said:
        return
    _said.add(env_id)
    try:
        factor = native_speedup(env_id, min(num_envs, 16))
    except (EnvError, ImportError):  # it would not serve
        return
    print(
        f"xcfast: vectorize: {native_kind(env_id).__name__} would step {env_id} about {factor:.1f} times as fast here, "
        "bit for bit alike",
        file=sys.stderr,
    )


def native_speedup(env_id: str, num_envs: int) -> float:
    """How many times as many steps per second the native engine makes as Gymnasium's environment; takes 0.1 s."""
    native, env = native_kind(env_id)(env_id, num_envs, copy=False), make_env(env_id, {})
    try:
        actions = random_actions(native, np.random.default_rng(0))
        native.reset(seed=0)
        env.reset(seed=0)

        def one_step() -> None:
            _, _, terminated, truncated, _ = env.step(actions[0])
            if terminated or truncated:
                env.reset()

        ratios = []
        for _ in range(_ROUNDS):
            theirs = _seconds_per_call(one_step)
            ours = _seconds_per_call(lambda: native.step(actions)) / num_envs
            ratios.append(theirs / ours)
        return float(np.median(ratios))
    finally:
        native.close()
        env.close()


def _seconds_per_call(function: Callable[[], Any]) -> float:
    function()
    start, calls = perf_counter(), 0
    while (now := perf_counter()) < start + _SECONDS:
        function()
        calls += 1
    return (now - start) / max(calls, 1)
