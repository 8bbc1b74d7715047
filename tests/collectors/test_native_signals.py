"""Native loops let Python handle signals about every 100 ms, so that Ctrl-C and stop requests take effect."""

import os
import signal
import threading
import time

import pytest
from collecting import Collecting
from signals_in_time import Interrupted, interrupted_after

from xcfast.collectors.native import EnvLoop
from xcfast.envs import ClassicControlVecEnv, MujocoVecEnv
from xcfast.runs.evaluation import EvaluationStopped, Evaluator
from xcfast.runs.player import Player
from xcfast.runs.signals import StopRequest

ENDLESS = 10**6  # episodes of each environment, which take one thread many seconds
SOON = 1.0  # seconds, of which a loaded machine takes its part


@pytest.fixture
def cart_poles(small):
    """Four CartPoles on one thread, with a policy that acts in them."""
    config = small(env_id="CartPole-v1", policy="Categorical_AC")
    setup = Collecting(config, ClassicControlVecEnv(config.env_id, 4, 1, copy=False), "native")
    setup.loop = EnvLoop(setup.envs, setup.policy, setup.normalizer, setup.action_map)
    setup.envs.reset(seed=0)
    yield setup
    setup.envs.close()


def test_a_signal_handler_ends_an_evaluation(cart_poles):
    start = time.monotonic()
    with pytest.raises(Interrupted), interrupted_after(0.3):
        cart_poles.loop.evaluate(ENDLESS)
    assert time.monotonic() - start < 0.3 + SOON
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        cart_poles.loop.evaluate(1)
    cart_poles.envs.reset(seed=0)
    assert cart_poles.loop.evaluate(1).shape == (4,)


def test_a_signal_handler_ends_a_collection(small):
    """One thread takes many seconds for these 80,000 steps of Ant."""
    config = small(env_id="Ant-v4", parallels=8, horizon_size=10_000, running_steps=80_000)
    setup = Collecting(config, MujocoVecEnv(config.env_id, 8, 1, copy=False), "native")
    setup.collector.reset(0)
    start = time.monotonic()
    with pytest.raises(Interrupted), interrupted_after(0.3):
        setup.collector.collect(setup.rollout)
    assert time.monotonic() - start < 0.3 + SOON
    assert setup.rollout.step == 0
    setup.envs.close()


def test_a_stop_request_ends_an_evaluation(cart_poles):
    asked = []

    def should_stop():
        asked.append(time.monotonic())
        return len(asked) > 4

    assert cart_poles.loop.evaluate(ENDLESS, should_stop) is None
    assert asked[-1] - asked[0] < 4 * 0.1 + SOON
    cart_poles.envs.reset(seed=0)
    assert cart_poles.loop.evaluate(1, lambda: False).shape == (4,)


def test_the_evaluator_stops_on_request(small):
    config = small(env_id="CartPole-v1", policy="Categorical_AC", vectorize="ClassicControlVecEnv", test_episode=4)
    setup = Collecting(config, ClassicControlVecEnv(config.env_id, 4, 1), "native")
    stop = False
    evaluator = Evaluator(config, Player(setup.policy, setup.normalizer, setup.action_map), lambda: stop, setup.envs)
    assert evaluator.backend == "native"
    assert len(evaluator(0)) == 4
    stop = True
    with pytest.raises(EvaluationStopped):
        evaluator(0)
    setup.envs.close()


def test_a_long_evaluation_reports_its_episodes(small, monkeypatch):
    monkeypatch.setattr("xcfast.runs.evaluation._REPORT_SECONDS", 0.2)
    config = small(env_id="Hopper-v4", vectorize="MujocoVecEnv", test_episode=100_000)
    setup = Collecting(config, MujocoVecEnv(config.env_id, 4, 1), "native")
    reports = []
    player = Player(setup.policy, setup.normalizer, setup.action_map)
    evaluator = Evaluator(config, player, lambda: len(reports) == 3, setup.envs)
    evaluator.report = lambda done, wanted: reports.append((done, wanted))
    assert evaluator.backend == "native"
    with pytest.raises(EvaluationStopped):
        evaluator(0)
    setup.envs.close()
    done, wanted = zip(*reports, strict=True)
    assert set(wanted) == {100_000}
    assert 0 < done[0] < done[1] < done[2] < 100_000


def test_the_second_control_c_ends_an_evaluation_at_once(cart_poles):
    def press():
        for _ in range(2):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    # A script's background job starts with SIGINT ignored, and tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    keys = threading.Thread(target=press)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
            keys.start()
            cart_poles.loop.evaluate(ENDLESS)
        took = time.monotonic() - start
        keys.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.requested
    assert 0.6 < took < 0.6 + SOON
