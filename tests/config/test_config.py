"""The configuration: what is read, what is said about it, and what each error names."""

import dataclasses
import json
import operator
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xcfast.config import Config, ConfigError, config_table, load_config, shipped_config, shipped_configs
from xcfast.config.shipped import file_and_env_id
from xcfast.policy.build import resolve_policy

TUTORIAL = Path(__file__).parents[1] / "data" / "xuance_tutorial.yaml"

# Every key of XuanCe's PPO files, and of its code, that a file may contain.
XUANCE_KEYS = """
    dl_toolbox project_name logger wandb_user_name render render_mode fps test_mode device
    distributed_training master_port agent env_name env_id env_seed vectorize learner policy representation
    runner representation_hidden_size actor_hidden_size critic_hidden_size activation activation_action seed
    parallels running_steps horizon_size n_epochs n_minibatch learning_rate vf_coef ent_coef target_kl kl_coef
    clip_range gamma use_gae gae_lambda use_advnorm use_grad_clip clip_type grad_clip_norm use_actions_mask
    use_obsnorm obsnorm_range use_rewnorm rewnorm_range test_steps eval_interval test_episode log_dir
    model_dir normalize end_factor_lr_decay use_linear_lr_decay use_tensor_memory shared_representation
    initializer rt_epoch full_action_space result_dir obs_type img_size num_stack frame_skip noop_max filters
    kernels strides fc_hidden_sizes
""".split()

OWN_KEYS = {
    "collector_backend": "auto",
    "learner_backend": "auto",
    "num_threads": 0,
    "num_workers": 0,
    "checkpoint_interval": 0,
    "keep_checkpoints": 3,
    "log_std_init": -1.0,
    "end_factor_lr_decay": 0.0,
    "clip_value_range": None,
    "lr_schedule": "linear",
    "lr_decay_start": 0.75,
    "desired_kl": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "compile": "graph",
    "precision": "fp32",
    "overlap": False,
    "num_ranks": 1,
    "early_stop_kl": False,
    "noise_beta": 0.0,
}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


# What is read


def test_the_tutorial_configuration_loads_unchanged(no_cuda: None) -> None:
    config = load_config(TUTORIAL)
    written = yaml.safe_load(TUTORIAL.read_text())
    changed = {"agent": "PPO", "learner": "PPO_Learner", "device": "cpu", "master_port": 12355}
    without_effect = {"target_kl", "kl_coef", "clip_type", "test_steps"}
    values = config.to_dict()
    for name in written.keys() - without_effect:
        assert values[name] == changed.get(name, written[name]), name
    said = "\n".join(config.notices)
    for word in (*without_effect, "PPO_Clip is PPO", "PPOCLIP_Learner is PPO_Learner", "cuda:0"):
        assert word in said
    assert len(config.notices) == len(without_effect) + 2


def test_defaults_are_the_hyper_parameters_of_the_tutorial(no_cuda: None) -> None:
    given, default = load_config(TUTORIAL).to_dict(), Config().to_dict()
    differ = {name for name in given if given[name] != default[name]}
    assert differ == {"device", "vectorize", "policy", "fps"}


def test_every_key_of_xuance_is_read_or_named(tmp_path: Path) -> None:
    fields = {field.name for field in dataclasses.fields(Config)}
    for name in XUANCE_KEYS:
        if name in fields:
            continue
        (notice,) = load_config(write(tmp_path, f"{name}: 1\n")).notices
        assert notice.startswith(f"{name} has no effect: ")


KL = "agent: PPO_KL\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KL + "target_kl: 0.01\nkl_coef: 2\nlearner: PPOKL_Learner", []),
        (KL + "clip_range: 0.1", ["clip_range has no effect: PPO_KL does not clip"]),
        (KL + "learner: PPO_Learner", ["learner has no effect: agent PPO_KL has PPOKL_Learner"]),
        ("agent: PPOKL_Agent", ["old names accepted: agent: PPOKL_Agent is PPO_KL"]),
        ("target_kl: 0.01", ["target_kl has no effect: PPO_KL only"]),
        ("kl_coef: 2", ["kl_coef has no effect: PPO_KL only"]),
        ("early_stop_kl: True\ntarget_kl: 0.01", []),
    ],
)
def test_keys_of_the_kl_divergence(tmp_path: Path, text: str, said: list[str]) -> None:
    config = load_config(write(tmp_path, text))
    assert len(config.notices) == len(said)
    for notice, start in zip(config.notices, said, strict=True):
        assert notice.startswith(start)
    penalty = "KL" in text.splitlines()[0]
    assert (config.agent, config.learner) == (("PPO_KL", "PPOKL_Learner") if penalty else ("PPO", "PPO_Learner"))
    assert load_config(overrides=config.to_dict()).notices == ()  # nobody asked for what another key makes meaningless
    assert load_config(overrides=config.to_dict()) == config


