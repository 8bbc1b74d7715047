"""Runs in several processes that the command line, a script or torchrun starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import rank_pool
import torch
import yaml

from xcfast.errors import ConfigError
from xcfast.output import checkpoint as ckpt
from xcfast.ranks.launch import ranks_to_start

TORCHRUN = ["-m", "torch.distributed.run"]
IGNORING = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def yaml_of(config, folder):
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    return str(file)


def leaves(tree):
    """Returns the numbers and texts in nested dictionaries, lists and tensors; one order for equal trees."""
    if isinstance(tree, dict):
        return [(key, leaves(value)) for key, value in sorted(tree.items())]
    return [leaves(value) for value in tree] if isinstance(tree, list) else getattr(tree, "tolist", lambda: tree)()


def wait_for_a_checkpoint(job, config, after=0):
    """Returns the steps of the newest checkpoint of a running job, once there are more than that."""
    deadline = time.monotonic() + 60
    steps = 0
    while steps <= after:
        assert time.monotonic() < deadline and job.poll() is None, job.communicate()
        time.sleep(0.1)
        paths = Path(config.model_dir).glob("*/*/checkpoint_*.pth")
        steps = max((int(path.stem.partition("_")[2]) for path in paths), default=0)
    return steps


def test_the_configuration_decides_how_many_ranks_start(small):
    assert ranks_to_start(small(num_ranks=3)) == 3 and ranks_to_start(small()) == 1
    assert ranks_to_start(small(distributed_training=True, num_ranks=2)) == 2
    with pytest.raises(ConfigError, match="there is no GPU; num_ranks sets how many"):
        ranks_to_start(small(distributed_training=True))
    with pytest.raises(ConfigError, match="more processes than environments"):
        small(num_ranks=5)


def test_one_iteration_from_the_command_line_is_the_same_on_one_rank_and_on_two(tmp_path, native):
    """Each is started with another number of threads, for torch and for the update."""
    wide = {"representation_hidden_size": [256, 256], "actor_hidden_size": [256], "critic_hidden_size": [256]}
    config = native(env_id="Ant-v4", running_steps=80, num_threads=0, **wide)
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    starts = {
        "alone": (environ, []),
        "one thread": ({**environ, "OMP_NUM_THREADS": "1"}, []),
        "num_ranks": (environ, []),
        "torchrun": (environ, [*TORCHRUN, "--standalone", "--nproc-per-node=2"]),
    }
    saved = {}
    for name, (env, torchrun) in starts.items():
        folder = tmp_path / name
        keys = [f"num_ranks={1 + (name == 'num_ranks')}", f"log_dir={folder}/logs", f"model_dir={folder}/models"]
        command = [sys.executable, *torchrun, "-m", "xcfast.train", yaml_of(config, tmp_path), "--benchmark=0", *keys]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = folder.glob("models/*/*/checkpoint_80.pth")
        saved[name] = ckpt.load_checkpoint(path)
    for name, checkpoint in saved.items():
        # Where the rollout led the environments and the action noise, and the statistics of all that it saw.
        for part in ("collector", "obs_normalizer", "reward_normalizer", "episodes"):
            assert leaves(checkpoint[part]) == leaves(saved["alone"][part]), f"{name}: {part}"
        torch.testing.assert_close(checkpoint["policy"], saved["alone"]["policy"], rtol=0, atol=1e-5)


def test_a_script_without_a_main_guard_starts_ranks(tmp_path, native):
    config = native(num_ranks=2, running_steps=160, eval_interval=80)
    script = tmp_path / "script.py"
    script.write_text(
        "from xcfast import load_config, run\n"
        "print('once')\n"
        f"summary = run(load_config(None, {config.to_dict()!r}), quiet=True)\n"
        "print(summary.steps, summary.best_mean > 0, summary.collector_backend)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.split("\n")[-3:] == ["once", "160 True native", ""], done.stdout + done.stderr
    assert done.returncode == 0


def test_a_rank_that_is_killed_ends_the_job(tmp_path, native):
    config = native(num_ranks=2, running_steps=10**8, checkpoint_interval=400)
    command = [sys.executable, "-m", "xcfast.train", yaml_of(config, tmp_path), "--benchmark", "0"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for_a_checkpoint(job, config)
        ranks = psutil.Process(job.pid).children()
        victim = next(rank for rank in ranks if rank.environ()["RANK"] == "1")
        victim.kill()
        killed = time.monotonic()
        output, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 1 and "rank 1 ended without a result (SIGKILL)" in output, output
    assert time.monotonic() - killed < 60
    assert not [rank for rank in ranks if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
    (models,) = Path(config.model_dir).glob("*/*")
    assert ckpt.load_checkpoint(ckpt.periodic_checkpoints(models)[-1])["step"] > 0


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_that_ignores_signals_goes_on_until_sigterm_and_saves(tmp_path, native, num_ranks):
    """A shell ignores SIGINT in the background jobs of a script, and nohup ignores SIGHUP."""
    config = native(num_ranks=num_ranks, running_steps=10**8, checkpoint_interval=400)
    command = [sys.executable, "-c", IGNORING, "-m", "xcfast.train", yaml_of(config, tmp_path), "--benchmark", "0"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        steps = wait_for_a_checkpoint(job, config)
        processes = [psutil.Process(job.pid), *psutil.Process(job.pid).children()]
        for number in (signal.SIGINT, signal.SIGHUP):
            for process in processes:
                process.send_signal(number)
        wait_for_a_checkpoint(job, config, after=steps + 1000)
        job.terminate()
        job.send_signal(signal.SIGINT)  # not a second Ctrl-C, which would end the run at once
        output, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 0 and "SIGTERM: stopping after this iteration" in output, output
    assert "SIGINT" not in output and "SIGHUP" not in output and "Ctrl-C" not in output, output
    (summary,) = Path(config.log_dir).glob("*/*/summary.json")
    (models,) = Path(config.model_dir).glob("*/*")
    newest = ckpt.load_checkpoint(ckpt.periodic_checkpoints(models)[-1])
    assert newest["step"] == json.loads(summary.read_text())["steps"]


@pytest.mark.slow
def test_two_torchrun_agents(tmp_path, native):
    config = native(running_steps=192, parallels=6)
    file = yaml_of(config, tmp_path)
    port = rank_pool.free_port()
    environ = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}

    def agent(node):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"]
        meeting = ["--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command = [*torchrun, *meeting, "-m", "xcfast.train", file]
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    agents = [agent(node) for node in range(2)]
    try:
        outputs = [one.communicate(timeout=100)[0] for one in agents]
    finally:
        for one in agents:
            one.kill()
    assert [one.returncode for one in agents] == [0, 0], outputs
    assert "4, 2 on this node" in outputs[0] and "192 (" in outputs[0] and "steps" not in outputs[1], outputs
    (models,) = Path(config.model_dir).glob("*/*")
    assert ckpt.load_checkpoint(models / ckpt.FINAL_MODEL)["step"] == 192


OWN = """
import sys, threading
import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from xcfast import load_config, run
from xcfast.errors import EnvError

class Mine(PendulumEnv):
    def __init__(self, lock=None, **kwargs):
        super().__init__(**kwargs)

gymnasium.register("Mine-v0", Mine, max_episode_steps=10)
config = load_config(None, CONFIG)
print(run(config, quiet=True).steps)
gymnasium.registry["Mine-v0"].kwargs["lock"] = threading.Lock()
try:
    run(config, quiet=True)
except EnvError as error:
    print(error)
"""


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
def test_ranks_know_the_environment_that_a_script_registered(tmp_path, small, vectorize):
    keys = {"env_id": "Mine-v0", "num_ranks": 2, "running_steps": 256, "vectorize": vectorize, "num_workers": 1}
    script = tmp_path / "script.py"
    script.write_text(OWN.replace("CONFIG", repr(small(**keys).to_dict())))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steps, refused = done.stdout.splitlines()
    assert steps == "256"
    assert refused.startswith("the registration of 'Mine-v0' cannot be sent to another process: cannot pickle ")
