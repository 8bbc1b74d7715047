"""Starts the ranks of a run on this machine through torch.distributed's launcher, as torchrun does.

Ranks are fresh interpreters, so a script needs no main guard.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcfast.config import Config, ConfigError
from xcfast.errors import RunFailed
from xcfast.output.console import say
from xcfast.ranks.group import launched
from xcfast.resources import check_gpus, training_device

if TYPE_CHECKING:
    pass

# How long the launcher lets ranks end by themselves after a signal: they finish the iteration and save.
_STOP_SECONDS = "600"


def ranks_to_start(config: Config) -> int:
    """Returns how many processes a run has on this machine.

    Raises:
        ConfigError: There are too few GPUs, or there is no GPU and no number of processes.
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
            "starts one process for each GPU, and there is none; num_ranks sets how many train on the CPU",
            key="distributed_training",
            given=True,
            allowed="False, or num_ranks of at least 2",
        )
    return config.num_ranks


def check_alone(config: Config) -> None:
    """Checks that a configuration wants one process, and that this process is not one of several.

    Raises:
        ConfigError: One of the two does not hold. The message says how several processes are started.
    """
    if launched():
        raise ConfigError("this is one of several processes, which a Trainer must be given as ranks", key="num_ranks")
    if config.num_ranks == 1 and not config.distributed_training:
        return
    num_ranks = ranks_to_start(config)
    if num_ranks > 1:
        raise ConfigError(
            "python -m xcfast.train and get_runner(...) start several processes; "
            f"your own script is started by torchrun --nproc-per-node={num_ranks} SCRIPT",
            key="num_ranks" if config.num_ranks > 1 else "distributed_training",
        )


def launch(module: str, job: dict[str, Any], num_ranks: int, port: int) -> dict[str, Any]:
    """Runs ``python -m MODULE JOB`` in several processes, and waits for them.

    Args:
        module: Module whose ``main`` reads the job with ``read_job`` and calls ``write_outcome``.
        job: What the processes are to do, as plain data.
        num_ranks: Number of processes.
        port: Port at which they meet.

    Returns:
        The outcome of rank 0, or of the rank that failed first.

    Raises:
        RunFailed: A rank ended without an outcome.
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
            rdzv_backend="static",
            rdzv_endpoint=f"127.0.0.1:{port}",
            rdzv_configs={"rank": 0, "timeout": 600},
            max_restarts=0,
        )
        failed = 0
        with _environment(), _handlers():
            try:
                elastic_launch(setup, sys.executable)("-m", module, str(path))
            except ChildFailedError as error:
                # Where one was killed, the others have failed for want of it.
                killed = [
                    one for one, failure in error.failures.items() if failure.exitcode < 0 and not _read(path, one)
                ]
                failed = killed[0] if killed else error.get_first_failure()[0]
                reason = error.failures[failed].message or f"exit status {error.failures[failed].exitcode}"
            except SignalException as error:  # the ranks got it too, and have saved
                reason = str(error)
        outcome = _read(path, failed)
    if not outcome:
        raise RunFailed(f"rank {failed} ended without a word ({reason}); --resume goes on from the last checkpoint")
    return outcome


def read_job(path: Path) -> dict[str, Any]:
    """Reads the job of this rank, which ``launch`` has started."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_outcome(path: Path, outcome: dict[str, Any]) -> None:
    """Writes the outcome of this rank to the file in which ``launch`` looks for it."""
    _outcome(path, int(os.environ["RANK"])).write_text(json.dumps(outcome), encoding="utf-8")


def _outcome(job: Path, rank: int) -> Path:
    return job.with_name(f"rank_{rank}.json")


def _read(job: Path, rank: int) -> dict[str, Any]:
    try:
        return json.loads(_outcome(job, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # killed before it was written
        return {}


def free_port(wanted: int, quiet: bool) -> int:
    """Returns ``master_port``, or another port where that one is taken. Only the launched processes need to know it."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if not port:
                say(f"master_port {wanted} is taken; the processes meet at {probe.getsockname()[1]}", quiet)
            return int(probe.getsockname()[1])
    raise ConfigError("no port is free", key="master_port", given=wanted)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Sets the environment variables that the launcher and the ranks need."""
    changed = {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
        "PYTHONSAFEPATH": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _STOP_SECONDS),
    }
    if sys.platform == "linux":
        changed["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")  # all of them are on this machine
    before = {name: os.environ.get(name) for name in changed}
    log = logging.getLogger("torch.distributed.elastic")
    level = log.level
    os.environ.update(changed)
    log.setLevel(logging.CRITICAL)  # what failed is told in one place, by the exception
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
def _handlers() -> Iterator[None]:
    """Restores this process's signal handlers, which the launcher replaces for good."""
    if threading.current_thread() is not threading.main_thread():  # where it replaces none
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
