"""The keys of the configuration: one frozen dataclass whose fields have exactly the YAML's names."""

import copy
import functools
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from xcfast.config.keys import key, keys_of
from xcfast.config.rules import DEVICES, MAX_BATCH, MAX_ENVS, MAX_SEED, MAX_STEPS, settle
from xcfast.config.values import coerce

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "elu", "softmax"]

MIN_KL_COEF, MAX_KL_COEF = 1e-3, 1e3  #: range of `kl_coef`: ten doublings below and above XuanCe's 1

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
    "refused": dict.fromkeys(("softmax2d", "Softmax2d"), "needs batches of images, which are not supported"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a run does. Each field has exactly the name of its YAML key.

    A key in the configuration of XuanCe's MuJoCo tutorial has the value there as its default, with four exceptions:
    `device`, `policy` and `fps` adapt to the machine and the environment, and `vectorize` is SubprocVecEnv.

    Attributes besides the keys:
        notices: Lines to show once at start: old names, keys without effect and why, a device that is missing.
        source: The file that the configuration was read from, or "".
        file_modules: Those of `modules` that this file alone names.
    """

    # What runs where
    dl_toolbox: Literal["torch"] = key(
        "torch",
        "deep-learning library",
        refused=dict.fromkeys(("tensorflow", "mindspore", "tensorlayer"), "xcfast runs on PyTorch only"),
        learning=False,
    )
    device: str = key("auto", "where the networks live; auto: CUDA where there is one", words=DEVICES, resumable=True)
    test_mode: bool = key(False, "make testing a saved model the default mode instead of benchmark", learning=False)
    agent: Literal["PPO", "PPO_KL"] = key(
        "PPO",
        "algorithm: PPO clips the probability ratio, PPO_KL penalizes the KL divergence with an adaptive coefficient",
        aliases={"PPO_Clip": "PPO", "PPO_Agent": "PPO", "PPOCLIP_Agent": "PPO", "PPOKL_Agent": "PPO_KL"},
    )
    learner: Literal["PPO_Learner", "PPOKL_Learner"] = key(
        "PPO_Learner", "learner of the algorithm; PPO_KL has PPOKL_Learner", aliases={"PPOCLIP_Learner": "PPO_Learner"}
    )
    seed: int = key(79811, "decides initialization, action noise and minibatches", low=0, high=MAX_SEED, learning=False)
    running_steps: int = key(
        1_000_000, "environment steps of the whole run, over all environments", low=1, high=MAX_STEPS, resumable=True
    )

    # Environments
    env_name: Literal["MuJoCo", "Classic Control", "Box2D", "Gymnasium"] = key(
        "MuJoCo",
        "family of the task; a label, since every id is made by gymnasium.make",
        refused=dict.fromkeys(("Atari", "MiniGrid", "MetaDrive", "Drones"), _OTHER_ENV),
        learning=False,
    )
    env_id: str = key("Ant-v4", "Gymnasium id of the task", learning=False)
    env_kwargs: dict[str, Any] = key(  # noqa: RUF009
        {},
        "keyword arguments of the environment, for gymnasium.make; on the command line also env_kwargs.NAME=VALUE",
        hash=False,
        words="a mapping from names of arguments to plain data (numbers, texts, lists, mappings)",
    )
    env_wrappers: tuple[str | dict[str, Any], ...] = key(
        (),
        "wrappers around each environment, the innermost first: module:Class, or module:Class with keyword arguments",
        hash=False,
        words='a list of "module:Class" or {"module:Class": {argument: value}}',
    )
    env_seed: int = key(
        1, "environment i is seeded with env_seed + i", low=0, high=MAX_SEED, learning=False, testable=True
    )
    vectorize: Literal["DummyVecEnv", "SubprocVecEnv", "MujocoVecEnv", "ClassicControlVecEnv"] = key(
        "SubprocVecEnv",
        "step the environments one after the other, in worker processes, or (Gymnasium's MuJoCo and classic control "
        "tasks) in native threads",
        aliases={"Dummy_Gym": "DummyVecEnv", "Subproc_Gym": "SubprocVecEnv"},
        refused={
            **dict.fromkeys(("Dummy_Atari", "Subproc_Atari"), "Atari is not supported"),
            "NOREQUIRED": "the environments here are always vectorized",
        },
        learning=False,
        resumable=True,
    )
    native_envs: Literal["auto", "off"] = key(
        "auto",
        "auto: Gymnasium's MuJoCo and classic control tasks are stepped by native threads, with the same numbers, "
        "whatever vectorize says",
        learning=False,
        resumable=True,
    )
    parallels: int = key(16, "number of training environments", low=1, high=MAX_ENVS)
    env_timeout: float = key(
        60.0,
        "seconds that a worker process may take for one environment's step, reset or constructor (SubprocVecEnv)",
        low=0,
        open_low=True,
        high=1e6,
        learning=False,
        resumable=True,
    )
    render: bool = key(
        False, "record a video (rgb_array) or open a window (human) when testing", learning=False, testable=True
    )
    render_mode: Literal["rgb_array", "human"] = key(
        "rgb_array", "how render shows the task", learning=False, testable=True
    )
    fps: int | None = key(
        None,
        "frames per second of a recorded video; null: the environment's own",
        low=1,
        high=1000,
        learning=False,
        testable=True,
    )

    # Networks
    policy: Literal["auto", "Gaussian_AC", "Categorical_AC"] = key(
        "auto", "Gaussian_AC for continuous (Box), Categorical_AC for discrete actions; auto: the one that fits"
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
        "normalization after each hidden activation",
        refused={
            **dict.fromkeys(
                ("BatchNorm", "BatchNorm2d"),
                "batch statistics would make the policy differ between collection and update",
            ),
            "InstanceNorm2d": _NO_IMAGES,
            "GroupNorm": "LayerNorm is its one-group case and the only one supported",
        },
    )
    initializer: Literal["orthogonal"] = key(
        "orthogonal",
        "initialization of the weights",
        refused=dict.fromkeys(("normal", "zeros", "ones"), "only orthogonal initialization is supported"),
    )
    log_std_init: float = key(-1.0, "initial logarithm of the Gaussian policy's standard deviation", low=-10, high=5)

    # Algorithm
    horizon_size: int = key(
        256, "steps per environment and rollout; a batch is horizon_size * parallels steps", low=1, high=MAX_BATCH
    )
    n_epochs: int = key(16, "passes over a batch", low=1, high=10_000)
    n_minibatch: int = key(8, "minibatches per pass", low=1, high=MAX_BATCH)
    learning_rate: float = key(0.0004, "Adam's initial learning rate", low=0, open_low=True, high=1)
    lr_schedule: Literal["linear", "constant", "late", "kl"] = key(
        "linear",
        "the learning rate falls linearly; stays; stays until lr_decay_start, then falls; or follows desired_kl",
    )
    end_factor_lr_decay: float = key(
        0.0,
        "the learning rate falls linearly to this fraction of itself; 1.0 keeps it (lr_schedule linear, late)",
        low=0,
        high=1,
    )
    lr_decay_start: float = key(
        0.75,
        "share of the run after which the learning rate begins to fall (lr_schedule late)",
        low=0,
        high=1,
        open_high=True,
    )
    desired_kl: float = key(
        0.01,
        "mean approximate KL of an update that the learning rate aims at (lr_schedule kl)",
        low=0,
        open_low=True,
        high=1e4,
    )
    adam_beta1: float = key(0.9, "decay rate of Adam's first moment", low=0, high=1, open_high=True)
    adam_beta2: float = key(0.999, "decay rate of Adam's second moment", low=0, high=1, open_high=True)
    vf_coef: float = key(0.25, "weight of the value loss", low=0, high=1e4)
    ent_coef: float = key(0.0, "weight of the entropy bonus", low=0, high=1e4)
    clip_range: float = key(
        0.2, "how far the probability ratio may leave 1 (agent PPO)", low=0, open_low=True, high=1e6
    )
    clip_value_range: float | None = key(
        None,
        "how far a value may move from the rollout's before the value loss is clipped, in scaled rewards; null: never",
        low=0,
        open_low=True,
        high=1e9,
    )
    target_kl: float = key(
        0.25, "KL divergence that PPO_KL aims at, or that early_stop_kl stops above", low=0, open_low=True, high=1e4
    )
    kl_coef: float = key(1.0, "initial weight of PPO_KL's penalty", low=MIN_KL_COEF, high=MAX_KL_COEF)
    gamma: float = key(0.99, "discount factor", low=0, high=1)
    use_gae: bool = key(True, "generalized advantage estimation; False: Monte-Carlo return minus value")
    gae_lambda: float = key(0.95, "lambda of the advantage estimation", low=0, high=1)
    use_advnorm: bool = key(True, "normalize the advantages of each minibatch")
    use_grad_clip: bool = key(True, "limit the norm of the gradient")
    grad_clip_norm: float = key(0.5, "largest norm of the gradient", low=0, open_low=True, high=1e9)
    use_obsnorm: bool = key(True, "normalize observations by running mean and variance")
    obsnorm_range: float = key(5.0, "normalized observations are clipped to +- this", low=0, open_low=True, high=1e9)
    use_rewnorm: bool = key(True, "scale rewards by the running deviation of the discounted return")
    rewnorm_range: float = key(5.0, "scaled rewards are clipped to +- this", low=0, open_low=True, high=1e9)
    use_actions_mask: bool = key(False, "choose among the actions that the environment allows; needs discrete actions")
    noise_beta: float = key(
        0.0, "power spectrum 1/f^noise_beta of Gaussian_AC's action noise; 0: independent steps", low=0, high=2
    )
    early_stop_kl: bool = key(
        False, "stop the passes over a batch after one whose mean approximate KL is above target_kl (agent PPO)"
    )

    # Evaluation, logs, files
    eval_interval: int = key(
        5000,
        "environment steps between two evaluations (benchmark mode)",
        low=1,
        high=MAX_STEPS,
        learning=False,
        resumable=True,
    )
    test_episode: int = key(
        5, "episodes of an evaluation or a test", low=1, high=100_000, learning=False, testable=True
    )
    test_seed: int | None = key(
        None,
        "environment i of an evaluation or a test is seeded with test_seed + i, the same every time; null: seeds that "
        "training never uses, different ones in every evaluation",
        low=0,
        high=MAX_SEED,
        learning=False,
        resumable=True,
    )
    test_step_limit: int = key(
        10_000,
        "steps after which an episode of an evaluation is cut off, if the task itself has no time limit",
        low=1,
        high=1e9,
        learning=False,
        resumable=True,
    )
    logger: Literal["tensorboard", "wandb", "none"] = key(
        "tensorboard", "where curves are logged; result files are always written", learning=False, resumable=True
    )
    project_name: str = key("XuanCe_Benchmark", "project in wandb", learning=False)
    wandb_user_name: str = key(
        "your_user_name", "user or team in wandb; your_user_name means wandb's own default", learning=False
    )
    log_dir: str = key("./logs/ppo/", "parent of the run folders", learning=False, resumable=True)
    model_dir: str = key("./models/ppo/", "parent of the model folders", learning=False, resumable=True)
    checkpoint_interval: int = key(
        0,
        "environment steps between two checkpoints; 0: a tenth of the run",
        low=0,
        high=MAX_STEPS,
        learning=False,
        resumable=True,
    )
    keep_checkpoints: int = key(
        3, "how many of the latest checkpoints stay", low=1, high=1e6, learning=False, resumable=True
    )

    # Speed
    collector_backend: Literal["auto", "torch", "native"] = key(
        "auto",
        "engine that collects rollouts and evaluates; native needs MujocoVecEnv or ClassicControlVecEnv",
        resumable=True,
    )
    learner_backend: Literal["auto", "torch", "native"] = key(
        "auto", "engine that updates the weights; native runs on the CPU, without LayerNorm", resumable=True
    )
    num_threads: int = key(
        0,
        "threads of each process for native stepping and for the update; 0: as many as it may use",
        low=0,
        high=1024,
        learning=False,
        resumable=True,
    )
    num_workers: int = key(
        0,
        "processes of SubprocVecEnv; 0: as many as CPUs, at most one per environment",
        low=0,
        high=MAX_ENVS,
        learning=False,
        resumable=True,
    )
    compile: Literal["graph", "default", "off"] = key(
        "graph", "how the update runs on CUDA: compiled and in CUDA graphs, compiled, or eager"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16x3", "bf16"] = key(
        "fp32",
        "arithmetic of matrix products in the update; tf32 on CUDA, bf16x3 on CPUs with AMX tiles, bf16 on CUDA and on "
        "CPUs with tiles or AVX512_BF16; auto: fp32, or in a resumed run what it had",
        resumable=True,
    )
    inference_device: Literal["auto", "cpu", "cuda"] = key(
        "auto",
        "where the torch collector computes actions when the update runs on CUDA; auto: on the GPU if parameters times "
        "environments exceed 4 million",
        resumable=True,
    )
    overlap: bool = key(
        False, "collect the next rollout while the update runs on CUDA, with weights that are one update old"
    )
    distributed_training: bool = key(
        False,
        "train in several processes: one for each GPU, or num_ranks; torchrun does so in any case",
        learning=False,
        resumable=True,
    )
    master_port: int = key(
        12355,
        "has no effect; accepted because XuanCe's files have it (a free port is found automatically)",
        low=1,
        high=65535,
        learning=False,
        resumable=True,
    )
    num_ranks: int = key(
        1,
        "processes that train together on this machine, each with its share of the environments",
        low=1,
        high=1024,
        learning=False,
        resumable=True,
    )

    notices: tuple[str, ...] = field(default=(), compare=False, repr=False)
    source: str = field(default="", compare=False, repr=False)
    file_modules: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        """Gives every value its type, then checks what concerns several keys."""
        for name, rules in keys_of(Config).items():
            object.__setattr__(self, name, coerce(name, getattr(self, name), hints()[name], rules))
        settle(self)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules, besides Gymnasium's, that are imported to make the environment."""
        return self.modules_of("env_id", "env_wrappers")

    def modules_of(self, *keys: str) -> tuple[str, ...]:
        """Returns those of `modules` that these keys name."""
        names = [self.env_id] if "env_id" in keys and ":" in self.env_id else []
        if "env_wrappers" in keys:
            names += [entry if isinstance(entry, str) else next(iter(entry)) for entry in self.env_wrappers]
        modules = dict.fromkeys(name.partition(":")[0] for name in names)
        return tuple(module for module in modules if module.partition(".")[0] != "gymnasium")

    @property
    def default_mode(self) -> Literal["benchmark", "test"]:
        """Mode of a run whose command line names none."""
        return "test" if self.test_mode else "benchmark"

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
        """Gradient steps in the run, the K of the learning-rate schedule."""
        return self.num_iterations * self.n_epochs * self.n_minibatch

    @property
    def ratio_range(self) -> float:
        """How far from 1 the probability ratio may be before it is clipped: infinite with PPO_KL."""
        return self.clip_range if self.agent == "PPO" else math.inf

    @property
    def value_range(self) -> float:
        """How far a value may be from the rollout's before its loss is clipped: `clip_value_range`, or infinite."""
        return math.inf if self.clip_value_range is None else self.clip_value_range

    @property
    def trace_decay(self) -> float:
        """Lambda of the advantage estimation: `gae_lambda`, or 1 (Monte-Carlo returns) without `use_gae`."""
        return self.gae_lambda if self.use_gae else 1.0

    @property
    def max_grad_norm(self) -> float:
        """Largest norm of the gradient: `grad_clip_norm`, or infinity without `use_grad_clip`."""
        return self.grad_clip_norm if self.use_grad_clip else math.inf

    @property
    def checkpoint_every(self) -> int:
        """Environment steps between two checkpoints; where `checkpoint_interval` is 0, a tenth of the run."""
        return self.checkpoint_interval or max(1, self.running_steps // 10)

    def to_dict(self) -> dict[str, Any]:
        """Returns a copy of the keys as plain data (numbers, texts, lists, mappings); `Config(**values)` inverts it."""
        values = {name: copy.deepcopy(getattr(self, name)) for name in keys_of(Config)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


#: Keys that may change when a run is resumed.
RESUMABLE_KEYS = tuple(name for name, rules in keys_of(Config).items() if rules.resumable)
#: Keys that may change, besides the resumable ones, when the model of a run is tested.
TESTABLE_KEYS = tuple(name for name, rules in keys_of(Config).items() if rules.testable)


@functools.cache
def hints() -> dict[str, Any]:
    """Returns the type of each key."""
    return typing.get_type_hints(Config)
