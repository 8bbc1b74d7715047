"""The run's folders and XuanCe's result files: configuration, meta data, learning curve, test scores, best model."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xcfast.checkpoint import BEST_MODEL, FINAL_MODEL, CheckpointError, periodic_checkpoints
from xcfast.metrics import CsvLog, truncate_csv

if TYPE_CHECKING:
    from xcfast.config import Config

Mode = Literal["benchmark", "train", "test"]

_PACKAGES = ("xcfast", "torch", "numpy", "gymnasium", "mujoco")


@dataclass(frozen=True)
class Summary:
    """What a run achieved; scores are None where nothing was evaluated, steps_per_second is of training time only."""

    steps: int
    collection_seconds: float
    update_seconds: float
    evaluation_seconds: float
    steps_per_second: float
    best_mean: float | None
    best_std: float | None
    best_step: int | None
    final_mean: float | None
    final_std: float | None
    log_dir: str
    model_dir: str
    collector_backend: str
    learner_backend: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class RunFolders:
    """Where a run writes: logs and results, and models; and the mode that it runs in."""

    log_dir: Path
    model_dir: Path
    mode: Mode

    @classmethod
    def create(cls, config: Config, mode: Mode, below_env: bool = True) -> RunFolders:
        """New folders ``<dir>/<env_id>/seed_<seed>_<time>``; a second run in the same second gets a suffix.

        Args:
            config: its log_dir, model_dir, env_id and seed are read.
            mode: of the run.
            below_env: whether there is a folder ``<env_id>`` between.
        """
        env = env_folder(config.env_id) if below_env else ""
        stamp = f"seed_{config.seed}_{time.strftime('%Y_%m%d_%H%M%S')}"
        for attempt in itertools.count(1):
            name = stamp if attempt == 1 else f"{stamp}_{attempt}"
            folders = cls(Path(config.log_dir) / env / name, Path(config.model_dir) / env / name, mode)
            try:
                folders.model_dir.mkdir(parents=True)
            except FileExistsError:
                continue
            folders.log_dir.mkdir(parents=True, exist_ok=True)
            folders._write_pointers()
            return folders
        raise AssertionError("unreachable")

    @classmethod
    def find(cls, path: Path) -> RunFolders:
        """The folders of an existing run, from its log folder, its model folder or a checkpoint in it.

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
        """Remove those of the two folders in which nothing was written."""
        for folder in {self.log_dir, self.model_dir}:
            if [path.name for path in folder.glob("*")] == ["run.json"]:
                (folder / "run.json").unlink()
                folder.rmdir()

    def in_mode(self, mode: Mode) -> RunFolders:
        """The same folders, of a run in another mode."""
        folders = replace(self, mode=mode)
        folders._write_pointers()
        return folders

    def _write_pointers(self) -> None:
        """Let each of the two folders name both, and the mode, so that either leads to the run."""
        for folder in {self.log_dir, self.model_dir}:
            pointer = {
                "log_dir": os.path.relpath(self.log_dir, folder),
                "model_dir": os.path.relpath(self.model_dir, folder),
                "mode": self.mode,
            }
            write_json(folder / "run.json", pointer)

    def newest_checkpoint(self) -> Path:
        """The checkpoint of the latest step.

        Raises:
            CheckpointError: there is none.
        """
        checkpoints = periodic_checkpoints(self.model_dir)
        if not checkpoints:
            raise CheckpointError(f"{self.model_dir}: no checkpoint to resume from")
        return checkpoints[-1]


def env_folder(env_id: str) -> str:
    """The env id as a folder name."""
    return env_id.replace("/", "_").replace(":", "_")


