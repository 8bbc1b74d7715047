"""Reads the curves of runs, averages them over seeds and draws them."""

from xcfast.plot.command import main
from xcfast.plot.curves import find_runs, group_runs, mean_and_interval
from xcfast.plot.figure import average, plot

__all__ = ["average", "find_runs", "group_runs", "main", "mean_and_interval", "plot"]
