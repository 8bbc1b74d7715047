import copy
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import KERNELS, forced

from xcfast import ObservationNormalizer, RewardNormalizer, RunningMeanStd
from xcfast.errors import NonFiniteError
from xcfast.kernels import reference

EPS = np.finfo(np.float64).eps
each_implementation = pytest.mark.parametrize("implementation", KERNELS)
seeds = st.integers(0, 2**32 - 1)


def samples(seed, rows, shape=(3,), offset=0.0, scale=1.0, dtype=np.float64):
    return (np.random.default_rng(seed).normal(size=(rows, *shape)) * scale + offset).astype(dtype)


def assert_moments(rms, batch):
    """Sums of B terms round B times; the mean is rounded at its own size, which enters the variance too."""
    mean, var = reference.moments(batch.astype(np.float64))
    rows, spread = len(batch), float(np.abs(batch.astype(np.float64) - mean).max(initial=0))
    slack = EPS * (np.abs(mean) + spread) * (rows + 8)
    assert rms.count == rows
    assert (np.abs(rms.mean - mean) <= slack).all()
    assert (np.abs(rms.var - var) <= 4 * rows * rows * EPS * var + 4 * slack * spread + slack**2).all()


# --- running moments ---


@each_implementation
@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    rows=st.integers(1, 60),
    shape=st.sampled_from([(), (1,), (5,), (2, 3)]),
    splits=st.lists(st.integers(0, 60), max_size=6),
    offset=st.sampled_from([0.0, 1.0, -1e6]),
)
def test_moments_do_not_depend_on_the_split(implementation, seed, rows, shape, splits, offset):
    batch = samples(seed, rows, shape, offset)
    parts = [p for p in np.split(batch, sorted(min(s, rows) for s in splits)) if len(p)]
    with forced(implementation):
        by_update, by_merge, by_moments = (RunningMeanStd(shape) for _ in range(3))
        for part in parts:
            by_update.update(part)
            other = RunningMeanStd(shape)
            other.update(part)
            by_merge.merge(other)
            by_moments.update_from_moments(*reference.moments(part), len(part))
    for rms in (by_update, by_merge, by_moments):
        assert_moments(rms, batch)


@each_implementation
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_batch_dtypes(implementation, dtype):
    batch = samples(0, 50, scale=100, dtype=dtype)
    with forced(implementation):
        rms = RunningMeanStd((3,))
        rms.update(batch)
    assert_moments(rms, batch)


@each_implementation
def test_large_offset_and_tiny_variance(implementation):
    batch = samples(1, 4096, (2,), offset=1e6, scale=1e-3)
    with forced(implementation):
        rms = RunningMeanStd((2,))
        for part in np.split(batch, 16):
            rms.update(part)
        normalizer = ObservationNormalizer((2,), num_envs=16)
        for step in batch.reshape(256, 16, 2):
            normalizer.normalize_and_track(step)
        normalizer.commit()
    _, var = reference.moments(batch)
    # the samples themselves are rounded to 1e6 * EPS; the running means are, too, and that enters the variance squared
    tolerance = 16 * (1e6 * EPS) ** 2 + 32 * 1e6 * EPS * 1e-3
    assert (np.abs(rms.var - var) <= tolerance).all() and (tolerance < 1e-4 * var).all()
    assert (np.abs(normalizer.rms.var - var) <= tolerance).all()


@each_implementation
def test_outlier_as_first_row(implementation):
    batch = samples(2, 1000, (1,))
    batch[0] = 1e6
    with forced(implementation):
        rms = RunningMeanStd((1,))
        rms.update(batch)
    assert_moments(rms, batch)


