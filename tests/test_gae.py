import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import ADVANTAGES, forced

from xcfast import compute_gae, compute_returns
from xcfast.kernels import reference

GAMMA, LAMBDA = 0.99, 0.95
each_implementation = pytest.mark.parametrize("implementation", ADVANTAGES)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
shapes = st.tuples(st.integers(1, 40), st.integers(1, 19))
seeds = st.integers(0, 2**32 - 1)


class Case:
    """A random rollout; what a flag masks is NaN."""

    def __init__(self, seed, shape, dtype=np.float64, p_end=0.15):
        rng = np.random.default_rng(seed)
        self.rewards, self.values, self.final_values, self.next_values = rng.normal(size=(4, *shape)).astype(dtype)
        self.last_values = rng.normal(size=shape[1:]).astype(dtype)
        self.terminated, self.truncated = rng.random((2, *shape)) < p_end
        self.final_values[~self.truncated | self.terminated] = np.nan
        self.next_values[self.terminated] = np.nan

    def gae(self, **changes):
        arguments = {
            "rewards": self.rewards,
            "values": self.values,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "last_values": self.last_values,
            "final_values": self.final_values,
            "gamma": GAMMA,
            "gae_lambda": LAMBDA,
        }
        return compute_gae(**{**arguments, **changes})

    def reference(self, **changes):
        wide = {
            k: None if x is None else x.astype(np.float64)
            for k, x in vars(self).items()
            if x is None or x.dtype != bool
        }
        arguments = (
            {k: wide[k] for k in ("last_values", "final_values")} | {"gamma": GAMMA, "gae_lambda": LAMBDA} | changes
        )
        return reference.gae(wide["rewards"], wide["values"], self.terminated, self.truncated, **arguments)

    def tolerance(self, advantages):
        """Each of T steps rounds a handful of sums of this scale, and gamma and lambda are rounded once each."""
        arrays = (
            self.rewards,
            self.values,
            self.values,
            self.last_values,
            self.final_values,
            self.next_values,
            advantages,
        )
        scale = sum(float(np.nanmax(np.abs(x), initial=0)) for x in arrays)
        return 4 * len(self.rewards) * np.finfo(self.rewards.dtype).eps * scale


def assert_close(given, wanted, tolerance):
    np.testing.assert_allclose(given, wanted, rtol=0, atol=tolerance)


# --- the kernel for CUDA devices: on one where there is one, else in Triton's interpreter, so few and small cases ---


TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (70, 2)])
@pytest.mark.parametrize("bootstrap", ["last and final", "last", "next"])
@pytest.mark.parametrize("p_end", [0.0, 0.15, 1.0])
def test_triton_equals_reference(shape, bootstrap, p_end):
    case = Case(shape[0], shape, np.float32, p_end)
    choice = {}
    if bootstrap == "next":
        choice = {"last_values": None, "final_values": None, "next_values": case.next_values}
    elif bootstrap == "last":
        case.truncated &= case.terminated  # a flag that changes nothing
        choice = {"final_values": None}
    arguments = {k: v for k, v in (vars(case) | {"next_values": None} | choice).items() if v is not None}
    tensors = {k: torch.from_numpy(v).to(TRITON_DEVICE) for k, v in arguments.items()}
    out = tuple(torch.full(shape, np.nan, device=TRITON_DEVICE) for _ in range(2))
    with forced("triton"):
        assert compute_gae(**tensors, gamma=GAMMA, gae_lambda=LAMBDA, out=out) is out
    advantages, returns = case.reference(**choice)
    tolerance = case.tolerance(advantages)
    assert_close(out[0].cpu(), advantages, tolerance)
    assert_close(out[1].cpu(), returns, tolerance)


def test_triton_serves_float32_alone():
    from xcfast.kernels import triton_gae

    case = Case(0, (3, 2))
    wide = [torch.from_numpy(x) for x in (case.rewards, case.values, case.terminated)]
    last, out = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 3, 2, dtype=torch.float64)
    assert not triton_gae.gae(*wide, None, last, None, None, GAMMA, LAMBDA, *out)
    assert not out.any()


# --- against the reference ---


