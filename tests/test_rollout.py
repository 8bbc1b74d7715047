import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import KERNELS, forced

from xcfast import Rollout
from xcfast.errors import NonFiniteError
from xcfast.kernels import reference

each_implementation = pytest.mark.parametrize("implementation", KERNELS)


class Steps:
    """Random vector steps."""

    def __init__(self, seed, num_steps, num_envs, p_end=0.2):
        rng = np.random.default_rng(seed)
        shape = (num_steps, num_envs)
        self.obs = rng.normal(size=(*shape, 3)).astype(np.float32)
        self.actions = rng.normal(size=(*shape, 2)).astype(np.float32)
        self.rewards = rng.normal(size=shape)
        self.terminated, self.truncated = rng.random((2, *shape)) < p_end
        self.final = rng.normal(size=(*shape, 3)).astype(np.float32)

    def store(self, rollout, t):
        cut = self.truncated[t] & ~self.terminated[t]
        final_obs = self.final[t][cut] if cut.any() else None
        rollout.store(self.obs[t], self.actions[t], self.rewards[t], self.terminated[t], self.truncated[t], final_obs)


@each_implementation
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_steps=st.integers(1, 12),
    num_envs=st.integers(1, 7),
    p_end=st.sampled_from([0, 0.2, 1]),
)
def test_store(implementation, seed, num_steps, num_envs, p_end):
    steps = Steps(seed, 2 * num_steps, num_envs, p_end)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, int)
    rollout = Rollout(num_steps, num_envs, (3,), (2,))
    with forced(implementation):
        for first in (0, num_steps):  # episodes run on over clear()
            rollout.clear()
            episodes = []
            for t in range(first, first + num_steps):
                assert rollout.step == t - first and not rollout.full
                steps.store(rollout, t)
                returns += steps.rewards[t]
                lengths += 1
                for n in np.flatnonzero(steps.terminated[t] | steps.truncated[t]):
                    episodes.append((t - first, n, returns[n], lengths[n]))
                    returns[n] = lengths[n] = 0
            assert rollout.full
            part = slice(first, first + num_steps)
            np.testing.assert_array_equal(rollout.obs, steps.obs[part])
            np.testing.assert_array_equal(rollout.actions, steps.actions[part])
            np.testing.assert_array_equal(rollout.rewards, steps.rewards[part].astype(np.float32))
            np.testing.assert_array_equal(rollout.terminated, steps.terminated[part])
            np.testing.assert_array_equal(rollout.truncated, steps.truncated[part])
            assert rollout.episodes.tolist() == episodes
            cut = (steps.truncated & ~steps.terminated)[part]
            np.testing.assert_array_equal(rollout.final_index, np.flatnonzero(cut))
            np.testing.assert_array_equal(rollout.final_obs, steps.final[part][cut])
    np.testing.assert_array_equal(rollout.episode_returns, returns)
    np.testing.assert_array_equal(rollout.episode_lengths, lengths)


@each_implementation
def test_rows_written_in_place_stay(implementation):
    steps, rollout = Steps(0, 2, 3, 0), Rollout(2, 3, (3,), (2,))
    with forced(implementation):
        for t in range(2):
            rollout.obs[t], rollout.actions[t] = steps.obs[t], steps.actions[t]
            rollout.store(rollout.obs[t], rollout.actions[t], steps.rewards[t], steps.terminated[t], steps.truncated[t])
    np.testing.assert_array_equal(rollout.obs, steps.obs)
    np.testing.assert_array_equal(rollout.actions, steps.actions)


@each_implementation
def test_store_converts(implementation):
    rollout = Rollout(3, 4, (2,), (), np.int64)
    obs = np.arange(8.0).reshape(2, 4).T  # float64, Fortran order
    with forced(implementation):
        rollout.store(obs, np.arange(4, dtype=np.int32), [1, 2, 3, 4], np.zeros(4, bool), [False] * 4)
        rollout.store(
            np.ones((4, 2), np.float32), np.arange(4), np.ones(4, np.float32), np.zeros(4, bool), np.zeros(4, bool)
        )
    np.testing.assert_array_equal(rollout.obs[0], obs)
    assert rollout.actions.tolist()[:2] == [[0, 1, 2, 3]] * 2
    assert rollout.episode_returns.tolist() == [2, 3, 4, 5]


