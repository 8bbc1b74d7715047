"""Collection during the update, one update behind; the learner for CUDA devices runs on the CPU here."""

from pathlib import Path

import numpy as np
import pytest
import torch

from xcfast import run
from xcfast.errors import ConfigError, RunFailed
from xcfast.learners.cuda import CudaLearner
from xcfast.output.checkpoint import FINAL_MODEL, load_checkpoint
from xcfast.runs import components
from xcfast.runs.run import train_to_the_end
from xcfast.runs.trainer import Trainer


@pytest.fixture
def on_cpu(monkeypatch):
    def make(config, policy, rollout, rewards, threads, ranks, *_):
        return CudaLearner(policy, config, rollout, rewards, torch.device("cpu"), ranks), "a stand-in"

    monkeypatch.setattr(components, "make_learner", make)


def overlapping(small, **keys):
    return small(**{"overlap": True, "compile": "off", "vectorize": "MujocoVecEnv", "running_steps": 640, **keys})


def test_the_update_must_run_elsewhere(small):
    with pytest.raises(ConfigError, match="overlap: collection and update can overlap only if the update runs on one"):
        Trainer(small(overlap=True), quiet=True)


def weights(policy):
    return np.concatenate([p.detach().numpy().ravel() for p in policy.parameters()])


MASKED = {"env_id": "toys:toy/Masked-v0", "policy": "Categorical_AC", "use_actions_mask": True}


@pytest.mark.parametrize("keys", [{}, {"vectorize": "DummyVecEnv"}, {"vectorize": "DummyVecEnv", **MASKED}], ids=str)
def test_a_rollout_is_collected_one_update_behind(small, on_cpu, keys):
    """The run is that of a loop in which nothing overlaps: collect, with the weights before the last update, learn."""
    config = overlapping(small, **keys)
    whole = Trainer(config, "train", quiet=True)
    train_to_the_end(whole)
    ends = weights(whole.components.policy)
    whole.close()

    serial = Trainer(config, "train", quiet=True)
    learner, collector = serial.components.learner, serial.components.collector
    serial.start()
    collector.collect(serial.components.rollout)
    drifts = []
    for iteration in range(config.num_iterations):
        if iteration + 1 < config.num_iterations:
            collector.collect(serial.components.spare)
        drifts.append(learner.update(serial.components.rollout, iteration)["losses/ratio_drift"])
        learner.publish()
        serial.components.rollout.clear()
        serial.components.rollout, serial.components.spare = serial.components.spare, serial.components.rollout
    assert (weights(serial.components.policy) == ends).all()
    serial.close()
    assert drifts[0] < 1e-6 < 1e-4 < min(drifts[1:])


def test_old_log_probs_are_of_the_weights_that_collected(small, on_cpu):
    loop = Trainer(overlapping(small), "train", quiet=True)
    loop.start()
    loop.components.collector.collect(loop.components.rollout)
    loop.components.learner.update(loop.components.rollout, 0)
    loop.components.rollout.clear()
    with torch.no_grad():
        loop.components.collector.collect(loop.components.rollout)  # the weights on the CPU are still the first ones
        obs, actions = (
            torch.from_numpy(x).flatten(0, 1) for x in (loop.components.rollout.obs, loop.components.rollout.actions)
        )
        log_probs, _, values = loop.components.policy.evaluate(obs, actions)
    loop.components.learner.update(loop.components.rollout, 1)
    on_device = loop.components.learner._on_device
    for mine, theirs in ((on_device.log_probs, log_probs), (on_device.values, values)):
        torch.testing.assert_close(mine.flatten(), theirs, rtol=0, atol=1e-5)
    loop.close()


def test_a_resumed_run_ends_as_one_in_one_go(small, on_cpu):
    config = overlapping(small, checkpoint_interval=256)
    summary = run(config, quiet=True)
    (half,) = Path(summary.model_dir).glob("checkpoint_256*")
    assert load_checkpoint(half)["collected"]["rollout"]["rows"]["obs"].shape == (32, 4, 4)
    whole = load_checkpoint(Path(summary.model_dir) / FINAL_MODEL)
    again = load_checkpoint(Path(run(config, resume=half, quiet=True).model_dir) / FINAL_MODEL)
    for name, value in whole["policy"].items():
        assert torch.equal(value, again["policy"][name]), name
    assert whole["step"] == again["step"] == 640 and "collected" not in whole


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v4", "CartPole-v1"])
def test_a_resume_without_a_collected_rollout_begins_with_a_ratio_of_one(small, on_cpu, monkeypatch, env_id):
    """A longer run, whose last iteration collected nothing; envs whose state is not in the checkpoint."""
    keys = {"env_id": env_id}
    if env_id == "CartPole-v1":
        keys |= {"vectorize": "DummyVecEnv", "policy": "Categorical_AC"}
    summary = run(overlapping(small, **keys), quiet=True)
    drifts, update = [], CudaLearner.update

    def recorded(self, rollout, iteration):
        metrics = update(self, rollout, iteration)
        drifts.append(metrics["losses/ratio_drift"])
        return metrics

    monkeypatch.setattr(CudaLearner, "update", recorded)
    run(overlapping(small, **keys, running_steps=1024), resume=Path(summary.model_dir), quiet=True)
    assert drifts[0] < 1e-6 < max(drifts[1:])


def test_a_failing_collection_ends_the_run_after_the_update(small, on_cpu, monkeypatch):
    loop = Trainer(overlapping(small), "train", quiet=True)
    collect, calls = loop.components.collector.collect, []

    def failing(rollout, num_steps=None):
        calls.append(rollout)
        if len(calls) == 4:
            raise RuntimeError("the environment broke")
        collect(rollout, num_steps)

    monkeypatch.setattr(loop.components.collector, "collect", failing)
    with pytest.raises(RunFailed, match="stopped at step 256: the environment broke"):
        train_to_the_end(loop)
    loop.close()
