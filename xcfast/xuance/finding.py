"""Finds the model file for ``load_model(path, model)``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from xcfast.errors import CheckpointError
from xcfast.output import checkpoint as ckpt

_FILES_OF_RUNS = ("run.json", "config.json", "meta_data.json")


def find_model_file(path: str | os.PathLike[str], model: str | os.PathLike[str] | int | None, seed: int) -> Path:
    """Returns the path of the model file for ``load_model(path, model)``.

    Args:
        path: A model file, the folder of one run, or a folder of runs. Their folders are named ``seed_<seed>_<time>``,
            or ``seed_<seed>`` in XuanCe's result folders.
        model: The name of a file, with or without ``.pth``; or the name of a run's folder; or a seed, as a number or a
            text of digits. They are tried in this order. None takes the first model of the list below.
        seed: Seed of the runs to look in, if ``model`` is no seed.

    Returns:
        The named file of the newest run of that seed; without a name its best model, or else its final one, or else
        its latest checkpoint.

    Raises:
        CheckpointError: There is none. The message says what was searched for and where, and what is there.
        TypeError: An argument has another type.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a model file or a folder; got {path!r}")
    if isinstance(model, bool) or not isinstance(model, str | os.PathLike | int | np.integer | None):
        raise TypeError(f"model must be a file's name, a seed or None; got {model!r}")
    place = Path(path)
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(f"{place}: no such model file or folder")
    name = None if model is None or isinstance(model, int | np.integer) else os.fspath(model)
    if name is not None:
        found = _named(place, name, seed)
        if found is not None:
            return found
        if not name.isdecimal():
            raise CheckpointError(f"{place}: no {_with_suffix(name)}{_what_is_there(place, seed, name)}")
    if name is not None or model is not None:
        seed = int(model)  # type: ignore[arg-type]
    for folder in (place, *_runs(place, seed)):
        found = _first_model(folder)
        if found is not None:
            return found
    raise CheckpointError(f"{place}: no model file{_what_is_there(place, seed, None)}")


def _named(place: Path, name: str, seed: int) -> Path | None:
    """Returns the file of that name in the folder or in a run of that seed, or the model in a folder of that name."""
    folders = [inner for folder in (place, *_runs(place, seed)) for inner in _folders_of_models(folder)]
    for candidate in dict.fromkeys((name, _with_suffix(name))):
        for folder in folders:
            if (folder / candidate).is_file():
                return folder / candidate
    return _first_model(place / name) if (place / name).is_dir() else None


def _first_model(folder: Path) -> Path | None:
    """Returns the best model of a run, or else the final one, or else the latest checkpoint, or None."""
    for name in (ckpt.BEST_MODEL, ckpt.FINAL_MODEL):
        for inner in _folders_of_models(folder):
            if (inner / name).is_file():
                return inner / name
    checkpoints = ckpt.periodic_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def _folders_of_models(folder: Path) -> tuple[Path, Path]:
    return folder, folder / "best_model"  # the latter in XuanCe's result folders


def _runs(place: Path, seed: int | str) -> list[Path]:
    """Returns the folders of the runs of a seed, the newest first."""
    found = [*place.glob(f"seed_{seed}_*"), *place.glob(f"seed_{seed}")]
    return sorted(found, key=lambda run: run.stat().st_mtime, reverse=True)


def _with_suffix(name: str) -> str:
    return name if name.endswith(".pth") else f"{name}.pth"


def _what_is_there(place: Path, seed: int, name: str | None) -> str:
    """Returns the end of the message about a missing model: which models there are."""
    files = sorted(file.name for folder in _folders_of_models(place) for file in folder.glob("*.pth"))
    if files or any((place / file).exists() for file in _FILES_OF_RUNS):  # the folder of one run: no seeds
        return f" in it; there: {', '.join(files)}" if files else " in it"

    def has_one(run: Path) -> bool:
        return (_first_model(run) if name is None else _named(run, name, seed)) is not None

    seeds = sorted({run.name.split("_")[1] for run in place.glob("seed_*") if has_one(run)})
    return f" of seed {seed} in it" + (f"; seeds with one there: {', '.join(seeds)}" if seeds else "")
