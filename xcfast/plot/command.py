"""``python -m xcfast.plot RUN... [-o FILE.png]``: return against steps and against seconds, over seeds.

A RUN is a run folder, or a folder with runs below it; XuanCe's result folders are read too. Each environment has a row
of two panels. Each setting has a line, the mean over its seeds, with the 95 % interval of the mean (Student's t) as a
band.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xcfast.output.files import user_path
from xcfast.plot.curves import CurveError, Run, find_runs, group_runs
from xcfast.plot.figure import plot


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 2 if there is nothing to draw or matplotlib is missing."""
    args = _parser().parse_args(argv)
    try:
        groups = read_groups(args.runs)
        for line in plot(groups, args.output):
            print(f"xcfast.plot: {line}", file=sys.stderr)
    except (CurveError, OSError) as error:
        print(f"xcfast.plot: {error}", file=sys.stderr)
        return 2
    except ImportError:
        print('xcfast.plot: matplotlib is missing; pip install "xcfast[plot]"', file=sys.stderr)
        return 2
    print(args.output)
    return 0


def read_groups(words: Sequence[str]) -> dict[str, dict[str, list[Run]]]:
    """Reads the runs that the command line names.

    Args:
        words: Folders, or LABEL=FOLDER, whose runs of one environment are one line with that label.

    Returns:
        Env id -> label -> runs.

    Raises:
        CurveError: A folder has no runs.
    """
    named: dict[str, dict[str, list[Run]]] = {}
    free: dict[Path, Run] = {}
    for word in words:
        label, equals, folder = word.partition("=")
        if equals and not Path(word).exists():
            for run in find_runs(user_path(folder)):
                named.setdefault(run.env_id, {}).setdefault(label, []).append(run)
        else:
            free |= {run.folder.resolve(): run for run in find_runs(user_path(word))}
    envs = sorted({run.env_id for run in free.values()} | set(named))
    return {
        env_id: group_runs(run for run in free.values() if run.env_id == env_id) | named.get(env_id, {})
        for env_id in envs
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xcfast.plot",
        description="Draw return against steps and against seconds; seeds of one setting as mean and 95 % interval.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN | LABEL=RUN", help="a run folder, or a folder with runs below it")
    file = Path("learning_curves.png")
    add("-o", "--output", type=user_path, default=file, metavar="FILE", help="default: %(default)s")
    return parser
