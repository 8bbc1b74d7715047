"""The arithmetic of compiled tasks against numpy: sums in its order, and bounds for what differs in the last places."""

import numba
import numpy as np
import pytest

from xcfast.tasks.arithmetic import xcfast_clip, xcfast_dot, xcfast_mean, xcfast_norm, xcfast_sum

RNG = np.random.default_rng(0)
EPS = np.finfo(np.float64).eps


@numba.njit
def total(x):
    return xcfast_sum(x)


@numba.njit
def mean(x):
    return xcfast_mean(x)


@numba.njit
def product(x, y):
    return xcfast_dot(x, y)


@numba.njit
def norm(x):
    return xcfast_norm(x)


@numba.njit
def clip(x, low, high):
    return xcfast_clip(x, low, high)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40, 127, 128, 129, 1000, 4097, 77_777])
def test_sums_have_numpys_order_of_additions(size):
    x = RNG.standard_normal(size) * 10.0 ** RNG.integers(-8, 8, size)
    assert total(x) == np.sum(x)
    if size:
        assert mean(x) == np.mean(x)


def test_sums_of_other_arrays():
    x = RNG.standard_normal((7, 30))
    assert total(x) == np.sum(x)
    assert total(x[:, 3]) == np.sum(x[:, 3])
    assert total(x > 0) == np.sum(x > 0)


@pytest.mark.parametrize("shapes", [((9,), (9,)), ((4, 9), (9,)), ((9,), (9, 4)), ((4, 9), (9, 3))])
def test_products_are_those_of_blas_but_for_the_order(shapes):
    x, y = (RNG.standard_normal(shape) for shape in shapes)
    bound = 2 * 9 * EPS * np.dot(np.abs(x), np.abs(y))  # of nine additions in either order
    assert (np.abs(product(x, y) - np.dot(x, y)) <= bound).all()


def test_products_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="vectors of different sizes"):
        product(np.zeros(3), np.zeros(4))


def test_norms_and_clips():
    x = RNG.standard_normal(12)
    assert abs(norm(x) - np.linalg.norm(x)) <= 12 * EPS * np.linalg.norm(x)
    np.testing.assert_array_equal(clip(x, -0.5, 0.5), np.clip(x, -0.5, 0.5))
    assert [clip(one, -0.5, 0.5) for one in x] == np.clip(x, -0.5, 0.5).tolist()
    assert np.isnan(clip(np.nan, -1.0, 1.0))


@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos", "tan", "tanh", "arctan", "sinh", "cosh", "sqrt"])
def test_functions_differ_from_numpys_in_the_last_places_at_most(name):
    """numpy promises four units in the last place for its own code, which it has for some CPUs, and libm has one."""
    function = getattr(np, name)
    x = RNG.standard_normal(20_000)
    x = np.abs(x) + 1e-3 if name in ("log", "sqrt") else x
    ours, theirs = numba.njit(lambda values: function(values))(x), function(x)
    assert (np.abs(ours - theirs) <= 5 * np.spacing(np.abs(theirs))).all()


def test_squares_of_numbers_differ_by_one_unit_at_most():
    @numba.njit
    def squares(x):
        out = np.empty_like(x)
        for k in range(x.size):
            out[k] = x[k] ** 2
        return out

    x = RNG.standard_normal(20_000)
    theirs = np.array([one**2 for one in x])
    assert (np.abs(squares(x) - theirs) <= np.spacing(theirs)).all()
    np.testing.assert_array_equal(squares(x), np.square(x))
