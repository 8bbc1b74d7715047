"""Checkpoints: self-contained files, written atomically, read without executing anything from them."""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcfast.errors import CheckpointError
from xcfast.output.checkpoint_schema import check_checkpoint

FORMAT = "xcfast-checkpoint"
VERSION = 1
REQUIRED = ("config", "step", "iteration", "policy", "obs_normalizer")  # what any use of a checkpoint needs
BEST_MODEL = "best_model.pth"
FINAL_MODEL = "final_train_model.pth"
_PERIODIC = re.compile(r"checkpoint_(\d+)\.pth")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint to a temporary name, flushes it to the disk, then renames it.

    Args:
        path: The file to write. Its folder must exist.
        state: Nested dicts and lists of tensors, numpy arrays, numbers, texts, booleans and None.

    Raises:
        CheckpointError: The file cannot be written. What was at ``path`` before is still there.
    """
    data = io.BytesIO()  # into memory first, because torch would hide the file system's error behind one of its own
    torch.save({"format": FORMAT, "version": VERSION, **_plain(state)}, data)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: not saved: {error}") from error


def read_torch_file(path: Path) -> Any:
    """Reads what ``torch.save`` wrote onto the CPU: tensors, numbers, texts and containers, and nothing else.

    Raises:
        CheckpointError: The file is missing, truncated or damaged, is not such a file, or contains other objects.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise CheckpointError(f"{path}: truncated, or not a model file of torch ({error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged (checksum of {damaged!r} does not match)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        # Not torch's own message, which advises loading the file again with everything in it allowed.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise CheckpointError(f"{path}: not a model file of torch") from None
        reason = f"it contains {asked[1]}; only tensors, numbers, texts and containers are read from a model"
        raise CheckpointError(f"{path}: {reason}") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Arrays come back as CPU tensors.

    Raises:
        CheckpointError: It is missing, truncated, damaged, not a checkpoint of this program, or of a newer format.
    """
    path = Path(path)
    state = read_torch_file(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT or "version" not in state:
        raise CheckpointError(f"{path}: not a checkpoint of xcfast")
    if type(state["version"]) is not int:
        raise CheckpointError(f"{path}: version: found {state['version']!r:.60}; wanted: an integer")
    if state["version"] > VERSION:
        raise CheckpointError(
            f"{path}: format version {state['version']}; this xcfast reads up to {VERSION}; please upgrade"
        )
    missing = [key for key in REQUIRED if key not in state]
    if missing:
        raise CheckpointError(f"{path}: incomplete, without {', '.join(missing)}")
    check_checkpoint(path, state)
    return state


def checkpoint_path(model_dir: Path, step: int) -> Path:
    """Returns the path of the periodic checkpoint of a step."""
    return model_dir / f"checkpoint_{step}.pth"


def periodic_checkpoints(model_dir: Path) -> list[Path]:
    """Returns the periodic checkpoints in a folder, the oldest step first."""
    return [path for _, path in _numbered(model_dir)]


def prune_checkpoints(model_dir: Path, keep: int) -> None:
    """Deletes all but the last ``keep`` periodic checkpoints."""
    for path in periodic_checkpoints(model_dir)[:-keep]:
        path.unlink(missing_ok=True)


def set_aside_after(model_dir: Path, step: int) -> list[Path]:
    """Renames the checkpoints of later steps when a run goes on from ``step``; returns the new names."""
    later = [path for number, path in _numbered(model_dir) if number > step]
    return [path.rename(path.with_suffix(".pth.superseded")) for path in later]


def _numbered(model_dir: Path) -> list[tuple[int, Path]]:
    """Returns step and path of the periodic checkpoints in a folder, the oldest step first."""
    return sorted(
        (int(match[1]), path) for path in model_dir.glob("*.pth") if (match := _PERIODIC.fullmatch(path.name))
    )


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """Turns numpy arrays into tensors and numpy scalars into numbers, which ``weights_only`` loading admits."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.generic):
        return value.item()
    return value
