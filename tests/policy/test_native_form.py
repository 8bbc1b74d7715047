"""Which policies native code may compute: every change of a module is computed as torch does, or refused."""

import copy
import types

import numpy as np
import pytest
import torch
from native_core import make_core, make_policy
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from xcfast.learners.native import NativeLearner
from xcfast.policy.native_form import reason_not_native
from xcfast.policy.networks import ActorCritic, BasicMLP, Critic, GaussianActor


class Residual(BasicMLP):
    def forward(self, obs):
        return super().forward(obs) * 2.0


class Subclass(ActorCritic):
    """Without any method of its own."""


class Half(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0.5


class Scaled(nn.Module):
    def forward(self, weight):
        return weight * 2.0


def subclassed_trunk(policy):
    policy.representation.__class__ = Residual


def subclassed_policy(policy):
    policy.__class__ = Subclass


def subclassed_layer(policy):
    policy.actor.mu[0].__class__ = Half


def own_forward(policy):
    linear = policy.critic.model[0]
    linear.forward = lambda x: nn.functional.linear(x, linear.weight)


def own_log_prob(policy):
    def log_prob(self, mean, actions):
        return -(actions - mean).abs().sum(-1)

    policy.actor.log_prob = types.MethodType(log_prob, policy.actor)


def own_heads(policy):
    policy.heads = lambda obs, masks=None: (policy.act(obs), policy.value(obs) + 1.0)


def forward_hook(policy):
    policy.representation.model[0].register_forward_hook(lambda module, inputs, output: output * 2.0)


def forward_pre_hook(policy):
    policy.critic.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1.0,))


def backward_hook(policy):
    policy.actor.mu[0].register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 2.0,))


def weight_hook(policy):
    policy.actor.mu[0].weight.register_hook(lambda gradient: gradient * 2.0)


def parametrized(policy):
    parametrize.register_parametrization(policy.critic.model[0], "weight", Scaled())


def weight_norm(policy):
    parametrizations.weight_norm(policy.critic.model[0])


def old_weight_norm(policy):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(policy.critic.model[0])


def spectral_norm(policy):
    nn.utils.spectral_norm(policy.critic.model[0])


def pruned(policy):
    prune.l1_unstructured(policy.critic.model[0], "weight", 0.5)


def plain_tensor(policy):
    """As old weight_norm leaves it, without the hook."""
    weight = policy.critic.model[0].weight.detach().clone()
    del policy.critic.model[0].weight
    policy.critic.model[0].weight = weight


def no_bias(policy):
    policy.critic.model[0] = nn.Linear(16, 16, bias=False)


def extra_parameter(policy):
    policy.actor.temperature = nn.Parameter(torch.ones(()))


def extra_module(policy):
    policy.auxiliary = nn.Linear(16, 3)


def extra_module_in_a_part(policy):
    policy.representation.skip = nn.Linear(7, 16)


def deviation_of_one_number(policy):
    policy.actor.logstd = nn.Parameter(torch.zeros(1))


def deviation_without_gradient(policy):
    del policy.actor.logstd
    policy.actor.logstd = torch.zeros(3)


def two_activations(policy):
    policy.critic.model.insert(2, nn.Tanh())


def activation_first(policy):
    policy.critic.model.insert(0, nn.Tanh())


def nested(policy):
    policy.critic.model[1] = nn.Sequential(nn.Tanh())


def dropout(policy):
    policy.critic.model[1] = nn.Dropout(0.5)


def tied_weights(policy):
    policy.critic.model[0].weight = policy.actor.mu[0].weight


def one_trunk_twice(policy):
    policy.critic_representation = policy.representation


def no_sequential(policy):
    policy.critic.model = nn.Linear(16, 1)


def two_values(policy):
    policy.critic.model[2] = nn.Linear(16, 2)


def double(policy):
    policy.double()


def mean_is_a_critic(policy):
    policy.actor = Critic(16, [16], "tanh")


def activation(module):
    def change(policy):
        policy.critic.model[1] = module

    change.__name__ = repr(module)
    return change


