"""Errors that are raised in modules with heavy imports and caught where there are none."""


class CheckpointError(RuntimeError):
    """A checkpoint or run folder cannot be written or read; the message names it and the reason."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says at which step, why, and what was saved.

    Attributes:
        expected: whether the message tells all there is to know; otherwise the cause's traceback does.
        known: whether all ranks have failed with it, if there are several.
    """

    def __init__(self, message: str, expected: bool = True, known: bool = True) -> None:
        super().__init__(message)
        self.expected, self.known = expected, known
