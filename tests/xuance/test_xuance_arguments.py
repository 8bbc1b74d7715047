"""Arguments, environments and networks by XuanCe's names."""

import inspect
import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import xcfast.xuance
from xcfast.config import Config, ConfigError, load_config
from xcfast.config.keys import INERT_KEYS, RENAMED_KEYS
from xcfast.policy import build_policy
from xcfast.xuance import (
    ActivationFunctions,
    Basic_Identical,
    Basic_MLP,
    Categorical_AC_Policy,
    Gaussian_AC_Policy,
    NormalizeFunctions,
    get_arguments,
    get_configs,
    get_runner,
    get_total_iters,
    load_yaml,
    make_envs,
    recursive_dict_update,
    set_device,
    set_seed,
    space2shape,
)
from xcfast.xuance.arguments import to_config
from xcfast.xuance.networks import keys_describing

TUTORIAL = Path(__file__).parents[1] / "data" / "xuance_tutorial.yaml"
BOX = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_every_public_name_is_there_and_documented():
    for name in xcfast.xuance.__all__:
        value = getattr(xcfast.xuance, name)
        assert not callable(value) or inspect.getdoc(value)


def test_the_file_as_a_dict():
    values = get_configs(file_dir=TUTORIAL)
    assert values == load_yaml(TUTORIAL)
    assert values["agent"] == "PPO_Clip" and values["representation_hidden_size"] == [256] and values["clip_type"] == 1


def test_a_misspelt_key_in_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("env_id: Ant-v4\nlearning_rat: 0.1\n")
    with pytest.raises(ConfigError, match=r"my.yaml, line 2: learning_rat: unknown key.*did you mean learning_rate\?"):
        load_yaml(path)


def test_recursive_dict_update():
    first = {"a": 1, "b": {"c": 2, "d": [3]}, "e": 0}
    merged = recursive_dict_update(first, {"b": {"c": 9, "f": {"g": 1}}, "e": {"h": 1}, "i": None})
    assert merged == {"a": 1, "b": {"c": 9, "d": [3], "f": {"g": 1}}, "e": {"h": 1}, "i": None}
    merged["b"]["d"].append(4)
    assert first["b"]["d"] == [3]


def test_three_layers_of_arguments(tmp_path):
    """What is shipped for the task, then the file, then the command line."""
    shipped = get_arguments("ppo", "mujoco", "Hopper-v4")
    assert vars(shipped).keys() >= Config().to_dict().keys()
    assert shipped.env_id == "Hopper-v4" and shipped.env_name == "MuJoCo"
    path = tmp_path / "mine.yaml"
    path.write_text("n_steps: 64\ngamma: 0.9\nseed: 3\n")
    line = Namespace(seed=4, device=None, method="ppo", env="mujoco")
    args = get_arguments(method="ppo", env="mujoco", env_id="Hopper-v4", config_path=path, parser_args=line)
    assert (args.horizon_size, args.gamma, args.seed, args.device) == (64, 0.9, 4, shipped.device)
    assert to_config(args).horizon_size == 64
    assert get_arguments("ppo", "mujoco", "Hopper-v4", is_test=True).test_mode
    unknown = get_arguments("ppo", "classic_control", "MountainCarContinuous-v0")
    assert unknown.env_name == "Classic Control"


def test_only_an_id_that_the_call_names_imports_its_module(tmp_path, monkeypatch):
    module = tmp_path / "named_module.py"
    module.write_text("import gymnasium, pathlib\npathlib.Path(__file__).with_suffix('.imported').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text("env_id: named_module:CartPole-v1\n")
    assert get_arguments("ppo", config_path=path).policy == "auto"
    assert not module.with_suffix(".imported").exists()
    assert get_arguments("ppo", env_id="named_module:CartPole-v1", config_path=path).policy == "Categorical_AC"
    assert module.with_suffix(".imported").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"algo": "dqn", "env": "mujoco"}, "algo: not available; given: dqn; allowed: ppo"),
        ({"algo": "ppo", "env": "atari"}, "env: not available; given: atari; allowed: mujoco, classic_control"),
        ({"algo": "ppo", "env": "box2d"}, "env: does not fit Ant-v4, whose env_name is MuJoCo; given: box2d"),
    ],
)
def test_what_there_is_no_default_for(keys, message):
    with pytest.raises(ConfigError, match=message):
        get_arguments(env_id="Ant-v4", **keys)