REFUSED = [
    (subclassed_trunk, "Residual"),
    (subclassed_policy, "no Subclass"),
    (subclassed_layer, "no Half"),
    (own_forward, "the Linear has a forward of its own"),
    (own_log_prob, "the GaussianActor has a log_prob of its own"),
    (own_heads, "the ActorCritic has a heads of its own"),
    (forward_hook, "the Linear has hooks"),
    (forward_pre_hook, "the Critic has hooks"),
    (backward_hook, "the Linear has hooks"),
    (weight_hook, "the weights have hooks"),
    (parametrized, "no ParametrizedLinear"),
    (weight_norm, "no ParametrizedLinear"),
    (old_weight_norm, "the Linear has hooks"),
    (spectral_norm, "the Linear has hooks"),
    (pruned, "the Linear has hooks"),
    (plain_tensor, "the Linear has no weight"),
    (no_bias, "the Linear has no bias"),
    (extra_parameter, "the GaussianActor has another parameter, temperature"),
    (extra_module, "the ActorCritic has another module, auxiliary"),
    (extra_module_in_a_part, "the BasicMLP has another module, skip"),
    (deviation_of_one_number, "logstd has the shape [1], while the mean has 3 dimensions"),
    (deviation_without_gradient, "the GaussianActor has no logstd"),
    (two_activations, "a Tanh does not follow a Linear"),
    (activation_first, "a Tanh does not follow a Linear"),
    (nested, "no Sequential in a Sequential"),
    (dropout, "no Dropout"),
    (tied_weights, "share weights"),
    (one_trunk_twice, "share weights"),
    (no_sequential, "the model is a Linear, not a Sequential"),
    (two_values, "the critic has 2 outputs"),
    (double, "not float32"),
    (mean_is_a_critic, "the actor is a Critic, not a GaussianActor"),
    (activation(nn.LeakyReLU(0.2)), "LeakyReLU with negative_slope 0.01; the policy has 0.2"),
    (activation(nn.ELU(2.0)), "ELU with alpha 1.0; the policy has 2.0"),
    (activation(nn.Softmax(dim=0)), "Softmax with dim -1; the policy has 0"),
    (activation(nn.GELU()), "no GELU"),
    (activation(nn.Hardtanh()), "no Hardtanh"),
]


@pytest.fixture
def config(small):
    return small(activation="tanh")


def outputs(policy, config):
    """Values and log-probabilities in torch and in native code."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(64, 7)).astype(np.float32)
    actions = rng.normal(size=(64, 3)).astype(np.float32)
    with torch.no_grad():
        log_probs, _, values = policy.evaluate(torch.from_numpy(obs), torch.from_numpy(actions))
    return (values.numpy(), log_probs.numpy()), make_core(policy, config)[0].evaluate(obs, actions)


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=lambda x: getattr(x, "__name__", ""))
def test_what_native_code_would_not_know_is_refused(config, change, reason):
    policy = make_policy(config)
    assert reason_not_native(policy) is None
    change(policy)
    found = reason_not_native(policy)
    assert found is not None and reason in found
    assert NativeLearner.reason_not(config, policy) == found


def nothing(policy):
    pass


def identities(policy):
    policy.critic.model.insert(1, nn.Identity())
    policy.critic.model.insert(0, nn.Identity())


def one_activation_everywhere(policy):
    """Which ``Sequential.children`` would list once."""
    tanh = nn.Tanh()
    policy.representation.model[1] = policy.actor.mu[1] = policy.actor.mu[3] = policy.critic.model[1] = tanh


def new_layers(policy):
    policy.critic.model[0] = nn.Linear(16, 5)
    policy.critic.model[2] = nn.Linear(5, 1)


def pruned_for_good(policy):
    prune.l1_unstructured(policy.critic.model[0], "weight", 0.5)
    prune.remove(policy.critic.model[0], "weight")


def copied(policy):
    policy.actor = copy.deepcopy(policy.actor).eval()


def no_activation(policy):
    del policy.critic.model[1]


SERVED = [nothing, identities, one_activation_everywhere, new_layers, pruned_for_good, copied, no_activation]
SERVED += [activation(nn.Softmax(dim=1)), activation(nn.ReLU(inplace=True)), activation(nn.Sigmoid())]


@pytest.mark.parametrize("change", SERVED, ids=lambda x: x.__name__)
def test_what_is_served_is_computed_as_in_torch(config, change):
    policy = make_policy(config)
    change(policy)
    assert reason_not_native(policy) is None
    (values, log_probs), native = outputs(policy, config)
    # Chains of at most 16 multiply-adds in float32, of numbers of size 10 at most.
    np.testing.assert_allclose(native[0], values, rtol=0, atol=3 * 16 * 10 * 6e-8)
    np.testing.assert_allclose(native[1], log_probs, rtol=1e-5, atol=1e-4)


def test_methods_replaced_in_the_class_are_refused(config, monkeypatch):
    policy = make_policy(config)
    monkeypatch.setattr(GaussianActor, "log_prob", lambda self, mean, actions: mean.sum(-1))
    assert reason_not_native(policy) == "the GaussianActor has a log_prob of its own"
    monkeypatch.undo()
    assert reason_not_native(policy) is None


def test_hooks_of_all_modules_are_refused(config):
    policy = make_policy(config)
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output)
    try:
        assert reason_not_native(policy) == "torch has hooks for all modules"
    finally:
        handle.remove()


def test_frozen_weights_are_left_to_torch(config):
    """Native code would train all of them; what is collected with them is the same."""
    policy = make_policy(config)
    policy.representation.requires_grad_(False)
    assert reason_not_native(policy) is None
    assert NativeLearner.reason_not(config, policy) == "some of the policy's parameters do not require gradients"