CONSTANT, LATE, ADAPTIVE = ("lr_schedule: constant\n", "lr_schedule: late\n", "lr_schedule: kl\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("end_factor_lr_decay: 0.1", []),
        ("end_factor_lr_decay: 1.0", []),
        ("desired_kl: 0.02", ["desired_kl has no effect: lr_schedule is linear; kl reads it"]),
        ("lr_decay_start: 0.5", ["lr_decay_start has no effect: lr_schedule is linear; late reads it"]),
        (CONSTANT, []),
        (CONSTANT + "end_factor_lr_decay: 0.0", ["end_factor_lr_decay has no effect: lr_schedule is constant; linear"]),
        (LATE + "lr_decay_start: 0.5\nend_factor_lr_decay: 0.1", []),
        (ADAPTIVE + "desired_kl: 0.02", []),
        (
            ADAPTIVE + "end_factor_lr_decay: 1.0",
            ["end_factor_lr_decay has no effect: lr_schedule is kl; linear and la"],
        ),
    ],
)
def test_keys_of_the_learning_rate(tmp_path: Path, text: str, said: list[str]) -> None:
    config = load_config(write(tmp_path, text))
    assert len(config.notices) == len(said)
    for notice, start in zip(config.notices, said, strict=True):
        assert notice.startswith(start)
    again = load_config(overrides=config.to_dict())
    assert again == config and again.notices == ()


@pytest.mark.parametrize(("name", "default"), OWN_KEYS.items())
def test_own_keys_have_their_defaults(name: str, default: Any) -> None:
    assert getattr(Config(), name) == default


def test_derived_sizes() -> None:
    config = Config(parallels=3, horizon_size=10, n_minibatch=4, n_epochs=2, running_steps=100)
    assert (config.parallels, config.horizon_size, config.batch_size, config.minibatch_size) == (3, 10, 30, 8)
    assert (config.num_iterations, config.num_updates, config.checkpoint_every) == (3, 24, 10)
    assert dataclasses.replace(config, checkpoint_interval=7).checkpoint_every == 7


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-3", 1e-3),  # YAML 1.1 reads this as text
        ("learning_rate", "3.0e-4", 3e-4),
        ("clip_range", "1", 1.0),
        ("running_steps", "1e6", 1_000_000),
        ("running_steps", "1_000_000", 1_000_000),
        ("running_steps", "1000000.0", 1_000_000),
        ("running_steps", "2.5e6", 2_500_000),
        ("representation_hidden_size", "[64, 64]", (64, 64)),
        ("actor_hidden_size", "[]", ()),
        ("critic_hidden_size", "null", ()),
        ("activation_action", "null", None),
        ("activation_action", "none", None),
        ("normalize", "LayerNorm", "LayerNorm"),
        ("compile", "off", "off"),  # YAML 1.1 reads this as False
        ("logger", "null", "none"),
        ("device", "gpu", "cuda:0"),
        ("device", "GPU", "cuda:0"),
        ("use_gae", "no", False),
        ("use_advnorm", "'True'", True),
        ("num_threads", "0x10", 16),
        ("policy", "auto", "auto"),
        ("fps", "null", None),
        ("project_name", "a#b", "a#b"),
        ("master_port", "'12355'", 12355),
        ("activation", "LeakyReLU", "leaky_relu"),
        ("activation_action", "Tanh", "tanh"),
        ("vectorize", "Dummy_Gym", "DummyVecEnv"),
        ("env_name", "Classic Control", "Classic Control"),
        ("agent", "PPO_Clip", "PPO"),
    ],
)
def test_spellings_of_values(tmp_path: Path, name: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    from_file = getattr(load_config(write(tmp_path, f"{name}: {text}\n")), name)
    from_command_line = getattr(load_config(None, [f"{name}={text}"]), name)
    assert from_file == from_command_line == value
    assert type(from_file) is type(value)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("n_steps", "horizon_size", 128),
        ("n_epoch", "n_epochs", 4),
        ("clip_grad_norm", "grad_clip_norm", 0.7),
        ("use_ddp", "distributed_training", False),
        ("dl_backend", "dl_toolbox", "torch"),
    ],
)
def test_old_names_are_read_with_one_notice(tmp_path: Path, old: str, new: str, value: Any) -> None:
    config = load_config(write(tmp_path, f"{old}: {value}\n"))
    assert getattr(config, new) == value
    assert config.notices == (f"{old} is read as {new}, its name here",)
    both = load_config(write(tmp_path, f"{old}: {value}\n{new}: {value}\n"))
    assert getattr(both, new) == value


