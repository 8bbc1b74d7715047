"""The native learner against torch: gradients in float64, Adam, whole iterations, thread counts, switching engines."""

import copy
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xcfast import RewardNormalizer, Rollout, _core
from xcfast.learner_native import FlatParameters, NativeLearner, network_spec
from xcfast.normalize import NonFiniteError
from xcfast.policy import build_policy
from xcfast.ppo import TorchLearner, normalized_advantages, ppo_loss

EPS = float(np.finfo(np.float32).eps)
ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid", "elu", "softmax"]


def spaces(n_obs, n_actions, discrete):
    box = gym.spaces.Box(-np.inf, np.inf, (n_obs,), np.float32)
    return box, gym.spaces.Discrete(n_actions) if discrete else gym.spaces.Box(-1, 1, (n_actions,), np.float32)


def make_policy(config, n_obs=7, n_actions=3):
    policy = build_policy(config, *spaces(n_obs, n_actions, config.policy == "Categorical_AC"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in policy.parameters():  # biases away from 0, actor away from its tiny gain
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return policy


class Batch:
    """A minibatch with ratios inside and outside the clip range and advantages of both signs."""

    def __init__(self, policy, rows, seed=0, n_obs=7, n_actions=3):
        rng = np.random.default_rng(seed)
        discrete = not hasattr(policy.actor, "logstd")
        self.obs = rng.normal(size=(rows, n_obs)).astype(np.float32)
        if discrete:
            self.actions = rng.integers(n_actions, size=rows)
        else:
            self.actions = rng.normal(scale=0.6, size=(rows, n_actions)).astype(np.float32)
        with torch.no_grad():
            log_probs = policy.evaluate(torch.from_numpy(self.obs), torch.from_numpy(self.actions))[0].numpy()
        self.log_probs = (log_probs + rng.normal(scale=0.3, size=rows)).astype(np.float32)
        self.advantages = rng.normal(size=rows).astype(np.float32)
        self.returns = rng.normal(size=rows).astype(np.float32)

    def arrays(self):
        return self.obs, self.actions, self.log_probs, self.advantages, self.returns


def torch_gradients(policy, config, batch, dtype=torch.float64):
    """Flat gradient and the loss's parts of a copy of the policy in that precision."""
    twin = copy.deepcopy(policy).to(dtype)
    obs, actions, log_probs, advantages, returns = (
        torch.from_numpy(a) if a.dtype == np.int64 else torch.from_numpy(a).to(dtype) for a in batch.arrays()
    )
    if config.use_advnorm:
        advantages = normalized_advantages(advantages)
    new, entropy, values = twin.evaluate(obs, actions)
    loss = ppo_loss(
        new,
        entropy,
        values,
        log_probs,
        advantages,
        returns,
        clip_range=config.clip_range,
        vf_coef=config.vf_coef,
        ent_coef=config.ent_coef,
    )
    loss.loss.backward()
    gradient = np.concatenate([p.grad.numpy().ravel() for p in twin.parameters()])
    return gradient, [float(x) for x in loss[1:]]


def make_core(policy, config, variant=None, threads=1, rows=64):
    flat = FlatParameters(policy)
    moments = np.zeros_like(flat.array), np.zeros_like(flat.array)
    core = _core.Learner(
        **network_spec(policy, flat),
        parameters=flat.array,
        exp_avg=moments[0],
        exp_avg_sq=moments[1],
        loss=(config.clip_range, config.vf_coef, config.ent_coef),
        adam=(0.9, 0.999, 1e-5),
        max_minibatch=rows,
        num_threads=threads,
        variant=variant,
    )
    return core, flat, moments


def check_gradients(policy, config, batch, variant=None):
    exact, parts = torch_gradients(policy, config, batch)
    rows = len(batch.obs)
    core, *_ = make_core(policy, config, variant, rows=rows)
    given_parts = core.compute_gradients(*batch.arrays(), config.use_advnorm)
    # A gradient is a mean over rows of products of chains as deep as the widest layer, times the depth of the network; the cancelling
    # terms are no larger than the largest gradient of a row, bounded by sqrt(rows) times the largest of the mean's for random signs.
    widest = max(max(p.shape) for p in policy.parameters())
    layers = sum(p.ndim == 2 for p in policy.parameters())
    tolerance = 4 * layers * (np.sqrt(widest) + np.sqrt(rows)) * EPS * np.abs(exact).max() * np.sqrt(rows)
    np.testing.assert_allclose(core.gradient, exact, rtol=1e-4, atol=tolerance)
    np.testing.assert_allclose(given_parts, parts, rtol=2e-5, atol=2e-6)


NETWORKS = {
    "shared": {},
    "separate": {"shared_representation": False},
    "absent": {"representation": "Basic_Identical"},
    "absent, linear": {"representation": "Basic_Identical", "actor_hidden_size": [], "critic_hidden_size": []},
    "shared, linear heads": {"actor_hidden_size": [], "critic_hidden_size": []},
    "deep": {
        "representation_hidden_size": [33, 16, 5],
        "actor_hidden_size": [20, 40],
        "critic_hidden_size": [17, 3, 9, 64],
    },
    "wide": {"representation_hidden_size": [300], "actor_hidden_size": [257], "critic_hidden_size": [272]},
}


@pytest.mark.parametrize("policy", ["Gaussian_AC", "Categorical_AC"])
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_autograds(small, network, policy):
    config = small(policy=policy, ent_coef=0.02, **NETWORKS[network])
    model = make_policy(config)
    check_gradients(model, config, Batch(model, 97))


@pytest.mark.parametrize("variant", _core.nn_variants())
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_every_activation_and_instruction_set(small, activation, variant):
    config = small(activation=activation, activation_action=activation, representation_hidden_size=[48], ent_coef=0.01)
    model = make_policy(config)
    check_gradients(model, config, Batch(model, 50), variant)


@pytest.mark.parametrize(
    "keys",
    [
        {"activation_action": None},
        {"use_advnorm": False},
        {"clip_range": 1e-3},
        {"clip_range": 50.0},
        {"vf_coef": 0.0},
        {"ent_coef": 0.5, "policy": "Categorical_AC"},
    ],
    ids=str,
)
def test_gradients_of_loss_settings(small, keys):
    config = small(**keys)
    model = make_policy(config)
    check_gradients(model, config, Batch(model, 61))
