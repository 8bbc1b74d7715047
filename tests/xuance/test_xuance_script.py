"""The example scripts, as a user runs them: the page's in its three modes, and the one with 1.4.4's names."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "parallels: 16": "parallels: 4",
    "running_steps: 1000000": "running_steps: 1024",
    "horizon_size: 256": "horizon_size: 32",
    "n_epochs: 16": "n_epochs: 2",
    "n_minibatch: 8": "n_minibatch: 4",
    "eval_interval: 5000": "eval_interval: 400",
    "test_episode: 5": "test_episode: 2",
    "[256,]": "[16,]",
}


@pytest.fixture
def example(tmp_path):
    """``example(script, *arguments)`` runs it in a copy of its folder with small numbers in the YAML; its output."""
    folder = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", folder)
    path = folder / "ppo_configs" / "ppo_mujoco_config.yaml"
    text = path.read_text(encoding="utf-8")
    for large, small in SMALL.items():
        assert large in text
        text = text.replace(large, small)
    path.write_text(text, encoding="utf-8")

    def run(script, *arguments):
        command = [sys.executable, "-W", "error", script, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.folder = folder
    return run


@pytest.mark.timeout(300)  # three interpreters, on a machine that may be busy
def test_the_page_in_all_three_modes(example):
    out = example("ppo_mujoco.py", "--method", "ppo", "--env", "mujoco", "--env-id", "InvertedPendulum-v4")
    assert [f"Epoch: {i}/2:" in out for i in range(3)] == [True, True, False]
    assert re.search(r"Best Model Score: \d+\.\d\d, std=\d+\.\d\d", out)
    assert "shared trunk 4-16, actor 16-16-1, critic 16-16-1" in out and "learner     native" in out
    (logs,) = (example.folder / "logs/ppo/InvertedPendulum-v4").iterdir()
    assert logs.name.startswith("seed_79811_")
    steps = [line.split(",")[0] for line in (logs / "learning_curve.csv").read_text().split()]
    assert steps == ["step", "0", "400", "800"]
    trained = json.loads((logs / "summary.json").read_text())
    assert trained["steps"] == 768  # six rollouts of 128; the seventh was not full

    assert "Finish training!" in example("ppo_mujoco.py", "--benchmark", "0")
    models = example.folder / "models/ppo/InvertedPendulum-v4"
    before = {path for path in models.iterdir() if (path / "final_train_model.pth").exists()}
    assert len(before) == 1

    out = example("ppo_mujoco.py", "--benchmark", "0", "--test", "1")
    assert f"loaded {before.pop() / 'final_train_model.pth'}" in out
    assert re.search(r"Mean Score: \d+\.\d+, Std: \d+\.\d+", out) and "Finish testing." in out
    assert len(list(models.iterdir())) == 2  # the test left none


def test_the_names_of_1_4_4_in_all_three_modes(example, monkeypatch, capsys):
    """In this process: importing everything once more takes longer than the script."""
    monkeypatch.chdir(example.folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ppo_agent.py", "--env-id", "InvertedPendulum-v5", *arguments])
        runpy.run_path("ppo_agent.py", run_name="__main__")
        return capsys.readouterr().out

    for by_runner in ("0", "1"):
        out = run("--runner", by_runner)
        assert re.search(r"Best Model Score: \d+\.\d\d|best score +\d+\.\d\d", out)
        newest = max(Path("models/ppo").iterdir(), key=lambda path: path.stat().st_mtime)
        assert (newest / "best_model.pth").is_file()
        run("--runner", by_runner, "--benchmark", "0")
        out = run("--runner", by_runner, "--benchmark", "0", "--test", "1")
        assert "final_train_model.pth" in out and re.search(r"Mean Score: \d+\.\d\d", out)


def test_the_page_is_as_printed():
    """Besides its imports only the marked lines were added: nothing of the page is missing or reworded."""
    lines = (ROOT / "examples" / "ppo_mujoco.py").read_text(encoding="utf-8").splitlines()
    added = [line for line in lines if "not on the page" in line]
    assert len(added) == 3
    for name in ("Basic_MLP", "Gaussian_AC_Policy", "PPOCLIP_Agent, get_total_iters", "space2shape"):
        assert any(line.strip().startswith(f"from xcfast.xuance import {name}") for line in lines)
    yaml = (ROOT / "examples" / "ppo_configs" / "ppo_mujoco_config.yaml").read_text(encoding="utf-8")
    assert yaml == (ROOT / "tests" / "data" / "xuance_tutorial.yaml").read_text(encoding="utf-8")