@each_implementation
def test_store_errors_write_nothing(implementation):
    rollout = Rollout(1, 2, (3,))
    none, some = np.zeros(2, bool), np.array([False, True])
    good = {"obs": np.ones((2, 3)), "actions": np.ones(2), "rewards": np.ones(2), "terminated": none, "truncated": none}
    final = np.ones((1, 3), np.float32)
    with forced(implementation):
        for change, message in [
            ({"obs": np.ones((2, 4))}, r"obs must be float32 \[2, 3\]; got float64 \[2, 4\]"),
            ({"rewards": np.ones(3)}, r"rewards must be float64 \[2\]; got float64 \[3\]"),
            ({"truncated": some}, r"final_obs must have one row .*: 1 at step 0; got 0"),
            ({"final_obs": final}, r"final_obs must have one row .*: 0 at step 0; got 1"),
            (
                {"truncated": some, "terminated": some, "final_obs": final},
                r"final_obs must have one row .*: 0 at step 0; got 1",
            ),
            ({"truncated": some, "final_obs": np.ones((1, 2))}, r"final_obs must be \[k, 3\]; got \[1, 2\]"),
        ]:
            with pytest.raises(ValueError, match=message):
                rollout.store(**{**good, **change})
            assert rollout.step == 0 and len(rollout.episodes) == 0 and len(rollout.final_index) == 0
            assert not rollout.obs.any() and not rollout.episode_lengths.any()
        rollout.store(**good)
        with pytest.raises(IndexError, match=r"full \(1 steps\)"):
            rollout.store(**good)


def test_arrays_from_elsewhere():
    made = []

    def allocate(shape, dtype):
        made.append(np.full(shape, 1, dtype))
        return made[-1]

    rollout = Rollout(2, 3, (4,), allocate=allocate)
    assert any(x is rollout.obs for x in made) and any(x is rollout.last_obs for x in made)
    minibatch = rollout.minibatch(5)
    assert any(x is minibatch.obs for x in made)


# --- minibatches ---


@each_implementation
@settings(max_examples=40, deadline=None)
@given(
    num_steps=st.integers(1, 40),
    num_envs=st.integers(1, 9),
    fraction=st.floats(0, 1),
    seed=st.integers(-(2**70), 2**70),
    env_offset=st.integers(0, 50),
)
def test_minibatches(implementation, num_steps, num_envs, fraction, seed, env_offset):
    total = num_steps * num_envs
    n_minibatch = max(1, round(fraction * total))
    rollout = Rollout(num_steps, num_envs, (1,))
    with forced(implementation):
        indices, offsets = rollout.minibatch_indices(seed, 3, 1, n_minibatch, env_offset=env_offset)
    np.testing.assert_array_equal(np.sort(indices), np.arange(total))
    sizes = np.diff(offsets)
    assert offsets[0] == 0 and offsets[-1] == total and sizes.max() - sizes.min() <= 1 and sizes.min() >= 1
    parts = [indices[a:b].tolist() for a, b in pairwise(offsets)]
    for n in range(num_envs):
        shares = [sum(i % num_envs == n for i in part) for part in parts]
        assert max(shares) - min(shares) <= 1
    assert parts == reference.minibatch_indices(seed, 3, 1, num_steps, num_envs, n_minibatch, env_offset)


