"""What a run prints: lines, the progress bar, tables."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from tqdm import tqdm

from xcfast.output.summary import Summary

_LONG_SCORE = 1e12


def say(text: str, quiet: bool = False, error: bool = False) -> None:
    """Prints a line without tearing a progress bar.

    Args:
        text: The line.
        quiet: Whether to print nothing.
        error: Whether to print to stderr.
    """
    if not quiet:
        with suppress(OSError):  # the reader of a pipe may be gone; the run goes on
            tqdm.write(text, file=sys.stderr if error else sys.stdout)
            sys.stdout.flush()


def say_warnings(counts: Iterable[Mapping[str, int]]) -> None:
    """Prints the names and numbers of MuJoCo's warnings, added up over processes."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    if total:
        listed = ", ".join(f"{name} {count} times" for name, count in total.items())
        say(f"warning: MuJoCo reported in training: {listed}", error=True)


class ProgressBar:
    """A bar with environment steps, steps per second, time left and recent returns.

    It prints nothing if stdout is not a terminal.

    Args:
        total: Environment steps at the end.
        initial: Environment steps at the start.
        enabled: Whether to show it.
    """

    def __init__(self, total: int, initial: int, enabled: bool = True) -> None:
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=" steps",
            unit_scale=True,
            file=sys.stdout,
            disable=not (enabled and sys.stdout.isatty()),
            dynamic_ncols=True,
        )

    def update(self, step: int, recent_returns: Collection[float]) -> None:
        """Moves the bar to ``step`` and shows the mean of the recent returns."""
        if self._bar.disable:
            return
        if recent_returns:
            self._bar.set_postfix_str(f"return {sum(recent_returns) / len(recent_returns):.1f}", refresh=False)
        self._bar.update(step - self._bar.n)

    def evaluation(self, done: int, wanted: int) -> None:
        """Shows how many episodes of a long evaluation have ended."""
        if not self._bar.disable:
            self._bar.set_postfix_str(f"evaluating, {done} of {wanted} episodes", refresh=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def score_text(score: float | None) -> str:
    """Returns a score with two decimals, or in exponential form where that would be a long row of digits."""
    if score is None:
        return "none"
    return f"{score:.2f}" if abs(score) < _LONG_SCORE else f"{score:.6g}"


def end_table(summary: Summary, stopped_by: str | None) -> str:
    """Returns the table of the end of a run: scores, times, and where the files are."""
    rows = [("stopped by", f"{stopped_by}; continue with --resume {summary.log_dir}")] if stopped_by else []
    rows.append(("steps", f"{summary.steps:,} ({summary.steps_per_second:,.0f} per second of training)"))
    if summary.best_mean is not None:
        score = f"{score_text(summary.best_mean)} +- {score_text(summary.best_std)}"
        rows.append(("best score", f"{score} at step {summary.best_step:,}"))
        score = f"{score_text(summary.final_mean)} +- {score_text(summary.final_std)}"
        at_the_end = summary.final_step in (None, summary.steps)
        rows.append(("final score", score) if at_the_end else ("last score", f"{score} at step {summary.final_step:,}"))
    seconds = (summary.collection_seconds, summary.update_seconds, summary.evaluation_seconds)
    rows.append(("time", "collection {:.1f} s, update {:.1f} s, evaluation {:.1f} s".format(*seconds)))
    rows += [("logs", summary.log_dir), ("models", summary.model_dir)]
    return table(rows)


def table(rows: list[tuple[str, str]]) -> str:
    """Aligns names and texts in two columns, at the same places in most tables."""
    width = max(10, *(len(name) for name, _ in rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)
