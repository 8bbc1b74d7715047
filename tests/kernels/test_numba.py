"""The jitted functions for users: called from a user's own jitted function, against the core and the reference."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from xcfast import RunningMeanStd, _core
from xcfast.kernels import numba as jitted
from xcfast.kernels import reference
from xcfast.kernels.numba import (
    discounted_returns,
    discounted_sums,
    gae,
    merge_moments,
    normalize,
    successor_values,
    update_moments,
)

SHAPES = [(1, 1), (9, 13), (5, 64)]
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
each_shape = pytest.mark.parametrize("shape", SHAPES)


def rollout(shape, dtype, p_end=0.2):
    rng = np.random.default_rng(shape[0])
    rewards, values, final_values = rng.normal(size=(3, *shape)).astype(dtype)
    last_values = rng.normal(size=shape[1:]).astype(dtype)
    terminated, truncated = rng.random((2, *shape)) < p_end
    final_values[~truncated] = np.nan
    return rewards, values, terminated, truncated, last_values, final_values


@njit
def users_advantages(rewards, values, terminated, truncated, last_values, final_values, gamma, gae_lambda):
    next_values, advantages = np.empty_like(values), np.empty_like(values)
    returns, discounted = np.empty_like(values), np.empty_like(values)
    successor_values(values, last_values, final_values, truncated, next_values)
    gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda, advantages, returns)
    discounted_returns(rewards, next_values, terminated, truncated, gamma, discounted)
    return advantages, returns, discounted


@each_dtype
@each_shape
def test_advantages(dtype, shape):
    rewards, _, terminated, truncated, last_values, final_values = arguments = rollout(shape, dtype)
    given = users_advantages(*arguments, 0.99, 0.95)
    core = [np.empty(shape, dtype) for _ in range(3)]
    assert _core.gae(*arguments, None, 0.99, 0.95, *core[:2])
    assert _core.discounted_returns(rewards, terminated, truncated, last_values, final_values, None, 0.99, core[2])
    np.testing.assert_array_equal(given, core)
    wide = [x.astype(np.float64) if x.dtype != bool else x for x in arguments]
    options = {"last_values": wide[4], "final_values": wide[5], "gamma": 0.99}
    wanted = [
        *reference.gae(*wide[:4], gae_lambda=0.95, **options),
        reference.discounted_returns(wide[0], *wide[2:4], **options),
    ]
    # each of T steps rounds a handful of sums of this scale
    tolerance = 4 * shape[0] * np.finfo(dtype).eps * (6 * np.abs(wide[0]).max() + np.abs(wanted).max())
    np.testing.assert_allclose(given, wanted, rtol=0, atol=tolerance)
    assert all(x.dtype == dtype for x in given)


@each_dtype
def test_strided_arrays(dtype):
    arguments = rollout((9, 13), dtype)
    strided = [np.repeat(np.asfortranarray(x), 2, axis=0)[::2] for x in arguments]
    np.testing.assert_array_equal(users_advantages(*strided, 0.9, 0.8), users_advantages(*arguments, 0.9, 0.8))


@njit
def users_sums(rewards, done, gamma, carry):
    sums = np.empty(rewards.shape)
    discounted_sums(rewards, done, gamma, carry, sums)
    return sums


@each_dtype
@each_shape
def test_discounted_sums(dtype, shape):
    rewards, _, done, *_ = rollout(shape, dtype)
    carry = np.random.default_rng(0).normal(size=shape[1:])
    wanted, wanted_carry = reference.discounted_reward_sums(rewards.astype(np.float64), done, carry, 0.9)
    sums = users_sums(rewards, done, 0.9, carry)
    np.testing.assert_array_equal(sums, wanted)
    np.testing.assert_array_equal(carry, wanted_carry)


@njit
def users_moments(first, second, epsilon, outside, clip):
    dim = first.shape[1]
    mean, var, count = np.zeros(dim), np.ones(dim), np.zeros(1, np.int64)
    other_mean, other_var, other_count = np.zeros(dim), np.ones(dim), np.zeros(1, np.int64)
    ok = update_moments(first, mean, var, count)
    ok &= update_moments(second, other_mean, other_var, other_count)
    merge_moments(mean, var, count, other_mean, other_var, other_count)
    out = np.empty(first.shape, np.float32)
    normalize(first, mean, var, epsilon, outside, clip, out)
    return ok, mean, var, count, out


@each_dtype
@each_shape
@pytest.mark.parametrize("outside", [False, True])
def test_moments(dtype, shape, outside):
    first, second, *_ = rollout(shape, dtype)
    rms, other = RunningMeanStd(shape[1:], 0.01, outside), RunningMeanStd(shape[1:])
    rms.update(first)
    other.update(second)
    rms.merge(other)
    ok, mean, var, count, out = users_moments(first, second, 0.01, outside, 1.5)
    assert ok and count[0] == rms.count == 2 * shape[0]
    np.testing.assert_array_equal(mean, rms.mean)
    np.testing.assert_array_equal(var, rms.var)
    np.testing.assert_array_equal(out, rms.normalize(first, 1.5))
    wide = np.concatenate([first, second]).astype(np.float64)
    np.testing.assert_allclose(out, reference.normalize(wide[: shape[0]], mean, var, 0.01, outside, 1.5), rtol=2**-23)
    for given, wanted in zip((mean, var), reference.moments(wide), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=0, atol=32 * len(wide) * 2**-52 * np.abs(wide).max() ** 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e140])
def test_update_refuses_what_would_spoil_the_moments(bad):
    batch = np.ones((5, 2))
    batch[4, 1] = bad
    mean, var, count = np.zeros(2), np.ones(2), np.zeros(1, np.int64)
    assert not update_moments(batch, mean, var, count)
    assert (mean == 0).all() and (var == 1).all() and count[0] == 0


F, B = np.zeros((4, 3)), np.zeros((4, 3), bool)
V, ONE = np.zeros(3), np.zeros(1, np.int64)


def new(*shape):
    return np.zeros(shape)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (successor_values, (F, V, F, B, F), "out must not share memory"),
        (successor_values, (F, V[:2], F, B, new(4, 3)), r"last_values must be \[N\]"),
        (gae, (F, F, F, B, B, 0.9, 0.9, F, new(4, 3)), "advantages must not share memory with rewards"),
        (gae, (F, F, F, B, B, 0.9, 0.9, new(4, 3), F), "returns must not share memory with rewards"),
        (gae, (F, F, F, B, B, 0.9, 0.9, *[new(4, 3)] * 2), "advantages must not share memory with .* returns"),
        (gae, (F, F[:3], F, B, B, 0.9, 0.9, new(4, 3), new(4, 3)), "must have the shape of rewards"),
        (discounted_returns, (F, F, B, B, 0.9, F[::-1]), "returns must not share memory with rewards"),
        (discounted_returns, (F, F, B, B[:2], 0.9, new(4, 3)), "must have the shape of rewards"),
        (discounted_sums, (F, B, 0.9, V, F), "sums must not share memory"),
        (discounted_sums, (F, B, 0.9, F[0], new(4, 3)), "carry must not share memory"),
        (discounted_sums, (F, B, 0.9, new(4), new(4, 3)), r"carry must be \[N\]"),
        (update_moments, (F, F[0], new(3), ONE), "batch must not share memory"),
        (update_moments, (F, *[new(3)] * 2, ONE), "mean, var and count must not share memory"),
        (update_moments, (F[:0], new(3), new(3), ONE), "B >= 1"),
        (update_moments, (F, new(2), new(3), ONE), r"must be \[D\]"),
        (merge_moments, (V, new(3), ONE, V, new(3), ONE.copy()), "mean must not share memory"),
        (merge_moments, (V, new(3), ONE, new(3), new(3), ONE), "count must not share memory"),
        (merge_moments, (V, new(3), ONE, new(2), new(3), ONE.copy()), "shape of mean"),
        (normalize, (F, V, new(3), 0.1, False, 5.0, F), "out must not share memory"),
        (normalize, (F, V, new(2), 0.1, False, 5.0, new(4, 3)), r"must be \[D\]"),
    ],
)  # fmt: skip
def test_wrong_arguments_raise(function, arguments, message):
    """Unchecked, a wrong shape would read or write foreign memory."""
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_every_public_function_is_tested_here():
    assert set(jitted.__all__) <= set(globals())


def run(code, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=200)


def test_without_jit():
    """numba hands back the Python functions; then numpy's scalars do the arithmetic."""
    code = (
        "import runpy, sys, warnings; warnings.simplefilter('error')\n"
        f"tests = runpy.run_path({str(Path(__file__))!r})\n"
        "assert not hasattr(tests['gae'], 'py_func')\n"
        "for dtype in (tests['np'].float32, tests['np'].float64):\n"
        "    tests['test_advantages'](dtype, (9, 13))\n"
        "    tests['test_discounted_sums'](dtype, (9, 13))\n"
        "    tests['test_moments'](dtype, (9, 13), True)\n"
        "tests['test_update_refuses_what_would_spoil_the_moments'](1e140)\n"
    )
    result = run(code, NUMBA_DISABLE_JIT="1")
    assert result.returncode == 0, result.stderr


def test_what_is_imported():
    code = "import sys, xcfast.kernels.numba as k\nassert k.gae\nprint(sorted({'torch', 'numba'} & set(sys.modules)))"
    assert run(code).stdout.strip() == "['numba']"
    assert run(code.replace(" as k", ".jitting").replace("assert k.gae", "")).stdout.strip() == "['numba']"
    assert run("import sys, xcfast; xcfast.compute_gae; print('numba' in sys.modules)").stdout.strip() == "False"


def test_example_of_the_readme():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    (example,) = [block for block in blocks if "xcfast.kernels.numba" in block]
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    rewards, values, terminated, truncated, last_values, final_values = rollout((9, 13), np.float32)
    core = np.empty((2, 9, 13), np.float32)
    assert _core.gae(
        rewards, values, terminated, truncated, last_values, final_values, None, 0.99, 0.95, core[0], core[1]
    )
    np.testing.assert_array_equal(
        names["my_advantages"](rewards, values, terminated, truncated, last_values, final_values), core[0]
    )
