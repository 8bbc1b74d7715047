"""What the command line loads before the first step of an environment, and what it never loads."""

import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from xcfast.train import main

NEVER = ("torch._dynamo", "torch._inductor", "sympy", "triton", "numba", "matplotlib", "optuna", "wandb", "moviepy")
LATER = ("tensorboard", "google.protobuf")  # for the log, which begins after the first steps
SCRIPT = """
import gc, json, sys
from xcfast.collectors.native import NativeCollector
from xcfast.train import main

modules = []
collect = NativeCollector.collect

def recorded(*arguments):
    modules or modules.append([*sys.modules])
    return collect(*arguments)

NativeCollector.collect = recorded
assert main() == 0
modules.append([*sys.modules])
print(json.dumps([*modules, gc.isenabled(), gc.get_freeze_count()]))
"""


SIZES = ("parallels=2", "horizon_size=8", "n_epochs=1", "n_minibatch=2", "running_steps=32", "eval_interval=32")


@dataclass
class Process:
    """What a process of the command line tells: its modules at the first step of an environment and at its end."""

    first_step: set[str]
    end: set[str]
    collects: bool
    exempt: int

    @classmethod
    def of(cls, *arguments: str) -> "Process":
        """Runs the command line in a process of its own."""
        command = [sys.executable, "-c", SCRIPT, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stderr
        first_step, end, collects, exempt = json.loads(result.stdout.splitlines()[-1])
        return cls(set(first_step), set(end), collects, exempt)


def train(folder: Path, env_id: str) -> Process:
    keys = ["device=cpu", f"log_dir={folder}/logs", f"model_dir={folder}/models", "test_episode=1"]
    return Process.of(env_id, *SIZES, *keys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def half_cheetah(folder: Path) -> Process:
    return train(folder, "HalfCheetah-v4")


def test_nothing_that_can_wait_is_loaded_before_the_first_step(half_cheetah: Process) -> None:
    assert {"torch", "gymnasium", "mujoco"} <= half_cheetah.first_step
    assert not half_cheetah.first_step & {*NEVER, *LATER}


def test_a_run_to_its_end_loads_no_compiler(half_cheetah: Process) -> None:
    assert set(LATER) <= half_cheetah.end  # it has evaluated, saved and logged
    assert not half_cheetah.end & set(NEVER)


def test_a_resumed_run_loads_no_compiler(half_cheetah: Process, folder: Path) -> None:
    (logs,) = (folder / "logs" / "HalfCheetah-v4").iterdir()
    resumed = Process.of("--resume", str(logs), "running_steps=64")
    assert not resumed.end & set(NEVER)


def test_classic_control_loads_no_mujoco(tmp_path: Path) -> None:
    cart_pole = train(tmp_path, "CartPole-v1")
    assert not cart_pole.end & {*NEVER, "mujoco", "gymnasium.envs.mujoco"}


def test_the_command_exempts_modules_from_garbage_collection(half_cheetah: Process) -> None:
    assert half_cheetah.collects
    assert half_cheetah.exempt > len(half_cheetah.end)  # each module is at least one object


def test_a_script_that_calls_main_keeps_its_garbage_collection() -> None:
    before = gc.isenabled(), gc.get_freeze_count()
    assert main(["CartPole-v1", "device=cpu", "--dry-run"]) == 0
    assert (gc.isenabled(), gc.get_freeze_count()) == before