@each_implementation
def test_minibatches_do_not_depend_on_the_ranks(implementation):
    num_steps, n_minibatch = 13, 6

    def sets(num_envs, env_offset):
        rollout = Rollout(num_steps, num_envs, (1,))
        indices, offsets = rollout.minibatch_indices(9, 0, 2, n_minibatch, env_offset=env_offset)
        steps = [(int(i) // num_envs, int(i) % num_envs + env_offset) for i in indices]
        return [set(steps[a:b]) for a, b in pairwise(offsets)]

    with forced(implementation):
        ranks = [sets(2, 0), sets(3, 2), sets(1, 5)]
        assert [set.union(*parts) for parts in zip(*ranks, strict=True)] == sets(6, 0)


@each_implementation
def test_permutations_differ_and_are_uniform(implementation):
    """Every key component matters, and each step is equally likely in each place."""
    rollout = Rollout(4, 1, (1,))
    with forced(implementation):
        first = [rollout.minibatch_indices(1, i, 0, 1)[0] for i in range(2000)]
        long = Rollout(64, 1, (1,))
        keys = [(1, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
        orders = {tuple(long.minibatch_indices(*key[:3], 1, env_offset=key[3])[0].tolist()) for key in keys}
        again = long.minibatch_indices(1, 0, 0, 1)[0]
    assert len(orders) == len(keys) and tuple(again.tolist()) in orders
    counts = np.array([[sum(order[k] == t for order in first) for t in range(4)] for k in range(4)])
    # binomial with n = 2000, p = 1/4: standard deviation 19.4; six of them
    assert (np.abs(counts - 500) < 6 * np.sqrt(2000 * 3 / 16)).all()


@pytest.mark.parametrize("arguments", [(0, 0, 0, 0), (0, 0, 0, 7), (0, -1, 0, 1), (0, 0, -1, 1)])
def test_minibatch_errors(arguments):
    with pytest.raises(ValueError, match=r"n_minibatch must be in \[1, 6\]"):
        Rollout(2, 3, (1,)).minibatch_indices(*arguments)


@each_implementation
@pytest.mark.parametrize("action_dtype", [np.float32, np.int64])
def test_gather(implementation, action_dtype):
    rng = np.random.default_rng(2)
    rollout = Rollout(16, 5, (27,), (), action_dtype, num_actions=3)
    rollout.action_masks[...] = rng.random(rollout.action_masks.shape) < 0.5
    for x in (rollout.obs, rollout.actions, rollout.log_probs, rollout.advantages, rollout.returns):
        x[...] = rng.normal(size=x.shape) * 100
    indices = rng.integers(0, 80, 33)
    with forced(implementation):
        out = rollout.minibatch(40)
        given = rollout.gather(indices, out)
        assert rollout.gather(rng.integers(0, 80, 40), rollout.minibatch(40)).obs.shape == (40, 27)
    for name in given._fields:
        source = getattr(rollout, name)
        np.testing.assert_array_equal(getattr(given, name), source.reshape(80, *source.shape[2:])[indices])
        assert np.shares_memory(getattr(given, name), getattr(out, name))
    with forced(implementation):
        for bad in ([80], [-1]):
            with pytest.raises(IndexError, match=r"indices must be in \[0, 80\)"):
                rollout.gather(bad, out)
        with pytest.raises(ValueError, match=r"at least B steps.*got indices \[41\] and arrays for 40"):
            rollout.gather(np.zeros(41, int), out)
        np.testing.assert_array_equal(rollout.gather([3, 4], out).obs, rollout.obs.reshape(80, 27)[3:5])


@pytest.mark.parametrize("num_actions", [None, 5])
def test_a_spare_is_of_the_same_form_and_goes_on_with_the_episodes(num_actions):
    allocated = []

    def allocate(shape, dtype):
        allocated.append((shape, dtype))
        return np.zeros(shape, dtype)

    first = Rollout(2, 3, (4,), (), np.int64, num_actions=num_actions, allocate=allocate)
    count = len(allocated)
    first.episode_returns[:] = 7.0
    spare = first.spare()
    assert allocated[count:] == allocated[:count] and spare.step == 0
    masks = None if num_actions is None else np.ones((3, num_actions), bool)
    zeros = np.zeros(3)
    spare.store(np.zeros((3, 4)), zeros.astype(int), zeros + 1, zeros > 0, zeros > 0, action_masks=masks)
    assert first.episode_returns.tolist() == [8.0] * 3 and first.episode_lengths.tolist() == [1] * 3
    assert first.step == 0 and spare.step == 1


def test_the_state_has_the_masks():
    rollout, again = (Rollout(2, 3, (4,), (), np.int64, num_actions=5) for _ in range(2))
    masks = np.random.default_rng(0).random((2, 3, 5)) < 0.5
    zeros = np.zeros(3)
    for row in masks:
        rollout.store(np.zeros((3, 4)), zeros.astype(int), zeros, zeros > 0, zeros > 0, action_masks=row)
    again.load_state_dict(rollout.state_dict())
    np.testing.assert_array_equal(again.action_masks, masks)
    assert again.full


@each_implementation
def test_unaligned_masked_and_unfit_steps(implementation):
    steps = Steps(0, 1, 3, p_end=0)
    rewards = np.empty(3 * 8 + 1, np.uint8)[1:].view(np.float64)
    rewards[...] = steps.rewards[0]
    flags = steps.terminated[0], steps.truncated[0]
    with forced(implementation):
        rollout = Rollout(2, 3, (3,), (2,))
        for name, change in (("rewards", {2: np.ma.array(rewards)}), ("obs", {0: np.ma.array(steps.obs[0])})):
            arguments = [steps.obs[0], steps.actions[0], rewards, *flags]
            for place, x in change.items():
                arguments[place] = x
            with pytest.raises(TypeError, match=f"{name} must not be a masked array"):
                rollout.store(*arguments)
        with pytest.raises(TypeError, match="terminated must be bool; got float64"):
            rollout.store(steps.obs[0], steps.actions[0], rewards, np.zeros(3), flags[1])
        assert rollout.step == 0
        rollout.store(steps.obs[0], steps.actions[0], rewards, *flags)
        np.testing.assert_array_equal(rollout.rewards[0], steps.rewards[0].astype(np.float32))
        np.testing.assert_array_equal(rollout.episode_returns, steps.rewards[0])
        indices = np.empty(2 * 8 + 1, np.uint8)[1:].view(np.int64)
        indices[...] = [2, 0]
        out = rollout.minibatch(2)
        np.testing.assert_array_equal(rollout.gather(indices, out).obs, steps.obs[0][[2, 0]])
        with pytest.raises(TypeError, match="indices must not be a masked array"):
            rollout.gather(np.ma.array([0, 1]), out)
        with pytest.raises(ValueError, match="share no memory"):
            rollout.gather(np.arange(2), out._replace(obs=rollout.obs.reshape(6, 3)[:2]))


def test_two_threads_cannot_store_at_once():
    steps = Steps(0, 1, 3, p_end=0)
    rollout = Rollout(1, 3, (3,), (2,))
    errors = []

    class Slow:
        """Observations that another thread's step meets while they are converted."""

        def __array__(self, dtype=None, copy=None):
            thread = threading.Thread(target=store)
            thread.start()
            thread.join()
            return steps.obs[0]

    def store():
        try:
            steps.store(rollout, 0)
        except RuntimeError as error:
            errors.append(str(error))

    rollout.store(Slow(), steps.actions[0], steps.rewards[0], steps.terminated[0], steps.truncated[0])
    assert len(errors) == 1 and "another thread" in errors[0]
    assert rollout.step == 1
    np.testing.assert_array_equal(rollout.obs[0], steps.obs[0])


@pytest.mark.parametrize(
    ("reward", "words"), [(1e300, "is inf as float32, whose largest number is 3.4e\\+38$"), (float("nan"), "is nan$")]
)
def test_a_reward_that_float32_cannot_hold_is_named_as_such(reward, words):
    rollout = Rollout(2, 3, (1,), (1,))
    with np.errstate(over="ignore"):
        rollout.rewards[1, 2] = reward
    with pytest.raises(NonFiniteError, match=f"^reward of env 9 at step 1 of the rollout {words}"):
        rollout.check_finite(7)