def find_model(config: Config) -> Path:
    """The best model (or else the final one) of the newest run with the configured env id and seed.

    Raises:
        CheckpointError: there is none; the message says where it was looked for, and which seeds are there.
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
    """The model file itself, or the best model (or else the final one) of a run, from either of its folders.

    Raises:
        CheckpointError: there is none.
    """
    if path.suffix == ".pth":
        return path
    folder = RunFolders.find(path).model_dir
    for name in (BEST_MODEL, FINAL_MODEL):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: neither {BEST_MODEL} nor {FINAL_MODEL} there")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; a disk that is full costs the file, with a warning, not the run."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the warning may go to a file on the same disk
            print(f"warning: {path} not written: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# Of benchmark mode's files, besides ``step``; None: one for each episode.
_COLUMNS: dict[str, list[str] | None] = {
    "test_scores.csv": None,
    "learning_curve.csv": ["avg_return"],
    "elapsed.csv": ["seconds"],  # a file of its own: the other two have XuanCe's columns
}


def _benchmark(running_steps: int, eval_interval: int, test_episodes: int) -> dict[str, int]:
    return {"running_steps": running_steps, "eval_interval": eval_interval, "test_episodes": test_episodes}


class ResultFiles:
    """XuanCe's result files of benchmark mode, in its names and columns, kept up to date during the run."""

    def __init__(
        self, folders: RunFolders, config: Config, mode: Mode, device: str, resume_step: int | None = None
    ) -> None:
        self._log_dir = folders.log_dir
        self._times = _earlier_times(self._log_dir / "meta_data.json") if resume_step is not None else {}
        self._times.setdefault("start_time", _now())
        self._times.setdefault("best_model_time", self._times["start_time"])
        write_json(self._log_dir / "config.json", config.to_dict())
        self._meta: dict[str, Any] = {
            "algo": config.agent,
            "env": config.env_name,
            "env_id": config.env_id,
            "dl_toolbox": config.dl_toolbox,
            "device": device,
            "seed": config.seed,
            "xcfast_version": package_versions()["xcfast"],
            "benchmark": _benchmark(config.running_steps, config.eval_interval, config.test_episode),
            "system_info": {"platform": platform.platform(), "cpu_count": os.cpu_count(), **package_versions()},
        }
        self._write_meta()
        self._csv: dict[str, CsvLog] = {}
        for name in _COLUMNS:
            if resume_step is not None and (self._log_dir / name).exists():
                truncate_csv(self._log_dir / name, resume_step)
        if mode == "benchmark":
            self._keep(config.test_episode)

    def keep(self, running_steps: int, eval_interval: int, test_episodes: int) -> None:
        """Begin the files of benchmark mode, unless they have begun."""
        if not self._csv:
            self._meta["benchmark"] = _benchmark(running_steps, eval_interval, test_episodes)
            self._keep(test_episodes)
            self._write_meta()

    def _keep(self, test_episodes: int) -> None:
        for name, columns in _COLUMNS.items():
            header = columns or [f"return_episode_{i}" for i in range(test_episodes)]
            self._csv[name] = CsvLog(self._log_dir / name, ["step", *header])

    def add_scores(self, step: int, scores: np.ndarray, elapsed_seconds: float) -> None:
        """One evaluation, if results are kept.

        Into ``learning_curve.csv``, with the run's age into ``elapsed.csv``, and with ``test_episode`` scores into
        ``test_scores.csv``.
        """
        if "learning_curve.csv" in self._csv:
            if len(scores) == len(self._csv["test_scores.csv"].columns) - 1:
                self._csv["test_scores.csv"].write([step, *scores.tolist()])
            self._csv["elapsed.csv"].write([step, round(elapsed_seconds, 3)])
            self._csv["learning_curve.csv"].write([step, float(scores.mean())])

    def new_best(self, mean: float, std: float, step: int) -> None:
        """A new best model: ``best_model_info.json``."""
        self._times["best_model_time"] = _now()
        write_json(self._log_dir / "best_model_info.json", {"mean": mean, "std": std, "step": step})

    def stamp(self, elapsed_seconds: float) -> None:
        """Write the time stamps; the seconds are those of all parts of a resumed run."""
        self._meta["timestamps"] = {**self._times, "end_time": _now(), "elapsed_seconds": round(elapsed_seconds, 3)}
        self._write_meta()

    def close(self) -> None:
        """Close the files."""
        for log in self._csv.values():
            log.close()

    def _write_meta(self) -> None:
        write_json(self._log_dir / "meta_data.json", self._meta)


def _now() -> str:
    return datetime.now().astimezone().isoformat()


def _earlier_times(path: Path) -> dict[str, Any]:
    """Start and best-model time from the meta data of the run's earlier part."""
    try:
        times = json.loads(path.read_text(encoding="utf-8"))["timestamps"]
        return {key: times[key] for key in ("start_time", "best_model_time")}
    except (OSError, ValueError, KeyError, TypeError):  # killed before they were written
        return {}
