"""What the numba kernels share: the decorator and the checks of plain arrays."""

from typing import Any

import numpy as np
from numba import njit

jit = njit(cache=True, nogil=True, error_model="numpy")


def plain(*arrays: Any) -> bool:
    """Whether all are exactly ndarray, C-contiguous and of a native dtype."""
    return all(type(x) is np.ndarray and x.flags.c_contiguous and x.dtype.isnative for x in arrays)


def is_float(x: np.ndarray) -> bool:
    """Whether x is float32 or float64."""
    return x.dtype == np.float32 or x.dtype == np.float64


def writable(*arrays: np.ndarray) -> bool:
    """Whether all may be written."""
    return all(x.flags.writeable for x in arrays)
