"""The settings that all jitted functions share, and their check for arrays that share memory."""
# mypy: disallow-untyped-defs=False

import numpy as np
from numba import njit

jit = njit(cache=True, nogil=True, error_model="numpy")


@jit
def _bounds(x):
    """Returns the addresses of an array's first byte and of the byte after its last one."""
    first = np.int64(x.ctypes.data)
    end = first + x.itemsize
    for axis in range(x.ndim):
        if x.shape[axis] == 0:
            return first, first
        reach = (x.shape[axis] - 1) * x.strides[axis]
        if reach < 0:
            first += reach
        else:
            end += reach
    return first, end


@jit
def overlap(x, y):
    """Returns whether the memory ranges of two arrays overlap."""
    x_first, x_end = _bounds(x)
    y_first, y_end = _bounds(y)
    return x_first < x_end and y_first < y_end and x_first < y_end and y_first < x_end