@each_implementation
@each_dtype
@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    shape=shapes,
    bootstrap=st.sampled_from(["last and final", "next"]),
    p_end=st.sampled_from([0.0, 0.15, 1.0]),
)
def test_equals_reference(implementation, dtype, seed, shape, bootstrap, p_end):
    case = Case(seed, shape, dtype, p_end)
    choice = {}
    if bootstrap == "next":
        choice = {"last_values": None, "final_values": None, "next_values": case.next_values}
    with forced(implementation):
        advantages, returns = case.gae(**choice)
        out = (np.empty_like(advantages), np.empty_like(advantages))
        assert case.gae(**choice, out=out) is out
        cuts = {"last_values": case.last_values, "final_values": case.final_values} | choice
        discounted = compute_returns(case.rewards, case.terminated, case.truncated, **cuts, gamma=GAMMA)
    assert advantages.dtype == returns.dtype == discounted.dtype == dtype
    wide = {k: None if x is None else x.astype(np.float64) for k, x in choice.items()}
    wanted = case.reference(**wide)
    tolerance = case.tolerance(wanted[0])
    assert_close(advantages, wanted[0], tolerance)
    assert_close(returns, wanted[1], tolerance)
    np.testing.assert_array_equal(out[0], advantages)
    np.testing.assert_array_equal(out[1], returns)
    wide_cuts = {k: None if x is None else x.astype(np.float64) for k, x in cuts.items()}
    wanted_sum = reference.discounted_returns(
        case.rewards.astype(np.float64), case.terminated, case.truncated, **wide_cuts, gamma=GAMMA
    )
    assert_close(discounted, wanted_sum, case.tolerance(wanted_sum))


# A trajectory by hand, gamma = lambda = 1/2 so that all numbers are exact. Envs as columns:
# 0 runs through the rollout's edge; 1 terminates at t=1; 2 is truncated at t=1; 3 is both at t=1 (termination wins).
GOLDEN = {
    "rewards": [[1, 1, 1, 1], [2, 2, 2, 2], [4, 4, 4, 4]],
    "values": [[2, 2, 2, 2], [4, 4, 4, 4], [8, 8, 8, 8]],
    "terminated": [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]],
    "truncated": [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]],
    "final_values": [[np.nan] * 4, [np.nan, np.nan, 6, np.nan], [np.nan] * 4],
    "last_values": [16, 16, 16, 16],
}
# t=2: 4 + 16/2 - 8 = 4.  t=1: env 0: 2 + 8/2 - 4 + 4/4 = 3; 1 and 3: 2 - 4 = -2; 2: 2 + 6/2 - 4 = 1.  t=0: 1 + 4/2 -
# 2 + A1/4.
GOLDEN_ADVANTAGES = [[1.75, 0.5, 1.25, 0.5], [3, -2, 1, -2], [4, 4, 4, 4]]
# t=2: 4 + 16/2 = 12.  t=1: 2 + 12/2 = 8; 2; 2 + 6/2 = 5; 2.  t=0: 1 + G1/2.
GOLDEN_RETURNS = [[5, 2, 3.5, 2], [8, 2, 5, 2], [12, 12, 12, 12]]


@each_implementation
@each_dtype
def test_golden_trajectory(implementation, dtype):
    golden = {k: np.array(x, bool if k.endswith("ated") else dtype) for k, x in GOLDEN.items()}
    with forced(implementation):
        advantages, returns = compute_gae(**golden, gamma=0.5, gae_lambda=0.5)
        del golden["values"]
        discounted = compute_returns(**golden, gamma=0.5)
    np.testing.assert_array_equal(advantages, GOLDEN_ADVANTAGES)
    np.testing.assert_array_equal(returns, np.add(GOLDEN_ADVANTAGES, GOLDEN["values"]))
    np.testing.assert_array_equal(discounted, GOLDEN_RETURNS)


# --- laws ---


@each_implementation
@settings(max_examples=20, deadline=None)
@given(seed=seeds, shape=shapes)
def test_lambda_zero_is_the_td_error(implementation, seed, shape):
    case = Case(seed, shape)
    with forced(implementation):
        advantages, _ = case.gae(gae_lambda=0.0)
    successors = np.concatenate([case.values[1:], case.last_values[None]])
    successors = np.where(case.terminated, 0, np.where(case.truncated, case.final_values, successors))
    assert_close(advantages, case.rewards + GAMMA * successors - case.values, case.tolerance(advantages))


