"""How many CPUs this process may use."""

import os
from pathlib import Path


def available_cpus() -> int:
    """CPUs this process may run on: its affinity, cut to its cgroup's quota (rounded down), at least one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The tightest CPU quota, in CPUs, over this process's cgroups (version 1 and 2); None without one.

    Args:
        root: where the cgroup file systems are mounted.
        membership: the file that names this process's cgroups, one "id:controllers:path" a line.
    """
    quotas = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root if not controllers else root / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside a container the path may be the host's, while the mount shows only the container's part.
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