@each_implementation
def test_start_and_state(implementation):
    with forced(implementation):
        rms, copy = RunningMeanStd((2,)), RunningMeanStd((2,))
        assert (rms.mean == 0).all() and (rms.var == 1).all() and rms.count == 0
        rms.merge(copy)
        assert rms.count == 0 and (rms.var == 1).all()
        rms.update(samples(3, 9, (2,)))
        copy.load_state_dict(rms.state_dict())
        for x in (rms, copy):
            x.update(samples(4, 9, (2,)))
    assert copy.count == rms.count == 18
    np.testing.assert_array_equal(copy.mean, rms.mean)
    np.testing.assert_array_equal(copy.var, rms.var)
    with pytest.raises(ValueError, match=r"'mean' must be float64 \[3\]; got float64 \[2\]"):
        RunningMeanStd((3,)).load_state_dict(rms.state_dict())


@each_implementation
@settings(max_examples=20, deadline=None)
@given(
    seed=seeds,
    rows=st.integers(1, 30),
    shape=st.sampled_from([(), (1,), (27,), (2, 3)]),
    clip=st.sampled_from([None, 0.5, 5.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
    outside=st.booleans(),
)
def test_normalize_equals_reference(implementation, seed, rows, shape, clip, dtype, outside):
    batch = samples(seed, rows, shape, 10.0, 3.0, dtype)
    with forced(implementation):
        rms, fused = (RunningMeanStd(shape, 0.01, outside) for _ in range(2))
        rms.update(batch)
        out = np.full(batch.shape, np.nan, np.float32)
        assert rms.normalize(batch, clip, out) is out
        both = fused.update_and_normalize(batch, clip)
        single = rms.normalize(batch[0], clip)
        strided = rms.normalize(np.repeat(batch, 2, axis=0)[::2], clip, np.empty((2 * rows, *shape), np.float32)[::2])
    wide = batch.astype(np.float64)
    wanted = reference.normalize(wide, rms.mean, rms.var, rms.epsilon, outside, np.inf if clip is None else clip)
    # float64 division by the root, or multiplication by its inverse: 3 roundings; then one to float32
    np.testing.assert_allclose(out, wanted, rtol=np.finfo(np.float32).eps, atol=0)
    np.testing.assert_array_equal(both, out)
    np.testing.assert_array_equal(single, out[0])
    np.testing.assert_array_equal(strided, out)
    assert fused.count == rms.count and out.dtype == single.dtype == np.float32


@each_implementation
def test_normalize_keeps_nan_and_clips_infinity(implementation):
    with forced(implementation):
        given = RunningMeanStd((3,)).normalize(np.array([[np.nan, np.inf, -np.inf]]), 5.0)
    np.testing.assert_array_equal(given, [[np.nan, 5, -5]])


@each_implementation
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.update(np.zeros((2, 4))), ValueError, r"batch must be float \[B >= 1, 3\]; got float64 \[2, 4\]"),
        (lambda r: r.update(np.zeros(3)), ValueError, r"batch must be float \[B >= 1, 3\]; got float64 \[3\]"),
        (lambda r: r.update(np.zeros((0, 3))), ValueError, r"batch must be .* got float64 \[0, 3\]"),
        (lambda r: r.update(np.zeros((2, 3), complex)), TypeError, r"real numbers; got complex128 \[2, 3\]"),
        (
            lambda r: r.normalize(np.zeros((2, 3)), 5.0, np.zeros((2, 3))),
            ValueError,
            r"out must be float32 \[2, 3\]; got float64",
        ),
        (lambda r: r.update_from_moments(0, 1, 5), ValueError, r"mean and var must be \[3\]"),
    ],
)
def test_errors_say_what_is_wrong(implementation, call, error, message):
    rms = RunningMeanStd((3,))
    with forced(implementation), pytest.raises(error, match=message):
        call(rms)
    assert rms.count == 0


