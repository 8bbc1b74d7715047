"""The progress of a run: its counters, seconds and scores."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from xcfast.output.folders import RunFolders
from xcfast.output.summary import Summary

RECENT_EPISODES = 100


@dataclass
class Progress:
    """Counters, seconds and scores of a run, over all its parts if it was resumed.

    Attributes:
        iteration: Number of iterations that are done.
        evaluations: Number of evaluations that are done.
        evaluation_due: Whether the next thing to do is an evaluation.
        collection_seconds: Time spent on collecting.
        update_seconds: Time spent on updates.
        evaluation_seconds: Time spent on evaluations.
        elapsed_seconds: Wall-clock time of the parts before this one.
        best: Mean, standard deviation and step of the best evaluation; None before the first.
        last_scores: Episode returns of the last evaluation.
        last_step: Environment steps at the last evaluation.
        recent_returns: Returns of the last training episodes.
    """

    iteration: int = 0
    evaluations: int = 0
    evaluation_due: bool = False
    collection_seconds: float = 0.0
    update_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    best: dict[str, Any] | None = None
    last_scores: list[float] | None = None
    last_step: int | None = None
    recent_returns: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))

    def __post_init__(self) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        """Starts the clock of this part of the run."""
        self._started = time.perf_counter()

    @property
    def total_seconds(self) -> float:
        """Wall-clock time of the run so far, all its parts together."""
        return self.elapsed_seconds + time.perf_counter() - self._started

    @property
    def times(self) -> dict[str, float]:
        """Seconds spent so far on collecting, on updates and on evaluations, by their tags in the log."""
        names = ("collection_seconds", "update_seconds", "evaluation_seconds")
        return {f"time/{name}": getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Returns plain data, whose elapsed time includes this part of the run."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**state, "recent_returns": list(self.recent_returns), "elapsed_seconds": self.total_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned. Counters that an older version did not write keep their defaults."""
        for one in fields(self):
            if one.name in state:
                value = state[one.name]
                setattr(self, one.name, deque(value, RECENT_EPISODES) if one.name == "recent_returns" else value)

    def add_evaluation(self, scores: np.ndarray, step: int, seconds: float) -> bool:
        """Records an evaluation.

        Args:
            scores: Episode returns, float64 [episodes].
            step: Environment steps at which it took place.
            seconds: Time that it took.

        Returns:
            Whether it is the best so far.
        """
        self.evaluation_due = False
        self.evaluations += 1
        self.evaluation_seconds += seconds
        self.last_scores, self.last_step = scores.tolist(), step
        mean = float(scores.mean())
        if self.best is not None and mean <= self.best["mean"]:
            return False
        self.best = {"mean": mean, "std": float(scores.std()), "step": step}
        return True

    def summary(self, steps: int, folders: RunFolders, collector: str, learner: str) -> Summary:
        """Returns what the run achieved.

        Args:
            steps: Environment steps trained on.
            folders: Folders of the run.
            collector: Name of the collecting engine.
            learner: Name of the learning engine.
        """
        best = self.best or {"mean": None, "std": None, "step": None}
        scores = self.last_scores
        seconds = self.collection_seconds + self.update_seconds
        return Summary(
            steps=steps,
            collection_seconds=self.collection_seconds,
            update_seconds=self.update_seconds,
            evaluation_seconds=self.evaluation_seconds,
            steps_per_second=steps / seconds if seconds else 0.0,
            best_mean=best["mean"],
            best_std=best["std"],
            best_step=best["step"],
            final_mean=None if scores is None else float(np.mean(scores)),
            final_std=None if scores is None else float(np.std(scores)),
            final_step=self.last_step,
            log_dir=str(folders.log_dir),
            model_dir=str(folders.model_dir),
            collector_backend=collector,
            learner_backend=learner,
        )
