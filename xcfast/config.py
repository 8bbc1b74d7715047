"""The configuration: one frozen dataclass whose fields are the keys of the YAML.

`python -m xcfast.config` prints every key with its type, default and meaning.
"""

import functools
import importlib.resources
import importlib.util
import os
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from xcfast.config_keys import (
    INERT_KEYS,
    RENAMED_KEYS,
    ConfigError,
    coerce,
    describe_type,
    key,
    keys_of,
    nearest_name,
)
from xcfast.config_yaml import Layer, read_file, read_overrides

__all__ = ["Config", "ConfigError", "check_policy", "config_table", "load_config", "shipped_config", "shipped_configs"]

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "elu", "softmax"]

_MAX_SEED = 2**32 - 1
_LATER = "not available yet"
_NO_IMAGES = "image representations are not supported"
_OTHER_ENV = "not supported; the environments of gymnasium.make with Box or Discrete spaces are"
_ACTIVATION_RULES: dict[str, Any] = {
    "aliases": {
        "ReLU": "relu",
        "LeakyReLU": "leaky_relu",
        "Tanh": "tanh",
        "Sigmoid": "sigmoid",
        "ELU": "elu",
        "Softmax": "softmax",
    },
    "refused": dict.fromkeys(("softmax2d", "Softmax2d"), "needs batches of images, which the networks here never see"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a run does. A field has exactly its YAML key's name; the defaults are those of XuanCe's MuJoCo file.

    Attributes besides the keys:
        notices: Lines to show once at start: old names, keys without effect and why, a device that is missing.
        source: The file that the configuration was read from, or "".
    """

    # What runs where
    dl_toolbox: Literal["torch"] = key(
        "torch",
        "deep-learning library",
        refused=dict.fromkeys(("tensorflow", "mindspore", "tensorlayer"), "xcfast runs on PyTorch only"),
    )
    device: str = key("auto", "where the networks live: cpu, cuda, cuda:K, gpu, or auto (CUDA where there is one)")
    test_mode: bool = key(False, "make testing a saved model the default mode instead of benchmark")
    agent: Literal["PPO"] = key(
        "PPO", "algorithm", aliases={"PPO_Clip": "PPO"}, refused={"PPO_KL": f"the KL-penalty variant is {_LATER}"}
    )
    learner: Literal["PPO_Learner"] = key(
        "PPO_Learner",
        "learner of the algorithm",
        aliases={"PPOCLIP_Learner": "PPO_Learner"},
        refused={"PPOKL_Learner": f"belongs to agent PPO_KL, which is {_LATER}"},
    )
    seed: int = key(
        79811, "decides initialisation, action noise and minibatches", low=0, high=_MAX_SEED
    )
    running_steps: int = key(1_000_000, "environment steps of the whole run, over all environments", low=1)

    # Environments
    env_name: Literal["MuJoCo", "Classic Control", "Box2D", "Gymnasium"] = key(
        "MuJoCo",
        "family of the task; a label, since every id is made by gymnasium.make",
        refused=dict.fromkeys(("Atari", "MiniGrid", "MetaDrive"), _OTHER_ENV),
    )
    env_id: str = key("Ant-v4", "Gymnasium id of the task")
    env_seed: int = key(1, "environment i is seeded with env_seed + i", low=0, high=_MAX_SEED)
    vectorize: Literal["DummyVecEnv", "SubprocVecEnv"] = key(
        "SubprocVecEnv",
        "step the environments one after the other, or in worker processes",
        aliases={"Dummy_Gym": "DummyVecEnv", "Subproc_Gym": "SubprocVecEnv"},
        refused={
            "MujocoVecEnv": f"the native environment is {_LATER}",
            **dict.fromkeys(("Dummy_Atari", "Subproc_Atari"), "Atari is not supported"),
            "NOREQUIRED": "the environments here are always vectorised",
        },
    )
    parallels: int = key(16, "number of training environments", low=1)
    render: bool = key(False, "record a video (rgb_array) or open a window (human) when testing")
    render_mode: Literal["rgb_array", "human"] = key("rgb_array", "how render shows the task")
    fps: int = key(50, "frames per second of a recorded video", low=1)

    # Networks
    policy: Literal["Gaussian_AC", "Categorical_AC"] = key(
        "Gaussian_AC", "Gaussian_AC for continuous (Box), Categorical_AC for discrete actions"
    )
    representation: Literal["Basic_MLP", "Basic_Identical"] = key(
        "Basic_MLP",
        "trunk below actor and critic: fully connected layers, or none",
        refused={
            **dict.fromkeys(("Basic_CNN", "AC_CNN_Atari", "Basic_ViT"), _NO_IMAGES),
            "Basic_RNN": "recurrent representations are not supported",
        },
    )
    representation_hidden_size: tuple[int, ...] = key((256,), "widths of the trunk's layers; none with Basic_Identical")
    shared_representation: bool = key(True, "one trunk for actor and critic; False: one each")
    actor_hidden_size: tuple[int, ...] = key((256,), "widths of the actor's own hidden layers; may be []")
    critic_hidden_size: tuple[int, ...] = key((256,), "widths of the critic's own hidden layers; may be []")
    activation: Activation = key("leaky_relu", "after each hidden layer", **_ACTIVATION_RULES)  # noqa: RUF009
    activation_action: Activation | None = key(  # noqa: RUF009
        "tanh", "on the mean of the Gaussian policy; null leaves it unbounded", **_ACTIVATION_RULES
    )
    normalize: Literal["LayerNorm"] | None = key(
        None,
        "normalisation after each hidden activation",
        refused={
            **dict.fromkeys(
                ("BatchNorm", "BatchNorm2d"), "batch statistics would make the policy differ between collection and update"
            ),
            "InstanceNorm2d": _NO_IMAGES,
            "GroupNorm": "LayerNorm is its one-group case and the only one supported",
        },
    )
    initializer: Literal["orthogonal"] = key(
        "orthogonal",
        "initialisation of the weights",
        refused=dict.fromkeys(("normal", "zeros", "ones"), "only orthogonal initialisation is supported"),
    )
    log_std_init: float = key(-1.0, "initial logarithm of the Gaussian policy's standard deviation", low=-10, high=5)

    # Algorithm
    horizon_size: int = key(256, "steps per environment and rollout; a batch is horizon_size * parallels steps", low=1)
    n_epochs: int = key(16, "passes over a batch", low=1)
    n_minibatch: int = key(8, "minibatches per pass", low=1)
    learning_rate: float = key(0.0004, "Adam's initial learning rate", low=0, open_low=True)
    end_factor_lr_decay: float = key(
        0.0, "the learning rate falls linearly to this fraction of itself; 1.0 keeps it", low=0, high=1
    )
    vf_coef: float = key(0.25, "weight of the value loss", low=0)
    ent_coef: float = key(0.0, "weight of the entropy bonus", low=0)
    clip_range: float = key(0.2, "how far the probability ratio may leave 1", low=0, open_low=True)
    gamma: float = key(0.99, "discount factor", low=0, high=1)
    use_gae: bool = key(True, "generalised advantage estimation; False: Monte-Carlo return minus value")
    gae_lambda: float = key(0.95, "lambda of the advantage estimation", low=0, high=1)
    use_advnorm: bool = key(True, "normalise the advantages of each minibatch")
    use_grad_clip: bool = key(True, "limit the norm of the gradient")
    grad_clip_norm: float = key(0.5, "largest norm of the gradient", low=0, open_low=True)
    use_obsnorm: bool = key(True, "normalise observations by running mean and variance")
    obsnorm_range: float = key(5.0, "normalised observations are clipped to +- this", low=0, open_low=True)
    use_rewnorm: bool = key(True, "scale rewards by the running deviation of the discounted return")
    rewnorm_range: float = key(5.0, "scaled rewards are clipped to +- this", low=0, open_low=True)
    use_actions_mask: bool = key(False, "mask actions", refused={True: f"action masks are {_LATER}"})
    early_stop_kl: bool = key(
        False, "end the passes over a batch early on a large KL", refused={True: f"stopping by KL is {_LATER}"}
    )

    # Evaluation, logs, files
    eval_interval: int = key(5000, "environment steps between two evaluations (benchmark mode)", low=1)
    test_episode: int = key(5, "episodes of an evaluation or a test", low=1)
    logger: Literal["tensorboard", "wandb", "none"] = key("tensorboard", "where curves go; result files come always")
    project_name: str = key("XuanCe_Benchmark", "project in wandb")
    wandb_user_name: str = key("your_user_name", "user or team in wandb; your_user_name means wandb's own default")
    log_dir: str = key("./logs/ppo/", "parent of the run folders")
    model_dir: str = key("./models/ppo/", "parent of the model folders")
    checkpoint_interval: int = key(0, "environment steps between two checkpoints; 0: a tenth of the run", low=0)
    keep_checkpoints: int = key(3, "how many of the latest checkpoints stay", low=1)

    # Speed
    collector_backend: Literal["auto", "torch"] = key(
        "auto", "engine that collects rollouts", refused={"native": f"the native collector is {_LATER}"}
    )
    learner_backend: Literal["auto", "torch"] = key(
        "auto", "engine that updates the weights", refused={"native": f"the native learner is {_LATER}"}
    )
    num_threads: int = key(0, "threads of the update; 0: as many as this process may use", low=0)
    num_workers: int = key(0, "processes of SubprocVecEnv; 0: as many as CPUs, at most one per environment", low=0)
    compile: Literal["graph", "default", "off"] = key(
        "graph", "on CUDA: compile the update and capture graphs, compile only, or neither"
    )
    precision: Literal["fp32"] = key(
        "fp32", "arithmetic of the update", refused=dict.fromkeys(("bf16", "tf32"), f"mixed precision is {_LATER}")
    )
    overlap: bool = key(
        False, "collect while the update runs", refused={True: f"overlapping collection and update is {_LATER}"}
    )
    distributed_training: bool = key(
        False, "train on several devices", refused={True: f"distributed training is {_LATER}"}
    )
    master_port: int = key(12355, "port at which the processes of distributed_training meet", low=1, high=65535)
    num_ranks: int = key(1, "processes of distributed_training", low=1)

    notices: tuple[str, ...] = field(default=(), compare=False, repr=False)
    source: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        """Gives every value its type, then checks what concerns several keys."""
        for name, rules in keys_of(Config).items():
            object.__setattr__(self, name, coerce(name, getattr(self, name), _hints()[name], rules))
        _settle(self)

    @property
    def default_mode(self) -> Literal["benchmark", "test"]:
        """What a run does when nothing else is asked for."""
        return "test" if self.test_mode else "benchmark"

    @property
    def num_envs(self) -> int:
        """N, the number of training environments."""
        return self.parallels

    @property
    def num_steps(self) -> int:
        """T, the steps per environment and rollout."""
        return self.horizon_size

    @property
    def batch_size(self) -> int:
        """Steps in a rollout, T * N."""
        return self.horizon_size * self.parallels

    @property
    def minibatch_size(self) -> int:
        """Steps in the largest minibatch."""
        return -(-self.batch_size // self.n_minibatch)

    @property
    def num_iterations(self) -> int:
        """Rollouts in the run."""
        return self.running_steps // self.batch_size

    @property
    def num_updates(self) -> int:
        """Gradient steps in the run, K of the learning-rate schedule."""
        return self.num_iterations * self.n_epochs * self.n_minibatch

    @property
    def checkpoint_every(self) -> int:
        """Environment steps between two checkpoints, the default resolved."""
        return self.checkpoint_interval or max(1, self.running_steps // 10)

    def to_dict(self) -> dict[str, Any]:
        """The keys as plain data (numbers, texts, lists), for JSON, YAML and checkpoints."""
        values = {name: getattr(self, name) for name in keys_of(Config)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The inverse of `to_dict`; like `load_config`, it falls back to the CPU where CUDA is missing."""
        return load_config(None, values)


@functools.cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Config)


def _settle(config: Config) -> None:
    """Checks rules that concern several keys, and clears what has no meaning beside another key."""

    def settle(name: str, value: Any) -> None:
        object.__setattr__(config, name, value)

    if config.device in ("gpu", "GPU"):
        settle("device", "cuda:0")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        near = nearest_name(config.device, ("auto", "cpu", "cuda", "gpu"))
        raise ConfigError(
            "unknown device", key="device", given=config.device, allowed="auto, cpu, cuda, cuda:K, gpu", nearest=near
        )
    if config.representation == "Basic_Identical":
        settle("representation_hidden_size", ())
    elif not config.representation_hidden_size:
        raise ConfigError(
            "Basic_MLP without a layer",
            key="representation_hidden_size",
            given=[],
            allowed="at least one width, or representation: Basic_Identical",
        )
    if config.policy == "Categorical_AC":
        settle("activation_action", None)
    if config.n_minibatch > config.batch_size:
        raise ConfigError(
            "more minibatches than steps in a batch",
            key="n_minibatch",
            given=config.n_minibatch,
            allowed=f"at most horizon_size * parallels = {config.batch_size}",
        )
    if config.running_steps < config.batch_size:
        raise ConfigError(
            "less than one rollout",
            key="running_steps",
            given=config.running_steps,
            allowed=f"at least horizon_size * parallels = {config.batch_size}",
        )
    if config.env_seed + config.parallels - 1 > _MAX_SEED:
        raise ConfigError(
            "the last environment's seed is too large",
            key="env_seed",
            given=config.env_seed,
            allowed=f"env_seed + parallels - 1 <= {_MAX_SEED}",
        )
    if config.num_ranks > 1:
        raise ConfigError(f"distributed training is {_LATER}", key="num_ranks", given=config.num_ranks, allowed="1")


def load_config(
    path: str | os.PathLike[str] | None = None, overrides: Mapping[str, Any] | Iterable[str] = (), **more: Any
) -> Config:
    """Reads a configuration: defaults, then the file, then `overrides`, then keyword arguments; later ones win.

    Args:
        path: A YAML file with any of the keys, or None for the defaults.
        overrides: A mapping, or texts `key=value` with values in YAML.
        **more: Further overrides by keyword.

    Returns:
        The configuration; `notices` holds the lines to show the user.

    Raises:
        ConfigError: If it cannot be run; the message names file, line, key, what was given and what is allowed.
    """
    file_layer = {} if path is None else read_file(path)
    layers = (file_layer, read_overrides(overrides), read_overrides(more))
    given: Layer = {}
    notices: list[str] = []
    for layer in layers:
        given.update(_rename(layer, notices))
    for name in [name for name in given if name in INERT_KEYS]:
        notices.append(f"{name} has no effect: {INERT_KEYS[name]}")
        del given[name]
    for name, (_, where) in given.items():
        if name not in keys_of(Config):
            near = nearest_name(name, (*keys_of(Config), *RENAMED_KEYS, *INERT_KEYS))
            allowed = "the keys that python -m xcfast.config lists"
            raise ConfigError("unknown key", key=name, allowed=allowed, nearest=near, where=where)
    try:
        config = Config(**{name: value for name, (value, _) in given.items()})
        notices += _value_notices(config, given)
        config, machine_notices = _fit_machine(config)
    except ConfigError as error:
        if error.where is None:
            place = given[error.key][1] if error.key in given else None
            error.where = place or (None if path is None else os.fspath(path))
        raise
    source = "" if path is None else os.fspath(path)
    return replace(config, notices=(*notices, *machine_notices), source=source)


def _rename(layer: Layer, notices: list[str]) -> Layer:
    """One layer with today's key names."""
    renamed: Layer = {}
    spelled: dict[str, str] = {}
    for name, (value, where) in layer.items():
        new = RENAMED_KEYS.get(name, name)
        if new in renamed and renamed[new][0] != value:
            other, other_where = spelled[new], renamed[new][1]
            place = f" ({other_where})" if other_where else ""
            raise ConfigError(
                f"the same key as {other}{place}, which says {renamed[new][0]!r}", key=name, given=value, where=where
            )
        if new != name:
            notices.append(f"{name} is read as {new}, its name here")
        renamed[new], spelled[new] = (value, where), name
    return renamed


def _value_notices(config: Config, given: Layer) -> list[str]:
    """Lines about given values: old spellings, and keys that another key makes meaningless."""
    notices = []
    old = []
    for name, rules in keys_of(Config).items():
        value = given[name][0] if name in given else None
        if isinstance(value, str) and value in rules.aliases:
            old.append(f"{name}: {value} is {rules.aliases[value]}")
    if old:
        notices.append(f"old names accepted: {', '.join(old)}")
    if config.representation == "Basic_Identical" and given.get("representation_hidden_size", (None, None))[0]:
        notices.append("representation_hidden_size has no effect: Basic_Identical has no layers")
    if config.policy == "Categorical_AC" and given.get("activation_action", (None, None))[0]:
        notices.append("activation_action has no effect: it acts on the mean of Gaussian_AC")
    return notices


def _fit_machine(config: Config) -> tuple[Config, list[str]]:
    """The configuration with what this machine lacks replaced or refused."""
    notices = []
    if config.device.startswith("cuda"):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(config.device.partition(":")[2] or 0)
        if count == 0:
            notices.append(f"warning: device {config.device} is not there (no CUDA); running on the CPU")
            config = replace(config, device="cpu")
        elif index >= count:
            last = f"cuda:{count - 1}"
            raise ConfigError("no such device", key="device", given=config.device, allowed=f"cpu, cuda:0 to {last}")
    if config.device == "cpu" and config.compile != _default("compile"):
        notices.append("compile has no effect: it means something on CUDA only")
    if config.logger == "wandb" and not _installed("wandb"):
        raise ConfigError(
            "wandb is not installed; pip install wandb",
            key="logger",
            given="wandb",
            allowed="tensorboard, none",
        )
    return config, notices


def _installed(module: str) -> bool:
    """True if `module` can be imported; a mere folder of that name (wandb makes one) does not count."""
    if module in sys.modules:
        return sys.modules[module] is not None
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def _default(name: str) -> Any:
    return Config.__dataclass_fields__[name].default


def check_policy(config: Config, action_space: Any) -> None:
    """Checks that `policy` fits a Gymnasium action space.

    Raises:
        ConfigError: If it does not, or no policy does.
    """
    from gymnasium.spaces import Box, Discrete

    if isinstance(action_space, Box):
        wanted = "Gaussian_AC"
    elif isinstance(action_space, Discrete):
        wanted = "Categorical_AC"
    else:
        raise ConfigError(
            f"no policy serves the action space {action_space} of {config.env_id}",
            key="policy",
            given=config.policy,
            allowed="Gaussian_AC with Box, Categorical_AC with Discrete actions",
            where=config.source or None,
        )
    if config.policy != wanted:
        raise ConfigError(
            f"does not fit the {type(action_space).__name__} actions of {config.env_id}",
            key="policy",
            given=config.policy,
            allowed=wanted,
            where=config.source or None,
        )


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package: name (ant, half_cheetah, ...) -> file."""
    try:
        entries = [Path(str(entry)) for entry in importlib.resources.files("xcfast.configs").iterdir()]
    except ModuleNotFoundError:  # a checkout that is not installed
        entries = list((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
    return {path.stem: path for path in sorted(entries) if path.suffix == ".yaml"}


def shipped_config(env_id: str) -> Path | None:
    """The shipped file for any version of a task (Ant-v5 finds ant.yaml), or None."""
    task = env_id.rpartition("/")[2].rpartition("-v")[0] or env_id
    folded = {name.replace("_", ""): path for name, path in shipped_configs().items()}
    return folded.get(task.lower())


def config_table() -> str:
    """All keys with type, default and meaning, as markdown."""
    lines = ["| key | values | default | what it does |", "|---|---|---|---|"]
    for name, rules in keys_of(Config).items():
        default = _default(name)
        shown = list(default) if isinstance(default, tuple) else "null" if default is None else default
        lines.append(f"| `{name}` | {describe_type(_hints()[name], rules)} | `{shown}` | {rules.doc} |")
    lines += ["", "Other names that are read:", ""]
    lines += [f"- `{old}` as `{new}`" for old, new in RENAMED_KEYS.items()]
    for name, rules in keys_of(Config).items():
        lines += [f"- `{name}: {old}` as `{new}`" for old, new in rules.aliases.items()]
    lines += ["", "Keys without effect here:", ""]
    lines += [f"- `{name}`: {reason}" for name, reason in INERT_KEYS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(config_table())
