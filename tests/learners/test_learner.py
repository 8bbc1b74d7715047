"""What holds for every learner."""

import copy
import gc
import weakref
from types import MethodType

import numpy as np
import pytest
import torch
from native_core import make_policy, spaces
from test_learner_native import new_learner
from torch import nn

from xcfast import RewardNormalizer
from xcfast.learners.cuda import CudaLearner
from xcfast.learners.native import NativeLearner
from xcfast.learners.optimizer import Adam, reason_not_flat_adam
from xcfast.learners.torch import TorchLearner
from xcfast.policy import ActorCritic, Critic, build_policy
from xcfast.policy.native_form import reason_not_copied
from xcfast.runs.engines import make_learner

CLASSES = [TorchLearner, NativeLearner, CudaLearner]


def make(cls, config, make_optimizer=None, policy=None):
    """A learner on the CPU, and a rollout to learn from."""
    _, rollout = new_learner(TorchLearner, config)
    policy = policy or build_policy(config, *spaces(7, 3, False))
    optimizer = None if make_optimizer is None else make_optimizer(policy)
    place = torch.device("cpu") if cls is CudaLearner else 1
    rewards = RewardNormalizer(config.parallels, gamma=config.gamma)
    return cls(policy, config, rollout, rewards, place, optimizer=optimizer), rollout


def flat_weights(learner):
    return torch.nn.utils.parameters_to_vector(learner.policy.parameters()).detach().numpy().copy()


@pytest.mark.parametrize(("cls", "name"), [*zip(CLASSES, ["torch", "native", "cuda"], strict=True)])
def test_members(small, cls, name):
    learner, rollout = make(cls, small(compile="off"))
    assert learner.name == name and learner.device == torch.device("cpu")
    assert learner.overlaps == (cls is CudaLearner) and (learner.device_policy is None) == (cls is not CudaLearner)
    assert isinstance(learner.optimizer, torch.optim.Adam)
    assert learner.behaviour is None
    before = flat_weights(learner)
    learner.set_behaviour(torch.zeros(len(before)))  # of no account where the policy's own weights collect
    learner.publish()
    np.testing.assert_array_equal(flat_weights(learner), before)
    learner.update(rollout, 0)
    after = flat_weights(learner)
    assert not np.array_equal(after, before)
    learner.publish()
    np.testing.assert_array_equal(flat_weights(learner), after)


def test_behaviour_with_overlap_is_one_update_behind(small):
    learner, rollout = make(CudaLearner, small(compile="off", overlap=True))
    first = flat_weights(learner)
    learner.update(rollout, 0)
    np.testing.assert_array_equal(learner.behaviour.numpy(), first)
    np.testing.assert_array_equal(flat_weights(learner), first)  # until they are published
    learner.publish()
    assert not np.array_equal(flat_weights(learner), first)
    learner.adopt()
    np.testing.assert_array_equal(learner.behaviour.numpy(), flat_weights(learner))
    learner.set_behaviour(torch.from_numpy(first))
    np.testing.assert_array_equal(learner.behaviour.numpy(), first)


