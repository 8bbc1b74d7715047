"""The learner for CUDA devices: everything but the launch on the CPU, the launch where there is a device."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learner_native import new_learner, weights

from xcfast import run
from xcfast.errors import NonFiniteError
from xcfast.learners.cuda import CudaLearner
from xcfast.learners.cuda_update import DeviceUpdate
from xcfast.learners.torch import TorchLearner
from xcfast.output.checkpoint import FINAL_MODEL, load_checkpoint
from xcfast.resources import page_locked
from xcfast.runs.run import train_to_the_end
from xcfast.runs.trainer import Trainer

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def make(config, device="cpu"):
    """The learner under test and its rollout, with the weights and data of ``new_learner(TorchLearner, config)``."""
    torchs, rollout = new_learner(TorchLearner, config)
    rewards = torchs._reward_normalizer
    return CudaLearner(torchs.policy, config, rollout, rewards, torch.device(device)), rollout


def distances(small, learners, keys, seeds=3):
    """Median over seeds of the distance from float64's weights after an iteration, relative to the way they went."""
    found = []
    for seed in range(seeds):
        config = small(**{"seed": seed, "activation": "tanh", **keys})
        doubles, rollout = new_learner(Double, config)
        start = weights(doubles)
        doubles.update(rollout, 1)
        end = weights(doubles)
        row = []
        for build in learners:
            learner, rollout = build(config)
            learner.update(rollout, 1)
            row.append(np.linalg.norm(weights(learner) - end) / np.linalg.norm(end - start))
        found.append(row)
    return np.median(found, axis=0)


class Double(TorchLearner):
    """TorchLearner in float64."""

    def __init__(self, policy, *parts):
        super().__init__(policy.double(), *parts)

    def _to_device(self, array):
        tensor = super()._to_device(array)
        return tensor.double() if tensor.is_floating_point() else tensor

    def _gather(self, *parts):
        return [x.double() if x.is_floating_point() else x for x in super()._gather(*parts)]


EVEN = {"n_minibatch": 4}
UNEVEN = {"n_minibatch": 5, "parallels": 3, "horizon_size": 37, "running_steps": 222}
CATEGORICAL = {"n_minibatch": 3, "policy": "Categorical_AC", "ent_coef": 0.01, "use_advnorm": False}
MASKED = {**CATEGORICAL, "use_actions_mask": True}
CLIPPED = {**UNEVEN, "clip_value_range": 0.01, "learning_rate": 3e-3}
PENALTY = {**UNEVEN, "agent": "PPO_KL", "kl_coef": 5.0}
# Networks whose heads have nothing in common to compute, and one whose heads' first layers are of different widths.
APART = [
    {"activation": "softmax"},
    {"shared_representation": False},
    {"actor_hidden_size": [], "critic_hidden_size": [8]},
    {"representation": "Basic_Identical", "actor_hidden_size": [8], "critic_hidden_size": [5, 7]},
    {"normalize": "LayerNorm", "critic_hidden_size": [5, 7]},
]
CASES = [("cpu", "off", EVEN), ("cpu", "off", UNEVEN), ("cpu", "off", CATEGORICAL), ("cpu", "default", UNEVEN)]
CASES += [("cpu", "off", MASKED), ("cpu", "off", {**MASKED, "shared_representation": False})]
CASES += [("cpu", "off", CLIPPED), ("cpu", "off", PENALTY), ("cpu", "off", {**MASKED, "agent": "PPO_KL"})]
CASES += [("cpu", "off", keys) for keys in APART]
CASES += [
    pytest.param("cuda", compile, keys, marks=pytest.mark.cuda)
    for compile in ("off", "default", "graph")
    for keys in (EVEN, UNEVEN, PENALTY, CLIPPED, {**CATEGORICAL, "use_grad_clip": False}, {**MASKED, "agent": "PPO_KL"})
]