def test_later_layers_win(tmp_path: Path) -> None:
    path = write(tmp_path, "n_epoch: 3\ngamma: 0.5\nseed: 5\n")
    config = load_config(path, ["n_epochs=4", "gamma=0.6"], gamma=0.7)
    assert (config.n_epochs, config.gamma, config.seed) == (4, 0.7, 5)
    assert load_config(path, {"gamma": 0.9}).gamma == 0.9
    assert config.source == str(path)


def test_plain_data_there_and_back() -> None:
    config = load_config(TUTORIAL, device="cpu", normalize="LayerNorm", policy="Categorical_AC")
    again = Config(**json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert again.notices == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.gamma = 0.5  # type: ignore[misc]


def test_yaml_of_a_run_is_read_back(tmp_path: Path) -> None:
    config = load_config(None, learning_rate=1e-5, log_std_init=-0.5)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))  # JSON writes 1e-05, text to YAML
    assert load_config(tmp_path / "config.json") == config


def test_test_mode_decides_the_default_mode() -> None:
    assert Config().default_mode == "benchmark"
    assert Config(test_mode=True).default_mode == "test"


def test_loading_imports_neither_torch_nor_gymnasium() -> None:
    code = (
        "import sys, xcfast.train; from xcfast.config import load_config, shipped_configs;"
        "[load_config(path) for path in shipped_configs().values()];"
        "print([name for name in ('torch', 'gymnasium', 'numba', 'tensorboard') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


# What is said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("use_linear_lr_decay: True", "end_factor_lr_decay"),
        ("runner: DRL", "runner has no effect"),
        ("obs_type: rgb", "Atari only"),
        ("representation: Basic_Identical\nrepresentation_hidden_size: [256]", "Basic_Identical has no layers"),
        ("policy: Categorical_AC\nactivation_action: tanh", "mean of Gaussian_AC"),
        ("device: cpu\ncompile: default", "compile has no effect on the CPU"),
    ],
)
def test_keys_without_effect_are_named_once(tmp_path: Path, text: str, words: str) -> None:
    (notice,) = load_config(write(tmp_path, text)).notices
    assert words in notice


@pytest.mark.parametrize(
    "text",
    [
        "representation: Basic_Identical",
        "representation: Basic_Identical\nrepresentation_hidden_size: null",
        "policy: Categorical_AC",
        "device: cpu",
        "compile: off",
        "compile: graph",
    ],
)
def test_nothing_is_said_without_a_reason(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, text)).notices == ()


def test_missing_cuda_falls_back_to_the_cpu(no_cuda: None) -> None:
    config = load_config(None, device="cuda:1")
    assert config.device == "cpu"
    (notice,) = config.notices
    assert notice.startswith("warning: there is no CUDA device, so cuda:1 is not available")
    assert load_config(overrides={"device": "cuda"}).device == "cpu"


def test_auto_device_stays_auto() -> None:
    assert load_config(None, device="auto").device == "auto"


# What is refused: the file, the line, the key, what was given, what is allowed, and the nearest name.

