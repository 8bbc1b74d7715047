"""Counter-based random numbers, the same on every platform, in every implementation and for any grouping of envs.

The stream is Philox4x32-10. Its key consists of the seed and the purpose of the numbers; its counter is
(global env index, low word of the step count, high word of the step count, block). ``kernels/reference.py`` is the full
definition.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from xcfast import kernels
from xcfast.kernels.arguments import describe


def gaussian_noise(
    seed: int, env_offset: int, counters: npt.NDArray[np.int64], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Fills an array with standard normal numbers.

    Args:
        seed: Any int, taken modulo 2**64.
        env_offset: Global index of the first env, >= 0.
        counters: int64 [N], the number of earlier draws of each env. This function does not increment it.
        out: float32 [N, A], C-contiguous, for the result. It must not share memory with `counters`.

    Returns:
        `out`.

    Raises:
        ValueError: An argument has another type, dtype, shape or memory layout; nothing is written.
    """
    if not kernels.impl.gaussian_noise(seed, env_offset, counters, out):
        raise _error("float32 [N, A]", env_offset, counters, out)
    return out


def uniform_noise(
    seed: int, env_offset: int, counters: npt.NDArray[np.int64], out: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Fills an array with uniform numbers in (0, 1).

    Args:
        seed: Any int, taken modulo 2**64.
        env_offset: Global index of the first env, >= 0.
        counters: int64 [N], the number of earlier draws of each env. This function does not increment it.
        out: float64 [N], C-contiguous, for the result. It must not share memory with `counters`.

    Returns:
        `out`.

    Raises:
        ValueError: An argument has another type, dtype, shape or memory layout; nothing is written.
    """
    if not kernels.impl.uniform_noise(seed, env_offset, counters, out):
        raise _error("float64 [N]", env_offset, counters, out)
    return out


def _error(wanted: str, env_offset: int, counters: Any, out: Any) -> ValueError:
    def given(x: Any) -> str:
        if type(x) is not np.ndarray:
            return type(x).__name__
        faults = {
            "not C-contiguous": not x.flags.c_contiguous,
            "unaligned": not x.flags.aligned,
            "read-only": x is out and not x.flags.writeable,
            "sharing memory": isinstance(counters, np.ndarray) and np.may_share_memory(out, counters),
        }
        return " ".join([describe(x), *(fault for fault, found in faults.items() if found)])

    return ValueError(
        f"counters must be int64 [N], out {wanted}, both C-contiguous and aligned, sharing no memory, "
        f"out writable, env_offset >= 0; got {given(counters)}, {given(out)}, {env_offset}"
    )