@pytest.mark.timeout(600)  # Inductor's C++ compiler
@pytest.mark.parametrize(("device", "compile", "keys"), CASES)
def test_an_iteration_ends_where_torchs_does(small, device, compile, keys):
    """The distance from float64 is of the size of torch float32's own, as for the native learner."""
    used = set()

    def mine(config):
        learner, rollout = make(config, device)
        used.add(learner.compile)
        return learner, rollout

    learners = [lambda c: new_learner(TorchLearner, c), mine]
    torchs, own = distances(small, learners, {"compile": compile, **keys}, seeds=1 if compile == "default" else 3)
    assert used == {compile}
    assert 0 < own <= 10 * torchs


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_metrics_are_torchs(small, device):
    config = small(compile="off" if device == "cpu" else "graph")
    learner, rollout = make(config, device)
    metrics = learner.update(rollout, 0)
    torchs, rollout = new_learner(TorchLearner, config)
    wanted = torchs.update(rollout, 0)
    assert list(metrics) == list(wanted)
    for name, value in wanted.items():
        # approx_kl is a difference of numbers near 1, so what is left of it has their rounding error.
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("first", ["torch", "cuda"])
def test_engines_may_be_switched(small, device, first):
    """A run that changes from one learner to the other between iterations goes where one learner alone does."""
    config = small(compile="off" if device == "cpu" else "graph")
    builders = {"torch": lambda: new_learner(TorchLearner, config), "cuda": lambda: make(config, device)}
    second = {"torch": "cuda", "cuda": "torch"}[first]

    def run(after):
        learner, rollout = builders[first]()
        learner.update(rollout, 0)
        saved = copy.deepcopy(learner.state_dict())
        policy = copy.deepcopy(learner.policy.state_dict())
        other, rollout = builders[after]()
        other.policy.load_state_dict(policy)
        other.load_state_dict(saved)
        other.update(rollout, 1)
        return weights(other)

    start = weights(builders[first]()[0])
    switched, alone = run(second), run(first)
    assert np.linalg.norm(switched - alone) <= 1e-4 * np.linalg.norm(alone - start)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_same_start_same_bits(small, device):
    config = small(compile="off" if device == "cpu" else "graph")
    ends = []
    for _ in range(2):
        learner, rollout = make(config, device)
        learner.update(rollout, 0)
        learner.update(rollout, 1)
        ends.append(weights(learner))
    assert (ends[0] == ends[1]).all()


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_non_finite_update_restores_weights_and_optimiser(small, device):
    config = small(use_rewnorm=False, compile="off" if device == "cpu" else "graph")
    learner, rollout = make(config, device)
    learner.update(rollout, 0)
    before, state = weights(learner), copy.deepcopy(learner.state_dict())
    rollout.obs[3, 1] = np.inf
    with pytest.raises(NonFiniteError, match="update of iteration 1: losses/"):
        learner.update(rollout, 1)
    assert (weights(learner) == before).all()
    after = learner.state_dict()["optimizer"]["state"]
    for index, entry in state["optimizer"]["state"].items():
        for name, value in entry.items():
            assert torch.equal(value, after[index][name]), name
    rollout.obs[3, 1] = 0.0
    learner.update(rollout, 1)  # nothing of the failure is left
    assert np.isfinite(weights(learner)).all()


def test_graphs_fall_back_where_they_cannot_be(small, monkeypatch):
    """Each form falls back to the next one, with a sentence."""

    def broken(self):
        raise RuntimeError("no compiler\nmore")

    monkeypatch.setattr(DeviceUpdate, "_compile", broken)
    learner, rollout = make(small())
    assert learner.compile == "off"
    assert learner.fallbacks == [
        "compile graph does not work here (RuntimeError: CUDA graphs need a CUDA device)",
        "compile default does not work here (RuntimeError: no compiler)",
    ]
    learner.update(rollout, 0)


def test_preparation_leaves_no_trace(small):
    """Warming up takes steps; weights, moments and counts are as if it had not."""
    learner, _ = make(small(compile="off"))
    torchs, _ = new_learner(TorchLearner, small())
    assert (weights(learner) == weights(torchs)).all()
    on_device = torch.nn.utils.parameters_to_vector(learner.device_policy.parameters())
    assert (on_device.numpy() == weights(torchs)).all()
    state = learner.state_dict()["optimizer"]["state"].values()
    assert not any(x.any() for one in state for x in one.values())