@each_implementation
@settings(max_examples=20, deadline=None)
@given(seed=seeds, shape=shapes)
def test_undiscounted_lambda_one_telescopes(implementation, seed, shape):
    case = Case(seed, shape, p_end=0)
    with forced(implementation):
        _, returns = case.gae(gamma=1.0, gae_lambda=1.0)
    to_come = np.cumsum(case.rewards[::-1], axis=0)[::-1] + case.last_values
    assert_close(returns, to_come, case.tolerance(to_come))


@each_implementation
@settings(max_examples=20, deadline=None)
@given(seed=seeds, shape=shapes, factor=st.floats(-8, 8))
def test_linear_in_rewards_and_values(implementation, seed, shape, factor):
    one, two = Case(seed, shape), Case(seed + 1, shape)
    two.terminated, two.truncated = one.terminated, one.truncated
    two.final_values = np.random.default_rng(seed).normal(size=shape)
    both = Case(seed, shape)
    for name in ("rewards", "values", "final_values", "last_values"):
        setattr(both, name, getattr(one, name) + factor * getattr(two, name))
    with forced(implementation):
        wanted = one.gae()[0] + factor * two.gae()[0]
        advantages = both.gae()[0]
    assert_close(
        advantages, wanted, both.tolerance(wanted) + abs(factor) * two.tolerance(wanted) + one.tolerance(wanted)
    )


@each_implementation
@settings(max_examples=20, deadline=None)
@given(seed=seeds, shape=shapes)
def test_envs_are_independent(implementation, seed, shape):
    case, permuted = Case(seed, shape), Case(seed, shape)
    order = np.random.default_rng(seed).permutation(shape[1])
    for name, x in vars(case).items():
        setattr(permuted, name, x[..., order])
    with forced(implementation):
        advantages, single = case.gae()[0], Case(seed, shape)
        for name, x in vars(case).items():
            setattr(single, name, x[..., :1])
        np.testing.assert_array_equal(permuted.gae()[0], advantages[:, order])
        np.testing.assert_array_equal(single.gae()[0], advantages[:, :1])


@each_implementation
@settings(max_examples=20, deadline=None)
@given(seed=seeds, shape=shapes, poison=st.sampled_from([0.0, 1e30, np.inf, np.nan]))
def test_nothing_after_an_end_changes_what_precedes_it(implementation, seed, shape, poison):
    case = Case(seed, shape, p_end=0.3)
    with forced(implementation):
        before = case.gae()[0]
        done = case.terminated | case.truncated
        protected = np.flip(np.maximum.accumulate(np.flip(done, 0), axis=0), 0)  # an end follows, or is here
        case.rewards[~protected] = poison
        case.values[~protected] = poison
        case.last_values[...] = poison
        with np.errstate(all="ignore"):
            after = case.gae()[0]
    # the last protected step of an env is a done one, which does not look at the next value
    np.testing.assert_array_equal(after[protected], before[protected])


@each_implementation
def test_nan_reward_reaches_only_its_episode(implementation):
    case = Case(3, (6, 2), p_end=0)
    case.terminated[2, 0] = True
    case.rewards[4, 0] = np.nan
    with forced(implementation):
        advantages = case.gae()[0]
    assert np.isnan(advantages[3:5, 0]).all()
    assert np.isfinite(advantages[[0, 1, 2, 5], 0]).all() and np.isfinite(advantages[:, 1]).all()


# --- layouts and dtypes ---


def layouts(x):
    """The same values in memory orders that a kernel cannot read directly."""
    yield np.asfortranarray(x)
    wide = np.repeat(x, 2, axis=0)
    yield wide[::2]
    yield x[::-1].copy()[::-1]
    yield x.astype(x.dtype.newbyteorder(">"))
    read_only = x.copy()
    read_only.flags.writeable = False
    yield read_only