def test_arguments_become_a_configuration():
    """The page's, with what its script adds; unknown ones are named, since a misspelt flag would change nothing."""
    values = get_configs(TUTORIAL)
    args = Namespace(**values, test=0, benchmark=1, observation_space=BOX, learning_rat=1.0)
    config = to_config(args)
    reference = load_config(TUTORIAL)
    assert config == reference
    assert [line for line in config.notices if "ignored arguments" in line] == [
        "ignored arguments, which are not keys: learning_rat (did you mean learning_rate?)"
    ]
    assert to_config(SimpleNamespace(**values), gamma=0.5).gamma == 0.5
    assert to_config(config) == config
    assert get_total_iters("PPO_Clip", args) == 31_232  # 244 rollouts, 16 epochs, 8 minibatches


def test_set_seed_decides_weights_made_by_hand():
    def weights(seed):
        set_seed(seed)
        return Basic_MLP((3,), [4], initialize=torch.nn.init.orthogonal_, activation=torch.nn.Tanh).model[0].weight

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_a_device_that_is_missing_becomes_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("xcfast.xuance.arguments._FALLEN_BACK", set())
    assert [str(set_device(name)) for name in ("cuda:0", "gpu", "cpu", None, "cuda:0")] == ["cpu"] * 5
    assert capsys.readouterr().err.count("cuda:0 is not available") == 1


def test_space2shape():
    spaces = gymnasium.spaces.Dict({"a": BOX, "b": gymnasium.spaces.Discrete(3)})
    assert space2shape(BOX) == (2,) and space2shape((4, 5)) == (4, 5)
    assert space2shape(spaces) == {"a": (2,), "b": ()}


def test_envs_have_xuances_interface():
    """Against Gymnasium itself: the final observation is returned, the first one of the next episode is in the info."""
    args = Namespace(env_id="InvertedPendulum-v4", env_seed=5, parallels=2, vectorize="Dummy_Gym", n_minibatch=10**6)
    envs = make_envs(args)
    singles = [gymnasium.make("InvertedPendulum-v5") for _ in range(2)]
    assert envs.num_envs == 2 and envs.max_episode_steps == 1000
    assert envs.observation_space == singles[0].observation_space and envs.action_space == singles[0].action_space
    obs, infos = envs.reset()
    expected = np.stack([env.reset(seed=5 + i)[0] for i, env in enumerate(singles)])
    np.testing.assert_array_equal(obs, expected)
    np.testing.assert_array_equal(envs.buf_obs, expected)
    assert [info["episode_step"] for info in infos] == [0, 0]
    ended = 0
    lengths, actions = [0, 0], np.array([[0.5], [-0.2]], np.float32)
    for _ in range(120):
        obs, _, terminated, truncated, infos = envs.step(actions)
        for i, env in enumerate(singles):
            one, _, done, _, _ = env.step(actions[i])
            lengths[i] += 1
            np.testing.assert_array_equal(obs[i], one)
            assert terminated[i] == done and not truncated[i]
            assert infos[i]["episode_step"] == lengths[i]
            if done:
                assert infos[i]["episode_score"] >= lengths[i] - 1
                np.testing.assert_array_equal(infos[i]["reset_obs"], env.reset()[0])
                np.testing.assert_array_equal(envs.buf_obs[i], infos[i]["reset_obs"])
                lengths[i], ended = 0, ended + 1
    assert ended >= 4
    with pytest.raises(RuntimeError, match="step_wait"):
        envs.step_wait()
    with pytest.raises(RuntimeError, match="made without render_mode"):
        envs.render("rgb_array")
    envs.close()
    for env in singles:
        env.close()


