"""Times functions side by side: A B A B ..., so that a machine that speeds up or slows down does so for all of them."""

import gc
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter

SMOKE = os.environ.get("XCFAST_BENCH_SMOKE") == "1"  # two rounds of one call: does the benchmark still run?


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a series."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, series: Sequence[float]) -> "Spread":
        """Summarize a series of at least one value."""
        if len(series) == 1:
            return cls(series[0], series[0], series[0])
        low, median, high = statistics.quantiles(series, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timings:
    """Seconds per call of each function; entry r of every series comes from the same round."""

    seconds: dict[str, list[float]]

    def of(self, name: str) -> Spread:
        """Seconds per call of one function."""
        return Spread.of(self.seconds[name])

    def paired(self, name: str, baseline: str, figure: Callable[[float, float], float]) -> Spread:
        """Spread of ``figure(seconds of name, seconds of baseline)`` over the rounds.

        Pairing within a round cancels what slows both: another process, a lower clock.
        """
        return Spread.of([figure(a, b) for a, b in zip(self.seconds[name], self.seconds[baseline], strict=True)])

    def speedup(self, name: str, baseline: str) -> Spread:
        """How many times faster ``name`` is than ``baseline``."""
        return self.paired(name, baseline, lambda mine, theirs: theirs / mine)

    def cost(self, name: str, baseline: str) -> Spread:
        """How many times the time of ``baseline`` that ``name`` takes."""
        return self.paired(name, baseline, lambda mine, theirs: mine / theirs)


class Measured:
    """A function that returns its own seconds per call: it runs in another process, or sets up outside the clock."""

    def __init__(self, function: Callable[[], float]) -> None:
        self.function = function


Timed = Callable[[], object] | Measured


def interleave(
    functions: Mapping[str, Timed],
    *,
    rounds: int = 15,
    min_time: float = 0.02,
    max_time: float = 20.0,
    items: int = 1,
    warmup: int = 2,
) -> Timings:
    """Time functions in turn, once per round.

    Each plain function is called in a loop, long enough that one round of it takes ``min_time``; a ``Measured`` one is
    called once per round. Synchronize a device inside the function.

    Args:
        functions: Name to function. The caller has checked that their answers agree.
        rounds: Rounds to take; fewer (at least 3) where ``max_time`` would be exceeded.
        min_time: Seconds that one round of one function should take at least.
        max_time: Seconds that all rounds together should take at most.
        items: Items of work per call (vector steps, say); seconds are per item. Not applied to ``Measured``.
        warmup: Untimed calls before the first round.
    """
    if SMOKE:
        rounds, min_time, max_time, warmup = 2, 0.0, math.inf, 1
    timers = {name: _timer(function, min_time, items, warmup) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    collect = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = perf_counter()
        for done in range(1, rounds + 1):
            for name, timer in timers.items():
                seconds[name].append(timer())
            elapsed = perf_counter() - start
            if done >= 3 and elapsed * (done + 1) / done > max_time:
                break
    finally:
        if collect:
            gc.enable()
    return Timings(seconds)


def _timer(function: Timed, min_time: float, items: int, warmup: int) -> Callable[[], float]:
    """A function that takes one sample: seconds per item."""
    if isinstance(function, Measured):
        function.function()
        return function.function
    for _ in range(warmup):
        function()
    loops = 1
    while (elapsed := _loop(function, loops)) < min_time:
        # Grow towards the aim, but no faster than tenfold: a first short sample is mostly noise.
        loops = max(loops + 1, min(10 * loops, math.ceil(1.2 * loops * min_time / max(elapsed, 1e-9))))
    return lambda: _loop(function, loops) / (loops * items)


def _loop(function: Callable[[], object], loops: int) -> float:
    start = perf_counter()
    for _ in repeat(None, loops):
        function()
    return perf_counter() - start