@each_implementation
def test_any_layout(implementation):
    case = Case(5, (7, 5), np.float32)
    with forced(implementation):
        wanted = case.gae()
        for name in ("rewards", "values", "final_values", "terminated", "truncated"):
            for x in layouts(getattr(case, name)):
                if implementation == "torch" and (not x.dtype.isnative or min(x.strides) < 0 or not x.flags.writeable):
                    continue  # torch has no such tensors
                for given, array in zip(case.gae(**{name: x}), wanted, strict=True):
                    np.testing.assert_array_equal(given, array)
        strided = np.empty((2, 7, 10), np.float32)[:, :, ::2]
        assert case.gae(out=tuple(strided))[0].base is not None
        np.testing.assert_array_equal(strided, wanted)


@each_implementation
def test_env_major(implementation):
    case = Case(6, (9, 4))
    transposed = {k: x.T.copy() for k, x in vars(case).items() if k != "last_values"}
    del transposed["next_values"]
    with forced(implementation):
        wanted = case.gae()
        given = case.gae(**transposed, time_major=False)
        out = (np.empty((4, 9)), np.empty((4, 9)))
        case.gae(**transposed, time_major=False, out=out)
    for array, target, w in zip(given, out, wanted, strict=True):
        np.testing.assert_array_equal(array, w.T)
        np.testing.assert_array_equal(target, w.T)


@each_implementation
@pytest.mark.parametrize("last_shape", [(), (1,)])
def test_one_dimension(implementation, last_shape):
    case = Case(7, (11, 1))
    flat = {k: x[:, 0] for k, x in vars(case).items() if x.ndim == 2}
    del flat["next_values"]
    with forced(implementation):
        wanted = case.gae()
        given = case.gae(**flat, last_values=case.last_values.reshape(last_shape))
    for array, w in zip(given, wanted, strict=True):
        assert array.shape == (11,)
        np.testing.assert_array_equal(array, w[:, 0])


@each_implementation
def test_mixed_precision_becomes_float64(implementation):
    case = Case(8, (5, 3))
    with forced(implementation):
        given = case.gae(values=case.values.astype(np.float32))[0]
        wanted = case.gae(values=case.values.astype(np.float32).astype(np.float64))[0]
    assert given.dtype == np.float64
    np.testing.assert_array_equal(given, wanted)


@each_implementation
@pytest.mark.parametrize("flag_dtype", [np.float32, np.uint8, np.int64])
def test_numeric_flags(implementation, flag_dtype):
    case = Case(9, (5, 3))
    with forced(implementation):
        given = case.gae(terminated=case.terminated.astype(flag_dtype), truncated=case.truncated.astype(flag_dtype))[0]
        np.testing.assert_array_equal(given, case.gae()[0])


@each_implementation
@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(
    "name", ["rewards", "values", "terminated", "truncated", "last_values", "final_values", "the other output"]
)
def test_outputs_that_share_memory_are_refused(implementation, tensors, name):
    """An output is written while other arguments are still read."""
    case = Case(10, (6, 3))
    case.final_values[...] = 0
    memory = np.zeros(6 * 3 * 2)
    outputs = [memory[:18].reshape(6, 3), memory[1:19].reshape(6, 3)]
    changes, message = {}, r"out \(advantages\) must not share memory with out \(returns\)"
    if name != "the other output":
        given = getattr(case, name)
        shared = memory.view(given.dtype)[-given.size :].reshape(given.shape)
        shared[...] = given
        changes[name] = shared
        outputs = [np.zeros((6, 3)), memory[18:].reshape(6, 3)]
        message = rf"out \(returns\) must not share memory with {name}"
    if tensors:
        arguments = {k: torch.from_numpy(v) for k, v in vars(case).items() if k != "next_values"}
        changes = arguments | {k: torch.from_numpy(v) for k, v in changes.items()}
        outputs = [torch.from_numpy(x) for x in outputs]
    before = memory.copy()
    with forced(implementation), pytest.raises(ValueError, match=message):
        case.gae(**changes, out=tuple(outputs))
    np.testing.assert_array_equal(memory, before)


