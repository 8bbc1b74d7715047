"""One point of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xcfast.config.schema import Config
from xcfast.sweep.jobs import Job


@dataclass
class Setting:
    """One point of a sweep.

    Attributes:
        name: Name of the setting, and of its folder.
        values: Values of the swept keys; empty if only the seeds differ.
        config: Configuration of its jobs.
        jobs: The jobs, one for each seed.
        open: Seeds whose jobs have not ended yet.
    """

    name: str
    values: dict[str, Any]
    config: Config
    jobs: list[Job]
    open: set[int]

    def scores(self, key: str) -> np.ndarray:
        """Returns the entry ``key`` of the summaries of the finished seeds, float64 [n]."""
        summaries = [job.summary() for job in self.jobs]
        return np.array([one[key] for one in summaries if one is not None and one[key] is not None], np.float64)
