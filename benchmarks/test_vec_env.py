"""Vector environments: speed-up over the serial loop, and what a vector step costs beyond the environments' own."""

import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from xcfast.envs import DummyVecEnv, SubprocVecEnv, available_cpus, make_env_fn

NUM_ENVS, NUM_WORKERS = 16, 2
SMOKE = os.environ.get("XCFAST_BENCH_SMOKE") == "1"


class Clocked(gymnasium.Wrapper):
    """Adds up the seconds spent in the environment itself."""

    seconds = 0.0

    def step(self, action: Any) -> Any:
        start = perf_counter()
        result = self.env.step(action)
        self.seconds += perf_counter() - start
        return result

    def reset(self, **kwargs: Any) -> Any:
        start = perf_counter()
        result = self.env.reset(**kwargs)
        self.seconds += perf_counter() - start
        return result


def clocked(env_fn: Callable[[], gymnasium.Env]) -> Callable[[], gymnasium.Env]:
    return lambda: Clocked(env_fn())


def stepper(envs: VectorEnv, actions: np.ndarray) -> Callable[[], None]:
    """One call takes all the actions, from the same start each time, so that all contenders do the same physics."""

    def run() -> None:
        envs.reset(seed=0)
        for action in actions:
            envs.step(action)

    return run


@pytest.mark.parametrize("env_id", ["Ant-v4"])
def test_speed_up(compare: Any, env_id: str) -> None:
    shape = f"{env_id}, {NUM_ENVS} envs, {NUM_WORKERS} workers"
    names = ["DummyVecEnv", "SubprocVecEnv", "gymnasium AsyncVectorEnv, shared memory", "gymnasium SyncVectorEnv"]
    groups = "vector step: against the serial loop", "vector step: against gymnasium"
    if available_cpus() < NUM_WORKERS:
        for group in groups:
            compare.not_measured(group, names, shape=shape, reason=f"needs {NUM_WORKERS} CPUs")
        return
    env_fns = [make_env_fn(env_id)] * NUM_ENVS
    same_step = AutoresetMode.SAME_STEP
    vector_envs: dict[str, Any] = dict(
        zip(
            names,
            (
                DummyVecEnv(env_fns, copy=False),
                SubprocVecEnv(env_fns, NUM_WORKERS, copy=False),
                AsyncVectorEnv(env_fns, shared_memory=True, copy=False, autoreset_mode=same_step),
                SyncVectorEnv(env_fns, copy=False, autoreset_mode=same_step),
            ),
            strict=True,
        )
    )
    space = vector_envs["DummyVecEnv"].action_space
    rng = np.random.default_rng(0)
    actions = rng.uniform(space.low, space.high, (5 if SMOKE else 40, *space.shape)).astype(space.dtype)
    try:
        functions = {name: stepper(envs, actions) for name, envs in vector_envs.items()}
        for function in functions.values():
            function()
        ends = [envs.step(actions[0])[0].copy() for envs in vector_envs.values()]
        for end in ends[1:]:
            np.testing.assert_array_equal(end, ends[0])

        # One reset in 41 parts; all contenders pay for it.
        timings = compare(
            groups[0],
            functions,
            baseline="DummyVecEnv",
            contender="SubprocVecEnv",
            kind="at_least",
            target=1.7,
            shape=shape,
            items=len(actions),
            max_time=30.0,
        )
        asynchronous = {name: timings.seconds[name] for name in (names[2], names[1])}
        compare.record(groups[1], asynchronous, baseline=names[2], kind="at_least", target=1.0, shape=shape)
    finally:
        for envs in vector_envs.values():
            envs.close()


def test_cost_beyond_the_environments(compare: Any) -> None:
    """A vector step less the time that the slower worker spends inside its environments (both in the same steps)."""
    group, shape = "vector step: cost beyond env.step", f"InvertedPendulum-v4, {NUM_ENVS} envs, {NUM_WORKERS} workers"
    if available_cpus() < NUM_WORKERS:
        compare.not_measured(group, "SubprocVecEnv", shape=shape, reason=f"needs {NUM_WORKERS} CPUs")
        return
    envs = SubprocVecEnv([clocked(make_env_fn("InvertedPendulum-v4"))] * NUM_ENVS, NUM_WORKERS, copy=False)
    half = NUM_ENVS // NUM_WORKERS  # a worker's slice
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (64, NUM_ENVS, 1)).astype(np.float32)
    inside, total = [], []
    try:
        envs.reset(seed=0)
        steps, rounds = (10, 2) if SMOKE else (500, 21)
        for _ in range(rounds):
            before = np.array(envs.get_attr("seconds")).reshape(NUM_WORKERS, half).sum(axis=1)
            start = perf_counter()
            for step in range(steps):
                envs.step(actions[step % len(actions)])
            total.append((perf_counter() - start) / steps)
            after = np.array(envs.get_attr("seconds")).reshape(NUM_WORKERS, half).sum(axis=1)
            inside.append((after - before).max() / steps)
    finally:
        envs.close()
    assert all(part > 0 for part in inside)
    series = {"env.step of the slower worker": inside, "SubprocVecEnv": total}
    compare.record(
        group, series, baseline="env.step of the slower worker", kind="excess_at_most", target=40e-6, shape=shape
    )
