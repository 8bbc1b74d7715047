"""Learning curves of runs: finding them in folders, reading their result files (XuanCe's too), averaging over seeds."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from xcfast.config import Config
from xcfast.config.keys import keys_of
from xcfast.errors import CheckpointError
from xcfast.output.folders import RunFolders
from xcfast.output.log_files import csv_lines, event_files, event_records

Float64 = npt.NDArray[np.float64]

# Keys that do not change what a run learns: runs that differ only in these are seeds of one setting.
_TIMES = ("time/collection_seconds", "time/update_seconds", "time/evaluation_seconds")


class CurveError(ValueError):
    """There is no run at a path, or its files are damaged."""


@dataclass(frozen=True)
class Run:
    """The curve of one run.

    Attributes:
        folder: Log folder of the run.
        source: Program and algorithm: ``xcfast PPO``, ``XuanCe PPO_Clip``.
        env_id: Env id of the task.
        seed: Seed of the run.
        settings: Values of the keys that decide how it learns.
        kind: ``evaluation``, or ``training`` where only returns of training episodes were logged.
        steps: Environment steps, float64 [K], increasing.
        returns: Returns, float64 [K].
        seconds: Wall-clock seconds since the start, evaluations included, float64 [K]; None where they are unknown.
    """

    folder: Path
    source: str
    env_id: str
    seed: int
    settings: dict[str, Any]
    kind: str
    steps: Float64
    returns: Float64
    seconds: Float64 | None


def find_runs(path: Path) -> list[Run]:
    """Finds the run at a folder of logs or models, or all runs with a curve below a folder.

    Raises:
        CurveError: There is none, or one is damaged.
    """
    if not path.is_dir():
        raise CurveError(f"{path}: no such folder; wanted: a run folder, or a folder with runs below it")
    if (path / "run.json").is_file():
        try:
            path = RunFolders.find(path).log_dir
        except CheckpointError as error:
            raise CurveError(str(error)) from error
    folders = sorted({found.parent for found in path.rglob("meta_data.json")})
    runs = [run for folder in folders if (run := _read_run(folder)) is not None]
    if not runs:
        reason = f"{len(folders)} runs, none with a curve yet" if folders else "no run folder (one with meta_data.json)"
        raise CurveError(f"{path}: {reason}")
    return runs


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Groups the runs of one environment: the seeds of one setting belong together.

    Returns:
        Label -> runs. The label is the source, with the keys in which settings of that source differ. Of several runs
        with the same seed only the newest counts, since repeated runs would make the interval too narrow.
    """
    sources: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in sorted(runs, key=lambda run: (run.folder / "meta_data.json").stat().st_mtime):
        source = run.source + ("" if run.kind == "evaluation" else ", training episodes")
        sources[source][json.dumps(run.settings, sort_keys=True)][run.seed] = run
    groups: dict[str, list[Run]] = {}
    for source, settings in sorted(sources.items()):
        several = [json.loads(text) for text in settings]
        differing = [key for key in several[0] if any(one[key] != several[0][key] for one in several)]
        for setting, seeds in zip(several, settings.values(), strict=True):
            label = ", ".join([source, *(f"{key}={short_text(setting[key])}" for key in differing)])
            groups[label] = [seeds[seed] for seed in sorted(seeds)]
    return groups


def mean_and_interval(values: npt.ArrayLike) -> tuple[Float64, Float64, Float64]:
    """Returns the mean over the first axis (seeds), and the two ends of its 95 % interval by Student's t.

    The interval is mean ± t(n - 1) s / sqrt(n), for scores that are roughly normal. Unlike a bootstrap over a handful
    of seeds, it is not too narrow. With one seed the ends are NaN.

    Args:
        values: Scores, float [n, ...], n >= 1.
    """
    array = np.asarray(values, np.float64)
    mean = array.mean(0)
    n = len(array)
    half = np.full_like(mean, np.nan) if n == 1 else t_quantile(n - 1) * array.std(0, ddof=1) / math.sqrt(n)
    return mean, mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """Returns the 0.975 quantile of Student's t, within 0.2 %.

    It is exact for 1 and 2 degrees of freedom. Above that it is an expansion around the normal quantile.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def _read_run(folder: Path) -> Run | None:
    """Reads the run in a folder; None if it has no curve yet."""
    try:
        meta = _read_json(folder / "meta_data.json")
        config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        evaluations = _read_columns(folder / "learning_curve.csv", "step", "avg_return")
        own = "xcfast_version" in meta
        source, env_id, seed = f"{'xcfast' if own else 'XuanCe'} {meta['algo']}", str(meta["env_id"]), int(meta["seed"])
        if evaluations:
            kind, steps, returns = "evaluation", np.array(list(evaluations)), np.array(list(evaluations.values()))
            seconds = _seconds(folder, steps, meta)
        else:
            training = _training_curve(folder)
            if not len(training):
                return None
            kind, (steps, returns, seconds) = "training", training.T
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CurveError(f"{folder}: damaged result files ({type(error).__name__}: {error})") from error
    keys = keys_of(Config)
    defaults = Config().to_dict()
    settings = {key: config.get(key, defaults[key]) for key, rules in keys.items() if rules.learning}
    return Run(folder, source, env_id, seed, settings, kind, steps, returns, seconds)


def _seconds(folder: Path, steps: Float64, meta: dict[str, Any]) -> Float64 | None:
    """Returns the wall-clock seconds at each evaluation. XuanCe's total is spread evenly over the steps."""
    noted = _read_columns(folder / "elapsed.csv", "step", "seconds")
    if all(step in noted for step in steps):
        return np.array([noted[step] for step in steps])
    elapsed = meta.get("timestamps", {}).get("elapsed_seconds")
    return None if elapsed is None or steps[-1] == 0 else steps / steps[-1] * float(elapsed)


def _training_curve(folder: Path) -> Float64:
    """Reads rows (step, mean return of the iteration's episodes, seconds) from TensorBoard's event files."""
    from tensorboard.compat.proto.event_pb2 import Event

    rows = []
    for path in event_files(folder):
        for _, payload in event_records(path):
            event = Event.FromString(payload)
            scalars = {value.tag: value.simple_value for value in event.summary.value}
            if "charts/episodic_return" in scalars:
                seconds = sum(scalars[tag] for tag in _TIMES)
                rows.append((event.step, scalars["charts/episodic_return"], seconds))
    return np.array(sorted(rows), np.float64)


def _read_columns(path: Path, x: str, y: str) -> dict[float, float]:
    """Returns columns ``x`` and ``y``, in the order of ``x``, without a last line that is still being written."""
    rows = csv.DictReader(line.decode() for line in csv_lines(path))
    return dict(sorted((float(row[x]), float(row[y])) for row in rows))


def _read_json(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is not a mapping")
    return data


def short_text(value: Any) -> str:
    """Returns a key's value as text for a legend or a table."""
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace(" ", "")
