"""Running mean and variance of samples."""

import math
import operator
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xcfast import kernels
from xcfast.errors import NonFiniteError
from xcfast.kernels.arguments import check_memory, check_output, check_unmasked, describe, float_array
from xcfast.kernels.reference import LARGEST

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class RunningMeanStd:
    """Mean and population variance of all samples so far, in float64 by Chan's formula.

    Args:
        shape: Shape of one sample.
        epsilon: Small number, >= 0, that keeps the deviation away from 0.
        epsilon_outside: Where `epsilon` is added. False: the deviation is ``sqrt(var + epsilon)``. True: it is
            ``sqrt(var) + epsilon``, as in XuanCe.

    Attributes:
        mean: float64 [*shape], 0 before the first sample. Updated in place.
        var: float64 [*shape], 1 before the first sample. Updated in place.
        count_array: int64 [1], the number of samples. Updated in place.
        epsilon: As given.
        epsilon_outside: As given, or as in the last state loaded.
        lock: Held by each call; hold it to read several attributes at once.

    Note:
        Several threads may use one object: each call takes a lock.
    """

    def __init__(self, shape: tuple[int, ...] = (), epsilon: float = 1e-8, epsilon_outside: bool = False) -> None:
        self.shape = tuple(shape)
        self.epsilon = float(epsilon)
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and >= 0; got {epsilon}")
        self.epsilon_outside = bool(epsilon_outside)
        self.mean: Float64 = np.zeros(self.shape)
        self.var: Float64 = np.ones(self.shape)
        self.count_array = np.zeros(1, np.int64)
        # Kernels drop the GIL for large batches. Re-entrant, so that a signal handler cannot wait for its own thread.
        self.lock = threading.RLock()

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.count_array[0])

    @property
    def deviation(self) -> Float64:
        """float64 [*shape], the divisor of `normalize`; see `epsilon_outside`."""
        with self.lock:
            if self.epsilon_outside:
                return np.asarray(np.sqrt(self.var) + self.epsilon)
            return np.asarray(np.sqrt(self.var + self.epsilon))

    def update(self, batch: npt.ArrayLike) -> None:
        """Adds a batch of samples.

        Args:
            batch: float [B, *shape], B >= 1.

        Raises:
            NonFiniteError: A value is NaN, infinite, or at least 1e140 in absolute value (the sum of the squares would
                overflow). Nothing has changed.
            TypeError: `batch` is a masked array, or not made of real numbers.
            ValueError: The shape is wrong, or `batch` shares memory with `mean` or `var`.
        """
        with self.lock:
            if not kernels.impl.moments_update(batch, self.mean, self.var, self.count_array):
                rows = self._usable_batch(batch)
                self.check_accepted(kernels.impl.moments_update(rows, self.mean, self.var, self.count_array))

    def update_from_moments(self, mean: npt.ArrayLike, var: npt.ArrayLike, count: int) -> None:
        """Adds samples, given by their moments.

        Args:
            mean: float [*shape], their mean.
            var: float [*shape], their population variance.
            count: Number of samples, an int; 0 changes nothing.

        Raises:
            NonFiniteError: `mean` or `var` has a value that is not finite, or too large (see `update`).
            ValueError: A shape is wrong, `var` is negative, `count` is not an int >= 0, or there would be 2**62 samples
                or more. Nothing has changed.
        """
        count = _whole("count", count)
        if count == 0:
            return
        check_unmasked({"mean": mean, "var": var})
        means, variances = np.array(mean, np.float64, ndmin=0), np.array(var, np.float64, ndmin=0)
        if means.shape != self.shape or variances.shape != self.shape:
            raise ValueError(
                f"mean and var must be {list(self.shape)}; got {list(means.shape)}, {list(variances.shape)}"
            )
        _check_usable("mean", means)
        _check_usable("var", variances, LARGEST**2)
        if (variances < 0).any():
            raise ValueError(f"var must be >= 0; got {variances.min()}")
        rows = np.array([count], np.int64), means[None], np.ascontiguousarray(variances[None] * count)
        with self.lock:
            _whole("count of all samples", self.count + count)
            self.check_accepted(kernels.impl.merge_tracked(*rows, self.mean, self.var, self.count_array))

    def merge(self, other: "RunningMeanStd") -> None:
        """Adds the samples of `other`."""
        seen = other.state_dict()
        self.update_from_moments(seen["mean"], seen["var"], seen["count"])

    def normalize(self, x: npt.ArrayLike, clip: float | None = None, out: Float32 | None = None) -> Float32:
        """Returns clip((x - mean) / deviation) as float32, computed in float64. NaN stays NaN.

        Args:
            x: float [B, *shape], or one sample [*shape].
            clip: Bound of the absolute value, > 0; None for no bound.
            out: float32, shape of `x`, for the result. It must not share memory with `x`, `mean` or `var`.
        """
        return self._apply("normalize", x, clip, out)

    def update_and_normalize(
        self, batch: npt.ArrayLike, clip: float | None = None, out: Float32 | None = None
    ) -> Float32:
        """Adds a batch, then normalizes it, in one call; arguments and errors as in `update` and `normalize`."""
        return self._apply("update_and_normalize", batch, clip, out)

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of mean, var and count, and epsilon_outside."""
        with self.lock:
            return {
                "mean": self.mean.copy(),
                "var": self.var.copy(),
                "count": self.count,
                "epsilon_outside": self.epsilon_outside,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state that `state_dict` returned, in place. A state without epsilon_outside means False.

        Raises:
            ValueError: The state does not fit, or its values are not moments. Nothing has changed.
        """
        mean, var = (state_array(state, name, getattr(self, name)) for name in ("mean", "var"))
        if not np.isfinite(mean).all() or not np.isfinite(var).all() or (var < 0).any():
            raise ValueError("state must have a finite 'mean' and a finite 'var' >= 0")
        count = _whole("state 'count'", state.get("count"))
        outside = state.get("epsilon_outside", False)
        if not isinstance(outside, bool | np.bool_):
            raise ValueError(f"state 'epsilon_outside' must be a bool; got {outside!r}")
        with self.lock:
            self.mean[...] = mean
            self.var[...] = var
            self.count_array[0] = count
            self.epsilon_outside = bool(outside)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for copying and pickling: everything except the lock."""
        with self.lock:
            return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes a lock for the copy."""
        self.__dict__.update(state, lock=threading.RLock())

    def _apply(self, kernel: str, x: Any, clip: float | None, out: Float32 | None) -> Float32:
        limit = math.inf if clip is None else clip
        if not limit > 0:
            raise ValueError(f"clip must be > 0, or None for no bound; got {clip}")
        if out is None:
            out = np.empty(np.shape(x), np.float32)
        call = getattr(kernels.impl, kernel)
        with self.lock:
            if call(x, self.mean, self.var, self.count_array, self.epsilon, self.epsilon_outside, limit, out):
                return out
            check_output("out", out, np.float32, np.shape(x))
            check_memory({"out": out}, {"x": x, "mean": self.mean, "var": self.var})
            single = np.shape(x) == self.shape and kernel == "normalize"
            if kernel == "normalize":
                rows = self._batch(float_array("x", x)[None] if single else x)
            else:
                rows = self._usable_batch(x)
            result = np.empty(rows.shape, np.float32)
            settings = self.epsilon, self.epsilon_outside, limit
            self.check_accepted(call(rows, self.mean, self.var, self.count_array, *settings, result))
            np.copyto(out, result[0] if single else result)
        return out

    def _batch(self, x: Any) -> npt.NDArray[Any]:
        batch = float_array("batch", x)
        if batch.ndim < 1 or batch.shape[1:] != self.shape or len(batch) < 1:
            wanted = ", ".join(["B >= 1", *map(str, self.shape)])
            raise ValueError(f"batch must be float [{wanted}]; got {describe(batch)}")
        check_memory({"batch": batch}, {"mean": self.mean, "var": self.var})
        return batch

    def _usable_batch(self, x: Any) -> npt.NDArray[Any]:
        batch = self._batch(x)
        _check_usable("batch", batch)
        return batch

    def check_accepted(self, done: bool) -> None:
        """Raises an error about the moments if a kernel has refused valid arguments."""
        if not done:
            raise ValueError(
                f"mean and var must stay writable float64 {list(self.shape)}, C-contiguous; "
                f"they are {describe(self.mean)}, {describe(self.var)}"
            )


