"""Around the steps that an agent trains: stopping without losing them, and a word where the schedule ends before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xcfast.output.console import say
from xcfast.runs.signals import StopRequest
from xcfast.runs.trainer import Trainer


@contextmanager
def saving(trainer: Trainer | None) -> Iterator[StopRequest]:
    """While active, a first signal is only noted, in what is yielded. At the end the last update is saved.

    Then the signal has its usual effect: Ctrl-C raises KeyboardInterrupt, SIGTERM ends the process; of several
    processes, those that got none raise KeyboardInterrupt. Where nothing has begun, there is nothing to save, and it
    has its effect at once.

    Args:
        trainer: whose state is to be saved; None where there is none.
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
    """Say that the learning rate has fallen as far as it was to fall, where an update after that is to come.

    Args:
        trainer: with the configuration's learning rates.
        steps: of each env, to come.

    Returns:
        Whether it was said.
    """
    config = trainer.config
    iterations = trainer.progress.iteration + (trainer.components.rollout.step + steps) // config.horizon_size
    if iterations <= config.num_iterations or config.end_factor_lr_decay == 1.0:
        return False
    say(
        f"warning: training goes on after running_steps {config.running_steps}, where the learning rate has fallen to "
        f"{config.learning_rate * config.end_factor_lr_decay:g} and stays; set running_steps to the length of the run, "
        "or end_factor_lr_decay: 1.0",
        error=True,
    )
    return True
