"""The process group: operations, how ranks learn of each other's failures, and how long they wait."""

import numpy as np
import pytest
import rank_pool
from rank_pool import ENDED, good, host_store, with_ranks

from xcfast.learners.metrics import moments_of
from xcfast.ranks.group import ALONE, Ranks, merged_moments
from xcfast.resources import launched

DEADLINE = 20.0  # seconds until every rank has noticed that one is lost, on a machine under load


# --- operations


def test_alone_everything_is_left_as_it_is():
    x = np.arange(3.0)
    assert ALONE.sum_(x) is x and ALONE.broadcast_(x) is x and ALONE.join(x, range(3), 3) is x
    (gathered,) = ALONE.gather(x)
    assert gathered is x and ALONE.from_main(lambda: x) is x
    assert ALONE.broadcast("item") == "item" and ALONE.any_(True) and not ALONE.any_(False)
    for block in (ALONE.together, ALONE.deferred):
        with pytest.raises(KeyError), block():
            raise KeyError
    with pytest.raises(KeyError):
        ALONE.from_main(lambda: {}["absent"])


@pytest.mark.parametrize(("total", "world_size"), [(5, 2), (16, 4), (7, 7), (1, 1)])
def test_shares_are_contiguous_and_even(total, world_size):
    shares = [Ranks(rank, world_size).rows(total) for rank in range(world_size)]
    assert [i for rows in shares for i in rows] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_moments_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, 100)
    parts = np.array([moments_of(part) for part in (x[:0], x[:1], x[1:60], x[60:], x[:0])])
    np.testing.assert_allclose(merged_moments(parts), moments_of(x), rtol=1e-12)
    assert merged_moments(np.zeros((3, 2, 3))).tolist() == [[0.0] * 3] * 2


def test_WORLD_SIZE_alone_starts_no_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set it
    assert not launched() and Ranks.start(cuda=False).world_size == 1


def test_collective_operations(pool):
    results = good(pool(3, with_ranks, rank_pool.exchange))
    for rank, result in enumerate(results):
        assert result["rank"] == rank and result["sharing"] == 3 and result["same"]
        assert result["sum"].tolist() == [333.0] * 3  # summed twice
        assert result["broadcast"] == [0.0, 0.0]
        np.testing.assert_array_equal(result["join"], np.arange(7.0)[:, None] * [1.0, np.pi])
        assert result["join_tensor"].tolist() == [0, 1, 2]
        assert result["object"] == "of 0" and result["any"] == (True, False)
        assert result["gather"] == ([{"rank": 0}, {"rank": 1}, {"rank": 2}] if rank == 0 else None)


def test_processes_with_different_pasts_meet_at_one_store(pool):
    """As when torchrun restarts a process that was killed, or starts one more."""
    store = host_store()
    assert pool(2, with_ranks, rank_pool.lose, 1, "killed", "sum_", store=store)[1] == ENDED
    for num_ranks in (2, 3, 2):
        results = good(pool(num_ranks, rank_pool.impatient, ["sum_"] * num_ranks, store=store))
        assert [raised for raised, _ in results] == [None] * num_ranks


# --- failures that all ranks learn of and survive


def test_an_exception_on_some_ranks_is_raised_on_all(pool):
    results = good(pool(3, with_ranks, rank_pool.fail_on, [0, 2]))
    message = "RankError: rank 0: ValueError: broken 0\nrank 2: ValueError: broken 2"
    assert results == [(message, "ValueError", 3), (message, "NoneType", 3), (message, "ValueError", 3)]
    assert good(pool(2, with_ranks, rank_pool.fail_on, [])) == [(None, None, 2)] * 2