WIDTHS = "a list of up to 100 integers from 1 to 65536"
ERRORS = [
    # text, line, key, given, allowed, nearest
    ("gamma: 0.9\nhorizn_size: 8", 2, "horizn_size", None, "python -m xcfast.config", "horizon_size"),
    ("Gamma: 0.9", 1, "Gamma", None, None, "gamma"),
    ("clip_grad_nrm: 1", 1, "clip_grad_nrm", None, None, "clip_grad_norm"),
    ("gamma: fast", 1, "gamma", "fast", "a number from 0 to 1", None),
    ("gamma: 1.5", 1, "gamma", "1.5", "a number from 0 to 1", None),
    ("gamma: .nan", 1, "gamma", "nan", "a number from 0 to 1", None),
    ("gamma:", 1, "gamma", "None", "a number from 0 to 1", None),
    ("gamma: True", 1, "gamma", "True", "a number from 0 to 1", None),
    ("learning_rate: 0", 1, "learning_rate", "0", "a number > 0", None),
    ("learning_rate: .inf", 1, "learning_rate", "inf", "a number > 0", None),
    ("lr_schedule: latte", 1, "lr_schedule", "latte", "linear, constant, late, kl", "late"),
    ("lr_decay_start: 1", 1, "lr_decay_start", "1", "a number >= 0 and < 1", None),
    ("desired_kl: 0", 1, "desired_kl", "0", "a number > 0", None),
    (
        CONSTANT + "end_factor_lr_decay: 0.3",
        2,
        "end_factor_lr_decay",
        "0.3",
        "0.0 or 1.0, or lr_schedule: linear",
        None,
    ),
    (
        ADAPTIVE + "end_factor_lr_decay: 0.3",
        2,
        "end_factor_lr_decay",
        "0.3",
        "0.0 or 1.0, or lr_schedule: linear",
        None,
    ),
    (LATE + "end_factor_lr_decay: 1", 2, "end_factor_lr_decay", "1", "below 1, or lr_schedule: constant", None),
    (KL + ADAPTIVE, 2, "lr_schedule", "kl", "linear, constant, late with agent PPO_KL", None),
    ("n_epochs: 1\nn_minibatch: 1\n" + ADAPTIVE, 3, "lr_schedule", "kl", "linear, constant, late with one", None),
    (ADAPTIVE + "learning_rate: 0.02", 2, "learning_rate", "0.02", "a number from 1e-06 to 0.01", None),
    ("clip_value_range: 0", 1, "clip_value_range", "0", "a number > 0 and <= 1000000000, null", None),
    ("adam_beta1: 1", 1, "adam_beta1", "1", "a number >= 0 and < 1", None),
    ("adam_beta2: -0.1", 1, "adam_beta2", "-0.1", "a number >= 0 and < 1", None),
    ("clip_range: -0.2", 1, "clip_range", "-0.2", "a number > 0", None),
    ("n_epochs: 0", 1, "n_epochs", "0", "an integer from 1 to", None),
    ("n_epochs: 1.5", 1, "n_epochs", "1.5", "an integer from 1 to", None),
    ("n_epochs: [4]", 1, "n_epochs", "[4]", "an integer from 1 to", None),
    ("use_gae: 1", 1, "use_gae", "1", "True, False", None),
    ("use_gae: 'maybe'", 1, "use_gae", "the text 'maybe'", "True, False", None),
    ("actor_hidden_size: 256", 1, "actor_hidden_size", "256", WIDTHS, None),
    (
        "actor_hidden_size: [64, 0]",
        1,
        "actor_hidden_size",
        "[64, 0]",
        WIDTHS,
        None,
    ),
    (
        "actor_hidden_size: [.inf]",
        1,
        "actor_hidden_size",
        "[inf]",
        WIDTHS,
        None,
    ),
    ("representation_hidden_size: []", 1, "representation_hidden_size", "()", "Basic_Identical", None),
    ("log_dir: 3", 1, "log_dir", "3", "a text", None),
    ("env_id: ''", 1, "env_id", "''", "a text", None),
    ("seed: -1", 1, "seed", "-1", "0 to 4294967295", None),
    ("env_seed: 4294967290", 1, "env_seed", "4294967290", "env_seed + parallels - 1 <= 4294967295", None),
    ("parallels: 1e8", 1, "parallels", "100000000.0", "an integer from 1 to 65536", None),
    ("horizon_size: 1e8", 1, "horizon_size", "100000000", "at most 16777216 with parallels 16", None),
    ("num_threads: 1e8", 1, "num_threads", "100000000.0", "an integer from 0 to 1024", None),
    ("n_minibatch: 5000", 1, "n_minibatch", "5000", "at most horizon_size * parallels = 4096", None),
    ("running_steps: 4095", 1, "running_steps", "4095", "at least horizon_size * parallels = 4096", None),
    ("activation: leaky_rlu", 1, "activation", "leaky_rlu", "relu, leaky_relu, tanh", "leaky_relu"),
    ("activation: softmax2d", 1, "activation", "softmax2d", "softmax", None),
    ("activation_action: Softmax2d", 1, "activation_action", "Softmax2d", "tanh, sigmoid, elu, softmax, null", None),
    ("dl_toolbox: mindspore", 1, "dl_toolbox", "mindspore", "torch", None),
    ("dl_toolbox: tensorflow", 1, "dl_toolbox", "tensorflow", "torch", None),
    ("dl_backend: tensorlayer", 1, "dl_toolbox", "tensorlayer", "torch", None),
    ("agent: SAC", 1, "agent", "SAC", "PPO", None),
    ("learner: PPOKL_Learner", 1, "learner", "PPOKL_Learner", "PPO_Learner with PPO", None),
    ("agent: PPO_KL\nearly_stop_kl: True", 2, "early_stop_kl", "True", "False with agent PPO_KL", None),
    ("agent: PPO_LK", 1, "agent", "PPO_LK", "PPO, PPO_KL", "PPO_KL"),
    ("target_kl: 0", 1, "target_kl", "0", "a number > 0", None),
    ("kl_coef: 2000", 1, "kl_coef", "2000", "a number from 0.001 to 1000", None),
    ("policy: Gaussian_AC\nuse_actions_mask: True", 2, "use_actions_mask", "True", "False", None),
    ("policy: Categorical_AC\nnoise_beta: 0.5", 2, "noise_beta", "0.5", "0 with policy Categorical_AC", None),
    ("noise_beta: 2.5", 1, "noise_beta", "2.5", "a number from 0 to 2", None),
    ("noise_beta: -0.5", 1, "noise_beta", "-0.5", "a number from 0 to 2", None),
    ("num_ranks: 17", 1, "num_ranks", "17", "1 to parallels = 16", None),
    ("num_ranks: 0", 1, "num_ranks", "0", "an integer from 1 to", None),
    ("distributed_training: 2", 1, "distributed_training", "2", None, None),
    ("device: cpu\nprecision: tf32", 2, "precision", "tf32", "fp32, bf16x3, bf16 or auto with device cpu", None),
    (
        "device: cuda:1\nprecision: bf16x3",
        2,
        "precision",
        "bf16x3",
        "fp32, tf32, bf16 or auto with device cuda:1",
        None,
    ),
    ("precision: fp16", 1, "precision", "fp16", "auto, fp32, tf32, bf16x3, bf16", None),
    ("vectorize: Dummy_Atari", 1, "vectorize", "Dummy_Atari", "DummyVecEnv, SubprocVecEnv, MujocoVecEnv", None),
    ("vectorize: SubprocVecEnvs", 1, "vectorize", "SubprocVecEnvs", None, "SubprocVecEnv"),
    ("env_name: Atari", 1, "env_name", "Atari", "MuJoCo", None),
    ("representation: Basic_CNN", 1, "representation", "Basic_CNN", "Basic_MLP, Basic_Identical", None),
    ("representation: Basic_RNN", 1, "representation", "Basic_RNN", "Basic_MLP, Basic_Identical", None),
    ("representation: Basic_ViT", 1, "representation", "Basic_ViT", "Basic_MLP, Basic_Identical", None),
    ("normalize: BatchNorm", 1, "normalize", "BatchNorm", "LayerNorm, null", None),
    ("initializer: zeros", 1, "initializer", "zeros", "orthogonal", None),
    ("policy: Gausian_AC", 1, "policy", "Gausian_AC", "Gaussian_AC, Categorical_AC", "Gaussian_AC"),
    ("logger: tensorbord", 1, "logger", "tensorbord", "tensorboard, wandb, none", "tensorboard"),
    ("render_mode: rgb", 1, "render_mode", "rgb", "rgb_array, human", None),
    ("device: cuda:x", 1, "device", "cuda:x", "auto, cpu, cuda, cuda:K, gpu", None),
    ("compile: True", 1, "compile", "True", "graph, default, off", None),
    ("master_port: 70000", 1, "master_port", "70000", "1 to 65535", None),
    ("n_epoch: 3\nn_epochs: 4", 2, "n_epochs", "4", None, None),
    ("gamma: 0.9\nseed: 1\ngamma: 0.9", 3, "gamma", None, None, None),
    ("ppo:\n  gamma: 0.9", 1, "ppo", None, None, None),
]


