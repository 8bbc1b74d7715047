"""Tasks of one's own: against the same task built in, against the physics alone, against worker processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from interleave import SMOKE, Measured
from test_collector import make
from test_mujoco import NUM_ENVS, NUM_THREADS, STEPS, actions_for, physics_alone, stepper

from xcfast.envs import MujocoVecEnv, SubprocVecEnv, available_cpus, make_env_fn
from xcfast.policy import ActionMap

EXAMPLES = Path(__file__).parents[1] / "examples" / "tasks"
sys.path.append(str(EXAMPLES))
QUADRUPED = "quadruped:Quadruped-v0"
SHAPE = f"{NUM_ENVS} envs, {NUM_THREADS} threads"

pytestmark = pytest.mark.skipif(available_cpus() < NUM_THREADS, reason=f"needs {NUM_THREADS} CPUs")


def test_half_cheetah_environments(compare: Any) -> None:
    """The same physics and actions; the reward is turned round, which changes no state."""
    own = MujocoVecEnv("run_backwards:RunBackwards-v0", NUM_ENVS, NUM_THREADS, copy=False)
    built_in = MujocoVecEnv("HalfCheetah-v5", NUM_ENVS, NUM_THREADS, copy=False)
    actions = actions_for(own)
    functions = {"built in": stepper(built_in, actions), "own task": stepper(own, actions)}
    compare(
        "own task: MujocoVecEnv against the built-in task",
        functions,
        baseline="built in",
        contender="own task",
        kind="at_least",
        target=0.97,
        shape=f"half cheetah, {SHAPE}",
        items=STEPS,
    )


def test_half_cheetah_collector(compare: Any) -> None:
    _, rollout, own = make("run_backwards:RunBackwards-v0", "native")
    _, _, built_in = make("HalfCheetah-v5", "native")
    compare(
        "own task: native collector against the built-in task",
        {"built in": built_in, "own task": own},
        baseline="built in",
        contender="own task",
        kind="at_least",
        target=0.95,
        shape=f"half cheetah, {SHAPE}",
        items=rollout.num_steps * NUM_ENVS,
    )


def test_quadruped_physics_limit(compare: Any) -> None:
    """The physics alone go through the states of the very rollout that is collected."""
    collector, rollout, run = make(QUADRUPED, "native")
    envs = collector.envs
    actions = np.stack([ActionMap(envs.single_action_space, "tanh")(row) for row in rollout.actions])
    stand = envs.get_attr("model")[0].key("stand").ctrl
    alone = physics_alone(envs, actions, NUM_THREADS, lambda segment: stand + 0.3 * segment)
    run()
    compare(
        "own task: native collector, share of the physics limit",
        {"mj_step alone": alone, "NativeCollector": run},
        baseline="mj_step alone",
        contender="NativeCollector",
        kind="at_least",
        target=0.90,
        shape=f"quadruped, {SHAPE}",
        items=rollout.num_steps * NUM_ENVS,
    )


def test_quadruped_against_processes(compare: Any) -> None:
    workers = SubprocVecEnv([make_env_fn(QUADRUPED)] * NUM_ENVS, NUM_THREADS, copy=False)
    _, rollout, torch_run = make(QUADRUPED, "torch", envs=workers)
    _, _, native_run = make(QUADRUPED, "native")
    compare(
        "own task: native collector against SubprocVecEnv with the torch collector",
        {"SubprocVecEnv": torch_run, "NativeCollector": native_run},
        baseline="SubprocVecEnv",
        contender="NativeCollector",
        kind="at_least",
        target=2.0,
        shape=f"quadruped, {SHAPE}",
        items=rollout.num_steps * NUM_ENVS,
    )
    workers.close()


def test_quadruped_against_gymnasium(compare: Any) -> None:
    native = MujocoVecEnv(QUADRUPED, NUM_ENVS, NUM_THREADS, copy=False)
    env_fns = [make_env_fn(QUADRUPED)] * NUM_ENVS
    theirs = AsyncVectorEnv(env_fns, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = actions_for(native)
    functions = {"gymnasium AsyncVectorEnv": stepper(theirs, actions), "MujocoVecEnv": stepper(native, actions)}
    for function in functions.values():
        function()
    np.testing.assert_array_equal(native.step(actions[0])[0], theirs.step(actions[0])[0])
    compare(
        "own task: against gymnasium",
        functions,
        baseline="gymnasium AsyncVectorEnv",
        contender="MujocoVecEnv",
        kind="at_least",
        target=3.0,
        shape=f"quadruped, {SHAPE}",
        items=STEPS,
    )
    native.close()
    theirs.close()


START = """
from xcfast.envs import MujocoVecEnv
envs = MujocoVecEnv({env_id!r}, {num_envs}, {num_threads})
envs.reset(seed=0)
envs.step(envs.action_space.sample())
"""


def start_of(env_id: str, cache: Path) -> Callable[[], float]:
    """A function that starts a process up to its first step; returns the seconds."""
    script = START.format(env_id=env_id, num_envs=NUM_ENVS, num_threads=NUM_THREADS)
    environ = {**os.environ, "XCFAST_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run() -> float:
        begin = perf_counter()
        subprocess.run([sys.executable, "-c", script], env=environ, check=True, stderr=subprocess.DEVNULL)
        return perf_counter() - begin

    return run


def test_start(compare: Any, tmp_path: Path) -> None:
    """First and later starts, in seconds; a later one may take a second more than that of a built-in task."""
    first = start_of(QUADRUPED, tmp_path)()
    assert SMOKE or first <= 15, f"the first start took {first:.1f} s"
    functions = {
        "built in (Ant-v5)": Measured(start_of("Ant-v5", tmp_path)),
        "own task (quadruped)": Measured(start_of(QUADRUPED, tmp_path)),
    }
    compare(
        f"own task: start until the first step (compiling before took {first:.1f} s)",
        functions,
        baseline="built in (Ant-v5)",
        kind="excess_at_most",
        target=1.0,
        shape=f"later starts, {SHAPE}",
    )