@pytest.mark.parametrize("meet", [rank_pool.meet_together, rank_pool.meet_from_main])
def test_a_deferred_failure_is_raised_on_all_where_they_meet_next(pool, meet):
    message = "RankError: rank 0: ValueError: broken 0"
    works = [False, meet is rank_pool.meet_together]  # in from_main, rank 1 has nothing to do
    assert good(pool(2, with_ranks, rank_pool.fail_later_on, [0], meet)) == [(message, one) for one in works]
    works = [True, meet is rank_pool.meet_together]
    assert good(pool(2, with_ranks, rank_pool.fail_later_on, [], meet)) == [(None, one) for one in works]


def test_every_rank_gets_the_value_that_rank_0_computes(pool):
    for value, cause, others in good(pool(3, with_ranks, rank_pool.compute_on_main, "value")):
        assert value.tolist() == [0.0, 1.0, 2.0] and cause is None and others == 3


@pytest.mark.parametrize(
    ("what", "words", "cause"),
    [
        ("raise", "RankError: rank 0: KeyError: 'no such file'", "KeyError"),
        ("unpicklable", "RankError: rank 0: ", ("AttributeError", "PicklingError")),
    ],
)
def test_a_failure_of_rank_0_in_its_computation_is_raised_on_all(pool, what, words, cause):
    results = good(pool(3, with_ranks, rank_pool.compute_on_main, what))
    assert all(message.startswith(words) and others == 3 for message, _, others in results)
    assert [one in cause for _, one, _ in results] == [True, False, False]


# --- ranks that end


@pytest.mark.parametrize("operation", ["sum_", "from_main", "agree", "together", "close"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_is_noticed_at_once(pool, operation, victim):
    """Also where it hosts the store, and where rank 0 computes while the others wait."""
    results = pool(3, with_ranks, rank_pool.lose, victim, "killed", operation)
    assert results.pop(victim) == ENDED
    for raised, seconds in good(results):
        assert raised.startswith("RankLostError: another rank has ended without a report, or does not answer: ")
        assert seconds < DEADLINE


@pytest.mark.parametrize("operation", ["sum_", "from_main", "agree", "together", "close"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_fails_alone_tells_the_others_why(pool, operation, victim):
    results = good(pool(3, with_ranks, rank_pool.lose, victim, "failed", operation))
    del results[victim]
    for raised, seconds in results:
        assert raised == f"RankLostError: another rank has failed: rank {victim}: ValueError: broken"
        assert seconds < DEADLINE


# --- ranks that come late, or elsewhere


def test_the_wait_for_rank_0_is_longer_than_any_time_out(pool):
    (_, _), (raised, waited) = good(pool(2, rank_pool.impatient, ["from_main"] * 2, late=[0], seconds=5.0))
    assert raised is None and waited > 4.0


def test_a_script_may_take_longer_than_any_time_out(pool):
    for operation in ("agree", "close"):
        (raised, waited), _ = good(pool(2, rank_pool.impatient, [operation] * 2, late=[1], seconds=5.0))
        assert raised is None and waited > 4.0


def test_a_rank_that_hangs_is_noticed_at_the_time_out(pool):
    (raised, waited), _ = good(pool(2, rank_pool.impatient, ["sum_"] * 2, late=[1], seconds=8.0))
    assert raised.startswith("RankLostError: another rank has ended without a report, or does not answer: ")
    assert 1.5 < waited < 7.0


def test_a_rank_that_waits_elsewhere_is_noticed_at_the_time_out(pool):
    results = good(pool(2, rank_pool.impatient, ["sum_", "from_main"]))
    assert all(raised.startswith("RankLostError") and waited < DEADLINE for raised, waited in results)


def test_a_rank_that_ends_while_others_go_on_is_named(pool):
    message = "RankError: all processes must make the same calls: rank 0 is at train(40), rank 1 is at its end"
    assert [raised for raised, _ in good(pool(2, rank_pool.impatient, ["agree", "close"]))] == [message] * 2


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_healthy_rank_in_a_long_call_that_holds_the_interpreters_lock_is_waited_for(pool):
    seconds = 75.0
    for result in good(pool(2, with_ranks, rank_pool.hold_the_lock, seconds)):
        assert result == 2.0
