"""Counter-based random numbers: the same on every platform, in every implementation and for any grouping of envs.

Stream: Philox4x32-10 with a key made of the seed and the purpose, and the counter (global env index, step count low,
    step count high,
block). ``kernels/reference.py`` spells it out.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from xcfast import kernels


def gaussian_noise(
    seed: int, env_offset: int, counters: npt.NDArray[np.int64], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Fills `out` with standard normal numbers.

    Args:
        seed: Any int, taken modulo 2**64.
        env_offset: Global index of the first env.
        counters: int64 [N], how many draws each env made before; the caller increments it.
        out: float32 [N, A], C-contiguous.

    Returns:
        `out`.
    """
    if not kernels.impl.gaussian_noise(seed, env_offset, counters, out):
        raise _error("float32 [N, A]", env_offset, counters, out)
    return out


def uniform_noise(
    seed: int, env_offset: int, counters: npt.NDArray[np.int64], out: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Fills `out` (float64 [N]) with uniform numbers in (0, 1); other arguments as in `gaussian_noise`."""
    if not kernels.impl.uniform_noise(seed, env_offset, counters, out):
        raise _error("float64 [N]", env_offset, counters, out)
    return out


def _error(wanted: str, env_offset: int, counters: Any, out: Any) -> ValueError:
    def given(x: Any) -> str:
        return f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__

    return ValueError(
        f"counters must be int64 [N], out {wanted}, both C-contiguous, env_offset >= 0; "
        f"got {given(counters)}, {given(out)}, {env_offset}"
    )
