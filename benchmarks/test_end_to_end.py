"""Training steps per second against other trainers: XuanCe's tutorial configuration, without evaluation."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from interleave import SMOKE
from peers import ROOT, Runner
from test_collector import make
from test_learner import THREADS, Update, floor
from test_mujoco import physics_alone

from xcfast.envs import available_cpus
from xcfast.learners.native import NativeLearner
from xcfast.policy import ActionMap

TUTORIAL = ROOT / "tests" / "data" / "xuance_tutorial.yaml"
ROLLOUTS, ROUNDS = (1, 1) if SMOKE else (3, 4)
# Keys beyond the file's, and the target as a multiple of XuanCe's steps per second.
WORKERS = "xcfast SubprocVecEnv, torch learner"
OURS: dict[str, tuple[tuple[str, ...], float | None]] = {
    "xcfast, the unchanged file": ((), None),
    WORKERS: (("vectorize=SubprocVecEnv", "native_envs=off", "learner_backend=torch"), 1.2),
    "xcfast MujocoVecEnv, torch learner": (("vectorize=MujocoVecEnv", "learner_backend=torch"), 1.7),
}
GROUP = "end to end: PPO on Ant-v4, XuanCe's tutorial configuration"


def test_tutorial_configuration(compare: Any, peer_interpreters: dict[str, str]) -> None:
    rivals = [("xuance", "SubprocVecEnv"), ("xuance", "DummyVecEnv"), ("stable-baselines3", "SubprocVecEnv")]
    settings = json.dumps(yaml.safe_load(TUTORIAL.read_text()))
    with ExitStack() as stack:
        runners = {name: Runner(sys.executable, "ours.py", str(TUTORIAL), *keys) for name, (keys, _) in OURS.items()}
        for name, vectorize in rivals:
            if name in peer_interpreters:
                runners[f"{name} {vectorize}"] = Runner(peer_interpreters[name], "ppo.py", name, vectorize, settings)
        for runner in runners.values():
            stack.enter_context(runner)
        for runner in runners.values():  # so that all are up, idle and warm before the first is timed
            runner.ask(rollouts=1)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in runners}
        for _ in range(ROUNDS):
            for name, runner in runners.items():
                answers[name].append(runner.ask(rollouts=ROLLOUTS))

    for rows in answers.values():
        assert all(row["steps"] == ROLLOUTS * 4096 for row in rows), rows
    rates = {name: [row["steps"] / row["seconds"] for row in rows] for name, rows in answers.items()}
    # XuanCe's faster way of stepping is what ours has to beat.
    xuances = [name for name in rates if name.startswith("xuance")]
    baseline = max(xuances, key=lambda name: statistics.median(rates[name]), default=WORKERS)
    details = {name: split(rows) for name, rows in answers.items()}
    for ours, (_, target) in OURS.items():
        others = (
            {name: series for name, series in rates.items() if name not in OURS} if ours == next(iter(OURS)) else {}
        )
        shown = {baseline: rates[baseline], ours: rates[ours], **others}
        compare.record(
            GROUP,
            shown,
            baseline=baseline,
            contender=ours if xuances else None,
            target=target if xuances else None,
            unit="steps/s",
            shape="16 envs, T=256",
            detail={name: details[name] for name in shown},
        )
    compare.not_measured(GROUP, [" ".join(rival) for rival in rivals if rival[0] not in peer_interpreters])


TARGETS = {"Ant-v4": 0.92, "HalfCheetah-v4": 0.88}


@pytest.mark.parametrize("env_id", TARGETS)
def test_share_of_the_machine(compare: Any, peer_interpreters: dict[str, str], env_id: str) -> None:
    """Against what the cores could do at most: the physics alone, then the update's matrix products alone."""
    group, shape = "end to end: share of the machine's limit", f"{env_id}, 16 envs, T=256, {THREADS} threads"
    if available_cpus() < THREADS:
        compare.not_measured(group, ["xcfast"], shape=shape, reason=f"needs {THREADS} CPUs")
        return
    settings = {**yaml.safe_load(TUTORIAL.read_text()), "env_id": env_id}
    keys = ("vectorize=MujocoVecEnv", f"env_id={env_id}", f"num_threads={THREADS}")
    rivals = [("xuance", "DummyVecEnv"), ("xuance", "SubprocVecEnv"), ("stable-baselines3", "SubprocVecEnv")]
    limit = machine_limit(env_id)
    with ExitStack() as stack:
        runners = {"xcfast": Runner(sys.executable, "ours.py", str(TUTORIAL), *keys)}
        for name, vectorize in rivals:
            if name in peer_interpreters:
                arguments = ("ppo.py", name, vectorize, json.dumps(settings))
                runners[f"{name} {vectorize}"] = Runner(peer_interpreters[name], *arguments)
        for runner in runners.values():
            stack.enter_context(runner)
        for runner in runners.values():
            runner.ask(rollouts=1)
        rates: dict[str, list[float]] = {name: [] for name in ("physics + matrix products alone", *runners)}
        for _ in range(ROUNDS):
            rates["physics + matrix products alone"].append(4096 / limit())
            for name, runner in runners.items():
                row = runner.ask(rollouts=ROLLOUTS)
                rates[name].append(row["steps"] / row["seconds"])
    baseline = "physics + matrix products alone"
    compare.record(
        group, rates, baseline=baseline, contender="xcfast", target=TARGETS[env_id], unit="steps/s", shape=shape
    )
    compare.not_measured(group, [" ".join(rival) for rival in rivals if rival[0] not in peer_interpreters], shape=shape)


def machine_limit(env_id: str) -> Callable[[], float]:
    """Seconds of 4,096 steps with nothing but `mj_step` and `torch.mm`; each call measures."""
    collector, rollout, _ = make(env_id, "native", THREADS)
    to_env = ActionMap(collector.envs.single_action_space, "tanh")
    physics = physics_alone(collector.envs, np.stack([to_env(row) for row in rollout.actions]), THREADS)
    steps = rollout.rewards.size
    products = floor(Update(NativeLearner, "XuanCe's tutorial configuration", THREADS).flops, THREADS)

    def seconds() -> float:
        start = time.perf_counter()
        physics()
        return (time.perf_counter() - start) * 4096 / steps + products.function()

    physics()
    torch.set_num_threads(1)
    return seconds


def split(rows: list[dict[str, Any]]) -> str:
    """Seconds per 4,096 steps, by what they were spent on; and the engines."""
    collection, update = (
        statistics.median(row[key] for row in rows) / ROLLOUTS for key in ("collection_seconds", "update_seconds")
    )
    return f"{collection:.2f} s collection + {update:.2f} s update {rows[0].get('engines', '')}".rstrip()