@each_implementation
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e140, -1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_would_spoil_the_moments_are_refused(implementation, bad, dtype):
    """One NaN in the mean, or an overflow in the variance, would stay for good."""
    batch = samples(4, 9)
    with np.errstate(over="ignore"):
        broken = batch.astype(dtype)
        broken[7, 1] = bad
    with forced(implementation):
        rms = RunningMeanStd((3,))
        rms.update(batch)
        before = rms.state_dict()
        for call in (rms.update, rms.update_and_normalize, lambda x: rms.update(x.tolist())):
            with pytest.raises(NonFiniteError, match=r"batch must be finite .* element \[7, 1\] is"):
                call(broken)
        bad_var = np.array([1.0, 1e280 if np.isfinite(bad) else bad**2, 1.0])
        for mean, var in (
            (broken[7], np.ones(3)),
            (np.ones(3), bad_var),
        ):
            with pytest.raises(NonFiniteError, match=r"must be finite .* element \[1\] is"):
                rms.update_from_moments(mean, var, 5)
        with pytest.raises(ValueError, match=r"var must be >= 0; got -1"):
            rms.update_from_moments(np.ones(3), -np.ones(3), 5)
        after = rms.state_dict()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


@each_implementation
def test_largest_values_do_not_overflow(implementation):
    with forced(implementation):
        rms = RunningMeanStd((2,))
        for sign in (1, -1, 1):
            rms.update(np.full((5, 2), sign * 9e139))
    assert np.isfinite(rms.mean).all() and np.isfinite(rms.var).all() and (rms.var > 0).all()


