"""Trains seeds of one or several settings side by side."""

from xcfast.sweep.command import main

__all__ = ["main"]
