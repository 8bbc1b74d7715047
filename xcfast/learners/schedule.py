"""The learning rate of each update: the configuration's line, or what the caller's optimiser and scheduler say."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

if TYPE_CHECKING:
    from xcfast.config import Config


ADAM_EPS = 1e-5


def learning_rate(config: Config, update: int) -> float:
    """Learning rate of update k of K: lr * (1 - (1 - end) * k / K), end = ``end_factor_lr_decay``; K's after it."""
    done = min(update / config.num_updates, 1.0)
    return config.learning_rate * (1.0 - (1.0 - config.end_factor_lr_decay) * done)


class Schedule:
    """The learning rates of an optimiser, update by update.

    Args:
        config: its line is followed unless the caller brought the optimiser.
        optimizer: gets the rates.
        scheduler: a torch scheduler of this optimiser, stepped once after each update; decides the rates.
        own: whether the optimiser was made here; the caller's keeps its own rate where there is no scheduler.

    Raises:
        ValueError: the scheduler belongs to another optimiser, or cannot be stepped by updates.
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
        self._config = config if own and scheduler is None else None

    def begin(self, update: int) -> float:
        """Sets and returns the learning rate of update number ``update`` (of the first parameter group)."""
        group = self.optimizer.param_groups[0]
        if self._config is not None:
            group["lr"] = learning_rate(self._config, update)
        return float(group["lr"])

    def end(self) -> None:
        """Steps the scheduler, after the optimiser."""
        if self.scheduler is not None:
            self.scheduler.step()

    def ahead(self, first: int, count: int) -> npt.NDArray[np.float64]:
        """Rates float64 [count] of updates to come, of which the scheduler is told that they are done."""
        rates = np.empty(count)
        for k in range(count):
            rates[k] = self.begin(first + k)
            self.end()
        return rates

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's position, where there is one."""
        return {} if self.scheduler is None else {"scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: a scheduler of the caller's decided the rates then, and there is none now, or the reverse.
        """
        if self.scheduler is not None and "scheduler" in state:
            self.scheduler.load_state_dict(state["scheduler"])
        elif self.scheduler is not None:
            raise ValueError("no scheduler decided its learning rates, so this one's place is not in it: go on without")
        elif "scheduler" in state:
            raise ValueError("a scheduler of its own decided its learning rates: go on from the script that made it")

    def snapshot(self) -> tuple[dict[str, Any], list[Any]]:
        """What ``restore`` wants, to undo updates."""
        return copy.deepcopy(self.state_dict()), [group["lr"] for group in self.optimizer.param_groups]

    def restore(self, snapshot: tuple[dict[str, Any], list[Any]]) -> None:
        """Back to the position of ``snapshot``."""
        state, rates = snapshot
        self.load_state_dict(state)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def reason_not_plain_adam(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> str | None:
    """Why ``optimizer`` is not Adam with one learning rate and nothing added for exactly these parameters, or None."""
    if type(optimizer) is not torch.optim.Adam:
        return f"the optimizer is {type(optimizer).__name__}; it has Adam"
    if len(optimizer.param_groups) != 1:
        return "the optimizer has several parameter groups"
    group = optimizer.param_groups[0]
    if {id(p) for p in group["params"]} != {id(p) for p in parameters}:
        return "the optimizer has not all of the policy's parameters"
    added = ("weight_decay", "amsgrad", "maximize", "differentiable", "decoupled_weight_decay", "capturable")
    for name in added:
        if group.get(name):
            return f"the optimizer's {name} is {group[name]}; it has plain Adam"
    if "base_momentum" in group:
        return "the scheduler moves Adam's beta1, which cycle_momentum=False would leave to it; it has fixed betas"
    if not all(isinstance(value, float | int) for value in (group["lr"], group["eps"], *group["betas"])):
        return "the optimizer's settings are tensors"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has hooks"
    return None