@each_implementation
@pytest.mark.parametrize("size", [(4, 3), (40_000, 3)])  # kernels drop the GIL for the larger one
def test_threads_may_share_moments(implementation, size):
    batch = samples(5, *size[:1])
    with forced(implementation):
        rms, alone = RunningMeanStd((3,)), RunningMeanStd((3,))
        rms.update(batch)  # compiles, where that must be
        threads = [threading.Thread(target=lambda: [rms.update(batch) for _ in range(20)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in range(81):
            alone.update(batch)
    assert rms.count == 81 * len(batch)
    # one batch after another, whichever thread it is from: the same sums in the same order
    np.testing.assert_array_equal(rms.mean, alone.mean)
    np.testing.assert_array_equal(rms.var, alone.var)


def test_copies_and_pickles_are_independent():
    rms = RunningMeanStd((3,), 0.5, epsilon_outside=True)
    rms.update(samples(6, 9))
    for copied in (copy.deepcopy(rms), pickle.loads(pickle.dumps(rms))):
        assert copied.count == 9 and copied.epsilon == 0.5 and copied.epsilon_outside
        copied.update(samples(7, 9))
        assert (copied.count, rms.count) == (18, 9)


@each_implementation
def test_arrays_that_share_memory_are_refused(implementation):
    shared = samples(8, 4).astype(np.float32)
    with forced(implementation):
        rms = RunningMeanStd((3,))
        rms.update(shared)
        normalizer, rewards = ObservationNormalizer((3,), num_envs=4), RewardNormalizer(3)
        normalizer.normalize_and_track(shared)
        states = [x.state_dict() for x in (rms, normalizer, rewards)]
        for call, names in (
            (lambda: rms.normalize(shared, 5.0, shared), "out must not share memory with x"),
            (lambda: rms.update_and_normalize(shared, 5.0, shared), "out must not share memory with x"),
            (lambda: rms.update(rms.mean[None]), "batch must not share memory with mean"),
            (lambda: rms.normalize(rms.var[None]), "batch must not share memory with var"),
            (lambda: normalizer.normalize(shared, shared), "out must not share memory with x"),
            (lambda: normalizer.normalize_and_track(shared, shared), "out must not share memory with obs"),
            (lambda: rewards(shared, np.zeros((4, 3), bool), shared), "out must not share memory with rewards"),
            (lambda: rewards(rewards.returns[None], [[0, 0, 0]]), "returns must not share memory with rewards"),
        ):
            with pytest.raises(ValueError, match=names):
                call()
        for x, before in zip((rms, normalizer, rewards), states, strict=True):
            assert repr(x.state_dict()) == repr(before)


@each_implementation
def test_unaligned_masked_and_read_only_arrays(implementation):
    batch = samples(9, 4)
    memory, room = np.empty(batch.nbytes + 1, np.uint8), np.empty(4 * 3 * 4 + 1, np.uint8)
    odd, out = memory[1:].view(np.float64).reshape(4, 3), room[1:].view(np.float32).reshape(4, 3)
    odd[...] = batch
    read_only = np.zeros((4, 3), np.float32)
    read_only.flags.writeable = False
    done = np.zeros((4, 3), bool)
    with forced(implementation):
        rms, aligned = RunningMeanStd((3,)), RunningMeanStd((3,))
        rms.update(odd)
        aligned.update(batch)
        np.testing.assert_array_equal(rms.mean, aligned.mean)
        np.testing.assert_array_equal(rms.normalize(odd, 5.0, out), aligned.normalize(batch, 5.0))
        normalizer = ObservationNormalizer((3,), num_envs=4)
        wanted = normalizer.normalize_and_track(batch)
        np.testing.assert_array_equal(normalizer.normalize_and_track(odd, out), wanted)
        wanted = RewardNormalizer(3)(batch, done)
        np.testing.assert_array_equal(RewardNormalizer(3)(odd, done, out), wanted)
        for call in (rms.update, rms.normalize, normalizer.normalize_and_track, lambda x: RewardNormalizer(3)(x, done)):
            with pytest.raises(TypeError, match=r"masked array.*filled"):
                call(np.ma.array(batch))
        for call in (
            lambda: rms.normalize(batch, 5.0, read_only),
            lambda: normalizer.normalize_and_track(batch, read_only),
            lambda: RewardNormalizer(3)(batch, done, read_only),
        ):
            with pytest.raises(ValueError, match="out must be writable"):
                call()


@each_implementation
@pytest.mark.parametrize("outside", [False, True])
def test_where_epsilon_is_added(implementation, outside):
    """At a deviation of 1e-4 the two formulas differ in the eighth digit or the first, as epsilon is 1e-8 or 1e-3."""
    batch = samples(10, 1000, scale=1e-4)
    with forced(implementation):
        rms = RunningMeanStd((3,), 1e-3, epsilon_outside=outside)
        normalizer = ObservationNormalizer((3,), num_envs=1000, epsilon=1e-3, epsilon_outside=outside)
        rms.update(batch)
        normalizer.normalize_and_track(batch)
        normalizer.commit()
        rewards = RewardNormalizer(3, gamma=0.0, epsilon=1e-3)
        rewards.rms.epsilon_outside = outside
        scaled = rewards(batch, np.zeros((1000, 3), bool))
        for moments, given in (
            (rms, rms.normalize(batch)),
            (rms, copy.deepcopy(rms).update_and_normalize(batch)),
            (normalizer.rms, normalizer.normalize(batch)),
            (normalizer.rms, normalizer.normalize_and_track(batch)),
        ):
            deviation = np.sqrt(moments.var) + 1e-3 if outside else np.sqrt(moments.var + 1e-3)
            np.testing.assert_array_equal(moments.deviation, deviation)
            assert moments.deviation.dtype == np.float64
            np.testing.assert_allclose(given, (batch - moments.mean) / deviation, rtol=2**-23, atol=0)
        np.testing.assert_allclose(scaled, batch / rewards.rms.deviation, rtol=2**-23, atol=0)
        loaded = RunningMeanStd((3,), 1e-3)
        loaded.load_state_dict(rms.state_dict())
        np.testing.assert_array_equal(loaded.normalize(batch), rms.normalize(batch))
        older = {name: value for name, value in rms.state_dict().items() if name != "epsilon_outside"}
        loaded.load_state_dict(older)
        assert not loaded.epsilon_outside


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.0, np.nan, 0.0]},
        {"var": [1.0, -1e-9, 1.0]},
        {"var": [np.inf, 1.0, 1.0]},
        {"var": [1.0]},
        {"mean": ["a", "b", "c"]},
        {"count": -1},
        {"count": 2.5},
        {"count": np.nan},
        {"count": 2**70},
        {"epsilon_outside": "False"},
    ],
)
def test_a_state_that_is_none_changes_nothing(change):
    rms = RunningMeanStd((3,))
    rms.update(samples(11, 9))
    before = repr(rms.state_dict())
    with pytest.raises(ValueError, match="state"):
        rms.load_state_dict({**RunningMeanStd((3,)).state_dict(), **change})
    assert repr(rms.state_dict()) == before


