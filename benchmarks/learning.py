"""Learning curves over environments, seeds and engines: train, tabulate, plot.

    python benchmarks/learning.py run  DATA.csv --env HalfCheetah-v4 Hopper-v4 --seeds 5 --steps 300000 --engine torch
    python benchmarks/learning.py plot DATA.csv docs/learning.png

``run`` appends each finished run to DATA.csv and skips the runs that are there, so a study can be stopped and
continued, also on another machine. Scores are of deterministic evaluations. ``plot`` draws the interquartile mean over
seeds with its 95 % bootstrap interval and prints the table of final scores.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

ENGINES = {
    "torch": (
        "collector_backend=torch",
        "learner_backend=torch",
        "vectorize=SubprocVecEnv",
        "native_envs=off",
        "num_workers=1",
    ),
    "native collector": ("collector_backend=native", "learner_backend=torch", "vectorize=MujocoVecEnv"),
    "native": ("collector_backend=native", "learner_backend=native", "vectorize=MujocoVecEnv"),
}
ENGINES |= {f"native {p}": (*ENGINES["native"], f"precision={p}") for p in ("bf16x3", "bf16")}
COLUMNS = ("env_id", "engines", "seed", "step", "avg_return")
Job = tuple[str, str, int]  # environment, engines, seed


def train(job: Job, settings: list[str]) -> list[tuple[int, float]]:
    """One run on one thread; returns its evaluations: steps and scores."""
    env_id, engine, seed = job
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "XCFAST_EMULATE_PRECISION": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "xcfast.train", "--env-id", env_id, "--seed", str(seed), *ENGINES[engine]]
        command += [*settings, "num_threads=1", "logger=none", "device=cpu", f"log_dir={folder}", f"model_dir={folder}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environ)
        (curve,) = Path(folder).glob("**/learning_curve.csv")
        with open(curve, newline="", encoding="utf-8") as file:
            return [(int(row["step"]), float(row["avg_return"])) for row in csv.DictReader(file)]


def read(data: Path) -> dict[Job, list[tuple[int, float]]]:
    """The runs of a file: their evaluations, steps and scores."""
    found: dict[Job, list[tuple[int, float]]] = defaultdict(list)
    if data.exists():
        with open(data, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                job = (row["env_id"], row["engines"], int(row["seed"]))
                found[job].append((int(row["step"]), float(row["avg_return"])))
    return found


def append(data: Path, job: Job, curve: list[tuple[int, float]]) -> None:
    """Adds a run to a file, in one write."""
    lines = [",".join(COLUMNS)] if not data.exists() else []
    lines += [f"{job[0]},{job[1]},{job[2]},{step},{score:.2f}" for step, score in curve]
    with open(data, "a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def curves(data: Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Env, engines -> steps [K], scores [seeds, K]."""
    found: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for (env_id, engine, _), curve in sorted(read(data).items()):
        found[env_id][engine].append(np.array(curve))
    return {
        env_id: {engine: (runs[0][:, 0], np.array([run[:, 1] for run in runs])) for engine, runs in engines.items()}
        for env_id, engines in found.items()
    }


def iqm(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the first axis (fractional ends weighted)."""
    count = len(scores)
    edges = np.clip(np.arange(count + 1) / count, 0.25, 0.75)
    weights = np.diff(edges) * 2
    return np.tensordot(weights, np.sort(scores, axis=0), axes=1)


def interval(scores: np.ndarray, resamples: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap interval of the IQM over seeds."""
    draws = np.random.default_rng(0).integers(0, len(scores), (resamples, len(scores)))
    means = np.array([iqm(scores[draw]) for draw in draws])
    return np.quantile(means, 0.025, axis=0), np.quantile(means, 0.975, axis=0)


def plot(data_file: Path, target: Path) -> None:
    """Draw all envs, one panel each, and print the final scores as a markdown table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = curves(data_file)
    figure, axes = plt.subplots(1, len(data), figsize=(4.6 * len(data), 3.4), squeeze=False, constrained_layout=True)
    print("| env | engines | seeds | step | IQM | 95 % interval | scores |\n|---|---|---|---|---|---|---|")
    for axis, (env_id, engines) in zip(axes[0], data.items(), strict=True):
        for engine, (steps, scores) in engines.items():
            low, high = interval(scores)
            (line,) = axis.plot(steps / 1e3, iqm(scores), label=f"{engine} ({len(scores)} seeds)")
            axis.fill_between(steps / 1e3, low, high, alpha=0.2, color=line.get_color())
            final = ", ".join(f"{score:.0f}" for score in scores[:, -1])
            print(
                f"| {env_id} | {engine} | {len(scores)} | {int(steps[-1]):,} | {iqm(scores)[-1]:.0f} "
                f"| {low[-1]:.0f} to {high[-1]:.0f} | {final} |"
            )
        axis.set(title=env_id, xlabel="env steps (thousands)", ylabel="evaluation return")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(target, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("--env", nargs="+", default=["HalfCheetah-v4", "Hopper-v4", "Ant-v4"])
    run.add_argument("--engine", nargs="+", choices=ENGINES, default=["torch"])
    run.add_argument("--seeds", type=int, default=5)
    run.add_argument("--steps", type=int, default=300_000)
    run.add_argument("--eval-interval", type=int, default=60_000)
    run.add_argument("--episodes", type=int, default=10)
    run.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    draw = commands.add_parser("plot")
    draw.add_argument("data", type=Path)
    draw.add_argument("target", type=Path)
    args = parser.parse_args()
    if args.command == "plot":
        plot(args.data, args.target)
        return
    settings = [f"running_steps={args.steps}", f"eval_interval={args.eval_interval}", f"test_episode={args.episodes}"]
    done = read(args.data)
    if any(not 0.9 * args.steps < curve[-1][0] <= args.steps for curve in done.values()):
        parser.error(f"{args.data} holds runs that are not of {args.steps} steps; give another file")
    seeds = range(1, args.seeds + 1)
    every = [(env_id, engine, seed) for seed in seeds for env_id in args.env for engine in args.engine]
    failed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(train, job, settings): job for job in every if job not in done}
        for future in as_completed(futures):
            if error := future.exception():
                failed += 1
            else:
                append(args.data, futures[future], future.result())
            print(*futures[future], error or "done", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
