"""Jitted functions for a user's own ``@njit`` code: advantage estimation, discounted sums, running moments.

Every argument is an array or a scalar. Each function checks shapes, writes its results into arrays that the caller
allocates, and neither allocates large memory nor starts threads. All are compiled on first use, cached on disk and
release the GIL. Results have the same bits as those of the compiled core, also where numba does not compile
(``NUMBA_DISABLE_JIT=1``).

Note:
    Arrays may be strided. An output must not share memory with another argument; that raises a ValueError.
"""

from xcfast.kernels.numba.advantages import discounted_returns, discounted_sums, gae, successor_values
from xcfast.kernels.numba.moments import merge_moments, normalize, update_moments

__all__ = [
    "discounted_returns",
    "discounted_sums",
    "gae",
    "merge_moments",
    "normalize",
    "successor_values",
    "update_moments",
]
