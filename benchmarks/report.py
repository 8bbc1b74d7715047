"""The table that a benchmark run ends with."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from itertools import groupby
from pathlib import Path

from interleave import Spread

SCALES = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0}
HEADER = ("shape", "implementation", "median", "quartiles", "figure", "quartiles", "target", "")


@dataclass
class Row:
    """One implementation in one comparison."""

    group: str
    shape: str
    name: str
    unit: str
    seconds: Spread | None  # None: not measured
    series: list[float]
    detail: str = ""
    baseline: str = ""
    kind: str = ""
    figure: Spread | None = None
    allowance: float = 0.0
    target: float | None = None
    verdict: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row's text, one cell per column of the header."""
        if self.seconds is None:
            return (self.shape, self.name, "not measured", "", "", "", "", self.detail)
        raw = self.seconds
        return (
            self.shape,
            self.name,
            f"{self._raw(raw.median)} {self.unit}",
            " - ".join(sorted((self._raw(raw.low), self._raw(raw.high)), key=float)),
            f"{self._figure(self.figure.median)} {self._words()}" if self.figure else "baseline",
            f"{self._figure(self.figure.low)} - {self._figure(self.figure.high)}" if self.figure else "",
            "" if self.target is None else f"{self._sign()} {self._figure(self.target)}",
            ", ".join(filter(None, (self.verdict, self.detail))),
        )

    def sentence(self) -> str:
        """The row as one line of text."""
        _, name, median, _, figure, quartiles, target, _ = self.cells()
        return f"{self.group} {self.shape}: {name} {median}, {figure} [{quartiles}], wanted {target}".replace("  ", " ")

    def _raw(self, seconds: float) -> str:
        value = 1 / seconds if self.unit.endswith("/s") else seconds * SCALES[self.unit]
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"

    def _figure(self, value: float) -> str:
        return f"{value * 1e6:.3g} us" if self.kind == "excess_at_most" else f"{value:.3g}x"

    def _sign(self) -> str:
        return ">=" if self.kind == "at_least" else "<="

    def _words(self) -> str:
        less = f" (less {self.allowance * 1e6:g} us)" if self.allowance else ""
        words = {"at_least": "the speed of", "at_most": "the time of", "excess_at_most": "beyond"}
        return f"{words[self.kind]} {self.baseline}{less}"


@dataclass
class Report:
    """All rows of a pytest run."""

    rows: list[Row] = field(default_factory=list)

    def text(self) -> str:
        """The table for a terminal."""
        tables = []
        for group, rows in self._groups():
            cells = [HEADER, *(row.cells() for row in rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
            tables.append("\n".join([group, *(f"  {line}" for line in lines)]))
        facts = "\n".join(f"{name}: {value}" for name, value in machine().items())
        return "\n\n".join([*tables, facts]) + "\n"

    def markdown(self) -> str:
        """The table as markdown."""
        parts = ["# Benchmarks"]
        for group, rows in self._groups():
            lines = [HEADER, ("---",) * len(HEADER), *(row.cells() for row in rows)]
            parts.append(f"## {group}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
        parts.append("\n".join(f"- {name}: {value}" for name, value in machine().items()))
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """Everything, raw series in seconds included."""
        return json.dumps({"machine": machine(), "rows": [asdict(row) for row in self.rows]}, indent=1) + "\n"

    def _groups(self) -> list[tuple[str, list[Row]]]:
        order = {row.group: None for row in self.rows}  # in order of first appearance
        rows = sorted(self.rows, key=lambda row: [*order].index(row.group))
        return [(group, list(members)) for group, members in groupby(rows, key=lambda row: row.group)]


def machine() -> dict[str, str]:
    """Returns what the numbers depend on besides the code."""
    facts = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": f"{_cpu_model()}, {_usable_cpus()} usable",
        "load": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "threads": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in ("numpy", "torch", "gymnasium", "mujoco")),
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    try:
        from xcfast import _core  # type: ignore[attr-defined]

        facts["extension"] = str(_core.build_info()) if hasattr(_core, "build_info") else "no build_info"
    except ImportError:
        facts["extension"] = "not built"
    return facts


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _usable_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
