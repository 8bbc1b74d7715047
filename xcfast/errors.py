"""Every exception class of xcfast. Importing this module loads nothing else."""

from __future__ import annotations

from reprlib import Repr
from typing import Any

_ABSENT = object()
_LONGEST_TEXT = 200


class _ShortRepr(Repr):
    """Python's shortened `repr`, which never prints an integer too large to be converted to decimal digits."""

    def repr_int(self, x: int, level: int) -> str:
        """Returns the integer, or its size."""
        return repr(x) if x.bit_length() < 128 else f"an integer of {x.bit_length()} bits"


def show_value(value: Any) -> str:
    """Returns a value as an error message shows it: short, and a text without quotes unless it is empty."""
    if not isinstance(value, str):
        return _ShortRepr().repr(value)
    return value[:_LONGEST_TEXT] + "..." if len(value) > _LONGEST_TEXT else value or "''"


def _printable(text: str) -> str:
    """Returns the text on one line, with characters that cannot be printed as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ConfigError(ValueError):
    """A configuration that cannot be run. The message names the place, the key, the given and the allowed values.

    Attributes:
        problem: What is wrong, without the place.
        key: The key at fault, or None.
        where: File and line, or "command line", or None.
    """

    def __init__(
        self,
        problem: str,
        *,
        key: str | None = None,
        given: Any = _ABSENT,
        allowed: str | None = None,
        nearest: str | None = None,
        where: str | None = None,
    ) -> None:
        if given is not _ABSENT:
            problem += f"; given: {show_value(given)}"
        if allowed is not None:
            problem += f"; allowed: {allowed}"
        if nearest is not None:
            problem += f"; did you mean {nearest}?"
        super().__init__(problem)
        self.problem = problem
        self.key = key
        self.where = where

    def __str__(self) -> str:
        """Place, key and problem in one line."""
        key = self.key and show_value(self.key)
        return _printable(": ".join(part for part in (self.where, key, self.problem) if part))


class EnvError(ValueError):
    """An environment that cannot be made, or cannot be used here. The message says what to do."""


class NotNativeError(EnvError):
    """An environment that the native engine cannot step. The message is the reason, as the end of a sentence."""


class TaskError(EnvError):
    """A task of one's own that lacks something or contradicts itself. The message says what to change."""


class SimulationError(RuntimeError):
    """MuJoCo, or a task of one's own, failed in an environment of ``MujocoVecEnv``. ``reset`` starts them anew.

    Attributes:
        env_index: Index of the environment.
    """

    def __init__(self, message: str, env_index: int) -> None:
        super().__init__(message)
        self.env_index = env_index


class WorkerError(RuntimeError):
    """An environment raised in a worker process. The worker lives on, and ``reset`` starts its environments anew.

    Attributes:
        worker: Index of the worker.
        env_index: Index of the environment, or None where it is not known.
        exception_type: Class name of the exception in the worker, "" if there was none.
        exception_message: Text of that exception.
    """

    def __init__(
        self,
        message: str,
        *,
        worker: int | None = None,
        env_index: int | None = None,
        exception_type: str = "",
        exception_message: str = "",
    ) -> None:
        super().__init__(message)
        self.worker = worker
        self.env_index = env_index
        self.exception_type = exception_type
        self.exception_message = exception_message


class WorkerDiedError(WorkerError):
    """A worker process ended by itself or was killed. The vector environment is closed."""


class WorkerTimeoutError(WorkerError):
    """A worker process did not answer in time. The vector environment is closed."""


class NonFiniteError(FloatingPointError):
    """An environment or an update produced NaN or infinity. The message says where."""

    @classmethod
    def at(cls, what: str, env: int, step: int | None, value: object = None) -> NonFiniteError:
        """Returns the error of one value of a rollout.

        Args:
            what: Name of the value, such as "reward".
            env: Global index of the environment.
            step: Step of the rollout; None for what the environment returned after the last one.
            value: The value, if it is a single number.
        """
        when = "after the last step" if step is None else f"at step {step}"
        return cls(f"{what} of env {env} {when} of the rollout is {'not finite' if value is None else value}")


class CheckpointError(RuntimeError):
    """A checkpoint or a run folder cannot be written or read. The message names it and the reason."""


class RankError(RuntimeError):
    """Something failed on one rank or on several, and all ranks know. The message says where and what."""


class RankLostError(RuntimeError):
    """This rank cannot reach another one, which has probably ended."""


class RunFailed(RuntimeError):
    """A run cannot go on. The message says at which step, why, and what was saved.

    Attributes:
        expected: Whether the message tells all there is to know. Otherwise the traceback of the cause does.
        known: Whether all ranks have failed with it, if there are several.
    """

    def __init__(self, message: str, expected: bool = True, known: bool = True) -> None:
        super().__init__(message)
        self.expected, self.known = expected, known
