"""Draws initial states in advance, from each environment's own generator, so that resets need no Python."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

_FIRST = 2  # initial states that are drawn when a stream starts
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


class ResetDraws:
    """Holds a row of initial states per environment, in the order of its generator's stream.

    Args:
        num_envs: The number of environments, N.
        size: The size of an initial state.
        capacity: The number of initial states that can wait for each environment.
        draw: A function; draw(generator, count) returns float64 [count, size] and continues the generator's stream.

    Attributes:
        capacity: The number of initial states that can wait for each environment.
        rows: float64 [N, capacity, size]; those from used[i] to drawn[i] - 1 wait in row i.
        drawn: int64 [N], the number of initial states in each row.
        used: int64 [N], the number of them that are used up. The engine counts.
    """

    def __init__(self, num_envs: int, size: int, capacity: int, draw: Draw) -> None:
        self.capacity = capacity
        self.rows = np.zeros((num_envs, capacity, size))
        self.drawn = np.zeros(num_envs, np.int64)
        self.used = np.zeros(num_envs, np.int64)
        self._batches = np.full(num_envs, min(_FIRST, capacity), np.int64)  # what was drawn last
        self._draw = draw
        self._generators: list[np.random.Generator] = []
        self._seeds: list[int] = []
        for _ in range(num_envs):
            generator, seed = seeding.np_random()
            self._generators.append(generator)
            self._seeds.append(seed)
        # The stream's state before a row `_skipped` rows in front of row 0.
        self._origins: list[Mapping[str, Any]] = [generator.bit_generator.state for generator in self._generators]
        self._skipped = [0] * num_envs

    def seed(self, index: int, seed: int) -> None:
        """Starts the stream of one environment anew, as Gymnasium's reset(seed) does."""
        self._generators[index], self._seeds[index] = seeding.np_random(seed)
        self._empty(index)

    def fill(self, index: int, count: int) -> None:
        """Draws until `count` (at most the capacity) initial states wait."""
        used, drawn = int(self.used[index]), int(self.drawn[index])
        left, generator = drawn - used, self._generators[index]
        if left >= count:
            return
        if left == 0:
            self._origins[index] = generator.bit_generator.state
            self._skipped[index] = 0
        else:
            self.rows[index, :left] = self.rows[index, used:drawn].copy()
            self._skipped[index] += used
        self.rows[index, left:count] = self._draw(generator, count - left)
        self.used[index], self.drawn[index] = 0, count

    def redraw_next(self, index: int, draw: Draw) -> None:
        """Draws the next initial state again, with a `draw` that takes as much of the stream."""
        self.fill(index, 1)
        self.rows[index, self.used[index]] = draw(_generator_at(self.get_state(index)[0]), 1)[0]

    def refill(self, ahead: bool = False) -> None:
        """Draws for the environments that have no initial state left.

        An environment gets twice as many as the last time, up to the capacity: one that comes again soon has short
        episodes, and drawing is Python's work.

        Args:
            ahead: Whether environments that have used half of what was drawn last get new ones too.
        """
        low = self._batches // 2 if ahead else 0
        for index in np.flatnonzero(self.drawn - self.used <= low).tolist():
            self._batches[index] = min(2 * self._batches[index], self.capacity)
            self.fill(index, int(self._batches[index]))

    def get_state(self, index: int) -> tuple[Mapping[str, Any], int]:
        """Returns the generator's state as if nothing had been drawn in advance, and its seed."""
        generator, spent = self._generators[index], self._skipped[index] + int(self.used[index])
        if self.used[index] == self.drawn[index]:
            return generator.bit_generator.state, self._seeds[index]
        if spent:
            replayed = _generator_at(self._origins[index])
            self._draw(replayed, spent)
            self._origins[index] = replayed.bit_generator.state
            self._skipped[index] -= spent
        return self._origins[index], self._seeds[index]

    def set_state(self, index: int, state: Mapping[str, Any], seed: int) -> None:
        """Restores what `get_state` returned."""
        self._generators[index].bit_generator.state = state
        self._seeds[index] = seed
        self._empty(index)

    def _empty(self, index: int) -> None:
        self.used[index] = self.drawn[index] = 0
        self._batches[index] = min(_FIRST, self.capacity)
        self.fill(index, int(self._batches[index]))


def _generator_at(state: Mapping[str, Any]) -> np.random.Generator:
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = state
    return generator
