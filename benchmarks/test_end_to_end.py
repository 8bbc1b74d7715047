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
import yaml
from interleave import SMOKE
from peers import ROOT, Runner
from test_collector import make
from test_learner import THREADS, Update, floor
from test_mujoco import physics_alone

from xcfast import _core
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
RIVALS = [("xuance", "SubprocVecEnv"), ("xuance", "DummyVecEnv"), ("stable-baselines3", "SubprocVecEnv")]
GROUP = "end to end: PPO on Ant-v4, XuanCe's tutorial configuration"


def test_tutorial_configuration(compare: Any, peer_interpreters: dict[str, str]) -> None:
    settings = json.dumps(yaml.safe_load(TUTORIAL.read_text()))
    with ExitStack() as stack:
        runners = {name: Runner(sys.executable, "ours.py", str(TUTORIAL), *keys) for name, (keys, _) in OURS.items()}
        for name, vectorize in RIVALS:
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
    compare.not_measured(GROUP, [" ".join(rival) for rival in RIVALS if rival[0] not in peer_interpreters])


# Shares of the machine's limit, by the precision of the update; the limit multiplies matrices in float32.
TARGETS = {"Ant-v4": {"fp32": 0.92}, "HalfCheetah-v4": {"fp32": 0.88, "bf16x3": 1.25, "bf16": 1.7}}
LIMIT = "physics + matrix products alone"


@pytest.mark.parametrize("env_id", TARGETS)
def test_share_of_the_machine(compare: Any, peer_interpreters: dict[str, str], env_id: str) -> None:
    """Against what the cores could do at most: the physics alone, then the update's matrix products alone."""
    group, shape = "end to end: share of the machine's limit", f"{env_id}, 16 envs, T=256, {THREADS} threads"
    if available_cpus() < THREADS:
        compare.not_measured(group, ["xcfast"], shape=shape, reason=f"needs {THREADS} CPUs")
        return
    targets = {precision: target for precision, target in TARGETS[env_id].items() if _core.nn_hardware(precision)}
    keys = ("vectorize=MujocoVecEnv", f"env_id={env_id}", f"num_threads={THREADS}")
    ours = (sys.executable, "ours.py", str(TUTORIAL), *keys)
    settings = json.dumps({**yaml.safe_load(TUTORIAL.read_text()), "env_id": env_id})
    here = [rival for rival in RIVALS if rival[0] in peer_interpreters]
    commands = {
        **{f"xcfast, {precision}": (*ours, f"precision={precision}") for precision in targets},
        **{" ".join(rival): (peer_interpreters[rival[0]], "ppo.py", *rival, settings) for rival in here},
    }
    rates = rates_in_turn(machine_limit(env_id), commands)
    for precision, target in targets.items():
        shown = (LIMIT, f"xcfast, {precision}", *(" ".join(rival) for rival in here if precision == "fp32"))
        series = {name: rates[name] for name in shown}
        compare.record(group, series, baseline=LIMIT, target=target, unit="steps/s", shape=shape)
    without_unit = [f"xcfast, {precision}" for precision in TARGETS[env_id] if precision not in targets]
    compare.not_measured(group, without_unit, shape=shape, reason="the CPU does not have the unit")
    compare.not_measured(group, [" ".join(rival) for rival in RIVALS if rival not in here], shape=shape)


def rates_in_turn(limit: Callable[[], float], commands: dict[str, tuple[str, ...]]) -> dict[str, list[float]]:
    """Steps per second at the machine's limit, and of each trainer, taken in the same rounds."""
    rates: dict[str, list[float]] = {name: [] for name in (LIMIT, *commands)}
    with ExitStack() as stack:
        runners = {name: stack.enter_context(Runner(*command)) for name, command in commands.items()}
        for runner in runners.values():
            runner.ask(rollouts=1)
        for _ in range(ROUNDS):
            rates[LIMIT].append(4096 / limit())
            for name, runner in runners.items():
                row = runner.ask(rollouts=ROLLOUTS)
                rates[name].append(row["steps"] / row["seconds"])
    return rates


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
    return seconds


def split(rows: list[dict[str, Any]]) -> str:
    """Seconds per 4,096 steps, by what they were spent on; and the engines."""
    collection, update = (
        statistics.median(row[key] for row in rows) / ROLLOUTS for key in ("collection_seconds", "update_seconds")
    )
    return f"{collection:.2f} s collection + {update:.2f} s update {rows[0].get('engines', '')}".rstrip()
