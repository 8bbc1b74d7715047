"""What this process may use: CPUs, threads, and the device that trains."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcfast.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from xcfast.config.schema import Config


def available_cpus() -> int:
    """Returns the number of CPUs that this process may run on, at least one.

    That is its affinity, cut to its cgroup's quota (rounded down).
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def launched() -> bool:
    """Returns whether torchrun, or a program that sets its environment variables, started this process as a rank.

    ``WORLD_SIZE`` alone does not say so: some clusters set it for other purposes.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def module_path() -> dict[str, str]:
    """Returns environment variables with which a child process finds exactly the modules that this process finds.

    Without ``PYTHONSAFEPATH``, ``python -m`` would search the working folder first.
    """
    return {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path), "PYTHONSAFEPATH": "1"}


def update_threads(config: Config, sharing: int = 1) -> int:
    """Returns the number of threads of the update.

    That is ``num_threads``, or this process's part of its CPUs, limited by OMP_NUM_THREADS.

    Args:
        config: The run's configuration.
        sharing: Number of processes that share the CPUs.
    """
    if config.num_threads:
        return config.num_threads
    cpus = max(1, available_cpus() // sharing)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit == "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        return cpus  # torchrun sets it if the user did not
    return min(cpus, int(limit) if limit.isdigit() and int(limit) > 0 else cpus)


def training_device(config: Config, local_rank: int | None = None) -> torch.device:
    """Returns the device that trains. ``auto`` is CUDA where there is one.

    Args:
        config: The run's configuration.
        local_rank: Number of this rank on its node, where several ranks train. Each has a GPU of its own.
    """
    import torch

    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank is not None:
        return torch.device("cuda", local_rank)
    return torch.device("cuda", int(config.device.partition(":")[2] or 0))


def check_gpus(num_ranks: int) -> None:
    """Checks that each rank of this node can have a GPU of its own.

    Raises:
        ConfigError: There are fewer GPUs than ranks.
    """
    import torch

    count = torch.cuda.device_count()
    if num_ranks > count:
        raise ConfigError(
            "more ranks than GPUs on this node; each takes one",
            key="num_ranks",
            given=num_ranks,
            allowed=f"at most {count}, or device: cpu",
        )


def shortage(error: BaseException) -> str | None:
    """Returns a sentence that says that this machine's memory or threads ran out, if that is what an error means.

    numpy, torch, MuJoCo and the system each have words of their own for it.
    """
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(text):
        size = _SIZE.search(text)
        asked = f": {size.group(1)} {size.group(2)} more were asked for" if size else ""
        return f"this machine has not the memory for it{asked}; {_SMALLER}"
    if isinstance(error, RuntimeError) and _NO_THREAD.search(text):
        return "the system allows no more threads; a smaller num_threads needs fewer"
    return None


_NO_MEMORY = re.compile("allocate memory|not enough memory|out of memory", re.IGNORECASE)
_NO_THREAD = re.compile("start new thread|Resource temporarily unavailable")
_SIZE = re.compile(r"allocate:? ([\d.]+) ([KMGTPE]iB|bytes)")
_SMALLER = "smaller parallels, horizon_size or hidden sizes need less"


@contextlib.contextmanager
def enough_of_all() -> Iterator[None]:
    """Makes one sentence of an error in the block that means that memory or threads ran out.

    Raises:
        ConfigError: They did.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ConfigError) or (sentence := shortage(error)) is None:
            raise
        raise ConfigError(sentence) from error


def page_locked(shape: int | tuple[int, ...], dtype: Any = "float32") -> np.ndarray:
    """Allocates zeros in page-locked memory, which a CUDA device reads without waiting. Needs such a device."""
    import numpy as np
    import torch

    return torch.zeros(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True).numpy()


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Returns the tightest CPU quota of this process's cgroups (version 1 and 2), in CPUs; None without one.

    Args:
        root: Folder in which the cgroup file systems are mounted.
        membership: File that names this process's cgroups, one "id:controllers:path" a line.
    """
    quotas = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root if not controllers else root / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container, the path may be the host's, while the mount shows only the container's part.
        group = mount / path.lstrip("/")
        for folder in [group, *group.parents]:
            if folder.is_relative_to(mount):
                quotas += _quota_in(folder)
    return min(quotas, default=None)


def _quota_in(folder: Path) -> list[float]:
    limit = _read(folder / "cpu.max").split()  # version 2: "max 100000" or "150000 100000"
    if not limit:
        limit = [_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()]
    try:
        quota, period = (float(word) for word in limit)
    except ValueError:
        return []
    return [quota / period] if quota > 0 and period > 0 else []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
