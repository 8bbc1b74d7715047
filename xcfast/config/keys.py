"""The rules of each key besides its type and default, and the names that other versions use."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

# A longer name is not a misspelling, and comparing it takes long.
_LONGEST_NAME = 100


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Returns which of `names` `name` most likely misspells, or None."""
    if len(name) > _LONGEST_NAME:
        return None
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


# Keys that XuanCe has renamed: old (or competing) name -> the name used here.
RENAMED_KEYS = {
    "n_steps": "horizon_size",
    "n_epoch": "n_epochs",
    "clip_grad_norm": "grad_clip_norm",
    "use_ddp": "distributed_training",
    "dl_backend": "dl_toolbox",
}

_ATARI = "Atari only"
# Keys that XuanCe's files may contain and that have no effect here, each with the reason.
INERT_KEYS = {
    "runner": "there is one runner for every configuration",
    "result_dir": "result files are written to the run folder under log_dir",
    "clip_type": "MindSpore only; grad_clip_norm always limits the global norm",
    "test_steps": "XuanCe never read it; test_episode sets the length of a test",
    "use_linear_lr_decay": "XuanCe never acted on it; lr_schedule and end_factor_lr_decay decide the learning rate",
    "use_tensor_memory": "the engines decide where a rollout is stored",
    "rt_epoch": "--resume restores the position in the learning-rate schedule",
    **dict.fromkeys(
        ("obs_type", "img_size", "num_stack", "frame_skip", "noop_max", "full_action_space", "fc_hidden_sizes"), _ATARI
    ),
    **dict.fromkeys(("filters", "kernels", "strides"), "image representations only"),
    **dict.fromkeys(("ImgObsWrapper", "RGBImgPartialObsWrapper"), "MiniGrid only"),
    **dict.fromkeys(("act_type", "num_drones", "obstacles", "record", "sleep"), "drones only"),
    "max_episode_steps": "drones only; the time limit of a Gymnasium id is its own",
    "env_config": "MetaDrive only",
}


@dataclass(frozen=True)
class Key:
    """Everything about a key besides its type and default.

    Attributes:
        doc: One line for the reader of the YAML.
        low: Smallest number allowed.
        high: Largest number allowed.
        open_low: Whether `low` itself is refused.
        open_high: Whether `high` itself is refused.
        words: Description of the allowed values, if the type does not tell them.
        aliases: Old spelling of a value -> the value.
        refused: Value of other libraries that is refused by name -> the reason.
        resumable: Whether the key may change when a run is resumed. Such a key changes results by rounding at
            most, or sets the length of the run.
        testable: Whether the key may change, besides the resumable ones, when the model of a run is tested.
        learning: Whether the key decides what a policy learns. Runs that differ only in other keys are averaged in one
            curve.
    """

    doc: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    words: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    resumable: bool = False
    testable: bool = False
    learning: bool = True


def key(default: Any, doc: str, *, hash: bool | None = None, **rules: Any) -> Any:
    """Returns a dataclass field that is a YAML key.

    Args:
        default: The key's default. If it is a dict, every configuration has its own copy.
        doc: One line for the reader of the YAML.
        hash: False for a key whose values may not be hashable, so that the configuration still is.
        **rules: Attributes of `Key`.
    """
    metadata = {"key": Key(doc, **rules)}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata, hash=hash)
    return field(default=default, metadata=metadata, hash=hash)


def keys_of(config_class: type) -> dict[str, Key]:
    """Returns the keys of a config dataclass in the order of definition."""
    return {f.name: f.metadata["key"] for f in dataclass_fields(config_class) if "key" in f.metadata}
