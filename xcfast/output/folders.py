"""The folders of a run, and finding a run or a model in them."""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xcfast.errors import CheckpointError, ConfigError
from xcfast.output.checkpoint import BEST_MODEL, FINAL_MODEL, periodic_checkpoints
from xcfast.output.files import write_json

if TYPE_CHECKING:
    from xcfast.config.schema import Config

Mode = Literal["benchmark", "train", "test"]


@dataclass(frozen=True)
class RunFolders:
    """The folders of a run, and its mode.

    Attributes:
        log_dir: Folder of logs and results.
        model_dir: Folder of checkpoints and models.
        mode: Mode of the run.
    """

    log_dir: Path
    model_dir: Path
    mode: Mode

    @classmethod
    def create(cls, config: Config, mode: Mode, below_env: bool = True) -> RunFolders:
        """Creates folders ``<dir>/<env_id>/seed_<seed>_<time>``. A second run in the same second gets a suffix.

        Args:
            config: The run's configuration; log_dir, model_dir, env_id and seed are read.
            mode: Mode of the run.
            below_env: Whether there is a folder ``<env_id>`` in between.

        Raises:
            ConfigError: A folder cannot be made. Neither is left behind.
        """
        env = env_folder(config.env_id) if below_env else ""
        stamp = f"seed_{config.seed}_{time.strftime('%Y_%m%d_%H%M%S')}"
        for attempt in itertools.count(1):
            name = stamp if attempt == 1 else f"{stamp}_{attempt}"
            # Absolute, since an environment may change the working directory.
            log_dir, model_dir = (Path(parent).resolve() / env / name for parent in (config.log_dir, config.model_dir))
            folders = cls(log_dir, model_dir, mode)
            try:
                _make(folders.model_dir, "model_dir")
            except FileExistsError:
                continue
            try:
                _make(folders.log_dir, "log_dir", exist_ok=True)
            except ConfigError:
                folders.model_dir.rmdir()
                raise
            folders._write_pointers()
            return folders
        raise AssertionError("unreachable")

    @classmethod
    def find(cls, path: Path) -> RunFolders:
        """Finds the folders of an existing run from its log folder, its model folder, or a checkpoint in it.

        Raises:
            CheckpointError: ``path`` is none of these.
        """
        folder = path.parent if path.suffix == ".pth" else path
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such run folder")
        pointer = folder / "run.json"
        if not pointer.is_file():
            raise CheckpointError(f"{folder}: not a run folder of xcfast (no run.json in it)")
        try:
            run = json.loads(pointer.read_text(encoding="utf-8"))
            found = cls((folder / run["log_dir"]).resolve(), (folder / run["model_dir"]).resolve(), run["mode"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{pointer}: damaged ({error})") from error
        return found

    def discard_unused(self) -> None:
        """Removes each of the two folders in which nothing was written."""
        for folder in {self.log_dir, self.model_dir}:
            if [path.name for path in folder.glob("*")] == ["run.json"]:
                (folder / "run.json").unlink()
                folder.rmdir()

    def in_mode(self, mode: Mode) -> RunFolders:
        """Returns the same folders for a run in another mode."""
        folders = replace(self, mode=mode)
        folders._write_pointers()
        return folders

    def _write_pointers(self) -> None:
        """Writes the paths of both folders, and the mode, into each of them, so that either one identifies the run."""
        for folder in {self.log_dir, self.model_dir}:
            pointer = {
                "log_dir": os.path.relpath(self.log_dir, folder),
                "model_dir": os.path.relpath(self.model_dir, folder),
                "mode": self.mode,
            }
            write_json(folder / "run.json", pointer)

    def newest_checkpoint(self) -> Path:
        """Returns the checkpoint of the latest step.

        Raises:
            CheckpointError: There is none.
        """
        checkpoints = periodic_checkpoints(self.model_dir)
        if not checkpoints:
            raise CheckpointError(f"{self.model_dir}: no checkpoint to resume from")
        return checkpoints[-1]


def _make(folder: Path, key: str, exist_ok: bool = False) -> None:
    """Makes a folder and the folders above it. An error names the key that sets its path."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigError(f"the folder cannot be made ({error.strerror})", key=key, given=str(folder)) from None


def env_folder(env_id: str) -> str:
    """Returns an env id as a folder name."""
    return env_id.replace("/", "_").replace(":", "_")


def find_model(config: Config) -> Path:
    """Returns the best model, or else the final one, of the newest run with the configured env id and seed.

    Raises:
        CheckpointError: There is none. The message says where it searched, and which seeds it found.
    """
    folder = Path(config.model_dir) / env_folder(config.env_id)
    runs = sorted(folder.glob(f"seed_{config.seed}_*"), key=lambda run: run.stat().st_mtime, reverse=True)
    for run in runs:
        for name in (BEST_MODEL, FINAL_MODEL):
            if (run / name).is_file():
                return run / name
    seeds = sorted({run.name.split("_")[1] for run in folder.glob("seed_*_*")})
    others = f"; seeds with a run there: {', '.join(seeds)}" if seeds else ""
    raise CheckpointError(f"no {BEST_MODEL} or {FINAL_MODEL} of seed {config.seed} in {folder}{others}")


def model_file(path: Path) -> Path:
    """Returns a model file: the path itself, or the best model (or else the final one) of a run's folder.

    Raises:
        CheckpointError: There is none.
    """
    if path.suffix == ".pth":
        return path
    folder = RunFolders.find(path).model_dir
    for name in (BEST_MODEL, FINAL_MODEL):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: neither {BEST_MODEL} nor {FINAL_MODEL} there")
