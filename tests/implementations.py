"""Forces a kernel implementation for a part of a test, the way a user does: by XCFAST_IMPL."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from xcfast import kernels

KERNELS = ("cpp", "numba")  # both must exist wherever the tests run; a missing one is an ImportError, not a skip
ADVANTAGES = ("cpp", "numba", "torch")


@contextmanager
def forced(name: str) -> Iterator[None]:
    before = os.environ.get("XCFAST_IMPL")
    os.environ["XCFAST_IMPL"] = name
    try:
        kernels.use()
        assert kernels.name == name
        yield
    finally:
        if before is None:
            del os.environ["XCFAST_IMPL"]
        else:
            os.environ["XCFAST_IMPL"] = before
        kernels.use()
