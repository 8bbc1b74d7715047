"""MujocoVecEnv: against the physics alone, Gymnasium's own vector environment, one thread; and a thousand envs."""

import gc
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from interleave import SMOKE, Measured
from mujoco.rollout import Rollout
from peers import Runner

from xcfast.envs import MujocoVecEnv, available_cpus, make_env_fn

NUM_ENVS, NUM_THREADS = 16, 2
VECTOR_STEPS = 5 if SMOKE else 100
STEPS = NUM_ENVS * VECTOR_STEPS
SEGMENT = 5  # steps
FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS


def actions_for(envs: Any, steps: int = VECTOR_STEPS) -> np.ndarray:
    space = envs.action_space
    return np.random.default_rng(0).uniform(space.low, space.high, (steps, *space.shape)).astype(np.float32)


def stepper(envs: Any, actions: np.ndarray) -> Measured:
    """Seconds per step of one environment: all the actions, from the same start each time, without that first reset."""

    def run() -> float:
        envs.reset(seed=0)
        start = perf_counter()
        for action in actions:
            envs.step(action)
        return (perf_counter() - start) / actions[..., 0].size

    return Measured(run)


def physics_alone(
    envs: MujocoVecEnv,
    actions: np.ndarray,
    num_threads: int,
    to_controls: Callable[[np.ndarray], np.ndarray] = lambda actions: actions,
) -> Callable[[], Any]:
    """As many steps of the same physics on the same states: MuJoCo's own C++ rollout of what `stepper` goes through.

    The trajectory is cut into segments, each from its recorded state on, since a rollout cannot reset. A segment in
    which an episode ends runs on without the reset.
    """
    model, datas = envs.get_attr("model")[0], envs.get_attr("data")
    frame_skip, num_states = envs.get_attr("frame_skip")[0], mujoco.mj_stateSize(model, FULL)
    states, warmstarts, controls = [], [], []
    envs.reset(seed=0)
    for segment in actions.reshape(-1, SEGMENT, *actions.shape[1:]):
        state = np.empty((envs.num_envs, num_states))
        for row, data in zip(state, datas, strict=True):
            mujoco.mj_getState(model, data, row, FULL)
        states.append(state)
        warmstarts.append(np.stack([data.qacc_warmstart.copy() for data in datas]))
        controls.append(np.repeat(to_controls(segment).swapaxes(0, 1), frame_skip, axis=1).astype(np.float64))
        for action in segment:
            envs.step(action)
    state, warmstart, control = (np.concatenate(parts) for parts in (states, warmstarts, controls))
    out = np.empty((*control.shape[:2], num_states))
    rollout = Rollout(nthread=num_threads if num_threads > 1 else 0)
    own = [mujoco.MjData(model) for _ in range(num_threads)]
    return lambda: rollout.rollout(model, own, state, control, initial_warmstart=warmstart, state=out)


# Ant-v5 and Humanoid-v5 also pay for contact forces (mj_rnePostConstraint), which the physics alone leaves out.
@pytest.mark.parametrize(
    "env_id, target",
    [
        ("Ant-v4", 0.95),
        ("HalfCheetah-v4", 0.90),
        ("Hopper-v4", 0.95),
        ("Humanoid-v4", None),
        ("Ant-v5", None),
        ("Humanoid-v5", None),
    ],
)
def test_physics_limit(compare: Any, env_id: str, target: float | None) -> None:
    group, shape = "native step: share of the physics limit", f"{env_id}, {NUM_ENVS} envs, {NUM_THREADS} threads"
    if available_cpus() < NUM_THREADS:
        compare.not_measured(group, "MujocoVecEnv", shape=shape, reason=f"needs {NUM_THREADS} CPUs")
        return
    envs = MujocoVecEnv(env_id, NUM_ENVS, NUM_THREADS, copy=False)
    actions = actions_for(envs)
    functions = {"mj_step alone": physics_alone(envs, actions, NUM_THREADS), "MujocoVecEnv": stepper(envs, actions)}
    compare(
        group,
        functions,
        baseline="mj_step alone",
        contender="MujocoVecEnv" if target else None,
        kind="at_least",
        target=target,
        shape=shape,
        items=STEPS,
    )
    envs.close()


