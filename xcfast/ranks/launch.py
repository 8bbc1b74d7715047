"""Starts the ranks of a run on this machine through torch.distributed's launcher, which is also what torchrun calls.

The launcher finds a port, starts fresh interpreters, sets their environment variables, forwards signals, and ends all
ranks when one fails. This module adds what the launcher lacks. The launcher returns no values from fresh interpreters.
It also changes the process that calls it, for example its signal handlers, which this module restores. Its other
mode, a function that ``multiprocessing`` spawns, does return values, but imports the user's script again in every rank,
so every script would need a main guard.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xcfast.config.schema import Config
from xcfast.errors import ConfigError, RunFailed
from xcfast.resources import check_gpus, launched, module_path, training_device

# After a signal, a rank finishes its iteration and saves. The launcher's own limit of 30 seconds may cut that off.
_STOP_SECONDS = "600"
_HANDLED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")  # the signals that the launcher handles


def ranks_to_start(config: Config) -> int:
    """Returns the number of ranks that a configuration asks for on this machine.

    Raises:
        ConfigError: There are fewer GPUs than ranks, or there is no GPU and ``num_ranks`` is not set.
    """
    if training_device(config).type == "cuda":
        import torch

        wanted = config.num_ranks
        if config.distributed_training and wanted == 1:
            wanted = min(torch.cuda.device_count(), config.parallels)
        check_gpus(wanted)
        return wanted
    if config.distributed_training and config.num_ranks == 1:
        raise ConfigError(
            "starts one process for each GPU, and there is no GPU; num_ranks sets how many processes train on the CPU",
            key="distributed_training",
            given=True,
            allowed="False, or num_ranks of at least 2",
        )
    return config.num_ranks


def check_alone(config: Config) -> None:
    """Checks that a configuration asks for one process, and that this process is not one of several ranks.

    Raises:
        ConfigError: One of them is not so. The message says how several ranks start.
    """
    if launched():
        raise ConfigError("this is one of several processes; pass them to the Trainer as ranks", key="num_ranks")
    if config.num_ranks == 1 and not config.distributed_training:
        return
    num_ranks = ranks_to_start(config)
    if num_ranks > 1:
        raise ConfigError(
            "python -m xcfast.train and get_runner(...) start several processes; "
            f"start a script of your own with torchrun --nproc-per-node={num_ranks} SCRIPT",
            key="num_ranks" if config.num_ranks > 1 else "distributed_training",
        )


def launch(module: str, job: dict[str, Any], num_ranks: int) -> dict[str, Any]:
    """Starts ``python -m MODULE JOB_FILE`` in several processes, the ranks, and waits until they end.

    A signal to this process stops the ranks, unless this process ignores it. Everything that the launcher changes in
    this process is restored at the end.

    Args:
        module: The name of a module whose ``main`` calls ``read_job`` with the file's path, works, and calls
            ``write_outcome``.
        job: What the ranks are to do, as a dictionary that JSON can hold.
        num_ranks: The number of processes.

    Returns:
        The outcome that rank 0 has written. Where ranks have failed, the outcome of the rank that failed first.

    Raises:
        RunFailed: That rank ended without writing an outcome.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="xcfast-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        setup = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_ranks,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # any free port, as with torchrun --standalone
            local_addr="127.0.0.1",  # the machine's name may not resolve to an address
            max_restarts=0,
        )
        # A signal that this process ignores, such as SIGHUP under nohup, must stay ignored here and in the ranks.
        # Versions of torch that do not know this attribute handle it nevertheless.
        handled = [name for name in _HANDLED if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
        setup.signals_to_handle = ",".join(handled)
        failed, reason = 0, "exit status 0"
        with _environment(), _signal_handlers():
            try:
                elastic_launch(setup, sys.executable)("-m", module, str(path))
            except ChildFailedError as error:
                # If a rank was killed, then the others have failed because of it.
                killed = [rank for rank, one in error.failures.items() if one.exitcode < 0 and not _read(path, rank)]
                failed = killed[0] if killed else error.get_first_failure()[0]
                exitcode = error.failures[failed].exitcode
                reason = signal.Signals(-exitcode).name if exitcode < 0 else f"exit status {exitcode}"
            except SignalException as error:  # the launcher has sent it on to the ranks, which have saved and ended
                reason = error.sigval.name
        outcome = _read(path, failed)
    if not outcome:
        raise RunFailed(f"rank {failed} ended without a result ({reason}); --resume continues from the last checkpoint")
    return outcome


def read_job(path: Path) -> dict[str, Any]:
    """Returns the job that ``launch`` has written for the ranks."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_outcome(path: Path, outcome: dict[str, Any]) -> None:
    """Writes the outcome of this rank for ``launch``.

    Args:
        path: The path of the job's file.
        outcome: The outcome, as a dictionary that JSON can hold and that is not empty.
    """
    _outcome(path, int(os.environ["RANK"])).write_text(json.dumps(outcome), encoding="utf-8")


def _outcome(job: Path, rank: int) -> Path:
    return job.with_name(f"rank_{rank}.json")


def _read(job: Path, rank: int) -> dict[str, Any]:
    """Returns a rank's outcome. It is empty if the rank ended before it had written all of it."""
    try:
        return json.loads(_outcome(job, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Sets the environment variables of the ranks and silences the launcher's log, until the block ends."""
    changed = {
        **module_path(),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _STOP_SECONDS),
    }
    if sys.platform == "linux":  # gloo would look up the machine's name, but all ranks are on this machine
        changed["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    before = {name: os.environ.get(name) for name in [*changed, "TORCHELASTIC_SIGNALS_TO_HANDLE"]}
    log = logging.getLogger("torch.distributed.elastic")
    level = log.level
    os.environ.update(changed)
    log.setLevel(logging.CRITICAL)  # the exception from launch says what failed
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signal_handlers() -> Iterator[None]:
    """Restores the process's signal handlers when the block ends: the launcher replaces them in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.getsignal(getattr(signal, name)) for name in _HANDLED}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), signal.SIG_DFL if handler is None else handler)
