"""How well shipped configurations learn: bands of scores that `pytest -m slow` compares with.

``python tests/learning_bands.py "reason"`` trains with five seeds and writes the bands anew; the reason is kept in the
file. A score is the mean of a run's last three evaluations, so that one lucky or unlucky one does not decide.
"""

import csv
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from xcfast import load_config, run
from xcfast.config import shipped_config
from xcfast.output.files import package_versions

FILE = Path(__file__).parent / "data" / "learning_bands.json"
TASKS = {
    "CartPole-v1": {"running_steps": 100_000},
    "Acrobot-v1": {"running_steps": 150_000},
    "Pendulum-v1": {"running_steps": 200_000},
    "MountainCar-v0": {"running_steps": 500_000},
    "MountainCarContinuous-v0": {"running_steps": 300_000},
    "LunarLander-v3": {"running_steps": 500_000},
    "InvertedPendulum-v4": {"running_steps": 100_000},
    "HalfCheetah-v4": {"running_steps": 150_000},
}
RECORDED_SEEDS = (1, 2, 3, 4, 5)
TESTED_SEEDS = (1, 2, 3)


def score(env_id: str, seed: int, folder: Path) -> float:
    """Mean of the last three of a run's evaluations."""
    keys = {"seed": seed, "env_seed": seed, "logger": "none", "test_episode": 10, "num_threads": 1, **TASKS[env_id]}
    keys |= {"eval_interval": keys["running_steps"] // 10, "log_dir": str(folder), "model_dir": str(folder)}
    summary = run(load_config(shipped_config(env_id), keys), quiet=True)
    with open(Path(summary.log_dir) / "learning_curve.csv", newline="") as file:
        returns = [float(row["avg_return"]) for row in csv.DictReader(file)]
    return statistics.mean(returns[-3:])


def band(scores: list[float]) -> list[float]:
    """Where the median of three runs should be: the recorded range, and half of it again on either side.

    And 2 % of its middle, for where all seeds reach the same best score.
    """
    reach = 0.5 * (max(scores) - min(scores)) + 0.02 * abs(statistics.median(scores))
    return [min(scores) - reach, max(scores) + reach]


def main(reason: str) -> None:
    """Train, and write the file."""
    bands = {}
    for env_id in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            scores = [round(score(env_id, seed, Path(folder)), 2) for seed in RECORDED_SEEDS]
        bands[env_id] = {"keys": TASKS[env_id], "scores": scores, "band": band(scores)}
        print(env_id, scores, flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    record = {
        "reason": reason,
        "date": str(date.today()),
        "commit": commit.strip(),
        "command": f"python tests/learning_bands.py {reason!r}",
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        "versions": package_versions(),
    }
    FILE.write_text(json.dumps({"record": record, "bands": bands}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit('usage: python tests/learning_bands.py "why the bands change"')
    main(sys.argv[1])
