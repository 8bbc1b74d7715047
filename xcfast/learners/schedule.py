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


def learning_rate(config: Config, update: int) -> float:
    """Returns the learning rate of update k of K: lr * (1 - (1 - end_factor_lr_decay) * k / K); after K, that of K."""
    done = min(update / config.num_updates, 1.0)
    return config.learning_rate * (1.0 - (1.0 - config.end_factor_lr_decay) * done)


class Schedule:
    """The learning rates of an optimizer, update by update.

    Args:
        config: The run's configuration, whose line decides the rates of an optimizer that was made here.
        optimizer: The optimizer that gets the rates.
        scheduler: A torch scheduler of this optimizer, which is stepped after each update and decides the rates.
        own: Whether the optimizer was made here. A script's optimizer without a scheduler keeps its own rate.

    Raises:
        ValueError: The scheduler belongs to another optimizer, or needs more than a step after each update.
    """

    def __init__(
        self, config: Config, optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None, own: bool
    ) -> None:
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError("scheduler: ReduceLROnPlateau wants a metric; allowed: schedulers stepped without one")
        if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
            raise ValueError("scheduler belongs to another optimizer than the one that is given")
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._line = config if own and scheduler is None else None

    def begin(self, update: int) -> float:
        """Sets the learning rate of update number ``update``, and returns that of the first parameter group."""
        group = self.optimizer.param_groups[0]
        if self._line is not None:
            group["lr"] = learning_rate(self._line, update)
        return float(group["lr"])

    def end(self) -> None:
        """Steps the scheduler. Call it after the optimizer's step."""
        if self.scheduler is not None:
            self.scheduler.step()

    def ahead(self, first: int, count: int) -> npt.NDArray[np.float64]:
        """Goes through ``count`` updates, from number ``first``, as if they were done; returns their rates [count]."""
        rates = np.empty(count)
        for k in range(count):
            rates[k] = self.begin(first + k)
            self.end()
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Returns the scheduler's position, where there is a scheduler."""
        return {} if self.scheduler is None else {"scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Raises:
            ValueError: There is a scheduler now and there was none when the state was saved, or the reverse.
        """
        if self.scheduler is not None and "scheduler" in state:
            self.scheduler.load_state_dict(state["scheduler"])
        elif self.scheduler is not None:
            raise ValueError("no scheduler decided its learning rates, so this one's place is not in it: go on without")
        elif "scheduler" in state:
            raise ValueError("a scheduler of its own decided its learning rates: go on from the script that made it")

    def snapshot(self) -> tuple[dict[str, Any], list[Any]]:
        """Returns the current position and rates, for ``restore``."""
        return copy.deepcopy(self.state_dict()), [group["lr"] for group in self.optimizer.param_groups]

    def restore(self, snapshot: tuple[dict[str, Any], list[Any]]) -> None:
        """Goes back to the position and rates of ``snapshot``."""
        state, rates = snapshot
        self.load_state_dict(state)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