def test_against_gymnasium(compare: Any) -> None:
    group, shape = "native step: against gymnasium", f"HalfCheetah-v4, {NUM_ENVS} envs, {NUM_THREADS} threads"
    if available_cpus() < NUM_THREADS:
        compare.not_measured(group, "MujocoVecEnv", shape=shape, reason=f"needs {NUM_THREADS} CPUs")
        return
    native = MujocoVecEnv("HalfCheetah-v4", NUM_ENVS, NUM_THREADS, copy=False)
    env_fns = [make_env_fn("HalfCheetah-v4")] * NUM_ENVS
    theirs = SyncVectorEnv(env_fns, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = actions_for(native)
    functions = {"gymnasium SyncVectorEnv": stepper(theirs, actions), "MujocoVecEnv": stepper(native, actions)}
    for measured in functions.values():
        measured.function()
    np.testing.assert_array_equal(native.step(actions[0])[0], theirs.step(actions[0])[0])
    compare(
        group,
        functions,
        baseline="gymnasium SyncVectorEnv",
        contender="MujocoVecEnv",
        kind="at_least",
        target=3.0,
        shape=shape,
        items=STEPS,
    )
    native.close()
    theirs.close()


def test_against_envpool(compare: Any, peer_interpreters: dict[str, str]) -> None:
    """The same env version, sync mode, random actions, episodes of at most 1,000 steps that go on into the next."""
    group, shape = "native step: against EnvPool", f"Ant-v4, {NUM_ENVS} envs, {NUM_THREADS} threads"
    if "envpool" not in peer_interpreters or available_cpus() < NUM_THREADS:
        compare.not_measured(group, ["EnvPool", "MujocoVecEnv"], shape=shape)
        return
    envs = MujocoVecEnv("Ant-v4", NUM_ENVS, NUM_THREADS, copy=False)
    actions = actions_for(envs)
    envs.reset(seed=0)

    def ours() -> float:
        start = perf_counter()
        for action in actions:
            envs.step(action)
        return (perf_counter() - start) / STEPS

    with Runner(peer_interpreters["envpool"], "steps.py", "Ant-v4", str(NUM_ENVS), str(NUM_THREADS)) as runner:

        def theirs() -> float:
            return float(runner.ask(vector_steps=VECTOR_STEPS)["seconds"]) / STEPS

        functions = {"EnvPool": Measured(theirs), "MujocoVecEnv": Measured(ours)}
        compare(group, functions, baseline="EnvPool", kind="at_least", target=1.1, shape=shape, rounds=25)
    envs.close()


@pytest.mark.parametrize("env_id", ["Ant-v4", "HalfCheetah-v4", "Humanoid-v4"])
def test_thread_scaling(compare: Any, env_id: str) -> None:
    group, shape = "native step: two threads against one", f"{env_id}, {NUM_ENVS} envs"
    if available_cpus() < 2:
        compare.not_measured(group, "2 threads", shape=shape, reason="needs 2 CPUs")
        return
    envs = {f"{count} threads": MujocoVecEnv(env_id, NUM_ENVS, count, copy=False) for count in (1, 2)}
    actions = actions_for(envs["1 threads"])
    functions = {name: stepper(some, actions) for name, some in envs.items()}
    compare(
        group,
        functions,
        baseline="1 threads",
        contender="2 threads",
        kind="at_least",
        target=1.9,
        shape=shape,
        items=STEPS,
    )
    for some in envs.values():
        some.close()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_thousand_humanoids(compare: Any) -> None:
    """Memory and time to make 1,024 environments, and their speed against 16 of them."""
    many = 64 if SMOKE else 1024
    few = MujocoVecEnv("Humanoid-v5", NUM_ENVS, NUM_THREADS, copy=False)  # loads MuJoCo, compares with Gymnasium
    gc.collect()
    before, start = resident_bytes(), perf_counter()
    envs = MujocoVecEnv("Humanoid-v5", many, NUM_THREADS, copy=False)
    seconds = perf_counter() - start
    envs.reset(seed=0)
    steps = actions_for(envs, 5)
    for action in steps:
        envs.step(action)
    assert resident_bytes() - before <= 0.8e9
    assert seconds <= 5
    few.reset(seed=0)
    few_steps = actions_for(few, 5)

    def run(envs: MujocoVecEnv, actions: np.ndarray, times: int) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(times):
                for action in actions:
                    envs.step(action)

        return steps

    functions = {"16 envs": run(few, few_steps, many // NUM_ENVS), f"{many} envs": run(envs, steps, 1)}
    compare(
        "native step: many environments",
        functions,
        baseline="16 envs",
        contender=f"{many} envs",
        kind="at_least",
        target=1.0,
        shape=f"Humanoid-v5, {NUM_THREADS} threads",
        items=5 * many,
        rounds=7,
        max_time=60.0,
    )
    envs.close()
    few.close()
