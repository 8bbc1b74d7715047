"""Initial states that are drawn ahead: as few as are needed, in the order of each environment's stream."""

import numpy as np

from xcfast.envs.native_draws import ResetDraws


def make(capacity=32):
    drawn = []

    def draw(generator, count):
        drawn.append(count)
        return generator.random((count, 1))

    draws = ResetDraws(2, 1, capacity, draw)
    drawn.clear()
    draws.seed(0, 5)
    draws.seed(1, 6)
    return draws, drawn


def use(draws, index, count):
    rows = []
    for _ in range(count):
        if draws.used[index] == draws.drawn[index]:
            draws.refill()
        rows.append(draws.rows[index, draws.used[index], 0])
        draws.used[index] += 1
    return rows


def test_an_environment_with_long_episodes_draws_little():
    draws, drawn = make()
    use(draws, 0, 1)
    use(draws, 1, 1)
    for _ in range(5):  # five rollouts in which no episode ends
        draws.refill(ahead=True)
    assert sum(drawn) == 2 * 2 + 2 * 3  # two at the start of each stream, then up to four


def test_an_environment_that_comes_again_gets_twice_as_many_up_to_the_capacity():
    draws, drawn = make(capacity=16)
    rows = use(draws, 0, 100)
    assert drawn[2:5] == [4, 8, 16] and set(drawn[5:]) == {16}
    np.testing.assert_array_equal(rows, np.random.default_rng(5).random((100, 1))[:, 0])
    draws.seed(0, 5)
    assert drawn[-1] == 2  # a new stream begins small again
