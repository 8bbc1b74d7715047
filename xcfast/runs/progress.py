"""How far a run has come: what a checkpoint holds besides networks, statistics and environments."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from xcfast.config import RESUMABLE_KEYS, Config, ConfigError
from xcfast.output.console import say
from xcfast.output.files import package_versions
from xcfast.output.folders import RunFolders
from xcfast.output.summary import Summary

RECENT_EPISODES = 100


@dataclass
class Progress:
    """Counters, seconds and scores of a run, over all its parts if it was resumed."""

    iteration: int = 0
    evaluations: int = 0
    evaluation_due: bool = False
    collection_seconds: float = 0.0
    update_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    elapsed_seconds: float = 0.0  # wall-clock time of the parts before this one
    best: dict[str, Any] | None = None  # mean, std, step
    last_scores: list[float] | None = None
    recent_returns: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))

    def __post_init__(self) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        """From now on this part of the run counts as running."""
        self._started = time.perf_counter()

    @property
    def total_seconds(self) -> float:
        """Wall-clock time of the run until now, all parts of it."""
        return self.elapsed_seconds + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Plain data; this part of the run is one of those before the next."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**state, "recent_returns": list(self.recent_returns), "elapsed_seconds": self.total_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for one in fields(self):
            value = state[one.name]
            setattr(self, one.name, deque(value, RECENT_EPISODES) if one.name == "recent_returns" else value)

    def add_evaluation(self, scores: np.ndarray, step: int, seconds: float) -> bool:
        """Enter an evaluation; returns whether it is the best so far."""
        self.evaluation_due = False
        self.evaluations += 1
        self.evaluation_seconds += seconds
        self.last_scores = scores.tolist()
        mean = float(scores.mean())
        if self.best is not None and mean <= self.best["mean"]:
            return False
        self.best = {"mean": mean, "std": float(scores.std()), "step": step}
        return True

    def summary(self, steps: int, folders: RunFolders, collector: str, learner: str) -> Summary:
        """What the run achieved.

        Args:
            steps: env steps trained on.
            folders: where it wrote.
            collector: name of the engine.
            learner: likewise.
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
            log_dir=str(folders.log_dir),
            model_dir=str(folders.model_dir),
            collector_backend=collector,
            learner_backend=learner,
        )


def check_same_run(config: Config, saved: dict[str, Any], path: Path) -> None:
    """Warn if a checkpoint was written with other versions.

    Raises:
        ConfigError: it belongs to a run with other settings, of those that cannot change.
    """
    mine, theirs = config.to_dict(), {**Config().to_dict(), **saved["config"]}  # keys newer than the run
    changed = [key for key in mine if key not in RESUMABLE_KEYS and mine[key] != theirs.get(key)]
    if changed:
        listed = ", ".join(f"{key} {theirs.get(key)!r} -> {mine[key]!r}" for key in changed)
        raise ConfigError(f"{path} is of a run with other settings, which cannot change: {listed}")
    versions = package_versions()
    others = {name: then for name, then in saved.get("versions", {}).items() if then != versions.get(name)}
    if others:
        listed = ", ".join(f"{name} {then} then, {versions.get(name)} now" for name, then in others.items())
        say(f"warning: other versions than those of the run, so its exact course may differ: {listed}", error=True)
