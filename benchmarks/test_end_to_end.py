"""Training steps per second against other trainers: the seed's YAML but for the vector env, without evaluation."""

import json
import statistics
import sys
from contextlib import ExitStack
from typing import Any

import yaml
from interleave import SMOKE
from peers import ROOT, Runner

SEED = ROOT / "tests" / "data" / "seed_mujoco.yaml"
ROLLOUTS, ROUNDS = (1, 1) if SMOKE else (3, 4)
# Keys beyond the file's, and what is asked for as a multiple of XuanCe's steps per second.
OURS = {
    "xcfast SubprocVecEnv, torch learner": (("vectorize=SubprocVecEnv", "learner_backend=torch"), 1.2),
    "xcfast MujocoVecEnv, torch learner": (("vectorize=MujocoVecEnv", "learner_backend=torch"), 1.7),
    "xcfast MujocoVecEnv, native learner": (("vectorize=MujocoVecEnv",), None),
}
GROUP = "end to end: PPO on Ant-v4, the seed's YAML"


def test_seed_yaml(compare: Any, peer_interpreters: dict[str, str]) -> None:
    rivals = [("xuance", "SubprocVecEnv"), ("xuance", "DummyVecEnv"), ("stable-baselines3", "SubprocVecEnv")]
    settings = json.dumps(yaml.safe_load(SEED.read_text()))
    with ExitStack() as stack:
        runners = {name: Runner(sys.executable, "ours.py", str(SEED), *keys) for name, (keys, _) in OURS.items()}
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
    baseline = max(xuances, key=lambda name: statistics.median(rates[name]), default=next(iter(OURS)))
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


def split(rows: list[dict[str, Any]]) -> str:
    """Seconds per 4,096 steps, by what they were spent on; and the engines."""
    collection, update = (
        statistics.median(row[key] for row in rows) / ROLLOUTS for key in ("collection_seconds", "update_seconds")
    )
    return f"{collection:.2f} s collection + {update:.2f} s update {rows[0].get('engines', '')}".rstrip()
