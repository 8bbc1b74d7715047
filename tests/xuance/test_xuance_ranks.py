"""Scripts with XuanCe's names in several processes: under torchrun, and started by the runner."""

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from small_config import SMALL

from xcfast.config import ConfigError
from xcfast.xuance import PPO_Agent, get_runner, make_envs

ARGUMENTS = {**SMALL, "vectorize": "MujocoVecEnv", "logger": "none", "benchmark": True}

SCRIPT = """
import json, os, sys
from argparse import Namespace
from xcfast.xuance import Gaussian_AC_Policy, Basic_MLP, ActivationFunctions, PPOCLIP_Agent, make_envs, set_seed
from xcfast.xuance import get_total_iters
import torch

arguments = json.loads(sys.argv[1])
args, test_args = (Namespace(**{**arguments, "parallels": n}) for n in (arguments["parallels"], 3))
set_seed(1)
envs = make_envs(args)
relu = ActivationFunctions["relu"]
trunk = Basic_MLP(envs.observation_space.shape, [16], activation=relu)
policy = Gaussian_AC_Policy(envs.action_space, trunk, [16], [16], activation=relu, activation_action=relu)
optimizer = torch.optim.Adam(policy.parameters(), 1e-3, eps=1e-5)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, get_total_iters("PPO", args))
agent = PPOCLIP_Agent(args, envs, policy, optimizer, scheduler)
scores, mistake, second = [], arguments.get("mistake"), os.environ.get("RANK") == "1"
try:
    for _ in range(3):
        agent.train(40)  # a rollout is 32
        if mistake == "raises" and second:
            raise ValueError("the script's own mistake")
        scores.append(agent.test(lambda: make_envs(test_args), 3))
        if not (mistake == "one saves" and second):
            agent.save_model("best_model.pth")
finally:
    agent.finish()
weights = torch.nn.utils.parameters_to_vector(policy.parameters()).tolist()
told = {"envs": envs.num_envs, "n_envs": agent.n_envs, "step": agent.current_step, "scores": scores, "weights": weights}
with open(f"told_{os.environ.get('RANK', 'alone')}.json", "w") as file:
    json.dump(told, file)
"""


def run_script(folder, processes, **arguments):
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    given = json.dumps({**ARGUMENTS, "log_dir": "logs", "model_dir": "models", **arguments})
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *torchrun, "script.py", given]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=110)
    return done, [json.loads(path.read_text()) for path in sorted(folder.glob("told_*.json"))]


def test_a_script_under_torchrun_trains_as_it_does_alone(tmp_path):
    done, (alone,) = run_script(tmp_path / "alone", 1)
    assert done.returncode == 0, done.stderr
    done, ranks = run_script(tmp_path / "ranks", 2)
    assert done.returncode == 0, done.stderr
    assert [told["envs"] for told in ranks] == [2, 2] and alone["envs"] == 4
    for told in ranks:
        assert (told["n_envs"], told["step"]) == (4, 480) == (alone["n_envs"], alone["step"])
        assert told["scores"] == ranks[0]["scores"] and told["weights"] == ranks[0]["weights"]
        assert len(told["scores"]) == 3 and all(len(scores) == 3 for scores in told["scores"])
    # The first rollout's data are the same bits; from then on gradients are sums in another order.
    torch.testing.assert_close(torch.tensor(ranks[0]["weights"]), torch.tensor(alone["weights"]), rtol=0, atol=1e-3)
    (logs,), (models,) = (list((tmp_path / "ranks" / kind).iterdir()) for kind in ("logs", "models"))
    assert (models / "best_model.pth").is_file() and len((logs / "learning_curve.csv").read_text().split()) == 4


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("raises", "ValueError: the script's own mistake"),
        ("one saves", "rank 0 is at save_model('best_model.pth'), rank 1 is at train(40)"),
    ],
)
def test_a_mistake_in_one_process_ends_all(tmp_path, mistake, words):
    done, told = run_script(tmp_path / "ranks", 2, mistake=mistake)
    assert done.returncode != 0 and not told
    assert words in done.stderr


def test_the_runner_starts_the_processes(tmp_path):
    folders = {"log_dir": str(tmp_path / "logs"), "model_dir": str(tmp_path / "models")}
    args = Namespace(**{**ARGUMENTS, **folders, "num_ranks": 2})
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    summary = get_runner("ppo", "mujoco", "InvertedPendulum-v4", parser_args=args).run("train")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert summary.steps == 512
    (logs,) = (tmp_path / "logs" / "InvertedPendulum-v4").iterdir()  # once, not twice, below the env's name
    assert json.loads((logs / "summary.json").read_text())["steps"] == 512


def test_a_script_that_asks_for_several_processes_is_told_how_they_start():
    args = Namespace(**{**ARGUMENTS, "num_ranks": 2})
    envs = make_envs(args)
    with pytest.raises(ConfigError, match=r"torchrun --nproc-per-node=2 SCRIPT"):
        PPO_Agent(args, envs)
    envs.close()


OWN = """
import json, sys
from argparse import Namespace
import numpy as np
from gymnasium.spaces import Box
from xcfast.xuance import REGISTRY_ENV, RawEnvironment, get_runner

class Mine(RawEnvironment):
    def __init__(self, config):
        super().__init__()
        self.observation_space, self.action_space = Box(-9, 9, [3]), Box(-1, 1, [2])
        self.max_episode_steps, self.goal = 8, config.goal

    def reset(self, **kwargs):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.full(3, self.goal, np.float32), float(action[0]), False, False, {}

    def render(self, *args, **kwargs):
        return np.zeros((8, 8, 3), np.uint8)

    def close(self):
        pass

REGISTRY_ENV["Mine"] = Mine
args = Namespace(**json.loads(sys.argv[1]))
print(get_runner("ppo", "Mine", args.env_id, parser_args=args).run("benchmark").steps)
"""


def test_the_processes_that_the_runner_starts_know_the_scripts_own_environment(tmp_path):
    (tmp_path / "script.py").write_text(OWN)
    keys = {**ARGUMENTS, "env_name": "Mine", "env_id": "one", "goal": 0.5, "num_ranks": 2, "vectorize": "DummyVecEnv"}
    keys |= {"log_dir": str(tmp_path / "logs"), "model_dir": str(tmp_path / "models")}
    command = [sys.executable, "script.py", json.dumps(keys)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "512"