@each_implementation
def test_returns_that_share_memory_are_refused(implementation):
    case = Case(10, (6, 3))
    arguments = {"truncated": case.truncated, "last_values": case.last_values, "final_values": case.final_values}
    with forced(implementation), pytest.raises(ValueError, match=r"out \(returns\) must not share memory with rewards"):
        compute_returns(case.rewards, case.terminated, **arguments, out=case.rewards)


@each_implementation
@pytest.mark.parametrize("tensors", [False, True])
def test_an_output_whose_elements_share_memory_is_refused(implementation, tensors):
    case = Case(10, (6, 3))
    case.final_values[...] = 0
    arguments = {k: v for k, v in vars(case).items() if k != "next_values"}
    out = [np.lib.stride_tricks.as_strided(np.zeros(8), (6, 3), (8, 8)), np.zeros((6, 3))]
    if tensors:
        arguments, out = {k: torch.from_numpy(v) for k, v in arguments.items()}, [torch.from_numpy(x) for x in out]
    with forced(implementation), pytest.raises(ValueError, match=r"out \(advantages\) must have memory of its own"):
        case.gae(**arguments, out=tuple(out))
    assert not out[0].any()


@each_implementation
def test_neighbouring_memory_is_not_shared(implementation):
    case = Case(10, (6, 3))
    memory = np.zeros((3, 6, 3))
    memory[1] = case.rewards
    with forced(implementation):
        advantages, returns = case.gae(rewards=memory[1], out=(memory[0], memory[2]))
        np.testing.assert_array_equal([advantages, returns], case.gae())


def unaligned(x):
    """Returns the same values at an address that is no multiple of their size."""
    memory = np.empty(x.nbytes + 1, np.uint8)
    result = memory[1:].view(x.dtype).reshape(x.shape)
    result[...] = x
    assert not result.flags.aligned
    return result


@pytest.mark.parametrize("implementation", ["cpp", "numba"])  # torch has no unaligned tensors
@each_dtype
def test_unaligned_arrays(implementation, dtype):
    case = Case(5, (7, 5), dtype)
    out = unaligned(np.zeros((2, 7, 5), dtype))
    with forced(implementation):
        wanted = case.gae()
        for name in ("rewards", "values", "final_values", "last_values"):
            np.testing.assert_array_equal(case.gae(**{name: unaligned(getattr(case, name))}), wanted)
        case.gae(out=(out[0], out[1]))
    np.testing.assert_array_equal(out, wanted)


@each_implementation
@pytest.mark.parametrize("name", ["rewards", "values", "terminated", "truncated", "last_values", "final_values", "out"])
def test_masked_arrays_are_refused(implementation, name):
    """What a mask hides would be read as if it were data."""
    case = Case(5, (7, 5))
    out = [np.zeros((7, 5)), np.zeros((7, 5))]
    changes = {name: np.ma.array(getattr(case, name)), "out": tuple(out)} if name != "out" else {}
    if name == "out":
        changes["out"] = (np.ma.array(out[0]), out[1])
    with forced(implementation), pytest.raises(TypeError, match=r"masked array.*filled"):
        case.gae(**changes)


@pytest.mark.parametrize("implementation", ["cpp", "numba"])
@pytest.mark.parametrize(
    ("flag", "error"), [(np.nan, ValueError), (0.5, ValueError), (2, ValueError), ("no", TypeError)]
)
def test_flags_that_are_no_flags_are_refused(implementation, flag, error):
    case = Case(5, (3, 2))
    with forced(implementation), pytest.raises(error, match="terminated must be bool"):
        case.gae(terminated=np.full((3, 2), flag))


@each_implementation
def test_episode_starts_say_the_same_as_terminated(implementation):
    case = Case(11, (8, 3))
    starts = np.concatenate([np.ones((1, 3), bool), case.terminated[:-1]])
    with forced(implementation):
        wanted = case.gae(truncated=None)
        given = case.gae(
            terminated=None, truncated=None, final_values=None, episode_starts=starts, last_done=case.terminated[-1]
        )
        np.testing.assert_array_equal(given[0], wanted[0])
        discounted = [
            compute_returns(case.rewards, **flags, last_values=case.last_values)
            for flags in ({"terminated": case.terminated}, {"episode_starts": starts, "last_done": case.terminated[-1]})
        ]
    np.testing.assert_array_equal(*discounted)


