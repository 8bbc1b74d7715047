"""The learning rate of each gradient step: linear decay by the configuration, or a script's optimizer and scheduler."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

if TYPE_CHECKING:
    from xcfast.config.schema import Config


def learning_rate(config: Config, step: int) -> float:
    """Returns the learning rate of gradient step k of the run's K.

    That is lr * (1 - (1 - end_factor_lr_decay) * k / K). After step K it stays the same.
    """
    done = min(step / config.num_updates, 1.0)
    return config.learning_rate * (1.0 - (1.0 - config.end_factor_lr_decay) * done)


class Schedule:
    """The learning rates of an optimizer, one for each gradient step.

    Args:
        config: The run's configuration. Its linear decay decides the rates if ``own`` is true and there is no
            scheduler.
        optimizer: The optimizer whose rates are set.
        scheduler: A torch scheduler of this optimizer, which decides the rates. It is stepped after each gradient step.
        own: Whether the learner made the optimizer. A script's optimizer without a scheduler keeps its own rate.

    Raises:
        ValueError: The scheduler belongs to another optimizer, or cannot be stepped without a metric.
    """

    def __init__(
        self, config: Config, optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None, own: bool
    ) -> None:
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError("scheduler: ReduceLROnPlateau needs a metric; allowed: schedulers that step without one")
        if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
            raise ValueError("scheduler must belong to the optimizer that is passed in; it belongs to another one")
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._line = config if own and scheduler is None else None

    def begin(self, step: int) -> float:
        """Sets the learning rate of gradient step number ``step``; returns the rate of the first parameter group."""
        group = self.optimizer.param_groups[0]
        if self._line is not None:
            group["lr"] = learning_rate(self._line, step)
        return float(group["lr"])

    def end(self) -> None:
        """Steps the scheduler. Call it after the optimizer's step."""
        if self.scheduler is not None:
            self.scheduler.step()

    def ahead(self, first: int, count: int) -> npt.NDArray[np.float64]:
        """Goes through ``count`` gradient steps, from number ``first``, as if they were taken; returns their rates."""
        rates = np.empty(count)
        for k in range(count):
            rates[k] = self.begin(first + k)
            self.end()
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Returns the scheduler's position, if there is a scheduler."""
        return {} if self.scheduler is None else {"scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Raises:
            ValueError: There is a scheduler now and there was none when the state was saved, or the reverse.
        """
        if self.scheduler is not None and "scheduler" in state:
            self.scheduler.load_state_dict(state["scheduler"])
        elif self.scheduler is not None:
            raise ValueError(
                "it was saved without a scheduler, so the scheduler's position is not in it: resume without a scheduler"
            )
        elif "scheduler" in state:
            raise ValueError(
                "it was saved with a script's own scheduler: resume from a script that passes the same scheduler in"
            )

    def snapshot(self) -> tuple[dict[str, Any], list[Any]]:
        """Returns the current position and rates, for ``restore``."""
        return copy.deepcopy(self.state_dict()), [group["lr"] for group in self.optimizer.param_groups]

    def restore(self, snapshot: tuple[dict[str, Any], list[Any]]) -> None:
        """Restores the position and rates of ``snapshot``."""
        state, rates = snapshot
        self.load_state_dict(state)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
