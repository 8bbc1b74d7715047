"""NativeCollector: against the physics alone, and against TorchCollector on the same envs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from interleave import SMOKE
from test_mujoco import physics_alone

from xcfast import ObservationNormalizer, Rollout, load_config
from xcfast.collectors.collector import warm_up
from xcfast.config import shipped_config
from xcfast.envs import MujocoVecEnv, available_cpus, make_envs
from xcfast.policy import ActionMap, build_policy
from xcfast.runs.engines import make_collector

NUM_ENVS, NUM_THREADS = 16, 2
NUM_STEPS = 5 if SMOKE else 250


def make(
    env_id: str, backend: str, num_threads: int = NUM_THREADS, envs: Any = None
) -> tuple[Any, Rollout, Callable[[], None]]:
    """A collector, its rollout, and a function that collects the same rollout again and again."""
    config = load_config(overrides={"env_id": env_id, "device": "cpu", "collector_backend": backend})
    envs = envs or MujocoVecEnv(env_id, NUM_ENVS, num_threads, copy=False)
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    policy = build_policy(config, obs_space, action_space)
    normalizer = ObservationNormalizer(obs_space.shape, num_envs=NUM_ENVS, clip=config.obsnorm_range)
    action_map = ActionMap(action_space, config.activation_action)
    collector, _ = make_collector(config, envs, policy, normalizer, action_map)
    rollout = Rollout(NUM_STEPS, NUM_ENVS, obs_space.shape, action_space.shape)
    torch.set_num_threads(1)
    collector.reset(0)
    warm_up(collector, rollout)
    statistics = normalizer.state_dict()

    def run() -> None:
        normalizer.load_state_dict(statistics)
        collector.noise.counters[:] = 0
        collector.reset(0)
        rollout.clear()
        collector.collect(rollout)

    run()
    return collector, rollout, run


@pytest.mark.parametrize(
    "env_id, target", [("Ant-v4", 0.92), ("HalfCheetah-v4", 0.85), ("Hopper-v4", 0.92), ("Humanoid-v4", 0.92)]
)
def test_physics_limit(compare: Any, env_id: str, target: float) -> None:
    """The physics alone go through the states of the very rollout that is collected."""
    group, shape = "native collector: share of the physics limit", f"{env_id}, {NUM_ENVS} envs, {NUM_THREADS} threads"
    if available_cpus() < NUM_THREADS:
        compare.not_measured(group, "NativeCollector", shape=shape, reason=f"needs {NUM_THREADS} CPUs")
        return
    collector, rollout, run = make(env_id, "native")
    envs = collector.envs
    actions = np.stack([ActionMap(envs.single_action_space, "tanh")(row) for row in rollout.actions])
    functions = {"mj_step alone": physics_alone(envs, actions, NUM_THREADS), "NativeCollector": run}
    compare(
        group,
        functions,
        baseline="mj_step alone",
        contender="NativeCollector",
        kind="at_least",
        target=target,
        shape=shape,
        items=NUM_STEPS * NUM_ENVS,
    )
    envs.close()


@pytest.mark.parametrize("env_id", ["Ant-v4", "HalfCheetah-v4"])
def test_against_the_torch_collector(compare: Any, env_id: str) -> None:
    group, shape = "native collector: against torch", f"{env_id}, {NUM_ENVS} envs, {NUM_THREADS} threads"
    if available_cpus() < NUM_THREADS:
        compare.not_measured(group, "NativeCollector", shape=shape, reason=f"needs {NUM_THREADS} CPUs")
        return
    made = {
        name: make(env_id, backend) for name, backend in (("TorchCollector", "torch"), ("NativeCollector", "native"))
    }
    functions = {name: run for name, (_, _, run) in made.items()}
    compare(
        group,
        functions,
        baseline="TorchCollector",
        contender="NativeCollector",
        kind="at_least",
        target=1.0,
        shape=shape,
        items=NUM_STEPS * NUM_ENVS,
    )
    for collector, _, _ in made.values():
        collector.envs.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_classic_control(compare: Any, env_id: str) -> None:
    """With the shipped file's network: native against the Python environments one by one with torch."""
    functions, closers = {}, []
    for vectorize, native_envs in (("DummyVecEnv", "off"), ("ClassicControlVecEnv", "auto")):
        keys = {
            "vectorize": vectorize,
            "parallels": NUM_ENVS,
            "num_threads": 1,
            "device": "cpu",
            "native_envs": native_envs,
        }
        config = load_config(shipped_config(env_id), keys)
        envs = make_envs(config)
        obs_space, action_space = envs.single_observation_space, envs.single_action_space
        policy = build_policy(config, obs_space, action_space)
        normalizer = ObservationNormalizer(obs_space.shape, num_envs=NUM_ENVS, clip=config.obsnorm_range)
        action_map = ActionMap(action_space, config.activation_action)
        collector, _ = make_collector(config, envs, policy, normalizer, action_map)
        dtype = np.int64 if action_map.discrete else np.float32
        rollout = Rollout(NUM_STEPS, NUM_ENVS, obs_space.shape, action_space.shape, dtype)

        def run(collector: Any = collector, rollout: Rollout = rollout) -> None:
            rollout.clear()
            collector.collect(rollout)

        torch.set_num_threads(1)
        collector.reset(0)
        functions[f"{collector.name} collector, {vectorize}"] = run
        closers.append(envs.close)
    first, second = functions
    assert (first.split()[0], second.split()[0]) == ("torch", "native")
    compare(
        "native collector: classic control",
        functions,
        baseline=first,
        contender=second,
        kind="at_least",
        target=10.0,
        shape=f"{env_id}, {NUM_ENVS} envs, 1 thread",
        items=NUM_STEPS * NUM_ENVS,
    )
    for close in closers:
        close()
