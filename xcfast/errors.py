"""Errors that are raised in modules with heavy imports and caught where there are none."""


class CheckpointError(RuntimeError):
    """A checkpoint or run folder cannot be written or read; the message names it and the reason."""
