"""The summary of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What a run achieved. Scores are None if nothing was evaluated; steps_per_second counts training time only."""

    steps: int
    collection_seconds: float
    update_seconds: float
    evaluation_seconds: float
    steps_per_second: float
    best_mean: float | None
    best_std: float | None
    best_step: int | None
    final_mean: float | None
    final_std: float | None
    log_dir: str
    model_dir: str
    collector_backend: str
    learner_backend: str
    final_step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dict."""
        return asdict(self)