@pytest.mark.parametrize(("text", "line", "key", "given", "allowed", "nearest"), ERRORS, ids=[row[0] for row in ERRORS])
def test_errors(
    tmp_path: Path, text: str, line: int, key: str, given: str | None, allowed: str | None, nearest: str | None
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}, line {line}: {key}: ")
    if given is not None:
        assert f"; given: {given}" in message
    if allowed is not None:
        assert allowed in message.partition("; allowed: ")[2]
    if nearest is not None:
        assert message.endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gamma: [0.9", "broken YAML"),
        ('project_name: "\\Uffffffff"', r"broken YAML: an escape \U names no character"),
        ("seed: !!timestamp x", "line 1: seed: broken YAML: the value does not fit the tag timestamp; given: x"),
        ("gamma: 0.9\nseed: !!int 1:30", "line 2: seed: a number in base 60; given: 1:30"),
        ("gamma: 0.9\nenv_kwargs: {a: {b: 1, b: 2}}", "line 2: env_kwargs: b is given twice"),
        ("gamma: 0.9\nactor_hidden_size: [" + "1, " * 6000 + "]", "line 2: broken YAML: more than 5000 entries"),
        ("env_kwargs: " + "{a: " * 60 + "1" + "}" * 60, "nested too deeply"),
        ("gamma: 0.9\n\tseed: 1", "line 2: broken YAML"),
        ("gamma: !!python/object/apply:os.system ['true']", "broken YAML"),
        ("a: 1\n---\nb: 2", "broken YAML"),
        ("[gamma]: 1", "line 1: a key that is not a text"),
        ("- gamma", "is not a mapping"),
        ("just text", "is not a mapping"),
        ("", "is empty"),
        ("# only a comment", "is empty"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "gamma: 0.9")
    with pytest.raises(ConfigError, match=r"my.yml: no such file; did you mean .*my.yaml\?"):
        load_config(tmp_path / "my.yml")
    with pytest.raises(ConfigError, match=r"no such file$"):
        load_config(tmp_path / "other" / "my.yaml")


def test_folders_and_binaries_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gamma", "command line: cannot be read as an override; wanted: key=value; given: gamma"),
        ("gamma=2", "command line: gamma: out of range; given: 2; allowed: a number from 0 to 1"),
        ("gama=0.9", "command line: gama: unknown key"),
        ("gamma=[1", "command line: gamma: broken YAML; given: [1"),
        ("log_dir={a: 1}", "command line: log_dir: wrong type; given: {'a': 1}; allowed: a text"),
    ],
)
def test_errors_of_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TUTORIAL, [override], device="cpu")
    assert str(caught.value).startswith(message)


