"""Reads model files: those of xcfast, and both forms of XuanCe's with ``obs_rms.npy``."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy._core import multiarray  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from xcfast.errors import CheckpointError
from xcfast.output import checkpoint as ckpt

OBS_RMS = "obs_rms.npy"


@dataclass(frozen=True)
class SavedModel:
    """The contents of a model file.

    Attributes:
        path: Path of the file.
        policy: Weights by name.
        optimizer: State of Adam in torch's form, or None.
        obs_rms: Mean and var (both [*obs_shape]) and count of the observations, or None if they were not normalized.
        reward_rms: Mean, var and count of the discounted returns, or None.
        keys: Configuration that the model was trained with; empty for a file of XuanCe, which has none.
        identity_actions: Whether the policy was trained with actions that are neither mapped to the bounds nor clipped.
        step: Number of environment steps that the model was trained for, or None if the file does not say.
    """

    path: Path
    policy: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    obs_rms: dict[str, Any] | None
    reward_rms: dict[str, Any] | None
    keys: dict[str, Any]
    identity_actions: bool
    step: int | None


def read_model(path: Path, use_obsnorm: bool) -> SavedModel:
    """Reads a model file of xcfast or of XuanCe onto the CPU, without executing anything from it.

    Args:
        path: Path of the file. XuanCe keeps ``obs_rms.npy`` beside it.
        use_obsnorm: Whether the statistics of the observations are needed.

    Raises:
        CheckpointError: The file is damaged, or is not a model.
    """
    state = ckpt.read_torch_file(path)
    if isinstance(state, Mapping) and state.get("format") == ckpt.FORMAT:
        return _of_xcfast(path)
    weights = state["policy"] if isinstance(state, Mapping) and "policy" in state else state
    if not _are_weights(weights):
        raise CheckpointError(f"{path}: neither a model of xcfast nor one of XuanCe (weights, or a dict with policy)")
    obs_rms = None
    if use_obsnorm:
        obs_rms = read_obs_rms(path.with_name(OBS_RMS))
    # If several devices trained it, each part was inside a module of torch's DistributedDataParallel.
    weights = {name.replace("module.", ""): value for name, value in weights.items()}
    optimizer = state.get("optimizer")
    if not isinstance(optimizer, dict) or "state" not in optimizer:
        optimizer = None
    return SavedModel(path, weights, optimizer, obs_rms, None, {}, True, None)


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _of_xcfast(path: Path) -> SavedModel:
    saved = ckpt.load_checkpoint(path)
    if not _are_weights(saved["policy"]):
        raise CheckpointError(f"{path}: its policy is not a dict of weights")
    try:
        return SavedModel(
            path,
            saved["policy"],
            saved.get("learner", {}).get("optimizer"),
            _statistics(path, saved["obs_normalizer"]["rms"]) if saved["config"]["use_obsnorm"] else None,
            _statistics(path, saved["reward_normalizer"]["rms"]) if "reward_normalizer" in saved else None,
            saved["config"],
            bool(saved.get("identity_actions")),
            int(saved["step"]),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: incomplete ({type(error).__name__}: {error})") from error


def read_obs_rms(path: Path) -> dict[str, Any]:
    """Returns XuanCe's statistics of the observations, in the form of ``RunningMeanStd.state_dict``.

    The file is a pickle, of which only numpy arrays, numbers, texts, lists and dicts are read.

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            value = _read_object_array(file)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; with use_obsnorm: True, the model in that folder needs it"
        ) from None
    except (pickle.UnpicklingError, ValueError, EOFError, OSError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict) or not {"count", "mean", "var"} <= value.keys():
        raise CheckpointError(f"{path}: not statistics of observations (a dict of count, mean and var)")
    # XuanCe divides by sqrt(var) + epsilon; its models keep that formula.
    return _statistics(path, {**value, "epsilon_outside": True})


def _statistics(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns statistics as float64 arrays and an integer count.

    Raises:
        CheckpointError: They are not statistics.
    """
    try:
        mean, var = (np.asarray(value[name], np.float64) for name in ("mean", "var"))
        count = float(value["count"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: count, mean and var must be numbers ({error})") from error
    if mean.shape != var.shape:
        raise CheckpointError(f"{path}: mean has the shape {list(mean.shape)}, var the shape {list(var.shape)}")
    if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all() and 0 <= count < 2**62):
        raise CheckpointError(f"{path}: count, mean and var must be finite, count and var not negative")
    outside = bool(value.get("epsilon_outside", False))
    return {"mean": mean, "var": var, "count": round(count), "epsilon_outside": outside}


def _read_object_array(file: BinaryIO) -> Any:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"holds {dtype} {list(shape)}, not one object")
    array = _ArraysOnly(file).load()
    if not isinstance(array, np.ndarray) or array.shape != () or array.dtype != np.dtype(object):
        raise ValueError("does not hold one object")
    return array.item()


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that makes only numpy arrays, numpy scalars and objects that need no class."""

    _ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012
        **{(f"numpy.{core}.multiarray", "_reconstruct"): multiarray._reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): multiarray.scalar for core in ("core", "_core")},
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it contains {module}.{name}; only numpy arrays are allowed") from None
