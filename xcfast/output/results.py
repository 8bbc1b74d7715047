"""XuanCe's result files: configuration, meta data, learning curve, test scores, best model."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xcfast.output.files import package_versions, write_json
from xcfast.output.folders import Mode, RunFolders
from xcfast.output.log_files import truncate_csv
from xcfast.output.writers import CsvLog

if TYPE_CHECKING:
    from xcfast.config.schema import Config

# Of benchmark mode's files, besides ``step``; None: one for each episode.
_COLUMNS: dict[str, list[str] | None] = {
    "test_scores.csv": None,
    "learning_curve.csv": ["avg_return"],
    "elapsed.csv": ["seconds"],  # a file of its own: the other two have XuanCe's columns
}


def _benchmark(running_steps: int, eval_interval: int, test_episodes: int) -> dict[str, int]:
    return {"running_steps": running_steps, "eval_interval": eval_interval, "test_episodes": test_episodes}


class ResultFiles:
    """XuanCe's result files of benchmark mode, with its names and columns, kept up to date during the run.

    Args:
        folders: Folders of the run.
        config: The run's configuration.
        mode: Mode of the run.
        device: Device that trains, for the record.
        resume_step: Step that a resumed run goes on from; later rows are cut off. None in a new run.
    """

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
        """Begins the files of benchmark mode, unless they have begun."""
        if not self._csv:
            self._meta["benchmark"] = _benchmark(running_steps, eval_interval, test_episodes)
            self._keep(test_episodes)
            self._write_meta()

    def _keep(self, test_episodes: int) -> None:
        for name, columns in _COLUMNS.items():
            header = columns or [f"return_episode_{i}" for i in range(test_episodes)]
            self._csv[name] = CsvLog(self._log_dir / name, ["step", *header])

    def add_scores(self, step: int, scores: np.ndarray, elapsed_seconds: float) -> None:
        """Adds an evaluation, where results are kept.

        ``learning_curve.csv`` gets the mean, ``elapsed.csv`` the age of the run, and ``test_scores.csv`` the scores of
        all episodes, if there are ``test_episode`` of them.
        """
        if "learning_curve.csv" in self._csv:
            if len(scores) == len(self._csv["test_scores.csv"].columns) - 1:
                self._csv["test_scores.csv"].write([step, *scores.tolist()])
            self._csv["elapsed.csv"].write([step, round(elapsed_seconds, 3)])
            self._csv["learning_curve.csv"].write([step, float(scores.mean())])

    def new_best(self, mean: float, std: float, step: int) -> None:
        """Writes ``best_model_info.json`` for a new best model."""
        self._times["best_model_time"] = _now()
        write_json(self._log_dir / "best_model_info.json", {"mean": mean, "std": std, "step": step})

    def stamp(self, elapsed_seconds: float) -> None:
        """Writes the time stamps. The seconds are those of all parts of a resumed run."""
        self._meta["timestamps"] = {**self._times, "end_time": _now(), "elapsed_seconds": round(elapsed_seconds, 3)}
        self._write_meta()

    def close(self) -> None:
        """Closes the files."""
        for log in self._csv.values():
            log.close()

    def _write_meta(self) -> None:
        write_json(self._log_dir / "meta_data.json", self._meta)


def _now() -> str:
    return datetime.now().astimezone().isoformat()


def _earlier_times(path: Path) -> dict[str, Any]:
    """Reads start time and best-model time from the meta data of the run's earlier part."""
    try:
        times = json.loads(path.read_text(encoding="utf-8"))["timestamps"]
        return {key: times[key] for key in ("start_time", "best_model_time")}
    except (OSError, ValueError, KeyError, TypeError):  # killed before they were written
        return {}
