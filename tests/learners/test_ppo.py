import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

from xcfast import RewardNormalizer, Rollout
from xcfast.collectors.collector import warm_up
from xcfast.collectors.torch import TorchCollector
from xcfast.envs import make_envs
from xcfast.errors import NonFiniteError
from xcfast.kernels import reference
from xcfast.learners.loss import ppo_loss
from xcfast.learners.metrics import value_metrics, value_moments
from xcfast.learners.schedule import learning_rate
from xcfast.learners.torch import TorchLearner
from xcfast.normalize import ObservationNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.runs.run import run


def reference_loss(new, entropy, values, old, advantages, returns, clip, vf, ent):
    """The objective of arXiv 1707.06347, sample by sample, in float64."""
    total = policy = value = 0.0
    for lp, v, olp, adv, ret in zip(new, values, old, advantages, returns, strict=True):
        ratio = np.exp(lp - olp)
        if adv >= 0:
            policy -= min(ratio, 1 + clip) * adv
        else:
            policy -= max(ratio, 1 - clip) * adv
        value += (v - ret) ** 2
    n = len(new)
    total = policy / n + vf * value / n - ent * np.mean(entropy)
    return total, policy / n, value / n


@pytest.mark.parametrize("seed", range(5))
def test_loss_is_the_papers(seed):
    rng = np.random.default_rng(seed)
    new, entropy, values, old, advantages, returns = rng.normal(size=(6, 33))
    tensors = [torch.tensor(x) for x in (new, entropy, values, old, advantages, returns)]
    loss = ppo_loss(*tensors, clip_range=0.2, vf_coef=0.25, ent_coef=0.01)
    expected = reference_loss(new, entropy, values, old, advantages, returns, 0.2, 0.25, 0.01)
    np.testing.assert_allclose([float(x) for x in loss[:3]], expected, rtol=1e-12)
    ratio = np.exp(new - old)
    assert float(loss.clipfrac) == pytest.approx(np.mean(np.abs(ratio - 1) > 0.2))
    assert float(loss.approx_kl) == pytest.approx(np.mean(ratio - 1 - np.log(ratio)))


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.0, 1.0, True), (1.0, -1.0, True), (1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False)],
)
def test_gradient_vanishes_exactly_where_the_clip_binds(ratio, advantage, moves):
    new = torch.tensor([np.log(ratio)], requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    loss = ppo_loss(new, zero, zero, zero, torch.tensor([advantage]), zero, clip_range=0.2, vf_coef=0.5, ent_coef=0.0)
    loss.loss.backward()
    assert float(new.grad) == pytest.approx(-advantage * ratio if moves else 0.0)


def test_learning_rate_schedule(small):
    config = small(learning_rate=1e-3)
    k = config.num_updates
    assert k == 4 * 2 * 4
    assert learning_rate(config, 0) == 1e-3
    assert learning_rate(config, k) == 0.0
    assert learning_rate(config, k // 2) == pytest.approx(5e-4)
    constant = small(end_factor_lr_decay=1.0)
    assert learning_rate(constant, k - 1) == constant.learning_rate


def test_explained_variance():
    def explained(values, returns):
        rollout = Rollout(3, 1, (1,))
        rollout.values[:, 0], rollout.returns[:, 0] = values, returns
        metrics = value_metrics(value_moments(rollout.values, rollout.returns))
        assert metrics["predict_value"] == pytest.approx(np.mean(values))
        return metrics["losses/explained_variance"]

    returns = [1.0, 2.0, 4.0]
    assert explained(returns, returns) == 1.0
    assert explained([0.0, 0.0, 0.0], returns) == pytest.approx(0.0)
    assert explained([3.0, 1.0, 2.0], [1.0, 1.0, 1.0]) == 0.0


class Parts:
    """Collector and learner on small envs, without the trainer."""

    def __init__(self, config):
        self.config = config
        self.envs = make_envs(config)
        obs_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        self.policy = build_policy(config, obs_space, action_space)
        self.normalizer = ObservationNormalizer(
            obs_space.shape, num_envs=config.parallels, clip=config.obsnorm_range, enabled=config.use_obsnorm
        )
        action_map = ActionMap(action_space, config.activation_action)
        discrete = action_map.discrete
        self.rollout = Rollout(
            config.horizon_size,
            config.parallels,
            obs_space.shape,
            () if discrete else action_space.shape,
            np.int64 if discrete else np.float32,
        )
        rewards = RewardNormalizer(
            config.parallels, gamma=config.gamma, clip=config.rewnorm_range, enabled=config.use_rewnorm
        )
        self.collector = TorchCollector(self.envs, self.policy, self.normalizer, action_map, config.seed)
        self.learner = TorchLearner(self.policy, config, self.rollout, rewards, num_threads=1)
        self.collector.reset(0)


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v4", "CartPole-v1"])
def test_ratio_of_the_first_minibatch_is_one(small, env_id):
    keys = {"policy": "Categorical_AC"} if env_id == "CartPole-v1" else {}
    config = small(env_id=env_id, n_epochs=1, n_minibatch=1, **keys)
    parts = Parts(config)
    parts.collector.collect(parts.rollout)
    metrics = parts.learner.update(parts.rollout, 0)
    # log-probabilities are O(1) sums of float32: log-ratios within a few 1e-6, KL within their square
    assert abs(metrics["losses/approx_kl"]) < 1e-6
    assert metrics["losses/clipfrac"] == 0.0


def test_values_and_log_probs_are_those_of_the_collecting_weights(small):
    parts = Parts(small())
    parts.collector.collect(parts.rollout)
    rollout = parts.rollout
    with torch.no_grad():
        obs = torch.from_numpy(rollout.obs.copy())
        actions = torch.from_numpy(rollout.actions.copy())
        expected = [parts.policy.evaluate(o, a) for o, a in zip(obs, actions, strict=True)]
    parts.learner.update(rollout, 0)
    np.testing.assert_allclose(rollout.log_probs, torch.stack([e[0] for e in expected]), atol=1e-5)
    np.testing.assert_allclose(rollout.values, torch.stack([e[2] for e in expected]), atol=1e-5)


@pytest.mark.parametrize("n_minibatch", [1, 3, 7, 128])
def test_uneven_minibatches_train_on_every_sample(small, n_minibatch):
    config = small(n_minibatch=n_minibatch, use_advnorm=n_minibatch < 128)  # one step has no deviation
    parts = Parts(config)
    parts.collector.collect(parts.rollout)
    before = [p.clone() for p in parts.policy.parameters()]
    metrics = parts.learner.update(parts.rollout, 0)
    assert all(np.isfinite(value) for value in metrics.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.policy.parameters(), strict=True))
    steps = {float(s["step"]) for s in parts.learner.optimizer.state.values()}
    assert steps == {float(config.n_epochs * n_minibatch)}


def test_non_finite_update_restores_weights_and_optimiser(small):
    parts = Parts(small())
    parts.collector.collect(parts.rollout)
    parts.learner.update(parts.rollout, 0)
    before = [p.clone() for p in parts.policy.parameters()]
    moments = [parts.learner.optimizer.state[p]["exp_avg"].clone() for p in parts.policy.parameters()]
    parts.rollout.clear()
    parts.collector.collect(parts.rollout)
    parts.rollout.obs[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="iteration 1.*policy_loss"):
        parts.learner.update(parts.rollout, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, parts.policy.parameters(), strict=True))
    after = [parts.learner.optimizer.state[p]["exp_avg"] for p in parts.policy.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


def test_update_restores_the_thread_count(small):
    parts = Parts(small())
    parts.collector.collect(parts.rollout)
    parts.learner.num_threads = 2
    parts.learner.update(parts.rollout, 0)
    assert torch.get_num_threads() == 1


def test_time_limits_are_bootstrapped(small):
    """Reward 1 for ever under a time limit of 20: V goes to 1 / (1 - gamma), not to the sum over one episode."""
    config = small(
        env_id="toys:toy/RewardOne-v0",
        gamma=0.9,
        running_steps=128 * 150,
        use_rewnorm=False,
        use_obsnorm=False,
        n_epochs=4,
        learning_rate=3e-3,
        end_factor_lr_decay=1.0,
        vf_coef=1.0,
        use_grad_clip=False,
    )
    parts = Parts(config)
    for iteration in range(150):
        parts.collector.collect(parts.rollout)
        parts.learner.update(parts.rollout, iteration)
        assert (parts.rollout.truncated.sum() > 0) and not parts.rollout.terminated.any()
        parts.rollout.clear()
    # 1 / (1 - 0.9) = 10; cutting the bootstrap at the limit would give a mean below 10 - 0.9**20 * 10 = 8.8
    assert parts.rollout.values.mean() == pytest.approx(10.0, abs=0.2)


@pytest.mark.parametrize(
    ("env_id", "policy", "floor"),
    [("toys:toy/Target-v0", "Gaussian_AC", 0.97), ("toys:toy/Choice-v0", "Categorical_AC", 0.95)],
)
def test_learns(small, env_id, policy, floor):
    config = small(
        env_id=env_id,
        policy=policy,
        running_steps=128 * 100,
        n_epochs=8,
        learning_rate=3e-3,
        test_episode=64,
        logger="none",
    )
    summary = run(config, quiet=True)
    assert summary.final_mean > floor


def reference_update(config, rollout, policy, iteration):
    """One iteration by the rules, in float64: rewards, advantages, losses, clipped gradients, Adam, learning rate."""
    policy = copy.deepcopy(policy).double()
    obs, actions = (torch.from_numpy(x.reshape(-1, *x.shape[2:])).double() for x in (rollout.obs, rollout.actions))
    with torch.no_grad():
        old_log_probs, _, values = policy.evaluate(obs, actions)
        last_values = policy.value(torch.from_numpy(rollout.last_obs).double()).numpy()
        final_values = np.full(rollout.rewards.size, np.nan)  # read only where an episode was cut by the time limit
        final_values[rollout.final_index] = policy.value(torch.from_numpy(rollout.final_obs).double()).numpy()
    rewards = rollout.rewards.astype(np.float64)
    done = rollout.terminated | rollout.truncated
    if config.use_rewnorm:
        sums, _ = reference.discounted_reward_sums(rewards, done, np.zeros(config.parallels), config.gamma)
        rewards = np.clip(rewards / np.sqrt(sums.var() + 1e-8), -config.rewnorm_range, config.rewnorm_range)
    shape = rewards.shape
    values, final_values = values.numpy().reshape(shape), final_values.reshape(shape)
    decay = config.trace_decay
    advantages, carry, following = np.zeros(shape), np.zeros(shape[1]), last_values
    for t in reversed(range(shape[0])):
        bootstrap = np.where(rollout.truncated[t], final_values[t], following)
        bootstrap = np.where(rollout.terminated[t], 0.0, bootstrap)
        delta = rewards[t] + config.gamma * bootstrap - values[t]
        carry = delta + config.gamma * decay * np.where(done[t], 0.0, carry)
        advantages[t], following = carry, values[t]
    advantages, returns = (torch.from_numpy(x.reshape(-1)) for x in (advantages, advantages + values))
    values_of_rollout = torch.from_numpy(values.reshape(-1))

    parameters = list(policy.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    beta1, beta2 = config.adam_beta1, config.adam_beta2
    update = iteration * config.n_epochs * config.n_minibatch
    for epoch in range(config.n_epochs):
        indices, offsets = rollout.minibatch_indices(config.seed, iteration, epoch, config.n_minibatch)
        for start, stop in pairwise(offsets):
            rows = torch.from_numpy(indices[start:stop])
            adv = advantages[rows]
            if config.use_advnorm:
                adv = (adv - adv.mean()) / (adv.std(correction=0) + 1e-8)
            log_probs, entropy, value = policy.evaluate(obs[rows], actions[rows])
            ratio = torch.exp(log_probs - old_log_probs[rows])
            limit = torch.where(adv >= 0, 1 + config.clip_range, 1 - config.clip_range)
            bound = torch.where(adv >= 0, torch.minimum(ratio, limit), torch.maximum(ratio, limit))
            error = (value - returns[rows]) ** 2
            if config.clip_value_range is not None:
                old, c = values_of_rollout[rows], config.clip_value_range
                near = torch.minimum(torch.maximum(value, old - c), old + c)
                error = torch.maximum(error, (near - returns[rows]) ** 2)
            loss = -(bound * adv).mean() + config.vf_coef * error.mean()
            gradients = torch.autograd.grad(loss - config.ent_coef * entropy.mean(), parameters)
            norm = torch.sqrt(sum((g**2).sum() for g in gradients))
            scale = min(1.0, config.grad_clip_norm / float(norm)) if config.use_grad_clip else 1.0
            lr = config.learning_rate
            if config.lr_schedule == "linear":
                lr *= 1 - (1 - config.end_factor_lr_decay) * update / config.num_updates
            update += 1
            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    m.mul_(beta1).add_((1 - beta1) * scale * g)
                    v.mul_(beta2).add_((1 - beta2) * (scale * g) ** 2)
                    p -= lr * (m / (1 - beta1**update)) / (torch.sqrt(v / (1 - beta2**update)) + 1e-5)
    return policy


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"use_gae": False},
        {"use_advnorm": False},
        {"use_grad_clip": False},
        {"grad_clip_norm": 0.05},
        {"use_rewnorm": False},
        {"rewnorm_range": 0.5},
        {"ent_coef": 0.3},
        {"vf_coef": 2.0},
        {"clip_range": 0.01},
        {"gamma": 0.8, "gae_lambda": 0.5},
        {"end_factor_lr_decay": 1.0},
        {"clip_value_range": 0.02},
        {"lr_schedule": "constant"},
        {"lr_schedule": "kl", "desired_kl": 1e-9},
        {"adam_beta1": 0.99, "adam_beta2": 0.99},
        {"n_minibatch": 7},
        {"shared_representation": False, "activation": "tanh"},
    ],
    ids=str,
)
def test_update_follows_the_rules(small, keys):
    """Every key's effect, against an independent float64 iteration."""
    config = small(env_id="toys:toy/ShortPendulum-v0", running_steps=256, learning_rate=3e-3, **keys)
    parts = Parts(config)
    warm_up(parts.collector, parts.rollout)
    parts.collector.collect(parts.rollout)
    assert parts.rollout.terminated.any() and len(parts.rollout.final_index) > 3
    expected = reference_update(config, parts.rollout, parts.policy, 0)
    before = torch.nn.utils.parameters_to_vector(parts.policy.parameters()).detach().double()
    metrics = parts.learner.update(parts.rollout, 0)
    after = torch.nn.utils.parameters_to_vector(parts.policy.parameters()).detach().double()
    wanted = torch.nn.utils.parameters_to_vector(expected.parameters()).detach()
    # Adam divides by the gradient's size, so a relative rounding error of 1e-6 in a gradient stays one of about 1e-6
    # in the step, except where a gradient is itself of the size of rounding (eps 1e-5 bounds it there).
    assert float((after - wanted).norm() / (wanted - before).norm()) < 1e-3
    last = config.n_epochs * config.n_minibatch - 1
    rate = parts.learner.optimizer.param_groups[0]["lr"]
    if config.lr_schedule == "kl":  # far above the KL that is desired: the next rate is smaller
        assert (metrics["learning_rate"], rate) == (config.learning_rate, config.learning_rate / 1.5)
    else:
        assert metrics["learning_rate"] == rate == learning_rate(config, last)
