"""Around an agent's training: signals, the end of the schedule, which algorithm, folders, result files."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from xcfast import run
from xcfast.config import ConfigError
from xcfast.envs import EnvError
from xcfast.output.checkpoint import load_checkpoint, periodic_checkpoints
from xcfast.output.summary import Summary
from xcfast.xuance import PPO_Agent, PPOCLIP_Agent, PPOKL_Agent, REGISTRY_Agents, RunnerDRL, make_envs


@pytest.fixture
def begin(small):
    """``begin(kind, **keys)``: an agent of that class with the small configuration; all are closed at the end."""
    made = []

    def make(kind=PPO_Agent, quiet=True, **keys):
        config = small()
        args = Namespace(**{**config.to_dict(), **keys})
        envs = make_envs(args)
        made.append(envs)
        agent = kind(args, envs, quiet=quiet)
        made.append(agent)
        return agent

    yield make
    for one in reversed(made):
        one.finish() if isinstance(one, PPO_Agent) else one.close()


def signal_at_update(agent, number, which):
    """Sends a signal to this process at the beginning of that update, the first being 1."""
    update, calls = agent.learner.update, []

    def updated(*args):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), which)
        return update(*args)

    agent.learner.update = updated


# Signals


def test_ctrl_c_ends_the_iteration_saves_and_then_raises(begin, capfd):
    agent = begin()
    signal_at_update(agent, 2, signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        agent.train(128)
    assert agent.current_step == 256 and signal.getsignal(signal.SIGINT) is before
    (*_, newest) = periodic_checkpoints(Path(agent.model_dir_save))
    assert newest.name == "checkpoint_256.pth"
    saved = load_checkpoint(newest)
    assert all(torch.equal(saved["policy"][name], value) for name, value in agent.policy.state_dict().items())
    assert f"SIGINT: stopped at step 256; saved in {newest}" in capfd.readouterr().err
    # and the run goes on from there as if nothing had happened
    resumed = run(agent.config, resume=Path(agent.log_dir), quiet=True)
    whole = begin()
    whole.train(128)
    final = load_checkpoint(Path(resumed.model_dir) / "final_train_model.pth")["policy"]
    assert all(torch.equal(final[name], value) for name, value in whole.policy.state_dict().items())


def test_ctrl_c_with_a_rollout_that_is_not_full(begin):
    agent = begin()
    agent.train(40)
    signal_at_update(agent, 1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        agent.train(40)  # its first update ends a rollout that began before
    assert agent.current_step == 256
    collect, collector = agent._trainer.components.collector.collect, agent._trainer.components.collector

    def collected(rollout, num_steps):
        collect(rollout, num_steps)
        os.kill(os.getpid(), signal.SIGINT)

    collector.collect = collected
    with pytest.raises(KeyboardInterrupt):
        agent.train(3)
    assert agent.memory.step == 3 and agent.current_step == 268
    assert load_checkpoint(Path(agent.model_dir_save) / "checkpoint_256.pth")["step"] == 256


def test_ctrl_c_in_a_test_loses_no_training(begin, small):
    agent = begin(checkpoint_interval=10**6, collector_backend="torch")
    agent.train(32)
    envs = make_envs(small())
    step, steps = envs.vec_env.step, []

    def stepped(actions):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(actions)

    envs.vec_env.step = stepped
    with pytest.raises(KeyboardInterrupt):
        agent.test(test_episodes=8, test_envs=envs)
    assert len(steps) == 3 and envs.vec_env.closed
    assert (Path(agent.model_dir_save) / "checkpoint_128.pth").is_file()


def test_a_handler_of_the_scripts_own_is_called_and_training_ends(begin):
    agent, seen = begin(), []
    signal_at_update(agent, 1, signal.SIGTERM)
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        logged = agent.train(64)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM] and agent.current_step == 128 and "actor_loss" in logged
    agent.train(32)
    assert agent.current_step == 256


def test_training_in_a_thread_leaves_signals_alone(begin):
    agent, handlers = begin(), []
    update = agent.learner.update
    agent.learner.update = lambda *args: (handlers.append(signal.getsignal(signal.SIGINT)), update(*args))[1]
    thread = threading.Thread(target=agent.train, args=(32,))
    thread.start()
    thread.join(60)
    assert handlers == [signal.getsignal(signal.SIGINT)] and agent.current_step == 128


def test_sigterm_ends_a_script_that_has_saved(small, tmp_path):
    keys = {**small().to_dict(), "running_steps": 10**8, "checkpoint_interval": 10**8}
    script = (
        "import json, os, sys, threading; from argparse import Namespace\n"
        "from xcfast.xuance import PPO_Agent, make_envs\n"
        "args = Namespace(**json.loads(sys.argv[1])); envs = make_envs(args); agent = PPO_Agent(args, envs)\n"
        "agent.train(32); threading.Timer(0.5, os.kill, (os.getpid(), 15)).start(); agent.train(10**6); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", script, json.dumps(keys)], capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGTERM and "never" not in done.stdout, done.stderr
    (saved,) = tmp_path.glob("models/*/*.pth")
    assert f"saved in {saved}" in done.stderr and load_checkpoint(saved)["step"] >= 128


# The end of the schedule


def test_past_the_end_of_the_run_one_line_names_the_keys(begin, capsys):
    agent = begin()
    agent.train(128 + 20)  # the run, and a part of a rollout that is not learned from
    assert capsys.readouterr().err == ""
    assert agent.train(12)["learning_rate"] == 0.0
    agent.train(32)
    error = capsys.readouterr().err
    assert error.count("warning") == 1 and "after running_steps 512" in error and "has fallen to 0 and stays" in error
    assert "lr_schedule: constant" in error
    for keys in ({"end_factor_lr_decay": 1.0}, {"lr_schedule": "constant"}, {"lr_schedule": "kl"}):
        begin(**keys).train(320)
        assert capsys.readouterr().err == ""


# Which algorithm


def test_the_generic_agent_follows_the_configuration(begin):
    assert begin(agent="PPO_Clip").config.agent == "PPO"
    kl = begin(agent="PPO_KL", learner="PPOKL_Learner", kl_coef=3.0)
    assert kl.config.agent == "PPO_KL" and kl.train(32)["losses/kl_coef"] == 3.0
    with pytest.raises(ConfigError, match="learner: belongs to agent PPO_KL"):
        begin(learner="PPOKL_Learner")


def test_a_class_that_contradicts_the_configuration_does_not_pass_silently(begin, capsys):
    assert begin(PPOCLIP_Agent, agent="PPO_Clip").config.agent == "PPO"
    for name in ("PPO_KL", "PPOKL_Agent"):
        with pytest.raises(ConfigError, match="agent: contradicts PPOCLIP_Agent; given: PPO_KL; allowed: PPO_Clip; or"):
            begin(PPOCLIP_Agent, agent=name)
    assert begin(PPOKL_Agent, agent="PPO_KL").config.agent == "PPO_KL"
    assert capsys.readouterr().err == ""
    assert begin(PPOKL_Agent, agent="PPO_Clip", learner="PPOCLIP_Learner").config.agent == "PPO_KL"
    assert "warning: PPOKL_Agent trains with agent PPO_KL; the configuration's agent is PPO" in capsys.readouterr().err


def test_the_registry_knows_older_names():
    assert REGISTRY_Agents["PPO_Clip"] is REGISTRY_Agents["PPO"] is PPO_Agent
    assert list(REGISTRY_Agents) == ["PPO", "PPO_KL"]
    with pytest.raises(KeyError, match="allowed: PPO, PPO_KL"):
        REGISTRY_Agents["DQN"]


# Folders


def test_folders_come_when_something_is_to_be_written(begin, small, tmp_path, capsys):
    trained = begin()
    trained.train(32)
    trained.save_model("best_model.pth")
    runs = list((tmp_path / "logs").iterdir())
    tested = begin(quiet=False)
    tested.load_model(tested.model_dir_load)
    assert len(tested.test(lambda: make_envs(small()), 2)) == 2
    assert tested.finish() is None
    assert list((tmp_path / "logs").iterdir()) == runs and len(list((tmp_path / "models").iterdir())) == 1
    out = capsys.readouterr().out
    assert "loaded" in out and "collector" not in out and "updates" not in out  # no table of a training


def test_what_was_tested_before_training_is_in_the_curve(begin, small):
    """A model that is loaded and trained further: its first score comes before the run has a folder."""
    trained = begin()
    trained.train(32)
    trained.save_model("best_model.pth")
    agent = begin(benchmark=1)
    agent.load_model(trained.model_dir_save)
    first = agent.test(lambda: make_envs(small()), 2)
    agent.train(32)
    agent.test(lambda: make_envs(small()), 2)
    rows = (Path(agent.log_dir) / "learning_curve.csv").read_text().split()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "128"]
    assert float(rows[1].split(",")[1]) == np.mean(first)


def test_folders_that_were_only_looked_at_do_not_stay(begin):
    agent = begin()
    folders = [Path(agent.log_dir), Path(agent.model_dir_save)]
    assert all(folder.is_dir() for folder in folders)
    agent.finish()
    assert not any(folder.exists() for folder in folders)


# The runner with an agent from outside


def test_a_benchmark_with_an_agent_from_outside_leaves_result_files(begin, small, tmp_path):
    agent = begin()
    agent.train(32)  # before anybody speaks of a benchmark
    runner = RunnerDRL(small(), agent.train_envs, agent)
    keys = {"running_steps": 256, "eval_interval": 128, "test_episodes": 3, "benchmark_result_path": tmp_path / "res"}
    summary = runner.run("benchmark", **keys)
    assert isinstance(summary, Summary) and summary.steps == 384 and summary.best_mean is not None
    with open(tmp_path / "res" / "test_scores.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "return_episode_0", "return_episode_1", "return_episode_2"]
    assert [row[0] for row in rows] == ["128", "256", "384"]
    means = [np.mean([float(score) for score in row[1:]]) for row in rows]
    best = json.loads((tmp_path / "res" / "best_model_info.json").read_text())
    assert best["mean"] == pytest.approx(max(means)) and best["step"] == int(rows[int(np.argmax(means))][0])
    meta = json.loads((tmp_path / "res" / "meta_data.json").read_text())
    assert meta["benchmark"] == {"running_steps": 256, "eval_interval": 128, "test_episodes": 3}
    assert (
        meta["timestamps"]["end_time"] and json.loads((tmp_path / "res" / "summary.json").read_text())["steps"] == 384
    )
    assert json.loads((Path(summary.log_dir) / "run.json").read_text())["mode"] == "benchmark"
    assert isinstance(runner.run("train", running_steps=128), Summary)
    agent.test(lambda: make_envs(small()), 3)  # the files are still open
    assert len((Path(summary.log_dir) / "learning_curve.csv").read_text().split()) == 5

    def files():
        return {
            path.name: path.read_bytes() for path in Path(summary.log_dir).glob("*.*") if "tfevents" not in path.name
        }

    before = files()
    assert len(runner.run("test", n_envs=1, model_path=agent.model_dir_save, test_episodes=2)) == 2
    assert files() == before  # the test of a model that was loaded is no evaluation of the run


@pytest.mark.parametrize(
    ("mode", "keys", "error", "message"),
    [
        ("train", {"foo": 3}, TypeError, r"run\('train'\) has no argument foo; allowed: running_steps$"),
        ("benchmark", {"running_steps": "a"}, TypeError, "running_steps must be an integer >= 1; got 'a'"),
        ("test", {"n_envs": 0}, ValueError, "n_envs must be an integer >= 1; got 0"),
    ],
)
def test_a_run_with_wrong_arguments(small, mode, keys, error, message):
    with pytest.raises(error, match=message):
        RunnerDRL(small()).run(mode, **keys)


def test_what_fails_before_it_begins_leaves_no_empty_folder(begin, small, tmp_path):
    with pytest.raises(EnvError):
        RunnerDRL(small(env_id="Nowhere-v0")).run("train")
    agent = begin(env_id="toys:toy/RaisesAtOnce-v0")  # in the warm-up of the observations' statistics
    with pytest.raises(ValueError, match="the simulator broke"):
        agent.train(32)
    agent.finish()
    assert not (tmp_path / "logs").exists() and not (tmp_path / "models").exists()