def test_incomplete_state_names_the_entry():
    with pytest.raises(ValueError, match="state lacks 'var'"):
        RunningMeanStd(()).load_state_dict({"mean": 0.0, "count": 0})


@pytest.mark.parametrize("count", [2.5, np.nan, "1", -1, 2**62, 2**70])
def test_number_of_samples_that_is_none_changes_nothing(count):
    """A sum of counts beyond int64 would become negative."""
    rms = RunningMeanStd(())
    rms.update_from_moments(1.0, 1.0, 2**61)
    before = repr(rms.state_dict())
    with pytest.raises(ValueError, match="count must be"):
        rms.update_from_moments(0.0, 1.0, count)
    with pytest.raises(ValueError, match=r"count of all samples must be in \[0, 2\*\*62\)"):
        rms.update_from_moments(0.0, 1.0, 2**61)
    assert repr(rms.state_dict()) == before


@pytest.mark.parametrize("bad", [-1e-8, np.nan, np.inf])
def test_epsilon_and_clip_must_be_bounds(bad):
    with pytest.raises(ValueError, match="epsilon must be finite and >= 0"):
        RunningMeanStd((), bad)
    rms = RunningMeanStd(())
    if bad != np.inf:
        with pytest.raises(ValueError, match="clip must be > 0, or None"):
            rms.normalize([1.0], bad)


# --- observations ---


@each_implementation
@settings(max_examples=15, deadline=None)
@given(seed=seeds, steps=st.integers(1, 40), num_envs=st.integers(1, 7), offset=st.sampled_from([0.0, 1e6]))
def test_tracked_observations_become_the_moments(implementation, seed, steps, num_envs, offset):
    obs = samples(seed, steps, (num_envs, 3), offset)
    with forced(implementation):
        normalizer = ObservationNormalizer((3,), num_envs=num_envs)
        for step in obs:
            frozen = normalizer.rms.normalize(step, normalizer.clip)
            np.testing.assert_array_equal(normalizer.normalize_and_track(step), frozen)
        assert normalizer.rms.count == 0
        normalizer.commit()
        assert_moments(normalizer.rms, obs.reshape(-1, 3))
        normalizer.commit()
        assert normalizer.rms.count == steps * num_envs


@each_implementation
def test_env_groups_track_alike(implementation):
    """What an env contributes does not depend on the envs beside it: ranks can share them out."""
    obs = samples(5, 20, (6, 3))
    with forced(implementation):
        whole = ObservationNormalizer((3,), num_envs=6)
        parts = [ObservationNormalizer((3,), num_envs=n) for n in (2, 4)]
        for step in obs:
            whole.normalize_and_track(step)
            for part, rows in zip(parts, (step[:2], step[2:]), strict=True):
                part.normalize_and_track(rows)
    joined = [np.concatenate([p.state_dict()[name] for p in parts]) for name in ("counts", "means", "m2s")]
    for array, name in zip(joined, ("counts", "means", "m2s"), strict=True):
        np.testing.assert_array_equal(array, whole.state_dict()[name])


@each_implementation
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_observation_is_named(implementation, enabled, bad):
    with forced(implementation):
        normalizer = ObservationNormalizer((2, 2), num_envs=3, enabled=enabled)
        obs = samples(6, 3, (2, 2))
        normalizer.normalize_and_track(obs)
        broken = obs.copy()
        broken[1, 0, 1] = bad
        normalizer.normalize_and_track(broken)
        normalizer.normalize_and_track(obs)
        with pytest.raises(NonFiniteError, match=r"env 1 .* element \[0, 1\]"):
            normalizer.commit()
        assert normalizer.rms.count == 0
        normalizer.discard()
        normalizer.normalize_and_track(obs)
        normalizer.commit()
    assert normalizer.rms.count == (3 if enabled else 0)


