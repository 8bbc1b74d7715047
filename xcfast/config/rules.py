"""Rules that concern several keys of a configuration, or the form of a text.

The schema calls `settle` for each new configuration, so this module does not import the type of its argument.
"""

import itertools
import os
import re
import sys
from typing import Any

from xcfast.config.keys import nearest_name
from xcfast.errors import ConfigError

MAX_SEED = 2**32 - 1
DEVICES = "auto, cpu, cuda, cuda:K, gpu"
MAX_STEPS = 10**13
MAX_ENVS = 2**16
_MAX_WEIGHTS = 2**28  # of the hidden layers: a gigabyte, and three more for Adam and a snapshot
_MAX_PASSES = 2**36  # steps
MIN_LR, MAX_LR = 1e-6, 1e-2  #: range of the learning rate that `lr_schedule: kl` adapts, as in rl_games
_MAX_NAME = 255  # bytes that a file system allows in the name of a folder
_MAX_ID = 200  # bytes; an id becomes the name of a folder
MAX_BATCH = 2**28  # steps; a rollout keeps at least a hundred bytes of each

ENV_ID = re.compile(r"([^\W\d]\w*(\.[^\W\d]\w*)*:)?([\w-]+/)?\w[\w.-]*")  #: an id of Gymnasium, or module:id

# Arguments of gymnasium.make that xcfast sets itself, and what a user can do instead.
_ARGUMENTS_SET_HERE = {
    "id": "env_id names the environment",
    "render_mode": "render and render_mode decide it",
    "disable_env_checker": "the checker is always off",
}


def settle(config: Any) -> None:
    """Checks rules that concern several keys, and clears keys that another key makes meaningless."""

    def change(name: str, value: Any) -> None:
        object.__setattr__(config, name, value)

    if config.device in ("gpu", "GPU"):
        change("device", "cuda:0")
    for name in ("log_dir", "model_dir"):
        change(name, _folder(name, getattr(config, name)))
    if config.representation == "Basic_Identical":
        change("representation_hidden_size", ())
    if config.policy == "Categorical_AC":
        change("activation_action", None)
    if config.agent == "PPO_KL":
        change("learner", "PPOKL_Learner")
    for check in (_check_texts, _check_networks, _check_algorithm, _check_schedule, _check_sizes):
        check(config)