def _check_usable(name: str, x: npt.NDArray[Any], largest: float = LARGEST) -> None:
    """Raises a NonFiniteError if a value cannot enter the moments."""
    wrong = ~within(x, largest)
    if wrong.any():
        index = np.argwhere(wrong)[0].tolist()
        raise NonFiniteError(
            f"{name} must be finite and below {largest:g} in absolute value; element {index} is {x[tuple(index)]}"
        )


def within(x: npt.NDArray[Any], largest: float = LARGEST) -> npt.NDArray[np.bool_]:
    """Returns which float values are finite and below `largest` (or float32's range) in absolute value."""
    return np.isfinite(x) if x.dtype == np.float32 else np.abs(x) < largest


def _whole(name: str, value: Any) -> int:
    """Returns a number of samples as an int; raises an error if it is not one, or does not fit an int64."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an int; got {value!r}") from None
    if not 0 <= number < 2**62:
        raise ValueError(f"{name} must be in [0, 2**62); got {number}")
    return number


def state_array(state: Mapping[str, Any], name: str, target: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns an entry of a state as an array; raises a ValueError if it is missing or does not fit `target`."""
    if name not in state:
        raise ValueError(f"state lacks {name!r}")
    given = np.asarray(state[name])
    kinds = "fiub" if target.dtype.kind == "f" else "iu"
    if given.shape != target.shape or given.dtype.kind not in kinds:
        raise ValueError(f"state {name!r} must be {target.dtype} {list(target.shape)}; got {describe(given)}")
    return given
