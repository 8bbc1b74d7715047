"""Surrounds an agent's training: saves on a signal, and warns of the end of the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xcfast.output.console import say
from xcfast.runs.signals import StopRequest
from xcfast.runs.trainer import Trainer


@contextmanager
def saving(trainer: Trainer | None) -> Iterator[StopRequest]:
    """Notes the first signal while active, and saves the last update at the end.

    Then the signal has its usual effect: Ctrl-C raises KeyboardInterrupt, SIGTERM ends the process. If there are
    several processes, those without a signal raise KeyboardInterrupt. Before a run has begun there is nothing to save,
    and signals have their effect at once.

    Args:
        trainer: The trainer whose state is saved, or None.

    Yields:
        The request to stop, which a signal sets.
    """
    if trainer is None or not trainer.begun:
        yield StopRequest()
        return
    with StopRequest() as stop:
        yield stop
    if trainer.ranks.any_(stop.requested):
        path = trainer.save_last()
        what = "nothing had been trained yet" if path is None else f"saved in {path}"
        name = stop.signal_name or "a signal to another process"
        say(f"{name}: stopped at step {trainer.step}; {what}", not trainer.ranks.is_main, error=True)
        stop.take_effect()
        if not stop.requested:
            raise KeyboardInterrupt(name)


def warn_of_the_end(trainer: Trainer, steps: int) -> bool:
    """Warns if training will go on after the learning rate has reached the end of its schedule.

    Args:
        trainer: A trainer that follows the configuration's learning rates.
        steps: Number of steps of each environment that are to come.

    Returns:
        Whether it has warned.
    """
    config = trainer.config
    iterations = trainer.progress.iteration + (trainer.components.rollout.step + steps) // config.horizon_size
    falls = config.lr_schedule in ("linear", "late") and config.end_factor_lr_decay < 1.0
    if iterations <= config.num_iterations or not falls:
        return False
    say(
        f"warning: training goes on after running_steps {config.running_steps}, when the learning rate has fallen to "
        f"{config.learning_rate * config.end_factor_lr_decay:g} and stays; set running_steps to the length of the run, "
        "or lr_schedule: constant",
        error=True,
    )
    return True