def _folder(name: str, path: str) -> str:
    """Returns the path with a leading `~` expanded.

    Raises:
        ConfigError: If `~` names no user, or the name of a folder is too long.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError("no such user", key=name, given=path, allowed="a path; ~ alone is your home folder")
    if any(_num_bytes(name, part) > _MAX_NAME for part in expanded.split(os.sep)):
        raise ConfigError(
            "the name of a folder is too long",
            key=name,
            given=path,
            allowed=f"{_MAX_NAME} bytes for each folder's name",
        )
    return expanded


def _num_bytes(name: str, text: str) -> int:
    """Returns the length of a text as part of a path.

    Raises:
        ConfigError: The file names of this process cannot hold it.
    """
    try:
        return len(os.fsencode(text))
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        allowed = f"texts of {encoding}; PYTHONUTF8=1 allows any"
        raise ConfigError("no file name of this process can hold it", key=name, given=text, allowed=allowed) from None


def _refusal(config: Any, name: str, problem: str, allowed: str, nearest: str | None = None) -> ConfigError:
    return ConfigError(problem, key=name, given=getattr(config, name), allowed=allowed, nearest=nearest)


def _check_texts(config: Any) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", config.device):
        near = nearest_name(config.device, ("auto", "cpu", "cuda", "gpu"))
        raise _refusal(config, "device", "unknown device", DEVICES, near)
    if _num_bytes("env_id", config.env_id) > _MAX_ID or not ENV_ID.fullmatch(config.env_id):
        allowed = f"an id such as Ant-v4, or module:id, of up to {_MAX_ID} bytes"
        raise _refusal(config, "env_id", "not an environment's id", allowed)
    for name in config.env_kwargs.keys() & _ARGUMENTS_SET_HERE.keys():
        reason = f"env_kwargs.{name} is set by xcfast; {_ARGUMENTS_SET_HERE[name]}"
        raise _refusal(config, "env_kwargs", reason, "the environment's own arguments")


def _check_networks(config: Any) -> None:
    if config.representation == "Basic_MLP" and not config.representation_hidden_size:
        allowed = "at least one width, or representation: Basic_Identical"
        raise _refusal(config, "representation_hidden_size", "Basic_MLP without a layer", allowed)
    for name in ("actor_hidden_size", "critic_hidden_size"):
        widths = (*config.representation_hidden_size, *getattr(config, name))
        weights = sum(before * after for before, after in itertools.pairwise(widths))
        if weights > _MAX_WEIGHTS:
            problem = f"too large a network: {weights} weights with those of representation_hidden_size"
            raise _refusal(config, name, problem, f"widths that make at most {_MAX_WEIGHTS} weights")
    if config.precision == "tf32" and config.device == "cpu":
        raise _refusal(config, "precision", "only CUDA devices have it", "fp32, bf16x3, bf16 or auto with device cpu")
    if config.learner_backend == "torch" and (
        config.precision == "bf16x3" or (config.precision, config.device) == ("bf16", "cpu")
    ):
        raise _refusal(config, "precision", "only the native learner has it", "fp32 or auto with learner_backend torch")
    if config.precision == "bf16x3" and config.device.startswith("cuda"):
        raise _refusal(
            config, "precision", "only CPUs have it", f"fp32, tf32, bf16 or auto with device {config.device}"
        )
    if config.use_actions_mask and config.policy == "Gaussian_AC":
        problem = "only discrete actions have masks"
        raise _refusal(config, "use_actions_mask", problem, f"False with policy {config.policy}")


def _check_algorithm(config: Any) -> None:
    if config.agent != "PPO_KL" and config.learner == "PPOKL_Learner":
        raise _refusal(config, "learner", "belongs to agent PPO_KL", f"PPO_Learner with {config.agent}")
    if config.agent == "PPO_KL" and config.early_stop_kl:
        problem = "PPO_KL adapts its penalty to target_kl, which it could not if epochs stopped there"
        raise _refusal(config, "early_stop_kl", problem, "False with agent PPO_KL")
    if config.policy == "Categorical_AC" and config.noise_beta != 0:
        problem = "only continuous actions have Gaussian noise"
        raise _refusal(config, "noise_beta", problem, f"0 with policy {config.policy}")


def _check_schedule(config: Any) -> None:
    schedule, end = config.lr_schedule, config.end_factor_lr_decay
    # Files often have the default, 0, or XuanCe's 1, which say nothing about what the user wants.
    if schedule in ("constant", "kl") and end not in (0.0, 1.0):
        problem = f"lr_schedule {schedule} does not let the learning rate fall to a fraction of itself"
        raise _refusal(config, "end_factor_lr_decay", problem, "0.0 or 1.0, or lr_schedule: linear or late")
    if schedule == "late" and end == 1.0:
        problem = "keeps the learning rate, which lr_schedule late lets fall"
        raise _refusal(config, "end_factor_lr_decay", problem, "a number below 1, or lr_schedule: constant")
    if schedule != "kl":
        return
    if config.agent == "PPO_KL":
        problem = "PPO_KL controls the same divergence by its penalty"
        raise _refusal(config, "lr_schedule", problem, "linear, constant, late with agent PPO_KL")
    if config.n_epochs * config.n_minibatch == 1:
        problem = "the only gradient step of an update has a KL of 0"
        raise _refusal(config, "lr_schedule", problem, "linear, constant, late with one gradient step in an update")
    if not MIN_LR <= config.learning_rate <= MAX_LR:
        raise _refusal(
            config, "learning_rate", "out of the range of lr_schedule kl", f"a number from {MIN_LR:g} to {MAX_LR:g}"
        )


def _check_sizes(config: Any) -> None:
    batch = config.batch_size
    if batch > MAX_BATCH:
        problem = f"a rollout of horizon_size * parallels = {batch} steps is too large"
        allowed = f"at most {MAX_BATCH // config.parallels} with parallels {config.parallels}"
        raise _refusal(config, "horizon_size", problem, allowed)
    if config.n_minibatch > batch:
        allowed = f"at most horizon_size * parallels = {batch}"
        raise _refusal(config, "n_minibatch", "more minibatches than steps in a batch", allowed)
    if config.use_advnorm and batch < 2 * config.n_minibatch:
        problem = "minibatches of one step, whose normalized advantage is always 0, so the actor would not learn"
        allowed = (
            f"at most {batch // 2}, half of horizon_size * parallels = {batch}"
            if batch > 1
            else f"a larger batch than horizon_size * parallels = {batch}"
        )
        raise _refusal(config, "n_minibatch", problem, f"{allowed}; or use_advnorm: False")
    if config.n_epochs * batch > _MAX_PASSES:
        problem = f"n_epochs * horizon_size * parallels = {config.n_epochs * batch} steps to learn from per rollout"
        raise _refusal(config, "n_epochs", problem, f"at most {_MAX_PASSES // batch} with this batch")
    if config.running_steps < batch:
        allowed = f"at least horizon_size * parallels = {batch}"
        raise _refusal(config, "running_steps", "less than one rollout", allowed)
    if config.env_seed + config.parallels - 1 > MAX_SEED:
        allowed = f"env_seed + parallels - 1 <= {MAX_SEED}"
        raise _refusal(config, "env_seed", "the last environment's seed is too large", allowed)
    if config.num_ranks > config.parallels:
        problem = "more processes than environments to share among them"
        raise _refusal(config, "num_ranks", problem, f"1 to parallels = {config.parallels}")
