"""Learning curves over environments, seeds and engines: train, tabulate, plot.

    python benchmarks/learning.py run  OUT --env HalfCheetah-v4 Hopper-v4 --seeds 5 --steps 300000 --engine torch
    python benchmarks/learning.py plot OUT docs/learning.png

``run`` skips what OUT already holds, so it can be stopped and continued. Scores are of deterministic evaluations.
``plot`` draws the interquartile mean over seeds with its 95 % bootstrap interval and prints the table of final scores.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
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


def train(out: Path, env_id: str, seed: int, engine: str, steps: int, interval: int, episodes: int) -> str:
    """One run, one thread; nothing if its summary is there."""
    folder = out / env_id / engine.replace(" ", "_") / str(seed)
    if list(folder.glob("**/summary.json")):
        return f"{folder}: there"
    command = [sys.executable, "-m", "xcfast.train", "--env-id", env_id, "--seed", str(seed), *ENGINES[engine]]
    command += [f"running_steps={steps}", f"eval_interval={interval}", f"test_episode={episodes}", "num_threads=1"]
    command += ["logger=none", "device=cpu", f"log_dir={folder}", f"model_dir={folder}/models"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    return f"{folder}: {'done' if done.returncode == 0 else done.stderr}"


def curves(out: Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Env, engine -> steps [K], mean scores [seeds, K]."""
    found: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for summary in sorted(out.glob("*/*/*/**/summary.json")):
        env_id, engine = summary.relative_to(out).parts[:2]
        with open(summary.parent / "learning_curve.csv", newline="", encoding="utf-8") as file:
            rows = [(int(row["step"]), float(row["avg_return"])) for row in csv.DictReader(file)]
        found[env_id][engine.replace("_", " ")].append(np.array(rows))
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


def plot(out: Path, target: Path) -> None:
    """Draw all envs, one panel each, and print the final scores as a markdown table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = curves(out)
    figure, axes = plt.subplots(1, len(data), figsize=(4.6 * len(data), 3.4), squeeze=False, constrained_layout=True)
    print("| env | engines | seeds | step | IQM | 95 % interval | scores |\n|---|---|---|---|---|---|---|")
    for axis, (env_id, engines) in zip(axes[0], data.items(), strict=True):
        for engine, (steps, scores) in engines.items():
            low, high = interval(scores)
            (line,) = axis.plot(steps / 1e3, iqm(scores), label=f"{engine} ({len(scores)} seeds)")
            axis.fill_between(steps / 1e3, low, high, alpha=0.2, color=line.get_color())
            final = ", ".join(f"{score:.0f}" for score in scores[:, -1])
            print(
                f"| {env_id} | {engine} | {len(scores)} | {steps[-1]:,} | {iqm(scores)[-1]:.0f} "
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
    run.add_argument("out", type=Path)
    run.add_argument("--env", nargs="+", default=["HalfCheetah-v4", "Hopper-v4", "Ant-v4"])
    run.add_argument("--engine", nargs="+", choices=ENGINES, default=["torch"])
    run.add_argument("--seeds", type=int, default=5)
    run.add_argument("--steps", type=int, default=300_000)
    run.add_argument("--eval-interval", type=int, default=60_000)
    run.add_argument("--episodes", type=int, default=10)
    run.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    draw = commands.add_parser("plot")
    draw.add_argument("out", type=Path)
    draw.add_argument("target", type=Path)
    args = parser.parse_args()
    if args.command == "plot":
        plot(args.out, args.target)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "command.json").write_text(json.dumps(sys.argv[1:]))
    jobs = [
        (seed, env_id, engine) for seed in range(1, args.seeds + 1) for env_id in args.env for engine in args.engine
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        for line in pool.map(
            lambda job: train(args.out, job[1], job[0], job[2], args.steps, args.eval_interval, args.episodes), jobs
        ):
            print(line, flush=True)


if __name__ == "__main__":
    main()