def test_the_last_of_a_repeated_override_wins() -> None:
    assert load_config(None, ["gamma=0.9", "gamma=0.8"]).gamma == 0.8


def test_an_override_that_breaks_the_file_is_blamed(tmp_path: Path) -> None:
    path = write(tmp_path, "n_minibatch: 8")
    with pytest.raises(ConfigError, match=r"my.yaml, line 1: n_minibatch: .* = 4"):
        load_config(path, ["horizon_size=2", "parallels=2"])


def test_a_huge_value_does_not_flood_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"actor_hidden_size": ["x"] * 100_000})
    assert len(str(caught.value)) < 300


# Keys whose values are checked against this machine are left out.
NAMES = st.sampled_from(sorted({*Config().to_dict()} - {"device", "logger"}))
TEXTS = st.one_of(
    st.text(),
    st.integers().map(str),
    st.floats().map(str),
    st.text(alphabet="[]{}:,-?&*!|>#%@\"'\\ \n\t~<=01xeE._"),
    st.builds(operator.mul, st.integers(1, 3000), st.sampled_from(["9", "0x", "[", "{a: ", "- ", "1:", "&a [*a,"])),
)


def loads_or_refuses(path: Path | None, overrides: Sequence[str] = ()) -> None:
    """Loads, and checks that an error is one printable line, and that neither takes more than a second."""
    start = time.process_time()
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        assert str(error).isprintable()
        assert 0 < len(str(error)) < 2000
    else:
        assert Config(**json.loads(json.dumps(config.to_dict()))) == config
    assert time.process_time() - start < 1


@settings(deadline=None)
@given(name=NAMES, text=TEXTS)
@example(name="project_name", text="2026-13-01")
@example(name="seed", text="!!int x")
@example(name="seed", text="!!binary x")
@example(name="gamma", text="!!set {[a], b}")
@example(name="seed", text="9" * 5000)
@example(name="seed", text="0x" + "f" * 5000)
@example(name="gamma", text="[" * 1000 + "]" * 1000)
@example(name="gamma", text="'\\ud800'")
@example(name="project_name", text="\ud800")
@example(name="gamma", text='"\\ud800"')
@example(name="project_name", text='"\\U00110000"')
@example(name="project_name", text='"\\Uffffffff"')
@example(name="seed", text="!!timestamp x")
@example(name="project_name", text="!!timestamp x")
@example(name="env_kwargs", text="{a: !!timestamp x}")
@example(name="env_kwargs", text="{? [1] : 2}")
@example(name="env_kwargs", text="!!omap [a: 1]")
@example(name="env_kwargs", text="{a: .nan}")
@example(name="actor_hidden_size", text="!!set {1}")
@example(name="actor_hidden_size", text="[" + "1," * 49_000 + "]")
@example(name="project_name", text="\n" * 90_000 + "x")
@example(name="seed", text="!!int ''")
@example(name="env_kwargs", text="&a {b: *a}")
@example(name="env_kwargs", text="{a: 9" + "9" * 300 + "}")
@example(name="env_wrappers", text="[{a:b: [1]}]")
@example(name="env_kwargs.a.b", text="1")
@example(name="env_id", text="../..")
@example(name="env_id", text=":x")
@example(name="env_id", text="a:b:c")
@example(name="log_dir", text="x" * 500)
def test_any_text_is_a_value_or_a_config_error(name: str, text: str) -> None:
    loads_or_refuses(None, [f"{name}={text}"])


