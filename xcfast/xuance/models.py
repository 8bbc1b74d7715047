"""Finding and reading model files: those of xcfast, and both forms of XuanCe's with ``obs_rms.npy``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy._core import multiarray  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from xcfast import checkpoint as ckpt
from xcfast.errors import CheckpointError

OBS_RMS = "obs_rms.npy"


@dataclass(frozen=True)
class SavedModel:
    """A model file's contents.

    Attributes:
        path: the file.
        policy: weights by name.
        optimizer: the state of Adam in torch's form, or None.
        obs_rms: mean, var (both [*obs_shape]) and count of the observations, or None where they were not normalised.
        reward_normalizer: its state, or None.
        keys: the configuration that it was trained with; of XuanCe's files nothing is known.
        identity_actions: whether the policy knows its actions neither mapped to the bounds nor clipped.
        step: env steps that it was trained for, or None where the file does not say.
    """

    path: Path
    policy: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    obs_rms: dict[str, Any] | None
    reward_normalizer: dict[str, Any] | None
    keys: dict[str, Any]
    identity_actions: bool
    step: int | None


def find_model_file(path: str | os.PathLike[str], model: str | int | None, seed: int) -> Path:
    """The file that ``load_model(path, model)`` means.

    Args:
        path: a model file, or a folder: of one run, or of runs in ``seed_<seed>_<time>``.
        model: a file's name; or a seed; or None.
        seed: of the runs to look for where ``model`` is no seed.

    Returns:
        Of the newest run of that seed the named file, or else the best model, the final one, the latest checkpoint.

    Raises:
        CheckpointError: there is none; the message says what was looked for, where, and what is there.
    """
    place = Path(path)
    name = None
    if isinstance(model, int | np.integer):
        seed = int(model)
    elif model is not None:
        name = model if model.endswith(".pth") else f"{model}.pth"
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(f"{place}: no such model file or folder")
    runs = sorted(place.glob(f"seed_{seed}_*"), key=lambda run: run.stat().st_mtime, reverse=True)
    for folder in (place, *runs):
        found = _model_in(folder, name)
        if found is not None:
            return found
    seeds = sorted({run.name.split("_")[1] for run in place.glob("seed_*_*") if _model_in(run, name) is not None})
    others = f"; seeds with one there: {', '.join(seeds)}" if seeds else ""
    raise CheckpointError(f"{place}: no {name or 'model file'} of seed {seed} in it{others}")


def _model_in(folder: Path, model: str | None) -> Path | None:
    wanted = (ckpt.BEST_MODEL, ckpt.FINAL_MODEL) if model is None else (model,)
    places = (folder, folder / "best_model")  # the latter in XuanCe's result folders
    found = [place / name for name in wanted for place in places if (place / name).is_file()]
    if not found and model is None:
        found = ckpt.periodic_checkpoints(folder)[-1:]
    return found[0] if found else None


def read_model(path: Path, use_obsnorm: bool) -> SavedModel:
    """Reads a model file of xcfast or of XuanCe, onto the CPU, executing nothing from it.

    Args:
        path: the file; XuanCe keeps ``obs_rms.npy`` beside it.
        use_obsnorm: whether the statistics of the observations are needed.

    Raises:
        CheckpointError: it is damaged, or is no model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: truncated, or not a model file ({reason})") from error
    if isinstance(state, Mapping) and state.get("format") == ckpt.FORMAT:
        saved = ckpt.load_checkpoint(path)
        return SavedModel(
            path,
            saved["policy"],
            saved.get("learner", {}).get("optimizer"),
            saved["obs_normalizer"]["rms"] if saved["config"]["use_obsnorm"] else None,
            saved.get("reward_normalizer"),
            saved["config"],
            bool(saved.get("identity_actions")),
            int(saved["step"]),
        )
    weights = state.get("policy") if isinstance(state, Mapping) and "policy" in state else state
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path}: neither a model of xcfast nor one of XuanCe (weights, or a dict with policy)")
    obs_rms = None
    if use_obsnorm:
        obs_rms = read_obs_rms(path.with_name(OBS_RMS))
    # Trained on several devices, each part is in a module of its own.
    weights = {name.replace("module.", ""): value for name, value in weights.items()}
    optimizer = state.get("optimizer")
    if not isinstance(optimizer, dict) or "state" not in optimizer:
        optimizer = None
    return SavedModel(path, weights, optimizer, obs_rms, None, {}, True, None)


def read_obs_rms(path: Path) -> dict[str, Any]:
    """XuanCe's statistics of the observations: ``mean`` and ``var`` float64 [*obs_shape], ``count``.

    The file is a pickle; nothing is made of it but numpy arrays, numbers, texts, lists and dicts.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            value = _read_object_array(file)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file, and with use_obsnorm the model beside it cannot be used without"
        ) from None
    except (pickle.UnpicklingError, ValueError, EOFError, OSError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict) or not {"count", "mean", "var"} <= value.keys():
        raise CheckpointError(f"{path}: not statistics of observations (a dict of count, mean and var)")
    try:
        mean, var = (np.asarray(value[name], np.float64) for name in ("mean", "var"))
        count = float(value["count"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: count, mean and var must be numbers ({error})") from error
    if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all() and 0 <= count < 2**62):
        raise CheckpointError(f"{path}: count, mean and var must be finite, count and var not negative")
    return {"mean": mean, "var": var, "count": round(count)}


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
    """Refuses everything but numpy arrays, numpy scalars and what needs no class at all."""

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
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only numpy arrays are allowed") from None


def check_fits(
    saved: SavedModel, policy: Mapping[str, Tensor], keys: Mapping[str, Any], obs_shape: tuple[int, ...]
) -> None:
    """Whether a saved model can be loaded into a network.

    Args:
        saved: the model.
        policy: the network's own weights.
        keys: the configuration's keys that describe what the weights do not tell.
        obs_shape: of one observation.

    Raises:
        CheckpointError: it is of another network; the message says what was found and what was expected.
    """
    found = {name: tuple(value.shape) for name, value in saved.policy.items()}
    expected = {name: tuple(value.shape) for name, value in policy.items()}
    if found != expected:
        described, wanted = describe_weights(saved.policy), describe_weights(policy)
        if described == wanted:
            strange = sorted(set(found.items()) ^ set(expected.items()))[0][0]
            described, wanted = (f"{strange} {shapes.get(strange, 'missing')}" for shapes in (found, expected))
        raise CheckpointError(f"{saved.path}: another network: found {described}; expected {wanted}")
    for name, value in keys.items():
        if name in saved.keys and saved.keys[name] != value:
            raise CheckpointError(f"{saved.path}: trained with {name} {saved.keys[name]}; expected {value}")
    if saved.obs_rms is not None and tuple(np.shape(saved.obs_rms["mean"])) != obs_shape:
        shape = list(np.shape(saved.obs_rms["mean"]))
        raise CheckpointError(f"{saved.path}: observations of shape {shape}; expected {list(obs_shape)}")


def describe_weights(policy: Mapping[str, Tensor]) -> str:
    """The widths of the parts, as in ``representation 27-256, actor 256-256-8, critic 256-256-1``."""
    parts: dict[str, list[int]] = {}
    for name, value in policy.items():
        if name.endswith("weight") and value.ndim == 2:
            widths = parts.setdefault(name.partition(".")[0], [value.shape[1]])
            widths.append(value.shape[0])
    return ", ".join(f"{part} {'-'.join(map(str, widths))}" for part, widths in parts.items()) or "no linear layers"
