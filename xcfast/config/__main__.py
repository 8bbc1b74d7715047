"""`python -m xcfast.config`: prints every key with its values, default and meaning, as markdown."""

import contextlib
import os
import sys

from xcfast.config.table import config_table

if __name__ == "__main__":
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        print(config_table(), flush=True)
    except BrokenPipeError:  # as with `| head`; the interpreter flushes once more as it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