@pytest.mark.parametrize("cls", CLASSES)
def test_adopted_weights_are_learned_from(small, cls):
    learner, rollout = make(cls, small(compile="off", learning_rate=1e-8))
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.fill_(0.25)
    learner.adopt()
    learner.update(rollout, 0)
    np.testing.assert_allclose(flat_weights(learner), 0.25, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_interrupted_update_leaves_no_trace(small, cls, monkeypatch):
    learner, rollout = make(cls, small(compile="off"))
    learner.update(rollout, 0)
    before, state = flat_weights(learner), copy.deepcopy(learner.state_dict())

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(learner._kl, "metrics", interrupt)  # after the last step
        with pytest.raises(KeyboardInterrupt):
            learner.update(rollout, 1)
    np.testing.assert_array_equal(flat_weights(learner), before)
    after = learner.state_dict()["optimizer"]
    assert after["param_groups"] == state["optimizer"]["param_groups"]
    for index, entry in state["optimizer"]["state"].items():
        assert all(torch.equal(x, after["state"][index][name]) for name, x in entry.items())
    learner.update(rollout, 1)
    assert not np.array_equal(flat_weights(learner), before)


@pytest.mark.parametrize("betas", [(0.99, 0.99), (0.5, 0.9), (0.0, 0.9)], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_adam_has_the_betas_of_the_configuration(small, cls, betas):
    """The reference is torch's own Adam, stepped as a script's optimizer."""
    keys = {"compile": "off", "end_factor_lr_decay": 1.0}
    config = small(adam_beta1=betas[0], adam_beta2=betas[1], **keys)

    def of_a_script(policy):
        return torch.optim.Adam(policy.parameters(), config.learning_rate, betas, eps=1e-5)

    ends = []
    for learner, rollout in (make(TorchLearner, config, of_a_script), make(cls, config), make(cls, small(**keys))):
        start = flat_weights(learner)
        for iteration in range(2):
            learner.update(rollout, iteration)
        ends.append(flat_weights(learner))
    wanted, found, of_the_default = ends
    way = np.linalg.norm(wanted - start)
    assert np.linalg.norm(found - wanted) <= 1e-4 * way
    assert np.linalg.norm(of_the_default - wanted) > 0.01 * way


class Doubled(ActorCritic):
    """With a value of its own."""

    def heads(self, obs, masks=None):
        output, value = super().heads(obs, masks)
        return output, 2.0 * value

    def value(self, obs):
        return 2.0 * super().value(obs)


class Halved(nn.Linear):
    def forward(self, x):
        return 0.5 * super().forward(x)


def own_value(policy):
    policy.__class__ = Doubled


def own_layer(policy):
    policy.critic.model[0].__class__ = Halved


def other_activation(policy):
    policy.critic.model[1] = nn.Sigmoid()


def other_slope(policy):
    policy.critic.model[1] = nn.LeakyReLU(0.5)


def no_bias(policy):
    policy.critic.model[0] = nn.Linear(16, 16, bias=False)


def hooked(policy):
    policy.critic.model[1].register_forward_hook(double_output)


def double_output(module, inputs, output):
    return 2.0 * output


@pytest.mark.parametrize("change", [own_value, own_layer, other_activation, other_slope, no_bias, hooked])
def test_any_policy_is_learned_as_in_torch(small, change):
    """Heads that begin alike are computed by one matrix product on the device; these do not."""
    config = small(compile="off", activation="leaky_relu")
    policy = build_policy(config, *spaces(7, 3, False))
    torch.manual_seed(0)
    change(policy)
    start = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().numpy().copy()
    ends = []
    for cls in (TorchLearner, CudaLearner):
        learner, rollout = make(cls, config, policy=copy.deepcopy(policy))
        learner.update(rollout, 0)
        ends.append(flat_weights(learner))
    assert np.linalg.norm(ends[1] - ends[0]) <= 1e-4 * np.linalg.norm(ends[0] - start)


@pytest.mark.parametrize("cls", [TorchLearner, NativeLearner])
def test_a_learner_is_freed_with_its_last_reference(small, cls):
    """No cycle keeps its threads and its memory until the next collection of garbage."""
    learner, rollout = make(cls, small())
    learner.update(rollout, 0)
    gone = weakref.ref(learner)
    gc.disable()
    try:
        del learner
        assert gone() is None
    finally:
        gc.enable()


def of_another(policy):
    return torch.optim.Adam(copy.deepcopy(policy).parameters(), 1e-3)


def with_another(policy):
    return torch.optim.Adam([*policy.parameters(), torch.nn.Parameter(torch.zeros(2))], 1e-3)


def sgd_in_groups(policy):
    groups = [{"params": policy.actor.parameters()}, {"params": torch.nn.Linear(2, 2).parameters()}]
    return torch.optim.SGD(groups, 0.1)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (of_another, "none of its parameters is of the policy that learns"),
        (with_another, "1 of its parameters are not of the policy"),
        (sgd_in_groups, "2 of its parameters are not of the policy"),
    ],
)
def test_an_optimizer_of_other_parameters_is_an_error(small, optimizer, words):
    config = small(compile="off")
    for cls in CLASSES:
        with pytest.raises(ValueError, match=f"optimizer: {words}"):
            make(cls, config, optimizer)
    policy = make_policy(config)
    for backend in ("auto", "torch", "native"):
        with pytest.raises(ValueError, match=words):
            make_learner(small(learner_backend=backend), policy, None, None, 1, optimizer=optimizer(policy))


def test_methods_that_a_copy_would_not_follow_stay_on_the_cpu(small):
    config = small(device="cuda")
    policy = build_policy(config, *spaces(7, 3, False))
    critic, forward = policy.critic, policy.critic.forward
    _, rollout = new_learner(TorchLearner, config)
    parts = (config, policy, rollout, RewardNormalizer(config.parallels), 1)
    critic.forward = lambda features: 2.0 * forward(features)
    learner, reason = make_learner(*parts, device=torch.device("cuda", 0))
    assert learner.name == "torch" and learner.device.type == "cpu"
    assert reason.endswith("the Critic has a forward of its own, which a copy on the device may not follow")
    critic.forward = MethodType(lambda self, features: 2.0 * Critic.forward(self, features), critic)
    assert reason_not_copied(policy) is None
    twin, obs = copy.deepcopy(policy), torch.randn(3, 7)
    with torch.no_grad():
        twin.critic.model[-1].bias += 1.0
        torch.testing.assert_close(twin.value(obs), policy.value(obs) + 2.0)


def test_frozen_weights_stay_and_go_to_torch(small):
    config = small()
    policy = make_policy(config)
    policy.representation.requires_grad_(False)
    _, rollout = new_learner(TorchLearner, config)
    learner, reason = make_learner(config, policy, rollout, RewardNormalizer(config.parallels), 1)
    assert learner.name == "torch"
    assert reason == "not native: some of the policy's parameters do not require gradients"
    before = [p.detach().clone() for p in policy.parameters()]
    learner.update(rollout, 0)
    for old, new in zip(before, policy.parameters(), strict=True):
        assert torch.equal(old, new) == (not new.requires_grad)
    assert reason_not_flat_adam(policy, None) == "some of the policy's parameters do not require gradients"


def test_the_learners_adam_has_the_state_of_torchs():
    states = []
    for kind in (Adam, torch.optim.Adam):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = kind([{"params": [weight], "lr": 0.5}])
        (weight**2).sum().backward()
        optimizer.step()
        states.append(optimizer.state_dict())
        twin = kind([torch.nn.Parameter(torch.ones(3))], lr=0.1)
        twin.load_state_dict(states[0])
        states.append(twin.state_dict())
    assert len({repr(state) for state in states}) == 1
    assert states[0]["param_groups"][0]["lr"] == 0.5
    assert states[0]["state"][0]["exp_avg"].tolist() == pytest.approx([0.2] * 3)


def test_the_learners_adam_is_plain_when_a_script_passes_it_on(small):
    learner, _ = make(NativeLearner, small())
    assert reason_not_flat_adam(learner.policy, learner.optimizer) is None
