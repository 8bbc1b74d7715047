"""The learning rate of each gradient step: by the configuration, or by a script's optimizer and scheduler."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from xcfast.config.rules import MAX_LR, MIN_LR

if TYPE_CHECKING:
    from xcfast.config.schema import Config


def learning_rate(config: Config, step: int) -> float:
    """Returns the learning rate of gradient step k of the run's K, where it depends on nothing else.

    With ``lr_schedule: linear``, that is lr * (1 - (1 - end_factor_lr_decay) * k / K). With ``late``, the same fall
    takes place between the steps lr_decay_start * K and K. After step K the rate stays. With ``constant`` it is lr.
    """
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = min(step / config.num_updates, 1.0)
    if config.lr_schedule == "late":
        done = max(done - config.lr_decay_start, 0.0) / (1.0 - config.lr_decay_start)
    return config.learning_rate * (1.0 - (1.0 - config.end_factor_lr_decay) * done)


class Schedule:
    """The learning rates of an optimizer, one for each gradient step.

    With ``lr_schedule: kl``, the rate is constant during an update. After an update whose mean approximate KL was above
    2 ``desired_kl``, it is divided by 1.5. Where the KL was below ``desired_kl`` / 2, it is multiplied by 1.5. It stays
    within [MIN_LR, MAX_LR]. The rate that was reached is that of the optimizer, and is saved with it.

    Args:
        config: The run's configuration. Its ``lr_schedule`` decides the rates if ``own`` is true and there is no
            scheduler.
        optimizer: The optimizer whose rates are set.
        scheduler: A torch scheduler of this optimizer, which decides the rates. It is stepped after each gradient step.
        own: Whether the learner made the optimizer. A script's optimizer without a scheduler keeps its own rate.

    Raises:
        ValueError: The scheduler belongs to another optimizer, or cannot be stepped without a metric.

    Source:
        The adaptive rate of rl_games and rsl_rl, https://github.com/leggedrobotics/rsl_rl.
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
        by_config = own and scheduler is None
        self._steps = config if by_config and config.lr_schedule != "kl" else None  # the rate is a function of the step
        self._desired_kl = config.desired_kl if by_config and config.lr_schedule == "kl" else None

    def begin(self, step: int) -> float:
        """Sets the learning rate of gradient step number ``step``; returns the rate of the first parameter group."""
        group = self.optimizer.param_groups[0]
        if self._steps is not None:
            group["lr"] = learning_rate(self._steps, step)
        return float(group["lr"])

    def end(self) -> None:
        """Steps the scheduler. Call it after the optimizer's step."""
        if self.scheduler is not None:
            self.scheduler.step()

    def adapt(self, metrics: dict[str, float]) -> None:
        """Chooses the rate of the next update from the metrics of the last one, the same on all ranks."""
        if self._desired_kl is None:
            return
        group, kl = self.optimizer.param_groups[0], metrics["losses/approx_kl"]
        if kl > 2.0 * self._desired_kl:
            group["lr"] = max(group["lr"] / 1.5, MIN_LR)
        elif kl < 0.5 * self._desired_kl:
            group["lr"] = min(group["lr"] * 1.5, MAX_LR)

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
