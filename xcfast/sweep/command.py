"""``python -m xcfast.sweep CONFIG --seeds 5 [--grid key=v1,v2] [--study N --search key=low:high[:log]]``.

Trains the seeds of one or several settings side by side, in one process per job. The same command continues a sweep: it
skips finished jobs, resumes interrupted ones, and starts failed ones again. Ctrl-C stops all jobs and saves them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xcfast.config import RESUMABLE_KEYS, Config, ConfigError, load_config
from xcfast.config.keys import INERT_KEYS, RENAMED_KEYS
from xcfast.config.shipped import file_and_env_id
from xcfast.config.yaml_file import read_overrides
from xcfast.output.files import user_path, write_json
from xcfast.output.folders import env_folder
from xcfast.plot.curves import mean_and_interval, short_text
from xcfast.runs.signals import StopRequest
from xcfast.sweep.jobs import Job, Slots
from xcfast.sweep.setting import Setting
from xcfast.sweep.space import grid_points, jobs_of, refuse_own_keys, search_space, seeds_of

_SCORES = ("final_mean", "best_mean")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        Exit status: 0 if all is done, 1 if a job failed, 2 for a bad command line, 128 + the signal's number if a
        signal stopped the sweep.
    """
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if bool(args.study) != bool(args.search) or (args.study and args.grid):
        parser.error("--study N goes with --search, and without --grid")
    try:
        return _sweep(args)
    except (ConfigError, OSError) as error:
        print(f"xcfast.sweep: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f'xcfast.sweep: {error.name} is missing; pip install "xcfast[sweep]"', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("xcfast.sweep: interrupted; the same command continues from the last checkpoints", file=sys.stderr)
        return 128 + signal.SIGINT


def _sweep(args: argparse.Namespace) -> int:
    path, overrides = _base(args.config, args.overrides)
    given = {key: value for key, (value, _) in read_overrides(overrides).items()}
    refuse_own_keys(given)
    base = load_config(path, overrides)
    for line in base.notices:
        print(line, file=sys.stderr)
    folder = args.output or Path("sweeps") / env_folder(base.env_id)
    threads = base.num_threads or 1
    processors = {"num_threads": threads, "num_workers": base.num_workers or threads}

    def make(values: Mapping[str, Any], trial: int | None = None) -> Setting:
        config = load_config(path, {**given, **processors, **values})
        typed = {key: _value(config, key) for key in values}
        name = _name(typed) if trial is None else f"trial_{trial:03d}"
        jobs = [Job(folder / name, seed, f"{name} seed {seed}") for seed in args.seeds]
        config = replace(config, log_dir=str(folder / name / "logs"), model_dir=str(folder / name / "models"))
        return Setting(name, typed, config, jobs, set(args.seeds))

    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as lock, StopRequest() as stop, Slots(args.jobs, threads, (lock,), stop) as slots:
        ended: Callable[[Setting], None] | None = None
        if args.study:
            from xcfast.sweep.study import Study

            study = Study(folder / "study.log", args.study, search_space(args.search))
            settings: Iterator[Setting] = map(_noted, study.settings(make))
            ended = study.ended
        else:
            settings = iter([_noted(setting) for setting in _distinct(map(make, grid_points(args.grid)))])
        print(f"{folder}: {slots.size} jobs at a time, {threads} CPU{'s' * (threads > 1)} each", flush=True)
        done, failed = _run(settings, slots, stop, ended)
    _report(done, folder)
    if stop.number is not None:
        print("stopped; the same command continues")
        return 128 + stop.number
    return 1 if failed else 0


def _run(
    settings: Iterator[Setting], slots: Slots, stop: StopRequest, ended: Callable[[Setting], None] | None
) -> tuple[list[Setting], int]:
    """Keeps the slots busy until all is done or a stop is requested; returns settings and number of failed jobs."""
    all_settings: list[Setting] = []
    todo: deque[Job] = deque()
    of: dict[Path, Setting] = {}
    failed = 0

    def close(job: Job, word: str) -> None:
        setting = of[job.folder]
        setting.open.discard(job.seed)
        print(f"{job.name}: {word}", flush=True)
        if not setting.open and ended is not None:
            ended(setting)

    while True:
        while slots.free and not stop.requested:
            if todo:
                slots.start(todo.popleft())
                continue
            if (setting := next(settings, None)) is None:
                break
            all_settings.append(setting)
            of[setting.jobs[0].folder] = setting
            for job in setting.jobs:
                if (summary := job.summary()) is None:
                    todo.append(job)
                else:
                    close(job, f"finished before, final score {summary['final_mean']}")
        if not slots.running:
            return all_settings, failed
        job, problem = slots.wait()
        if problem is None:
            close(job, f"finished, final score {(job.summary() or {}).get('final_mean')}")
        elif problem == "stopped":
            print(f"{job.name}: stopped", flush=True)
        else:
            failed += 1
            close(job, problem)


def _report(settings: Sequence[Setting], folder: Path) -> None:
    """Prints the table and writes ``table.csv``: means over the finished seeds with their 95 % intervals."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.values))
    header = ["setting", *keys, "seeds"]
    header += [f"{score}{suffix}" for score in _SCORES for suffix in ("", "_low", "_high")] + ["steps_per_second"]
    rows = []
    for setting in settings:
        row: list[Any] = [setting.name, *(setting.values.get(key) for key in keys), len(setting.scores(_SCORES[0]))]
        texts = [f"{row[-1]}/{len(setting.jobs)}"]
        for score in _SCORES:
            found = setting.scores(score)
            cells = [float(cell) for cell in mean_and_interval(found)] if len(found) else [float("nan")] * 3
            row += ["" if np.isnan(cell) else round(cell, 4) for cell in cells]
            interval = "" if np.isnan(cells[1]) else f" [{cells[1]:.2f}, {cells[2]:.2f}]"
            texts.append(f"{cells[0]:.2f}{interval}" if len(found) else "-")
        speeds = setting.scores("steps_per_second")
        row.append(round(float(speeds.mean()), 1) if len(speeds) else "")
        label = ", ".join(f"{key}={short_text(value)}" for key, value in setting.values.items())
        rows.append((row, [label or setting.name, *texts]))
    if any(setting.name.startswith("trial_") for setting in settings):
        column = header.index(_SCORES[0])
        rows.sort(key=lambda pair: -pair[0][column] if pair[0][column] != "" else np.inf)
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(row for row, _ in rows)])
    lines = [["setting", "seeds", "final score", "best score"], *(texts for _, texts in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    for line in lines:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"mean over seeds with 95 % interval (Student's t), also in {folder / 'table.csv'}")


def _base(word: str, overrides: Sequence[str]) -> tuple[str | Path | None, list[str]]:
    """Returns the file and its overrides. An env id stands for its task's shipped file, or else for the defaults."""
    path, env_id = file_and_env_id(word)
    if env_id is None:
        return path, list(overrides)
    family = ["env_name=Gymnasium"] if path is None else []
    return path, [f"env_id={env_id}", *family, *overrides]


def _distinct(settings: Iterable[Setting]) -> list[Setting]:
    """Returns the settings without those that repeat an earlier one, as 1e-3 and 0.001 do."""
    found: dict[str, Setting] = {}
    for setting in settings:
        if setting.name in found:
            print(f"{setting.name}: named twice, trained once")
        found.setdefault(setting.name, setting)
    return list(found.values())


def _value(config: Config, key: str) -> Any:
    """Returns the value that a configuration has for a key of the command line, of the key's own type."""
    if key in INERT_KEYS:
        raise ConfigError(f"has no effect: {INERT_KEYS[key]}", key=key, where="command line")
    name, _, entry = RENAMED_KEYS.get(key, key).partition(".")
    value = config.to_dict()[name]
    return value[entry] if entry else value  # entry: an argument of the environment, as in env_kwargs.width


def _name(values: Mapping[str, Any]) -> str:
    """Returns a folder name for a point of the grid."""
    words = [f"{key}={value}" for key, value in values.items()]
    return re.sub(r"[^\w.=+,-]", "", ",".join(words)) or "all"


# Keys that may change when a run is resumed, but not within a sweep, which compares its runs.
_FIXED = ("running_steps", "eval_interval", "precision")


def _noted(setting: Setting) -> Setting:
    """Writes the setting's config.json, which must not differ from one that is there.

    Raises:
        ConfigError: It differs, so the folder holds another sweep.
    """
    path, wanted = setting.jobs[0].folder / "config.json", setting.config.to_dict()
    if path.is_file():
        there = load_config(path).to_dict()
        fixed = [key for key in wanted if key not in RESUMABLE_KEYS or key in _FIXED]
        changed = [f"{key} {there[key]!r} -> {wanted[key]!r}" for key in fixed if there[key] != wanted[key]]
        if changed:
            raise ConfigError(f"{path.parent} holds jobs with other settings ({', '.join(changed)}); give another -o")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)
    return setting


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Locks the folder against a second sweep while this one or any of its jobs lives; yields the descriptor."""
    import fcntl

    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            known = f" (processes {', '.join(map(str, pids))})" if (pids := _holders(folder / ".lock")) else ""
            raise ConfigError(
                f"{folder} is in use: a sweep, or a job of an earlier one, is running there{known}"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _holders(lock: Path) -> list[int]:
    """Returns the other processes that have the file open, as far as /proc tells."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(lock.resolve()):
                found.add(int(link.parts[2]))
    return sorted(found - {os.getpid()})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xcfast.sweep",
        description="Train seeds of one or several settings side by side; the same command again continues.",
        epilog="num_threads=N gives each job N CPUs (default 1). Values are YAML: --grid actor_hidden_size=[64],[256].",
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a YAML file, or an env id, which finds the shipped one")
    add("overrides", nargs="*", metavar="key=value", help="keys that override it, in all jobs")
    add("--seeds", type=seeds_of, default="5", metavar="N", help="seeds 1 to N (default 5), or a list: 3,7,11")
    add(
        "--jobs",
        type=jobs_of,
        default="auto",
        metavar="N",
        help="jobs at a time; auto (default): CPUs / CPUs per job",
    )
    add("--grid", action="append", default=[], metavar="key=v1,v2", help="values of a key; several: all combinations")
    add("--study", type=jobs_of, metavar="N", help="N trials of an Optuna study over --search, by mean final score")
    add("--search", action="append", default=[], metavar="key=low:high[:log]", help="a range, or key=v1,v2, of a study")
    add("-o", "--output", type=user_path, metavar="DIR", help="where everything goes (default sweeps/ENV_ID)")
    return parser