@settings(deadline=None)
@given(name=NAMES, text=TEXTS)
@example(name="seed", text="9" * 5000)
@example(name="gamma", text="[" * 1000 + "]" * 1000)
def test_any_text_for_a_key_of_a_file_is_a_value_or_a_config_error(
    name: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "key.yaml"
    path.write_bytes(f"{name}: {text}\n".encode("utf-8", "surrogatepass"))
    loads_or_refuses(path)


@settings(deadline=None)
@given(text=TEXTS)
@example(text="? [a]\n: 1")
@example(text="gamma: &x [*x]")
@example(text="*x")
def test_any_file_is_a_configuration_or_a_config_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    loads_or_refuses(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("env_id=../..", "env_id: not an environment's id"),
        ("env_id=:x", "env_id: not an environment's id"),
        ("env_id=a:b:c", "env_id: not an environment's id"),
        ("learning_rate=1:30", "learning_rate: wrong type; given: 1:30"),
        ("learning_rate=1_000", "learning_rate: out of range"),
        ("learning_rate=1e5", "learning_rate: out of range"),
        ("n_epochs=1e308", "n_epochs: out of range"),
        ("n_epochs=9999999999999999999", "n_epochs: out of range"),
        ("running_steps=1e308", "running_steps: out of range"),
        ("actor_hidden_size=[100000000000]", "actor_hidden_size: out of range"),
        ("log_dir=" + "x" * 300, "log_dir: the name of a folder is too long"),
        ("env_kwargs={render_mode: human}", "env_kwargs: env_kwargs.render_mode is set by xcfast"),
        ("env_kwargs.a.b=1", "env_kwargs: a.b is not"),
        ("env_kwargs=3", "env_kwargs: wrong type; given: 3"),
        ("env_wrappers=[TimeLimit]", "env_wrappers: entry 1 does not name a class"),
    ],
)
def test_values_at_the_edge_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert f"command line: {words}" in str(caught.value)


@pytest.mark.parametrize("sizes", [(1, 16, 16), (2, 8, 16), (3, 5, 8), (1, 1, 1)])
def test_minibatches_of_one_step_are_refused(sizes: tuple[int, int, int]) -> None:
    parallels, horizon_size, n_minibatch = sizes
    keys = {"parallels": parallels, "horizon_size": horizon_size, "n_minibatch": n_minibatch}
    with pytest.raises(ConfigError, match=r"n_minibatch: minibatches of one step.* \* parallels.*use_advnorm"):
        load_config(None, keys)
    assert load_config(None, keys, use_advnorm=False).n_minibatch == n_minibatch


# The environment's arguments and wrappers


