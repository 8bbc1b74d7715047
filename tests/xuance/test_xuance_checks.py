"""Wrong arguments to XuanCe's names are one sentence: the argument, what was given, what is allowed."""

from argparse import Namespace

import gymnasium
import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from xcfast.config import ConfigError
from xcfast.policy import ACTIVATIONS
from xcfast.xuance import (
    ActivationFunctions,
    Basic_MLP,
    Categorical_AC_Policy,
    Gaussian_AC_Policy,
    NormalizeFunctions,
    PPO_Agent,
    get_arguments,
    get_runner,
    make_envs,
)

BOX = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.fixture
def parts(small):
    """Arguments, envs and a policy by hand."""
    args = Namespace(**small().to_dict())
    envs = make_envs(args)
    trunk = Basic_MLP((4,), [16], activation="leaky_relu")
    yield args, envs, Gaussian_AC_Policy(envs.action_space, trunk, [16], [16], activation="leaky_relu")
    envs.close()


def adam(policy):
    return torch.optim.Adam(policy.parameters(), 1e-3)


def test_optimizers_and_schedulers(parts):
    args, envs, policy = parts

    def refused(error, message, **given):
        with pytest.raises(error, match=message) as caught:
            PPO_Agent(args, envs, policy, quiet=True, **given)
        assert "\n" not in str(caught.value)

    refused(TypeError, r"optimizer must be one of torch.optim's, made for the policy; got 'adam'", optimizer="adam")
    lbfgs = torch.optim.LBFGS(policy.parameters())
    refused(ValueError, "LBFGS computes the loss several times a step; allowed", optimizer=lbfgs)
    refused(TypeError, "scheduler must be one of torch.optim.lr_scheduler's; got 3", scheduler=3)
    refused(TypeError, "scheduler must be one of", scheduler=lr_scheduler.LinearLR)
    # 4 iterations of 2 epochs of 4 minibatches
    optimizer = adam(policy)
    short = lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=31, cycle_momentum=False)
    message = "OneCycleLR has 31 of its 31 steps left, but the run has 32 gradient steps; allowed: total_steps="
    refused(ValueError, message, optimizer=optimizer, scheduler=short)
    optimizer = adam(policy)
    enough = lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=32, cycle_momentum=False)
    agent = PPO_Agent(args, envs, policy, optimizer, enough, quiet=True)
    agent.train(128)
    assert enough.last_epoch == 32 and agent.learner.name == "native"
    agent.finish()


def test_numbers_of_steps_and_episodes(parts):
    args, envs, policy = parts
    agent = PPO_Agent(args, envs, policy, quiet=True)
    for given, error in (("3", TypeError), (2.5, TypeError), (None, TypeError), (-1, ValueError)):
        with pytest.raises(error, match=f"train_steps must be an integer >= 0; got {given!r}"):
            agent.train(given)
    assert agent.current_step == 0
    agent.train(3.0)  # a script's division
    agent.train(np.int64(2))
    assert agent.current_step == 20
    with pytest.raises(ValueError, match="test_episodes must be an integer >= 1; got 0"):
        agent.test(lambda: make_envs(args), 0)
    agent.finish()


