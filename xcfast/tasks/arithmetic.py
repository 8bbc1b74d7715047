"""Functions that compiled tasks use: sums in numpy's order, products without BLAS, and views of mjData's memory."""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload


def xcfast_sum(x: Any) -> Any:
    """Returns the sum of an array, with numpy's order of additions (pairwise), for compiled code."""
    raise NotImplementedError


@njit(error_model="numpy")
def _block_sum(x: Any, first: int, n: int) -> float:
    # As in numpy/_core/src/umath/loops_utils.h.src, for at most 128 numbers: eight partial sums.
    if n < 8:
        total = -0.0
        for k in range(first, first + n):
            total += x[k]
        return total
    r0, r1, r2, r3 = x[first], x[first + 1], x[first + 2], x[first + 3]
    r4, r5, r6, r7 = x[first + 4], x[first + 5], x[first + 6], x[first + 7]
    whole = n - n % 8
    for k in range(first + 8, first + whole, 8):
        r0 += x[k]
        r1 += x[k + 1]
        r2 += x[k + 2]
        r3 += x[k + 3]
        r4 += x[k + 4]
        r5 += x[k + 5]
        r6 += x[k + 6]
        r7 += x[k + 7]
    total = ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))
    for k in range(first + whole, first + n):
        total += x[k]
    return total


@njit(error_model="numpy")
def _pairwise_sum(x: Any) -> float:
    """Adds the sums of two halves, each cut in halves down to a block.

    It keeps the parts that wait in arrays, since numba cannot load a recursive function from disk.
    """
    if x.size <= 128:
        return _block_sum(x, 0, x.size)
    firsts, sizes, left_done = np.zeros(64, np.int64), np.zeros(64, np.int64), np.zeros(64, np.bool_)
    lefts = np.zeros(64)
    depth, total = 0, 0.0
    sizes[0] = x.size
    while True:
        n = sizes[depth]
        if n > 128:
            half = n // 2
            half -= half % 8
            left_done[depth] = False
            firsts[depth + 1], sizes[depth + 1] = firsts[depth], half
            depth += 1
            continue
        total = _block_sum(x, firsts[depth], n)
        while depth > 0 and left_done[depth - 1]:
            depth -= 1
            total = lefts[depth] + total
        if depth == 0:
            return total
        lefts[depth - 1], left_done[depth - 1] = total, True
        half = sizes[depth]
        firsts[depth], sizes[depth] = firsts[depth] + half, sizes[depth - 1] - half


@overload(xcfast_sum)
def _sum(x: Any) -> Any:
    if not isinstance(x, types.Array) or not isinstance(x.dtype, types.Float):
        return _sum_of_integers
    return _sum_of_vector if x.ndim == 1 else _sum_of_array


def _sum_of_integers(x: Any) -> Any:
    return np.sum(x)


def _sum_of_vector(x: Any) -> Any:
    return 0.0 + _pairwise_sum(x)


def _sum_of_array(x: Any) -> Any:
    return 0.0 + _pairwise_sum(np.ascontiguousarray(x).reshape(x.size))


@njit(error_model="numpy")
def xcfast_mean(x: Any) -> Any:
    """Returns the mean of an array, as `xcfast_sum`."""
    return xcfast_sum(x) / x.size


def xcfast_dot(x: Any, y: Any) -> Any:
    """Returns the product of two vectors, of a matrix and a vector, or of two matrices, added up one by one."""
    raise NotImplementedError


@overload(xcfast_dot)
def _dot(x: Any, y: Any) -> Any:
    dims = getattr(x, "ndim", 0), getattr(y, "ndim", 0)
    return {(1, 1): _vectors, (2, 1): _matrix_vector, (1, 2): _vector_matrix, (2, 2): _matrices}.get(dims, _numbers)


def _numbers(x: Any, y: Any) -> Any:
    return x * y


def _vectors(x: Any, y: Any) -> Any:
    if x.size != y.size:
        raise ValueError("a product of vectors of different sizes")
    total = 0.0
    for k in range(x.size):
        total += x[k] * y[k]
    return total


def _matrix_vector(x: Any, y: Any) -> Any:
    if x.shape[1] != y.size:
        raise ValueError("a product of a matrix and a vector of another size")
    out = np.zeros(x.shape[0])
    for i in range(x.shape[0]):
        for k in range(y.size):
            out[i] += x[i, k] * y[k]
    return out


def _vector_matrix(x: Any, y: Any) -> Any:
    if y.shape[0] != x.size:
        raise ValueError("a product of a vector and a matrix of another size")
    out = np.zeros(y.shape[1])
    for k in range(x.size):
        for j in range(y.shape[1]):
            out[j] += x[k] * y[k, j]
    return out


def _matrices(x: Any, y: Any) -> Any:
    if x.shape[1] != y.shape[0]:
        raise ValueError("a product of matrices of other sizes")
    out = np.zeros((x.shape[0], y.shape[1]))
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            for j in range(y.shape[1]):
                out[i, j] += x[i, k] * y[k, j]
    return out


def xcfast_clip(x: Any, low: Any, high: Any) -> Any:
    """Returns numpy.clip(x, low, high) of numbers too, which numba takes of arrays alone."""
    raise NotImplementedError


@overload(xcfast_clip)
def _clip(x: Any, low: Any, high: Any) -> Any:
    return _clip_number if isinstance(x, types.Number) else _clip_array


def _clip_number(x: Any, low: Any, high: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _clip_array(x: Any, low: Any, high: Any) -> Any:
    return np.clip(x, low, high)


@njit
def xcfast_unpacked(values: Any, size: int) -> None:
    """Raises ValueError where as many values cannot be unpacked."""
    if len(values) != size:
        raise ValueError("the number of values to unpack is not that of the names")


@njit(error_model="numpy")
def xcfast_norm(x: Any) -> Any:
    """Returns the Euclidean norm of an array, its squares added up one by one."""
    total = 0.0
    for value in x.flat:
        total += value * value
    return np.sqrt(total)


@intrinsic
def at(_: Any, address: Any) -> Any:
    """Returns the address, a number, as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(address), generate
