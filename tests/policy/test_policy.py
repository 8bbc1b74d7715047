import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from xcfast import load_config
from xcfast.policy import CategoricalActor, GaussianActor, build_policy

OBS = Box(-np.inf, np.inf, (5,), np.float64)
BOX = Box(-1.0, 1.0, (3,), np.float32)


def policy_of(action_space=BOX, **keys):
    if isinstance(action_space, Discrete):
        keys = {"policy": "Categorical_AC", **keys}
    return build_policy(load_config(overrides={"env_id": "Ant-v4", "device": "cpu", **keys}), OBS, action_space)


def test_gaussian_matches_torch_distributions():
    actor = policy_of().actor
    assert isinstance(actor, GaussianActor)
    with torch.no_grad():
        actor.logstd.copy_(torch.tensor([-1.0, 0.2, 0.7]))
    mean, actions = torch.randn(7, 3), torch.randn(7, 3)
    reference = torch.distributions.Normal(mean.double(), actor.logstd.exp().double())
    # a sum of 3 float32 terms of size <= ~50
    np.testing.assert_allclose(
        actor.log_prob(mean, actions).detach(),
        reference.log_prob(actions.double()).sum(-1).detach(),
        atol=3 * 50 * 6e-8 * 4,
    )
    np.testing.assert_allclose(actor.entropy(mean).detach(), reference.entropy().sum(-1).detach(), rtol=1e-6)


def test_categorical_matches_torch_distributions():
    actor = policy_of(Discrete(4)).actor
    assert isinstance(actor, CategoricalActor)
    logits = torch.randn(9, 4) * 3
    actions = torch.arange(9) % 4
    reference = torch.distributions.Categorical(logits=logits.double())
    np.testing.assert_allclose(actor.log_prob(logits, actions), reference.log_prob(actions), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actor.entropy(logits), reference.entropy(), rtol=1e-5, atol=1e-6)


def test_categorical_sampling_inverts_the_cumulative_distribution():
    actor = policy_of(Discrete(3)).actor
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).expand(6, 3)
    noise = torch.tensor([1e-9, 0.19, 0.21, 0.69, 0.71, 1 - 1e-12], dtype=torch.float64)
    assert actor.sample(logits, noise).tolist() == [0, 0, 1, 1, 2, 2]


def test_gaussian_sampling_is_mean_plus_std_times_noise():
    actor = policy_of(log_std_init=0.5).actor
    mean, noise = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(actor.sample(mean, noise), mean + np.exp(0.5) * noise)


def test_initialisation_is_orthogonal_with_the_stated_gains():
    policy = policy_of()
    hidden = policy.representation.model[0].weight.double()
    torch.testing.assert_close(hidden.T @ hidden, 2 * torch.eye(5).double(), atol=1e-5, rtol=0)
    output = policy.actor.mu[-2].weight.double()  # the last module is the tanh
    torch.testing.assert_close(output @ output.T, 1e-4 * torch.eye(3).double(), atol=1e-9, rtol=0)
    value = policy.critic.model[-1].weight.double()
    torch.testing.assert_close(value @ value.T, torch.eye(1).double(), atol=1e-6, rtol=0)
    assert all((p == 0).all() for name, p in policy.named_parameters() if name.endswith("bias"))


def test_parameter_names_are_those_of_xuance_checkpoints():
    names = set(policy_of().state_dict())
    assert names == {
        *(f"representation.model.0.{x}" for x in ("weight", "bias")),
        *(f"actor.mu.{i}.{x}" for i in (0, 2) for x in ("weight", "bias")),
        "actor.logstd",
        *(f"critic.model.{i}.{x}" for i in (0, 2) for x in ("weight", "bias")),
    }


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid", "elu", "softmax"])
@pytest.mark.parametrize("normalize", [None, "LayerNorm"])
def test_every_activation_runs_forward_and_backward(activation, normalize):
    policy = policy_of(activation=activation, normalize=normalize, representation_hidden_size=[8, 4])
    log_prob, entropy, value = policy.evaluate(torch.randn(6, 5), torch.randn(6, 3))
    assert log_prob.shape == entropy.shape == value.shape == (6,)
    (log_prob.sum() + value.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


def test_representations():
    identity = policy_of(representation="Basic_Identical")
    assert len(identity.representation.model) == 0
    assert identity.actor.mu[0].in_features == 5
    separate = policy_of(shared_representation=False)
    assert separate.critic_representation is not None
    obs = torch.randn(3, 5)
    separate.value(obs).sum().backward()
    assert all(p.grad is None for p in separate.representation.parameters())
    log_prob, _, value = separate.evaluate(obs, torch.zeros(3, 3))
    torch.testing.assert_close(value, separate.value(obs))
    torch.testing.assert_close(log_prob, separate.actor.log_prob(separate.act(obs), torch.zeros(3, 3)))