@each_implementation
@each_dtype
@pytest.mark.parametrize("with_out", [False, True])
def test_values_after_the_last_step_as_a_row(implementation, dtype, with_out):
    """CleanRL's loops give the next value as [1, N]; env-major rollouts have [N, 1]."""
    case = Case(12, (8, 3), dtype)
    out = (np.zeros((8, 3), dtype), np.zeros((8, 3), dtype)) if with_out else None
    starts = np.concatenate([np.ones((1, 3), bool), case.terminated[:-1]])
    with forced(implementation):
        wanted = case.gae()
        np.testing.assert_array_equal(case.gae(last_values=case.last_values[None], out=out), wanted)
        across = {
            k: getattr(case, k).T.copy() for k in ("rewards", "values", "terminated", "truncated", "final_values")
        }
        given = case.gae(**across, last_values=case.last_values[:, None], time_major=False)
        np.testing.assert_array_equal([x.T for x in given], wanted)
        flags = {"terminated": None, "truncated": None, "final_values": None, "episode_starts": starts}
        np.testing.assert_array_equal(
            case.gae(**flags, last_values=case.last_values[None], last_done=case.terminated[-1:]),
            case.gae(**flags, last_done=case.terminated[-1]),
        )


@each_implementation
def test_truncation_that_termination_hides_needs_no_value(implementation):
    case = Case(12, (8, 3))
    with forced(implementation):
        given = case.gae(truncated=case.terminated, final_values=None)
        np.testing.assert_array_equal(given[0], case.gae(truncated=None)[0])


# --- errors ---

X = np.zeros((4, 2), np.float32)
FLAGS = np.zeros((4, 2), bool)
GOOD = {"rewards": X, "values": X, "terminated": FLAGS, "last_values": X[0]}


