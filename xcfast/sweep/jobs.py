"""Training runs side by side: one process per job, resumable, stopped together."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcfast.config.loading import load_config
from xcfast.errors import CheckpointError
from xcfast.output.checkpoint import FINAL_MODEL, periodic_checkpoints
from xcfast.output.folders import RunFolders
from xcfast.resources import available_cpus
from xcfast.runs.signals import StopRequest

_LOOK_EVERY = 0.5  # seconds after which a signal is noticed


@dataclass(frozen=True)
class Job:
    """One seed of one setting.

    Attributes:
        folder: Folder of the setting, with its config.json. Runs are below it, under ``logs`` and ``models``.
        seed: The seed.
        name: Name of the job in messages.
    """

    folder: Path
    seed: int
    name: str

    @property
    def log(self) -> Path:
        """The file with what the process prints."""
        return self.folder / f"seed_{self.seed}.log"

    def summary(self) -> dict[str, Any] | None:
        """Returns the summary of the finished run; None if there is none yet."""
        for run in self._runs():
            if (run.model_dir / FINAL_MODEL).is_file():
                with contextlib.suppress(OSError, ValueError):
                    return dict(json.loads((run.log_dir / "summary.json").read_text(encoding="utf-8")))
        return None

    def command(self) -> list[str]:
        """Returns the command that continues the newest run with a checkpoint, or else starts a run."""
        train = [sys.executable, "-m", "xcfast.train"]
        file = self.folder / "config.json"
        for run in self._runs():
            if periodic_checkpoints(run.model_dir):
                # The sweep wrote this file in this call, from the user's arguments.
                allowed = [word for module in load_config(file).modules for word in ("--allow-module", module)]
                return [*train, "--resume", str(run.log_dir), *allowed]
        return [*train, str(file), "--seed", str(self.seed), "--benchmark", "1"]

    def _runs(self) -> list[RunFolders]:
        """Returns the runs of this seed, the newest first."""
        runs = []
        for folder in (self.folder / "logs").glob(f"*/seed_{self.seed}_*"):
            with contextlib.suppress(CheckpointError):  # killed before it had written anything
                runs.append((folder.stat().st_mtime, RunFolders.find(folder)))
        return [run for _, run in sorted(runs, key=lambda pair: pair[0], reverse=True)]


class Slots:
    """Slots for jobs. When the context ends, no job is running.

    Where the slots take all CPUs, each slot has CPUs of its own. Where CPUs remain, the system places the jobs: a
    second sweep would choose the same CPUs as this one.

    A requested stop goes to all jobs once, as SIGTERM: they finish their iteration and save.

    Args:
        jobs: Number of slots. None: as many as the CPUs suffice for.
        threads: Number of CPUs of each slot. Jobs share CPUs where jobs * threads is more than there are.
        keep_open: File descriptors that jobs inherit.
        stop: The request to stop.
    """

    def __init__(self, jobs: int | None, threads: int, keep_open: tuple[int, ...], stop: StopRequest) -> None:
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.size = jobs or max(1, available_cpus() // threads)
        self.threads, self._keep_open, self._stop = threads, keep_open, stop
        self._todo: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Job, int | str]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # held while jobs are told to stop, so that none starts
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._told = False
        self.running = 0
        own = len(usable) if self.size * threads >= len(usable) else 0  # CPUs to share out
        self._workers = [
            threading.Thread(
                target=self._work, args=({usable[(i * threads + k) % own] for k in range(threads) if own},)
            )
            for i in range(self.size)
        ]

    def __enter__(self) -> Slots:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._told = True
            for process in self._processes:  # there are some only after an error or a second Ctrl-C
                process.kill()
        for _unused in self._workers:
            self._todo.put(None)
        for worker in self._workers:
            worker.join()

    @property
    def free(self) -> int:
        """Number of slots without a job."""
        return self.size - self.running

    def start(self, job: Job) -> None:
        """Starts a job in a free slot."""
        self.running += 1
        self._todo.put(job)

    def wait(self) -> tuple[Job, str | None]:
        """Waits for the next job to end.

        Returns:
            The job, and None if its run is finished, else how it ended.

        Raises:
            KeyboardInterrupt: A second Ctrl-C has come. Leaving the context kills the jobs.
        """
        while True:
            try:
                job, status = self._done.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if self._stop.requested and not self._told:
                    self._tell()
                continue
            self.running -= 1
            if job.summary() is not None:
                return job, None
            if self._stop.requested:
                return job, "stopped"
            reason = f"exit status {status}: {_last_line(job.log)}" if isinstance(status, int) else status
            return job, f"failed ({reason}); see {job.log}"

    def _tell(self) -> None:
        with self._lock:
            self._told = True
            for process in self._processes:
                process.terminate()

    def _work(self, cpus: set[int]) -> None:
        """Runs the jobs of a slot. On Linux, affinity belongs to a thread, and what the thread starts inherits it."""
        if cpus:
            os.sched_setaffinity(0, cpus)
        while (job := self._todo.get()) is not None:
            try:
                status: int | str = self._run(job)
            except OSError as error:  # a full disk, no more processes
                status = str(error)
            self._done.put((job, status))

    def _run(self, job: Job) -> int:
        environ = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        with open(job.log, "ab") as log:
            with self._lock:
                if self._told:
                    return -1
                process = subprocess.Popen(
                    job.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environ,
                    start_new_session=True,  # otherwise a terminal's Ctrl-C would reach the jobs too
                    pass_fds=self._keep_open,
                )
                self._processes.add(process)
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
        return status


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