def test_observations(parts):
    args, envs, policy = parts
    agent = PPO_Agent(args, envs, policy, quiet=True)
    for given, message in (
        (np.zeros(4), r"observations must be \[B, 4\]; got float64 \[4\]"),
        (np.zeros((2, 5)), r"observations must be \[B, 4\]; got float64 \[2, 5\]"),
        (np.zeros((0, 4)), r"observations must be \[B, 4\]; got float64 \[0, 4\]"),
        (["a"], r"observations must be \[B, 4\]; got <U1 \[1\]"),
        ([[0, 1, 2, np.nan]], r"of finite numbers; got NaN or infinity in row 0"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.get_actions(given)
    assert agent.get_actions([[0, 1, 2, 3]])["actions"].shape == (1, 1)
    agent.finish()


def test_configurations(parts, small):
    _, envs, _ = parts
    for given in (None, 3, "ppo.yaml", Namespace):
        with pytest.raises(TypeError, match="config must be a Namespace, a dict or a Config; got"):
            PPO_Agent(given, envs, quiet=True)
        with pytest.raises(TypeError, match="config must be a Namespace, a dict or a Config; got"):
            make_envs(given)
    same = make_envs(small().to_dict())
    assert same.num_envs == 4
    same.close()
    assert get_arguments("ppo", "mujoco", "Hopper-v4", parser_args={"gamma": 0.5, "seed": None}).gamma == 0.5
    with pytest.raises(TypeError, match="parser_args must be a Namespace, a dict or a Config; got 3"):
        get_arguments("ppo", "mujoco", "Hopper-v4", parser_args=3)


def test_widths():
    for given in (64, "64", [0], [2.5], ["a"]):
        with pytest.raises((TypeError, ValueError), match="hidden_sizes must be a list of positive integers; got"):
            Basic_MLP((4,), given, activation="relu")
    trunk = Basic_MLP((4,), [8], activation="relu")
    with pytest.raises(TypeError, match="actor_hidden_size must be a list of positive integers; got 16"):
        Gaussian_AC_Policy(BOX, trunk, 16, [16], activation="relu")
    with pytest.raises(TypeError, match="critic_hidden_size must be a list of positive integers; got 16"):
        Categorical_AC_Policy(gymnasium.spaces.Discrete(2), trunk, [16], 16, activation="relu")


def test_activations_and_normalisations_by_any_of_their_names():
    older = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "ELU": "elu"}
    for name, today in older.items():
        assert ActivationFunctions[name] is ActivationFunctions.get(name) is ACTIVATIONS[today]
        assert name in ActivationFunctions
        assert isinstance(Basic_MLP((3,), [4], activation=name).model[1], ACTIVATIONS[today])
    assert list(ActivationFunctions) == list(ACTIVATIONS)  # each is listed once
    assert "GELU" not in ActivationFunctions and ActivationFunctions.get("GELU") is None
    with pytest.raises(KeyError, match="'GELU'; allowed: relu, leaky_relu, tanh"):
        ActivationFunctions["GELU"]
    with pytest.raises(ConfigError, match="activation: not supported; given: gelu; allowed: relu, leaky_relu"):
        Basic_MLP((3,), [4], activation="gelu")
    with pytest.raises(ConfigError, match=r"activation: not supported; given: ReLU\(\); allowed: relu"):
        Basic_MLP((3,), [4], activation=torch.nn.ReLU())
    by_name = Basic_MLP((3,), [4], activation="tanh", normalize="LayerNorm")
    assert isinstance(by_name.model[2], NormalizeFunctions["LayerNorm"])


def test_the_policy_follows_the_actions_where_nobody_gave_one(tmp_path):
    """toys:toy/Choice-v0 has three actions, toys:toy/Target-v0 continuous ones; neither has a shipped file."""
    assert get_arguments("ppo", env_id="toys:toy/Choice-v0").policy == "Categorical_AC"
    assert get_arguments("ppo", env_id="toys:toy/Target-v0").policy == "Gaussian_AC"
    assert get_arguments("ppo", parser_args={"env_id": "toys:toy/Choice-v0"}).policy == "Categorical_AC"
    path = tmp_path / "mine.yaml"
    path.write_text("policy: Gaussian_AC\n")
    assert get_arguments("ppo", env_id="toys:toy/Choice-v0", config_path=path).policy == "Gaussian_AC"
    assert get_arguments("ppo", env_id="Nowhere-v0").policy == "auto"  # make_envs says what is wrong
    runner = get_runner("ppo", env_id="toys:toy/Choice-v0", parser_args={"parallels": 2, "vectorize": "DummyVecEnv"})
    assert runner.envs.action_space.n == 3 and runner.config.policy == "Categorical_AC"
    runner.envs.close()


def test_another_env_id_in_the_file_is_told(tmp_path, capsys):
    path = tmp_path / "page.yaml"
    path.write_text("env_id: Ant-v4\n")
    assert get_arguments("ppo", "mujoco", "Hopper-v4", path).env_id == "Ant-v4"
    assert capsys.readouterr().err == f"env_id is Ant-v4, which {path} sets, not Hopper-v4\n"
    line = Namespace(env_id="Hopper-v4")
    assert get_arguments("ppo", "mujoco", "Hopper-v4", path, line).env_id == "Hopper-v4"
    assert capsys.readouterr().err == ""
    assert get_arguments("ppo", "mujoco", "Ant-v4", path, line).env_id == "Hopper-v4"
    assert capsys.readouterr().err == "env_id is Hopper-v4, which parser_args sets, not Ant-v4\n"


def test_another_agent_in_the_file_is_told(tmp_path, capsys):
    path = tmp_path / "page.yaml"
    path.write_text("agent: PPO_Clip\nlearner: PPOCLIP_Learner\n")
    assert get_arguments("ppo_kl", "mujoco", "Hopper-v4", path).agent == "PPO_Clip"
    assert capsys.readouterr().err == "agent is PPO_Clip, which the configuration sets, not ppo_kl\n"
    path.write_text("agent: PPOKL_Agent\n")
    assert get_arguments("ppo_kl", "mujoco", "Hopper-v4", path).agent == "PPOKL_Agent"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("env", "env_id", "policy"),
    [("classic_control", "MountainCar-v0", "Categorical_AC"), ("box2d", "BipedalWalker-v3", "Gaussian_AC")],
)
def test_tasks_of_xuances_files_have_one_here(env, env_id, policy):
    args = get_arguments("ppo", env, env_id)
    assert (args.env_id, args.policy) == (env_id, policy)
    assert args.env_name.lower().replace(" ", "_") == env and args.actor_hidden_size != [256]
