"""Draws learning curves: return against steps and against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcfast.plot.curves import CurveError, Float64, Run, mean_and_interval

FORMATS = (".png", ".pdf", ".svg")
_POINTS = 200  # at which curves over seconds are averaged, since no two runs have the same seconds


def plot(groups: dict[str, dict[str, list[Run]]], output: Path) -> list[str]:
    """Draws the curves into a file.

    Args:
        groups: Env id -> label -> runs, as from `read_groups`.
        output: The file to write. Its suffix is the format: .png, .pdf or .svg.

    Returns:
        Remarks about curves that could not be drawn completely, and why.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if output.suffix.lower() not in FORMATS:
        raise CurveError(f"-o must end in {', '.join(FORMATS)}; got {output}")
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(11, 0.4 + 3.6 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 2, squeeze=False)
    remarks: list[str] = []
    for (left, right), (env_id, lines) in zip(panels, groups.items(), strict=True):
        for label, runs in lines.items():
            where = f"{env_id}, {label}"
            text = f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label
            _draw(left, [(run.steps, run.returns) for run in runs], text, where, remarks)
            timed = [(run.seconds, run.returns) for run in runs if run.seconds is not None]
            if len(timed) < len(runs):
                remarks.append(f"{where}: {len(runs) - len(timed)} of {len(runs)} runs do not tell the seconds")
            _draw(right, timed, text, where, remarks, _POINTS)
        kinds = {run.kind for runs in lines.values() for run in runs}
        left.set(title=env_id, xlabel="environment steps", ylabel=f"{' or '.join(sorted(kinds))} return")
        right.set(title=env_id, xlabel="seconds, evaluations included")
        for panel in (left, right):
            _scale(panel, [run.returns for runs in lines.values() for run in runs])
            panel.grid(alpha=0.3)
            if panel.lines:
                panel.legend(fontsize="small")
    if any(len(runs) > 1 for lines in groups.values() for runs in lines.values()):
        figure.supxlabel("Lines: mean over seeds. Bands: 95 % interval of the mean, by Student's t.", fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return remarks


def average(curves: Sequence[tuple[Float64, Float64]], points: int | None = None) -> tuple[Float64, Float64]:
    """Interpolates several curves linearly at the same places, in the range that all of them cover.

    Args:
        curves: Pairs of x and y, float64 [K] each, x increasing.
        points: Number of evenly spaced places. None: the places of all curves.

    Returns:
        The places, float64 [P] (P = 0 if the curves have no range in common), and values, float64 [n, P].
    """
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low > high:
        return np.empty(0), np.empty((len(curves), 0))
    places = np.unique(np.concatenate([x for x, _ in curves])) if points is None else np.linspace(low, high, points)
    places = places[(places >= low) & (places <= high)]
    return places, np.array([np.interp(places, x, y) for x, y in curves])


def _draw(
    panel: Any,
    curves: Sequence[tuple[Float64, Float64]],
    label: str,
    where: str,
    remarks: list[str],
    points: int | None = None,
) -> None:
    """Draws one line, and its band if there are several curves."""
    if not curves:
        return
    places, values = curves[0][0], curves[0][1][None]  # as it is, if it is the only one
    if len(curves) > 1:
        places, values = average(curves, points)
        ends = [x[-1] for x, _ in curves]
        if points is None and min(ends) < max(ends):
            remarks.append(f"{where}: averaged up to step {min(ends):,.0f}, where the shortest of the runs ends")
    mean, low, high = mean_and_interval(values)
    (line,) = panel.plot(places, mean, label=label, marker="." if len(places) == 1 else None)
    if len(curves) > 1:
        panel.fill_between(places, low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def _scale(panel: Any, returns: list[Float64]) -> None:
    """Fits the vertical axis to the runs. The wide band of two or three seeds is cut off at its limits."""
    low, high = min(one.min() for one in returns), max(one.max() for one in returns)
    if low < high:
        panel.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
