"""Seconds from the command to the first step of an environment, on a machine that does nothing else."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from interleave import Measured, interleave

CONFIGS = Path(__file__).parents[1] / "configs"
ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as if installed
KEYS = ("device=cpu", "running_steps=4096", "n_epochs=1")  # one rollout


def start_up(config: Path) -> float:
    """Trains on the command line; returns the seconds until the start table, which the first step follows at once."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        folders = f"log_dir={folder}", f"model_dir={folder}"
        command = [sys.executable, "-m", "xcfast.train", str(config), "--benchmark", "0", *KEYS, *folders]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=nowhere, text=True, env=ENVIRON) as process:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            seconds = time.perf_counter() - start
            process.stdout.read()
        assert first_line and process.returncode == 0, command
    return seconds


def import_torch() -> float:
    """Seconds for an interpreter that imports torch and ends at once."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import os, torch; os._exit(0)"], check=True)
    return time.perf_counter() - start


@pytest.mark.parametrize("name", ["half_cheetah", "ant"])
def test_start_up(compare: Any, name: str) -> None:
    ours = f"python -m xcfast.train configs/{name}.yaml"
    functions = {
        "3 s": Measured(lambda: 3.0),
        "import torch": Measured(import_torch),
        ours: Measured(lambda: start_up(CONFIGS / f"{name}.yaml")),
    }
    seconds = interleave(functions, rounds=7, max_time=120.0).seconds
    for baseline, target in (("3 s", 1.0), ("import torch", 1.5)):  # the second does not depend on the machine's load
        group = f"start-up: until the first step of an environment, against {baseline}"
        rows = {baseline: seconds[baseline], ours: seconds[ours]}
        compare.record(group, rows, baseline=baseline, kind="at_most", target=target, shape=name, unit="s")
