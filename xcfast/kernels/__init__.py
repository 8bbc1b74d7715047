"""Numeric kernels, and the choice between their implementations.

``XCFAST_IMPL`` forces one: ``cpp`` (the compiled core, the default), ``numba``, ``torch`` or ``triton`` (advantage
estimation in torch's operations or in one Triton kernel; the rest in ``cpp``). Tensors on a CUDA device are served by
Triton if it is installed, else by torch. Without the compiled core and without the variable, numba is used, after one
warning.

All implementations have the functions listed in ``_core.pyi``: they take plain arrays (``numpy.ndarray``,
C-contiguous, native dtype, matching shapes) and write into the caller's outputs; for anything else they do nothing and
return False or None.
"""

import os
import warnings
from importlib import import_module
from types import ModuleType

IMPLEMENTATIONS = ("cpp", "numba", "torch", "triton")

#: The module in use. `use` sets it; read it at each call, as ``kernels.impl.gae(...)``.
impl: ModuleType
#: Its name, one of IMPLEMENTATIONS.
name: str


def load(implementation: str) -> ModuleType:
    """Returns the module of one implementation.

    Raises:
        ImportError: It is not available; the message says how to get it.
        ValueError: There is no such implementation.
    """
    if implementation == "numba":
        return import_module("xcfast.kernels.numba.impl")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"XCFAST_IMPL must be one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}")
    try:
        return import_module("xcfast._core")
    except ImportError as error:
        raise ImportError(
            f"the compiled core of xcfast is missing ({error}); "
            "build it with `pip install -e .`, or set XCFAST_IMPL=numba"
        ) from error


def use(implementation: str | None = None) -> None:
    """Chooses the implementation of all later calls; None reads ``XCFAST_IMPL`` again."""
    global impl, name
    forced = implementation or os.environ.get("XCFAST_IMPL") or None
    try:
        impl, name = load(forced or "cpp"), forced or "cpp"
    except ImportError as error:
        if forced is not None:
            raise
        warnings.warn(f"{error}; using numba instead", RuntimeWarning, stacklevel=2)
        impl, name = load("numba"), "numba"


use()