def by_hand(config, action_space, n_in=3, initialize=None):
    activation = ActivationFunctions[config.activation]
    normalize = None if config.normalize is None else NormalizeFunctions[config.normalize]
    shape = {"normalize": normalize, "initialize": initialize, "activation": activation}
    if config.representation == "Basic_MLP":
        trunk = Basic_MLP((n_in,), config.representation_hidden_size, **shape)
    else:
        trunk = Basic_Identical(input_shape=(n_in,))
    heads = (action_space, trunk, config.actor_hidden_size, config.critic_hidden_size)
    if config.policy == "Categorical_AC":
        return Categorical_AC_Policy(*heads, **shape)
    bound = None if config.activation_action is None else ActivationFunctions[config.activation_action]
    return Gaussian_AC_Policy(*heads, **shape, activation_action=bound)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"activation": "relu", "activation_action": None},
        {"normalize": "LayerNorm", "actor_hidden_size": [], "critic_hidden_size": [5, 6]},
        {"representation": "Basic_Identical"},
        {"policy": "Categorical_AC", "activation": "tanh"},
    ],
)
def test_a_policy_by_hand_is_the_configurations(keys):
    config = load_config(None, {"policy": "Gaussian_AC", "representation_hidden_size": [8, 4], **keys})
    space = gymnasium.spaces.Discrete(3) if config.policy == "Categorical_AC" else BOX
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    reference = build_policy(config, observation_space, space)
    policy = by_hand(config, space, initialize=torch.nn.init.orthogonal_)
    shapes = {name: value.shape for name, value in policy.state_dict().items()}
    assert shapes == {name: value.shape for name, value in reference.state_dict().items()}
    policy.load_state_dict(reference.state_dict())
    obs = torch.randn(5, 3)
    assert torch.equal(policy.act(obs), reference.act(obs)) and torch.equal(policy.value(obs), reference.value(obs))
    assert load_config(None, {**config.to_dict(), **keys_describing(policy)}) == config


def test_initialize_is_called_with_every_weight():
    """``orthogonal_`` as on the page has gain 1, everywhere; biases are 0; without it the gains are xcfast's."""
    config = load_config(None, {"representation_hidden_size": [8], "actor_hidden_size": [8], "critic_hidden_size": [8]})
    for initialize, gain in ((torch.nn.init.orthogonal_, 1.0), (None, 0.01)):
        policy = by_hand(config, BOX, initialize=initialize)
        weight = policy.actor.mu[-2].weight
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(2), rtol=0, atol=1e-6)
        assert not any(p.any() for name, p in policy.named_parameters() if name.endswith("bias"))
        assert (policy.actor.logstd == -1.0).all()


def test_parts_that_are_not_supported_are_named():
    trunk = Basic_MLP((3,), [4], activation=torch.nn.ReLU)
    with pytest.raises(ConfigError, match="activation: not supported; given: GELU; allowed: relu, leaky_relu"):
        Basic_MLP((3,), [4], activation=torch.nn.GELU)
    with pytest.raises(ConfigError, match="normalize: not supported; given: BatchNorm1d; allowed: LayerNorm"):
        Basic_MLP((3,), [4], normalize=torch.nn.BatchNorm1d, activation=torch.nn.ReLU)
    with pytest.raises(ConfigError, match=r"activation: must be the same in representation and policy.*relu.*tanh"):
        Gaussian_AC_Policy(BOX, trunk, [4], [4], activation=torch.nn.Tanh)
    with pytest.raises(ConfigError, match=r"policy: does not fit Discrete\(2\)"):
        Gaussian_AC_Policy(gymnasium.spaces.Discrete(2), trunk, [4], [4], activation=torch.nn.ReLU)
    with pytest.raises(ConfigError, match="policy: does not fit Box"):
        Categorical_AC_Policy(BOX, trunk, [4], [4], activation=torch.nn.ReLU)
    with pytest.raises(TypeError, match="representation must be what Basic_MLP or Basic_Identical returns; got Linear"):
        Gaussian_AC_Policy(BOX, torch.nn.Linear(3, 4), [4], [4], activation=torch.nn.ReLU)