def test_advantage_moments_do_not_cancel(small):
    """Moments of all minibatches at once, against each minibatch's own, far from 0."""
    config = small(n_minibatch=5, parallels=3, horizon_size=37, running_steps=222, compile="off")
    learner, rollout = make(config)
    learner.update(rollout, 0)  # brings the minibatches to the device
    on_device = learner._on_device
    advantages = torch.randn(37, 3) + 1e4
    on_device.advantages.copy_(advantages)
    on_device._compute_advantage_moments()
    for epoch in range(config.n_epochs):
        indices, offsets = rollout.minibatch_indices(config.seed, 0, epoch, 5)
        for m in range(5):
            part = advantages.flatten()[indices[offsets[m] : offsets[m + 1]]].double()
            mean, inverse = on_device._advantage_moments[epoch * 5 + m].double()
            assert mean.item() == pytest.approx(part.mean().item(), rel=1e-6)
            assert inverse.item() == pytest.approx(1 / part.std(correction=0).item(), rel=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_reduced_precision_stays_near(small, precision):
    """tf32 rounds operands to 11 bits, bf16 to 8: the way of one iteration is theirs to that order."""
    width = {f"{part}_hidden_size": [64] for part in ("representation", "actor", "critic")}
    config = small(activation="tanh", **width)
    torchs, rollout = new_learner(TorchLearner, config)
    start = weights(torchs)
    torchs.update(rollout, 0)
    learner, rollout = make(small(activation="tanh", precision=precision, device="cuda", **width), "cuda")
    learner.update(rollout, 0)
    distance = np.linalg.norm(weights(learner) - weights(torchs)) / np.linalg.norm(weights(torchs) - start)
    assert 0 < distance < {"tf32": 0.05, "bf16": 0.4}[precision]


@pytest.mark.cuda
def test_nothing_is_compiled_or_allocated_after_the_first_iterations(small):
    config = small(n_minibatch=5, parallels=3, horizon_size=37, running_steps=222)
    learner, rollout = make(config, "cuda")
    assert learner.compile == "graph"
    for iteration in range(2):
        learner.update(rollout, iteration)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.cuda.synchronize()
    held = torch.cuda.memory_reserved()
    for iteration in range(2, 5):
        learner.update(rollout, iteration)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert torch.cuda.memory_reserved() == held


@pytest.mark.cuda
@pytest.mark.parametrize("vectorize", ["MujocoVecEnv", "DummyVecEnv"])
def test_a_resumed_run_ends_as_one_in_one_go(small, vectorize):
    config = small(device="cuda", checkpoint_interval=256, vectorize=vectorize)
    summary = run(config, quiet=True)
    (half,) = Path(summary.model_dir).glob("checkpoint_256*")
    whole = load_checkpoint(Path(summary.model_dir) / FINAL_MODEL)
    again = load_checkpoint(Path(run(config, resume=half, quiet=True).model_dir) / FINAL_MODEL)
    for name, value in whole["policy"].items():
        assert torch.equal(value, again["policy"][name]), name


@pytest.mark.cuda
def test_a_run_on_cuda_with_page_locked_rollout(small):
    config = small(device="cuda", env_id="CartPole-v1", policy="Categorical_AC")
    trainer = Trainer(config, quiet=True)
    try:
        assert torch.from_numpy(trainer.components.rollout.obs).is_page_locked()
        assert trainer.components.learner.compile == "graph"
        assert "inference on the " in trainer.components.collector_reason
        summary = train_to_the_end(trainer)
    finally:
        trainer.close()
    assert summary.steps == 512 and summary.learner_backend == "cuda"


def test_page_locked_needs_a_device():
    if torch.cuda.is_available():
        assert torch.from_numpy(page_locked((3, 2), np.int64)).is_page_locked()
    else:
        with pytest.raises(RuntimeError):
            page_locked((3, 2))


def test_weights_from_outside_are_learned_from(small):
    """What others write into the policy on the CPU, as loading a model does, is taken in by ``adopt``."""
    learner, rollout = make(small(compile="off", learning_rate=1e-8))
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.fill_(0.25)
    learner.adopt()
    learner.update(rollout, 0)
    np.testing.assert_allclose(weights(learner), 0.25, rtol=0, atol=1e-6)
