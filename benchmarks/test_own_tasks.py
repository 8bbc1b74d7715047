"""Tasks of one's own: against the same task built in, against the physics alone, against worker processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from interleave import SMOKE, Measured
from test_collector import make
from test_mujoco import NUM_ENVS, NUM_THREADS, STEPS, actions_for, physics_alone, stepper

from xcfast.envs import MujocoVecEnv, SubprocVecEnv, available_cpus, make_env_fn
from xcfast.policy import ActionMap

EXAMPLES = Path(__file__).parents[1] / "examples" / "tasks"
sys.path.append(str(EXAMPLES))
CHEETAH, QUADRUPED = "run_backwards:RunBackwards-v0", "quadruped:Quadruped-v0"


def at_least(compare: Any, group: str, what: str, functions: Mapping[str, Callable[[], Any]], target: float) -> None:
    """Compares two functions that do `STEPS` steps or one rollout: the first is the baseline of the second."""
    baseline, contender = functions
    compare(
        f"own task: {group}",
        functions,
        baseline=baseline,
        contender=contender,
        kind="at_least",
        target=target,
        shape=f"{what}, {NUM_ENVS} envs, {NUM_THREADS} threads",
    )


def enough_cpus(compare: Any, group: str) -> bool:
    if available_cpus() >= NUM_THREADS:
        return True
    compare.not_measured(f"own task: {group}", "own task", reason=f"needs {NUM_THREADS} CPUs")
    return False


def on_and_on(envs: Any, actions: np.ndarray) -> Callable[[], None]:
    """One call takes all the actions from wherever the last one ended: an episode of 1,000 steps has few resets."""
    envs.reset(seed=0)

    def run() -> None:
        for action in actions:
            envs.step(action)

    return run


def test_half_cheetah(compare: Any) -> None:
    """The same physics and actions, in the same states for the collectors: the reward that differs changes none."""
    if not enough_cpus(compare, "against the built-in task"):
        return
    own = MujocoVecEnv(CHEETAH, NUM_ENVS, NUM_THREADS, copy=False)
    built_in = MujocoVecEnv("HalfCheetah-v5", NUM_ENVS, NUM_THREADS, copy=False)
    actions = actions_for(own)
    functions = {"built in": on_and_on(built_in, actions), "own task": on_and_on(own, actions)}
    at_least(compare, "MujocoVecEnv against the built-in task", f"{STEPS} steps of a half cheetah", functions, 0.97)
    (_, theirs, built_in_run), (_, ours, own_run) = make("HalfCheetah-v5", "native"), make(CHEETAH, "native")
    np.testing.assert_array_equal(ours.obs, theirs.obs)
    functions = {"built in": built_in_run, "own task": own_run}
    at_least(compare, "native collector against the built-in task", "half cheetah", functions, 0.95)


def test_quadruped_physics_limit(compare: Any) -> None:
    """The physics alone go through the states of the very rollout that is collected, without the contact forces."""
    group = "native collector, share of the physics limit"
    if not enough_cpus(compare, group):
        return
    collector, rollout, run = make(QUADRUPED, "native")
    envs = collector.envs
    actions = np.stack([ActionMap(envs.single_action_space, "tanh")(row) for row in rollout.actions])
    stand = envs.get_attr("model")[0].key("stand").ctrl
    alone = physics_alone(envs, actions, NUM_THREADS, lambda segment: stand + 0.3 * segment)
    run()
    at_least(compare, group, "quadruped", {"mj_step alone": alone, "NativeCollector": run}, 0.90)


def test_quadruped_against_processes(compare: Any) -> None:
    group = "native collector against SubprocVecEnv with the torch collector"
    if not enough_cpus(compare, group):
        return
    workers = SubprocVecEnv([make_env_fn(QUADRUPED)] * NUM_ENVS, NUM_THREADS, copy=False)
    functions = {
        "SubprocVecEnv": make(QUADRUPED, "torch", envs=workers)[2],
        "NativeCollector": make(QUADRUPED, "native")[2],
    }
    at_least(compare, group, "quadruped", functions, 2.0)
    workers.close()


def test_quadruped_against_gymnasium(compare: Any) -> None:
    if not enough_cpus(compare, "against gymnasium"):
        return
    native = MujocoVecEnv(QUADRUPED, NUM_ENVS, NUM_THREADS, copy=False)
    env_fns = [make_env_fn(QUADRUPED)] * NUM_ENVS
    theirs = AsyncVectorEnv(env_fns, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = actions_for(native)
    functions = {"gymnasium AsyncVectorEnv": stepper(theirs, actions), "MujocoVecEnv": stepper(native, actions)}
    for measured in functions.values():
        measured.function()
    np.testing.assert_array_equal(native.step(actions[0])[0], theirs.step(actions[0])[0])
    at_least(compare, "against gymnasium", "quadruped", functions, 3.0)
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
        shape=f"later starts, {NUM_ENVS} envs, {NUM_THREADS} threads",
    )