@pytest.mark.parametrize("call", ["run()", "benchmark()", "run(mode)"])
def test_get_runner(tmp_path, monkeypatch, call):
    """The older and the newer way; what it leaves is where the command line leaves it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "parallels: 4\nhorizon_size: 32\nrunning_steps: 256\nn_epochs: 1\nn_minibatch: 2\neval_interval: 128\n"
        "test_episode: 2\ndevice: cpu\nlogger: none\nactor_hidden_size: [8]\ncritic_hidden_size: [8]\n"
        "representation_hidden_size: [8]\nvectorize: DummyVecEnv\nnum_threads: 1\n"
        "log_dir: ./logs\nmodel_dir: ./models\n"
    )
    where = {"env": "mujoco", "env_id": "InvertedPendulum-v4", "config_path": "mine.yaml"}
    if call == "run()":
        summary = get_runner(method="ppo", **where, is_test=False).run()
        assert summary.best_mean is None
    elif call == "benchmark()":
        summary = get_runner(method="ppo", **where, is_test=False).benchmark(benchmark_result_path="results")
        assert Path("results/learning_curve.csv").read_text().count("\n") == 4
    else:
        summary = get_runner(algo="ppo", **where).run(mode="benchmark", running_steps=128, test_episodes=3)
        assert (Path(summary.log_dir) / "test_scores.csv").read_text().startswith("step,return_episode_0")
    assert summary.steps == (128 if call == "run(mode)" else 256)
    assert Path(summary.model_dir).parent == tmp_path / "models" / "InvertedPendulum-v4"
    assert (Path(summary.model_dir) / "final_train_model.pth").is_file()
    scores = get_runner(method="ppo", **where, is_test=True).run()
    assert len(scores) == 2
    assert len(get_runner(algo="ppo", **where).run("test", test_episodes=3, model_path=summary.model_dir)) == 3


KEYS = (Path(__file__).parents[1] / "data" / "xuance_keys.txt").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("name", KEYS)
def test_every_key_of_xuances_files_is_read_or_named_with_the_reason(tmp_path, name):
    """Those of XuanCe 1.4.4; where a value is needed, the reader's own default is one."""
    value = Config().to_dict().get(name, 1)
    path = tmp_path / "file.yaml"
    path.write_text(f"{name}: {json.dumps(value)}\n")
    config = load_config(path)
    if name in INERT_KEYS:
        assert config.notices == (f"{name} has no effect: {INERT_KEYS[name]}",)
    else:
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("family", ["Atari", "MiniGrid", "MetaDrive", "Drones"])
def test_environments_that_are_not_supported_are_refused_by_name(tmp_path, family):
    path = tmp_path / "file.yaml"
    path.write_text(f"env_name: {family}\nenv_config:\n  map: C\n")  # a key with keys below it, in MetaDrive's file
    with pytest.raises(ConfigError, match=f"env_name: not supported; .*given: {family}"):
        load_config(path)


def test_the_document_names_every_key_and_name():
    """Those of XuanCe's files, of any generation, and those of xcfast.xuance."""
    text = (Path(__file__).parents[2] / "docs" / "from_xuance.md").read_text(encoding="utf-8")
    names = [*load_yaml(TUTORIAL), *KEYS, *RENAMED_KEYS, *INERT_KEYS, *xcfast.xuance.__all__]
    assert [name for name in names if f"`{name}" not in text] == []