@each_implementation
@pytest.mark.parametrize("values", [(1e300, 1e300), (1e150, -1e150), (1e140, 1e140)])
def test_observation_that_would_overflow_the_moments_is_named(implementation, values):
    """Finite, but their squares are not: the variance would be NaN for good."""
    with forced(implementation):
        normalizer = ObservationNormalizer((2,), num_envs=2)
        for value in values:
            normalizer.normalize_and_track([[0.0, 0.0], [0.0, value]])
        with pytest.raises(NonFiniteError, match=r"env 1 has a value that is at least 1e\+140 .*, element \[1\]"):
            normalizer.commit()
        assert normalizer.rms.count == 0 and (normalizer.rms.var == 1).all()
        normalizer.discard()
        for value in (9e139, -9e139):
            normalizer.normalize_and_track([[0.0, 0.0], [0.0, value]])
        normalizer.commit()
    # four samples of the second component: 0, 0 and the two large ones
    np.testing.assert_allclose(normalizer.rms.var, [0, 9e139**2 / 2], rtol=8 * EPS)


@pytest.mark.parametrize("change", [{"counts": [-1, 0]}, {"counts": [0.5, 0]}, {"m2s": [[-1.0], [0.0]]}])
def test_tracked_state_that_is_none_changes_nothing(change):
    normalizer = ObservationNormalizer((1,), num_envs=2)
    normalizer.normalize_and_track([[1.0], [2.0]])
    before = repr(normalizer.state_dict())
    with pytest.raises(ValueError, match="state 'counts'"):
        normalizer.load_state_dict({**normalizer.state_dict(), **change})
    assert repr(normalizer.state_dict()) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_reward_state_that_is_none_changes_nothing(bad):
    normalizer = RewardNormalizer(2)
    with pytest.raises(ValueError, match="state 'returns' must be finite"):
        normalizer.load_state_dict({**normalizer.state_dict(), "returns": [0.0, bad]})
    assert (normalizer.returns == 0).all()


@each_implementation
def test_disabled_only_casts(implementation):
    obs = samples(7, 4, (3,), 100.0)
    with forced(implementation):
        normalizer = ObservationNormalizer((3,), num_envs=4, enabled=False)
        np.testing.assert_array_equal(normalizer.normalize_and_track(obs), obs.astype(np.float32))
        normalizer.commit()
        np.testing.assert_array_equal(normalizer.normalize(obs[:2]), obs[:2].astype(np.float32))


@each_implementation
def test_observation_state_continues_in_the_middle(implementation):
    obs = samples(8, 10, (4, 3))
    with forced(implementation):
        one, two = (ObservationNormalizer((3,), num_envs=4) for _ in range(2))
        for step in obs[:5]:
            one.normalize_and_track(step)
        two.load_state_dict(one.state_dict())
        for normalizer in (one, two):
            for step in obs[5:]:
                normalizer.normalize_and_track(step)
            normalizer.commit()
    np.testing.assert_array_equal(one.rms.mean, two.rms.mean)
    np.testing.assert_array_equal(one.rms.var, two.rms.var)


@each_implementation
def test_observation_layouts_and_errors(implementation):
    obs = samples(9, 4, (3,))
    with forced(implementation):
        normalizer = ObservationNormalizer((3,), num_envs=4)
        wanted = normalizer.normalize_and_track(obs)
        out = np.empty((4, 6), np.float32)[:, ::2]
        np.testing.assert_array_equal(normalizer.normalize_and_track(np.asfortranarray(obs), out), wanted)
        with pytest.raises(ValueError, match=r"obs must be float \[4, 3\]; got float64 \[3, 3\]"):
            normalizer.normalize_and_track(obs[:3])
        with pytest.raises(ValueError, match=r"out must be float32 \[4, 3\]; got float64"):
            normalizer.normalize_and_track(obs, obs.copy())
        assert normalizer.state_dict()["counts"].tolist() == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="clip must be > 0; got 0"):
        ObservationNormalizer((3,), num_envs=4, clip=0)