def test_arguments_and_wrappers_of_the_environment(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "env_kwargs: {reset_noise_scale: 0.1, path: a}\n"
        "env_wrappers: ['my:W', {gymnasium.wrappers:TimeLimit: {max_episode_steps: 500}}]\n",
    )
    config = load_config(path, ["env_kwargs.camera_name=track", "env_kwargs.path=b"])
    assert config.env_kwargs == {"reset_noise_scale": 0.1, "path": "b", "camera_name": "track"}
    assert config.env_wrappers == ("my:W", {"gymnasium.wrappers:TimeLimit": {"max_episode_steps": 500}})
    assert Config(**json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(dataclasses.replace(config))
    assert load_config(path, ["env_kwargs={}"]).env_kwargs == {}
    config.to_dict()["env_kwargs"]["path"] = "c"
    assert config.env_kwargs["path"] == "b"


def test_modules_that_an_environment_imports() -> None:
    assert Config().modules == ()
    config = Config(env_id="a.b:Env-v0", env_wrappers=("c:W", {"gymnasium.wrappers:TimeLimit": {}}, "a.b:V"))
    assert config.modules == ("a.b", "c")


# How text is read


def test_a_hash_on_the_command_line_belongs_to_the_value() -> None:
    assert load_config(None, ["project_name=run #3"]).project_name == "run #3"


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(None, ["log_dir=~/logs", "model_dir=~/m"])
    assert (config.log_dir, config.model_dir) == (str(tmp_path / "logs"), str(tmp_path / "m"))


def test_a_file_may_merge_mappings(tmp_path: Path) -> None:
    path = write(tmp_path, "<<: {gamma: 0.5, seed: 3}\nseed: 4\n")
    config = load_config(path)
    assert (config.gamma, config.seed) == (0.5, 4)


@pytest.mark.parametrize(
    ("word", "file", "env_id"),
    [
        ("my.yaml", "my.yaml", None),
        ("gone", "gone", None),
        ("ant", "ant.yaml", None),
        ("Ant-v5", "ant.yaml", "Ant-v5"),
        ("Blackjack-v1", None, "Blackjack-v1"),
        ("weird:Base-v0", None, "weird:Base-v0"),
        ("../x-v1", "x-v1", None),
    ],
)
def test_words_of_a_command_line(word: str, file: str | None, env_id: str | None) -> None:
    found, found_id = file_and_env_id(word)
    assert (found and Path(found).name, found_id) == (file, env_id)


def test_the_list_of_keys_may_be_cut_short() -> None:
    command = [sys.executable, "-m", "xcfast.config"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


# Configurations made in Python


def test_a_config_made_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"^gamma: out of range"):
        Config(gamma=2)
    with pytest.raises(ConfigError, match="n_minibatch"):
        dataclasses.replace(Config(), parallels=1, horizon_size=4)
    assert Config(log_dir=Path("logs")).log_dir == "logs"  # type: ignore[arg-type]


def test_a_cuda_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert load_config(None, device="cuda:1").device == "cuda:1"
    with pytest.raises(ConfigError, match=r"device: no such device; given: cuda:2; allowed: cpu, cuda:0 to cuda:1"):
        load_config(None, device="cuda:2")


def test_wandb_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        load_config(write(tmp_path, "logger: wandb"))


def test_policy_must_fit_the_actions() -> None:
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    gaussian, categorical = Config(policy="Gaussian_AC"), Config(policy="Categorical_AC", env_id="CartPole-v1")
    resolve_policy(gaussian, Box(-1, 1, (2,)))
    resolve_policy(categorical, Discrete(2))
    with pytest.raises(
        ConfigError, match=r"policy: does not fit the Discrete .* given: Gaussian_AC; allowed: Categorical_AC"
    ):
        resolve_policy(gaussian, Discrete(2))
    with pytest.raises(
        ConfigError, match=r"policy: does not fit the Box .* given: Categorical_AC; allowed: Gaussian_AC"
    ):
        resolve_policy(categorical, Box(-1, 1, (2,)))
    with pytest.raises(ConfigError, match="policy: there is no policy for"):
        resolve_policy(gaussian, MultiDiscrete([2, 2]))


# The shipped files

SHIPPED = {
    "acrobot": "Acrobot-v1",
    "ant": "Ant-v4",
    "bipedal_walker": "BipedalWalker-v3",
    "cartpole": "CartPole-v1",
    "half_cheetah": "HalfCheetah-v4",
    "hopper": "Hopper-v4",
    "humanoid": "Humanoid-v4",
    "humanoid_standup": "HumanoidStandup-v4",
    "inverted_double_pendulum": "InvertedDoublePendulum-v4",
    "inverted_pendulum": "InvertedPendulum-v4",
    "lunar_lander": "LunarLander-v3",
    "mountain_car": "MountainCar-v0",
    "mountain_car_continuous": "MountainCarContinuous-v0",
    "pendulum": "Pendulum-v1",
    "pusher": "Pusher-v5",
    "reacher": "Reacher-v4",
    "swimmer": "Swimmer-v4",
    "walker2d": "Walker2d-v4",
}


def test_the_shipped_files_are_complete() -> None:
    assert {name: load_config(path).env_id for name, path in shipped_configs().items()} == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_loads_without_a_remark_and_is_commented(name: str) -> None:
    path = shipped_configs()[name]
    assert load_config(path).notices == ()
    for line in path.read_text().splitlines():
        assert not line or line.startswith("# ") or "  # " in line, line


@pytest.mark.parametrize("name", [name for name, env_id in SHIPPED.items() if env_id[-1] in "45"])
def test_mujoco_files_have_the_hyper_parameters_of_the_tutorial(name: str, no_cuda: None) -> None:
    shipped, seed = load_config(shipped_configs()[name]).to_dict(), load_config(TUTORIAL).to_dict()
    differ = {key for key in seed if shipped[key] != seed[key]}
    assert differ <= {"env_id", "device", "vectorize", "eval_interval", "project_name", "fps"}
    assert shipped["eval_interval"] == 50_000


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_found_by_any_version(name: str) -> None:
    env_id = SHIPPED[name]
    for asked in (env_id, env_id[:-1] + "9"):
        found = shipped_config(asked)
        assert found is not None
        assert found.name == f"{name}.yaml"
    assert shipped_config(f"My{env_id}") is None
    assert shipped_config(f"other/{env_id}") is None


def test_the_table_lists_every_key() -> None:
    table = config_table()
    for name in Config().to_dict():
        assert f"| `{name}` |" in table
    assert "`n_steps` as `horizon_size`" in table
    assert "`clip_type`: MindSpore only" in table


def test_a_tilde_in_the_path_of_a_file_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("gamma: 0.5\n")
    assert load_config("~/mine.yaml").gamma == 0.5
    assert file_and_env_id("~/mine.yaml") == (str(tmp_path / "mine.yaml"), None)


@pytest.mark.parametrize("key", ["log_dir", "env_id"])
def test_a_text_that_no_file_name_can_hold_is_refused(key: str) -> None:
    code = f"from xcfast.config import load_config; load_config({key}='\\u4e2d\\u6587-v0')"
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **ascii_only}
    )
    assert f"ConfigError: {key}: no file name of this process can hold it; given: " in done.stderr
    assert "PYTHONUTF8=1" in done.stderr