@each_implementation
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"values": X[:3]}, ValueError, r"values must be \[4, 2\] as rewards is; got float32 \[3, 2\]"),
        ({"terminated": FLAGS[:, :1]}, ValueError, r"terminated must be \[4, 2\] as rewards is; got bool \[4, 1\]"),
        ({"last_values": X[0, :1]}, ValueError, r"last_values must be \[2\] or \[1, 2\], one .* got float32 \[1\]"),
        ({"rewards": X.astype(int)}, TypeError, r"rewards must be float.*; got .*int64 \[4, 2\]"),
        ({"rewards": X[:0], "values": X[:0], "terminated": FLAGS[:0]}, ValueError, r"T >= 1; got float32 \[0, 2\]"),
        ({"rewards": X[None], "values": X[None], "terminated": FLAGS[None]}, ValueError, r"float \[T, N\] or \[T\]"),
        ({"truncated": ~FLAGS}, ValueError, "truncated steps need final_values or next_values"),
        ({"next_values": X}, ValueError, "exactly one of last_values and next_values"),
        ({"last_values": None}, ValueError, "exactly one of last_values and next_values"),
        ({"last_values": None, "next_values": X, "final_values": X}, ValueError, "exclude each other"),
        ({"terminated": None}, ValueError, "exactly one of terminated and episode_starts"),
        ({"episode_starts": FLAGS, "last_done": FLAGS[0]}, ValueError, "exactly one of terminated and episode_starts"),
        ({"terminated": None, "episode_starts": FLAGS}, ValueError, "episode_starts and last_done go together"),
        (
            {"terminated": None, "truncated": FLAGS, "episode_starts": FLAGS, "last_done": FLAGS[0]},
            ValueError,
            "cannot tell truncation from termination",
        ),
        ({"rewards": None}, TypeError, r"rewards must be float \[T, N\]; got None"),
        ({"values": None}, TypeError, r"values must be float \[T, N\]; got None"),
        ({"last_values": X[0] * 1j}, TypeError, r"last_values must be real numbers; got .*complex64 \[2\]"),
        ({"out": ()}, ValueError, r"out must be \(advantages, returns\); got 0 arrays"),
        ({"out": (X.copy(), X.copy(), X.copy())}, ValueError, r"out must be \(advantages, returns\); got 3 arrays"),
        ({"out": np.zeros((2, 4, 2), np.float32)}, TypeError, r"out must be \(advantages, returns\); got float32 \[2"),
        ({"out": 3}, TypeError, r"out must be \(advantages, returns\); got int"),
        ({"gamma": 1.5}, ValueError, r"gamma must be in \[0, 1\]; got 1.5"),
        ({"gae_lambda": np.nan}, ValueError, r"gae_lambda must be in \[0, 1\]; got nan"),
        ({"out": (X.copy(), X[:3].copy())}, ValueError, r"out \(returns\) must be .*\[4, 2\]; got float32 \[3, 2\]"),
        ({"out": (X.astype(np.float64), X.copy())}, ValueError, r"out \(advantages\) must be .*float32.*; got float64"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(implementation, change, error, message):
    arguments = {**GOOD, **change}
    with forced(implementation), pytest.raises(error, match=message):
        compute_gae(**arguments)
    if "out" not in change:
        arguments["out"] = (np.zeros_like(X), np.zeros_like(X))
        with forced(implementation), pytest.raises(error, match=message):
            compute_gae(**arguments)


# --- tensors ---

torch = pytest.importorskip("torch", reason="a dependency, but the kernels serve without it")
devices = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors(device, dtype):
    case = Case(13, (33, 6), np.float32)
    tensors = {k: torch.tensor(x, device=device) for k, x in vars(case).items()}
    del tensors["next_values"]
    for name, x in tensors.items():
        if x.dtype != torch.bool:
            tensors[name] = x.to(dtype)
    tensors["values"].requires_grad_()
    advantages, returns = case.gae(**tensors)
    assert (
        advantages.dtype == returns.dtype == dtype and advantages.device.type == device and not advantages.requires_grad
    )
    exact = Case(13, (33, 6))
    for name, x in tensors.items():
        value = x.detach().cpu()
        setattr(exact, name, value.numpy() if x.dtype == torch.bool else value.double().numpy())
    wanted = exact.reference()
    for tensor, w in zip((advantages, returns), wanted, strict=True):
        eps = max(torch.finfo(dtype).eps, np.finfo(np.float64).eps)
        wide = min(eps, float(np.finfo(np.float32).eps))  # half precision is computed in float32 and rounded once
        tolerance = exact.tolerance(w) / np.finfo(np.float64).eps * wide + (
            eps * np.abs(w) if dtype == torch.bfloat16 else 0
        )
        assert (np.abs(tensor.cpu().double().numpy() - w) <= tolerance).all()
    out = (torch.empty_like(advantages), torch.empty_like(advantages))
    assert case.gae(**tensors, out=out) is out
    assert torch.equal(out[0], advantages) and torch.equal(out[1], returns)


@each_implementation
@pytest.mark.parametrize("name", ["rewards", "values", "terminated", "last_values", "out"])
def test_tensors_on_two_devices(implementation, name):
    tensors = {key: torch.from_numpy(x) for key, x in GOOD.items()}
    tensors["out"] = (torch.zeros(4, 2), torch.zeros(4, 2))
    there = (tensors["out"][0], tensors["out"][1].to("meta")) if name == "out" else tensors[name].to("meta")
    odd, device, wanted = ("values", "cpu", "meta") if name == "rewards" else (name, "meta", "cpu")
    odd = r"out \(returns\)" if odd == "out" else odd
    message = f"{odd} must be on {wanted} as rewards is; got {device}"
    with forced(implementation), pytest.raises(ValueError, match=message):
        compute_gae(**{**tensors, name: there})


@pytest.mark.parametrize("device", devices)
def test_tensor_golden_trajectory(device):
    golden = {
        k: torch.tensor(x, dtype=torch.bool if k.endswith("ated") else torch.float32, device=device)
        for k, x in GOLDEN.items()
    }
    with forced("torch"):
        advantages, _ = compute_gae(**golden, gamma=0.5, gae_lambda=0.5)
        del golden["values"]
        discounted = compute_returns(**golden, gamma=0.5)
    np.testing.assert_array_equal(advantages.cpu(), GOLDEN_ADVANTAGES)
    np.testing.assert_array_equal(discounted.cpu(), GOLDEN_RETURNS)
