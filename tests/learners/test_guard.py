import threading

import numpy as np
import pytest

from xcfast import RewardNormalizer
from xcfast.errors import NonFiniteError
from xcfast.learners.guard import UpdateGuard


class Counter:
    """Stands for a learner: its state is one number and the statistics of rewards."""

    def __init__(self):
        self.value = 0
        self.rewards = RewardNormalizer(2)
        self.guard = UpdateGuard(self.rewards)

    def restore(self, value):
        self.value = value

    def update(self, result):
        def change():
            self.value += 1
            self.rewards(np.ones((3, 2)), np.zeros((3, 2), bool))
            if isinstance(result, BaseException):
                raise result
            return result

        return self.guard.run(change, 7, lambda: self.value, self.restore)


def test_a_good_update_stays():
    counter, metrics = Counter(), {"a": 1.0}
    assert counter.update(metrics) is metrics
    assert counter.value == 1


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_any_failure_is_undone(error):
    counter = Counter()
    with pytest.raises(type(error)):
        counter.update(error)
    assert counter.value == 0 and counter.rewards.rms.count == 0 and not counter.rewards.returns.any()
    assert counter.update({}) == {} and counter.value == 1  # the next one runs


def test_metrics_that_are_not_finite_are_named_and_undone():
    counter = Counter()
    with pytest.raises(NonFiniteError, match=r"^update of iteration 7: b = nan, c = -inf$"):
        counter.update({"a": 1.0, "b": float("nan"), "c": float("-inf")})
    assert counter.value == 0 and counter.rewards.rms.count == 0


def test_a_second_thread_is_refused():
    counter, inside, leave = Counter(), threading.Event(), threading.Event()

    def slow():
        inside.set()
        leave.wait(60)
        counter.value += 1
        return {}

    thread = threading.Thread(target=counter.guard.run, args=(slow, 0, lambda: None, counter.restore))
    thread.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError, match="another thread"):
        counter.update({})
    leave.set()
    thread.join(60)
    assert counter.value == 1