@pytest.mark.filterwarnings("error")
@each_implementation
def test_without_statistics_one_warning_says_so(implementation):
    obs = samples(12, 4)
    with forced(implementation):
        normalizer = ObservationNormalizer((3,), num_envs=4, clip=0.5)
        with pytest.warns(RuntimeWarning, match="clipped but not normalized") as caught:
            given = normalizer.normalize(obs)
            normalizer.normalize(obs)
        np.testing.assert_array_equal(given, np.clip(obs, -0.5, 0.5).astype(np.float32))
        assert len(caught) == 1 and caught[0].filename == __file__
        started = ObservationNormalizer((3,), num_envs=4)
        started.normalize_and_track(obs)
        started.normalize(obs)  # within the first rollout
        started.commit()
        started.normalize(obs)
        ObservationNormalizer((3,), num_envs=4, enabled=False).normalize(obs)


# --- rewards ---


@each_implementation
@settings(max_examples=20, deadline=None)
@given(
    seed=seeds,
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    num_envs=st.integers(1, 9),
    dtype=st.sampled_from([np.float32, np.float64]),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_rewards_follow_the_rule(implementation, seed, lengths, num_envs, dtype, gamma):
    rng = np.random.default_rng(seed)
    carry, seen = np.zeros(num_envs), []
    with forced(implementation):
        normalizer = RewardNormalizer(num_envs, gamma=gamma, clip=1.5)
        for length in lengths:
            rewards, done = rng.normal(size=(length, num_envs)).astype(dtype), rng.random((length, num_envs)) < 0.2
            given = normalizer(rewards, done)
            sums, carry = reference.discounted_reward_sums(rewards.astype(np.float64), done, carry, gamma)
            seen.append(sums.reshape(-1))
            total = np.concatenate(seen)
            _, var = reference.moments(total)
            # T * N sums round as in any running variance; half of the relative error of var goes to its root
            relative = 4 * len(total) ** 2 * EPS + 16 * len(total) * EPS * np.abs(total).max() ** 2 / (var + 1e-8)
            assert abs(normalizer.rms.var - var) <= relative * (var + 1e-8)
            wanted = np.clip(rewards.astype(np.float64) / np.sqrt(var + 1e-8), -1.5, 1.5)
            np.testing.assert_allclose(given, wanted, rtol=np.finfo(np.float32).eps + relative, atol=0)
            np.testing.assert_allclose(
                normalizer.returns, carry, rtol=0, atol=sum(lengths) * EPS * (np.abs(total).max() + 1)
            )
    assert normalizer.rms.count == sum(lengths) * num_envs


@each_implementation
def test_reward_state_out_and_errors(implementation):
    rng = np.random.default_rng(1)
    rewards, done = rng.normal(size=(2, 8, 3)), rng.random((2, 8, 3)) < 0.2
    with forced(implementation):
        one, two = RewardNormalizer(3), RewardNormalizer(3)
        one(rewards[0], done[0])
        two.load_state_dict(one.state_dict())
        out = np.empty((8, 6), np.float32)[:, ::2]
        assert two(rewards[1], done[1], out) is out
        np.testing.assert_array_equal(one(rewards[1], done[1]), out)
        before = one.state_dict()
        broken = rewards[0].copy()
        broken[5, 2] = np.nan
        with pytest.raises(NonFiniteError, match="env 2 at step 5 of the rollout is nan"):
            one(broken, done[0])
        with pytest.raises(ValueError, match=r"\[T >= 1, 3\]; got float64 \[8, 2\]"):
            one(rewards[0][:, :2], done[0])
        assert one.state_dict()["rms"] == before["rms"]
        off = RewardNormalizer(3, enabled=False)
        np.testing.assert_array_equal(off(rewards[0], done[0]), rewards[0].astype(np.float32))
        with pytest.raises(NonFiniteError):
            off(broken, done[0])
