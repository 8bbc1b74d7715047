"""The native learner against torch: gradients in float64, Adam, whole iterations, thread counts, switching engines."""

import copy
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_core import make_core, make_policy, spaces
from signals_in_time import Interrupted, interrupted_after
from small_config import SMALL
from torch.utils import _pytree as pytree

from xcfast import RewardNormalizer, Rollout, _core, load_config
from xcfast.errors import ConfigError, NonFiniteError
from xcfast.learners.cuda import CudaLearner
from xcfast.learners.loss import LOSSES, normalized_advantages, ppo_loss
from xcfast.learners.native import NativeLearner
from xcfast.learners.torch import TorchLearner
from xcfast.policy import build_policy
from xcfast.runs.engines import make_learner

EPS = float(np.finfo(np.float32).eps)
MASKED = {"policy": "Categorical_AC", "use_actions_mask": True}
POLICIES = [{"policy": "Gaussian_AC"}, {"policy": "Categorical_AC"}, MASKED]
ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid", "elu", "softmax"]


def random_masks(rng, *shape):
    """Bool [*shape], some True in each row."""
    masks = rng.random(shape) < 0.4
    np.put_along_axis(masks, rng.integers(shape[-1], size=shape)[..., :1], True, axis=-1)
    return masks


class Batch:
    """A minibatch with ratios inside and outside the clip range and advantages of both signs."""

    def __init__(self, policy, rows, seed=0, n_obs=7, n_actions=3, masked=False):
        rng = np.random.default_rng(seed)
        discrete = not hasattr(policy.actor, "logstd")
        self.obs = rng.normal(size=(rows, n_obs)).astype(np.float32)
        if discrete:
            self.actions = rng.integers(n_actions, size=rows)
            self.masks = random_masks(rng, rows, n_actions) if masked else None
            if masked:
                np.put_along_axis(self.masks, self.actions[:, None], True, axis=-1)
        else:
            self.actions = rng.normal(scale=0.6, size=(rows, n_actions)).astype(np.float32)
            self.masks = None
        with torch.no_grad():
            taken = map(torch.from_numpy, (self.obs, self.actions))
            log_probs = policy.evaluate(*taken, *self.only_masks())[0].numpy()
        ratios = rng.uniform(0.5, 1.6, size=rows)
        for edge in (0.8, 1.2):  # no rounding error may decide on which side of an edge a sample is
            ratios[np.abs(ratios - edge) < 0.01] = edge + 0.01
        self.log_probs = (log_probs - np.log(ratios)).astype(np.float32)
        self.advantages = rng.normal(size=rows).astype(np.float32)
        self.returns = rng.normal(size=rows).astype(np.float32)
        # The distributions of a policy that collected, some way from this one's.
        with torch.no_grad():
            outputs = policy.act(torch.from_numpy(self.obs)).numpy()
        self.old_outputs = (outputs + rng.normal(scale=0.3, size=outputs.shape)).astype(np.float32)
        self.old_log_std = None
        if not discrete:
            log_std = policy.actor.logstd.detach().numpy()
            self.old_log_std = (log_std + rng.normal(scale=0.2, size=log_std.shape)).astype(np.float32)
        # Its values, and targets for the loss clipped at 0.3: values and errors on either side of the edges, and away
        # from them. A value that is 0.8 off has its square clipped where its error in that direction is below 0.25.
        with torch.no_grad():
            values = policy.value(torch.from_numpy(self.obs)).numpy()
        self.moved, self.errors = (
            rng.choice([-0.8, -0.1, 0.1, 0.8], size=rows),
            rng.choice([-0.6, -0.1, 0.1, 0.6], size=rows),
        )
        self.old_values = (values - self.moved + rng.uniform(-0.05, 0.05, size=rows)).astype(np.float32)
        self.near_returns = (values - self.errors + rng.uniform(-0.05, 0.05, size=rows)).astype(np.float32)

    def only_masks(self):
        return () if self.masks is None else (torch.from_numpy(self.masks),)

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
    output, values = twin.heads(obs, *batch.only_masks())
    new, entropy, kl = twin.actor.log_prob(output, actions), twin.actor.entropy(output), None
    if config.agent == "PPO_KL":
        kl = reference_kl(twin, batch, output)
    loss = ppo_loss(
        new,
        entropy,
        values,
        log_probs,
        advantages,
        returns,
        clip_range=config.ratio_range,
        vf_coef=config.vf_coef,
        ent_coef=config.ent_coef,
        kl=kl,
        kl_coef=config.kl_coef,
        old_values=None if config.clip_value_range is None else torch.from_numpy(batch.old_values).to(dtype),
        value_range=config.value_range,
    )
    loss.loss.backward()
    gradient = np.concatenate([p.grad.numpy().ravel() for p in twin.parameters()])
    return gradient, [float(x) for x in loss[1:]]


def reference_kl(policy, batch, output):
    """KL divergence [B] of the collecting policy's distributions from these, by torch.distributions."""
    old_output = torch.from_numpy(batch.old_outputs).to(output.dtype)
    divergence = torch.distributions.kl_divergence
    if batch.old_log_std is not None:
        old = distribution(old_output, torch.from_numpy(batch.old_log_std).to(output.dtype))
        return divergence(old, distribution(output, policy.actor.logstd)).sum(-1)
    if batch.masks is None:
        return divergence(distribution(old_output), distribution(output))
    rows = zip(old_output, output, torch.from_numpy(batch.masks), strict=True)  # over the allowed actions alone
    return torch.stack([divergence(distribution(old[mask]), distribution(new[mask])) for old, new, mask in rows])


def distribution(output, log_std=None):
    """Of torch.distributions, its dimensions apart."""
    if log_std is None:
        return torch.distributions.Categorical(logits=output)
    return torch.distributions.Normal(output, log_std.exp().expand_as(output))


def check_gradients(policy, config, batch, variant=None):
    exact, parts = torch_gradients(policy, config, batch)
    rows = len(batch.obs)
    core, *_ = make_core(policy, config, variant, rows=rows)
    old = batch.old_outputs, batch.old_log_std
    given_parts = core.compute_gradients(*batch.arrays(), config.use_advnorm, None, *old, batch.masks, batch.old_values)
    # Rounding errors of a chain of n terms grow as sqrt(n) eps; a gradient goes through two chains per layer, over the
    # inputs and over the rows. The log-probability is rounded in proportion to its size, and its error is the relative
    # error of the ratio, which multiplies the gradient. Torch in float32 is as far from float64.
    widest = max(max(p.shape) for p in policy.parameters())
    layers = sum(p.ndim == 2 for p in policy.parameters())
    chains = 2 * layers * (np.sqrt(widest) + np.sqrt(rows))
    tolerance = (chains + np.abs(batch.log_probs).max()) * EPS * np.abs(exact).max()
    np.testing.assert_allclose(core.gradient, exact, rtol=0, atol=tolerance)
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


@pytest.mark.parametrize("agent", ["PPO", "PPO_KL"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_autograds(small, network, policy, agent):
    config = small(ent_coef=0.02, agent=agent, **policy, **NETWORKS[network])
    model = make_policy(config)
    check_gradients(model, config, Batch(model, 97, masked=config.use_actions_mask))


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
        {"agent": "PPO_KL", "activation_action": None, "kl_coef": 30.0},
        {"agent": "PPO_KL", "policy": "Categorical_AC", "kl_coef": 0.1, "use_advnorm": False},
        {"ent_coef": 0.5, **MASKED},
        {"agent": "PPO_KL", "kl_coef": 30.0, **MASKED},
    ],
    ids=str,
)
def test_gradients_of_loss_settings(small, keys):
    config = small(**keys)
    model = make_policy(config)
    check_gradients(model, config, Batch(model, 61, masked=config.use_actions_mask))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("agent", ["PPO", "PPO_KL"])
def test_gradients_of_a_clipped_value_loss(small, policy, agent):
    config = small(clip_value_range=0.3, vf_coef=2.0, agent=agent, **policy)
    model = make_policy(config)
    batch = Batch(model, 97, masked=config.use_actions_mask)
    batch.returns = batch.near_returns
    check_gradients(model, config, batch)


@pytest.mark.parametrize("moved", [-0.8, -0.1, 0.1, 0.8])
@pytest.mark.parametrize("error", [-0.6, -0.1, 0.1, 0.6])
def test_the_value_stands_still_where_the_clipped_error_is_larger(small, moved, error):
    """By hand: the value loss alone, with all values as far from the old ones and from their targets."""
    config = small(clip_value_range=0.3, vf_coef=1.0)
    model = make_policy(config)
    batch = Batch(model, 5)
    core, flat, _ = make_core(model, config)
    values = np.array(core.evaluate(batch.obs, batch.actions)[0])
    batch.advantages[:] = 0.0
    batch.returns, old_values = (values - x for x in (np.float32(error), np.float32(moved)))
    losses = core.compute_gradients(*batch.arrays(), False, old_values=old_values)
    clipped = error - moved + np.clip(moved, -0.3, 0.3)
    assert losses[1] == pytest.approx(max(error**2, clipped**2), rel=1e-5)
    bias = flat.split(torch.from_numpy(core.gradient))[-1]  # of the critic's last layer
    wanted = 0.0 if clipped**2 > error**2 and abs(moved) > 0.3 else 2 * error
    assert float(bias) == pytest.approx(wanted, rel=1e-5)


def test_a_clipped_value_loss_needs_the_old_values(small):
    config = small(clip_value_range=0.3)
    model = make_policy(config)
    core, *_ = make_core(model, config)
    with pytest.raises(ValueError, match="the clipped value loss needs old_values"):
        core.compute_gradients(*Batch(model, 5).arrays(), True)
    with pytest.raises(ValueError, match="old_values must be"):
        core.compute_gradients(*Batch(model, 5).arrays(), True, old_values=np.zeros(4, np.float32))


SIZES = st.sampled_from([1, 2, 3, 5, 6, 7, 8, 13, 15, 16, 17, 31, 32, 33, 47])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.one_of(SIZES, st.sampled_from([64, 97, 128, 129, 211, 1025])),
    n_obs=SIZES,
    n_actions=SIZES.filter(lambda n: n > 1),
    trunk=st.lists(SIZES, min_size=1, max_size=3),
    actor=st.lists(SIZES, max_size=2),
    critic=st.lists(SIZES, max_size=2),
    shared=st.booleans(),
    policy=st.sampled_from(POLICIES),
    agent=st.sampled_from(["PPO", "PPO_KL"]),
)
@example(6, 31, 31, [31], [], [], True, POLICIES[0], "PPO")  # log-probabilities of 128
def test_gradients_of_any_sizes(rows, n_obs, n_actions, trunk, actor, critic, shared, policy, agent):
    config = load_config(
        overrides={
            **SMALL,
            **policy,
            "representation_hidden_size": trunk,
            "actor_hidden_size": actor,
            "critic_hidden_size": critic,
            "shared_representation": shared,
            "activation": "tanh",  # smooth: no kink for a rounding error to cross
            "ent_coef": 0.01,
            "agent": agent,
        }
    )
    model = make_policy(config, n_obs, n_actions)
    masked = config.use_actions_mask
    check_gradients(model, config, Batch(model, rows, n_obs=n_obs, n_actions=n_actions, masked=masked))


@pytest.mark.parametrize("policy", ["Gaussian_AC", "Categorical_AC"])
def test_gradient_vanishes_where_the_clip_binds(small, policy):
    config = small(policy=policy, use_advnorm=False, vf_coef=0.0, ent_coef=0.0)
    model = make_policy(config)
    batch = Batch(model, 4)
    exact = np.array(make_core(model, config)[0].evaluate(batch.obs, batch.actions)[1])
    ratios = {1.5: (1.0, False), 1.4: (-1.0, True), 0.5: (-1.0, False), 0.6: (1.0, True)}
    for ratio, (advantage, moves) in ratios.items():
        batch.log_probs = (exact - np.log(ratio)).astype(np.float32)
        batch.advantages = np.full(4, advantage, np.float32)
        core, *_ = make_core(model, config)
        policy_loss, *_, clipped, _ = core.compute_gradients(*batch.arrays(), False)
        assert np.any(core.gradient != 0) == moves
        assert clipped == 1.0
        assert policy_loss == pytest.approx(-advantage * (ratio if moves else np.clip(ratio, 0.8, 1.2)), rel=1e-5)


@pytest.mark.parametrize("agent", ["PPO", "PPO_KL"])
def test_minibatch_by_index_is_the_minibatch(small, agent):
    config = small(agent=agent)
    model = make_policy(config)
    batch = Batch(model, 90)
    core, *_ = make_core(model, config, rows=90)
    indices = np.random.default_rng(1).permutation(90)[:37]
    old_outputs, old_log_std = batch.old_outputs, batch.old_log_std
    losses = core.compute_gradients(*batch.arrays(), True, indices, old_outputs, old_log_std)
    by_index = core.gradient.copy()
    some = [a[indices] for a in batch.arrays()]
    assert core.compute_gradients(*some, True, None, old_outputs[indices], old_log_std) == losses
    np.testing.assert_array_equal(core.gradient, by_index)


@pytest.mark.parametrize("variant", _core.nn_variants())
@pytest.mark.parametrize("policy", ["Gaussian_AC", "Categorical_AC"])
def test_a_row_does_not_depend_on_its_neighbours(small, policy, variant):
    config = small(policy=policy, representation_hidden_size=[300], actor_hidden_size=[70, 33])
    model = make_policy(config)
    batch = Batch(model, 200)
    core, *_ = make_core(model, config, variant, rows=130)
    values, log_probs = core.evaluate(batch.obs, batch.actions)
    for size in (1, 2, 3, 4, 7, 64):
        for start in range(0, 200 - size, 31):
            rows = slice(start, start + size)
            some = core.evaluate(batch.obs[rows], batch.actions[rows])
            np.testing.assert_array_equal(some[0], values[rows])
            np.testing.assert_array_equal(some[1], log_probs[rows])
    with torch.no_grad():
        exact, _, exact_values = (
            copy.deepcopy(model)
            .double()
            .evaluate(
                torch.from_numpy(batch.obs).double(),
                torch.from_numpy(batch.actions if policy == "Categorical_AC" else batch.actions.astype(np.float64)),
            )
        )
    np.testing.assert_allclose(values, exact_values, rtol=0, atol=300**0.5 * 4 * EPS * float(exact_values.abs().max()))
    np.testing.assert_allclose(log_probs, exact, rtol=0, atol=300**0.5 * 8 * EPS * float(exact.abs().max()))


# Largest error in units of the last place of the result, and the float64 function.
ELEMENTARY = {
    "tanh": (3, 2.5, np.tanh),
    "sigmoid": (4, 2.5, lambda x: 1 / (1 + np.exp(-x))),
    "elu": (5, 2.5, lambda x: np.where(x > 0, x, np.expm1(x))),
}


@pytest.mark.parametrize("variant", _core.nn_variants())
@pytest.mark.parametrize("name", ELEMENTARY)
def test_accuracy_of_activations(name, variant):
    number, units, exact = ELEMENTARY[name]
    rng = np.random.default_rng(0)
    parts = [
        rng.normal(size=2**18),
        rng.uniform(-20, 20, 2**18),
        rng.uniform(-1, 1, 2**18) * 10.0 ** rng.uniform(-30, 0, 2**18),
    ]
    x = np.concatenate([*parts, np.linspace(-87, 87, 2**18)]).astype(np.float32)
    y = _core.nn_activation(number, x, variant)
    wanted = exact(x.astype(np.float64))
    spacing = np.spacing(np.maximum(np.abs(wanted), np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(y - wanted) / spacing) <= units


@pytest.mark.parametrize("variant", _core.nn_variants())
def test_activations_at_the_ends(variant):
    ends = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 100.0, -100.0] + [0.0] * 7, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for number, _, exact in ELEMENTARY.values():
            wanted = exact(ends.astype(np.float64))
            np.testing.assert_allclose(_core.nn_activation(number, ends, variant), wanted, atol=1e-37)
    relu = _core.nn_activation(1, ends, variant)
    assert np.isnan(relu[4]) and relu[2] == np.inf and relu[6] == 0.0


@pytest.mark.parametrize("max_norm", [0.5, float("inf")])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.99, 0.99), (0.0, 0.0)], ids=str)
def test_adam_is_torchs_step_by_step(small, max_norm, betas):
    config = small(adam_beta1=betas[0], adam_beta2=betas[1])
    model = make_policy(config)
    twin = copy.deepcopy(model).double()
    core, flat, moments = make_core(model, config)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1.0, betas=betas, eps=1e-5)
    rng = np.random.default_rng(2)
    for step in range(1, 31):
        rate = 1e-2 / step
        gradient = (rng.normal(size=flat.array.size) * 10.0 ** rng.uniform(-4, 0)).astype(np.float32)
        core.gradient[:] = gradient
        parts = flat.split(torch.from_numpy(gradient.astype(np.float64)))
        for parameter, part in zip(twin.parameters(), parts, strict=True):
            parameter.grad = part
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert core.apply(rate, max_norm, step) == pytest.approx(float(norm), rel=1e-12)
        # each step rounds once in the parameter, and a few times in an update of at most about the rate
        wanted = np.concatenate([p.detach().numpy().ravel() for p in twin.parameters()])
        np.testing.assert_allclose(flat.array, wanted, rtol=step * EPS, atol=8 * EPS * 1e-2 * step)
        for key, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
            wanted = np.concatenate([optimizer.state[p][key].numpy().ravel() for p in twin.parameters()])
            np.testing.assert_allclose(moment, wanted, rtol=4 * step * EPS, atol=4 * step * EPS * np.abs(wanted).max())


# ---- The learner on whole rollouts


def fill(rollout, seed=0, n_actions=3):
    """A full rollout with terminations, time limits and both."""
    rng = np.random.default_rng(seed)
    steps, envs = rollout.rewards.shape
    discrete = rollout.actions.dtype == np.int64
    for _ in range(steps):
        terminated, truncated = rng.random((2, envs)) < 0.03
        cut = int((truncated & ~terminated).sum())
        rollout.store(
            rng.normal(size=(envs, *rollout.obs_shape)).astype(np.float32),
            rng.integers(n_actions, size=envs) if discrete else rng.normal(scale=0.5, size=(envs, n_actions)),
            rng.normal(size=envs),
            terminated,
            truncated,
            final_obs=rng.normal(size=(cut, *rollout.obs_shape)) if cut else None,
            action_masks=None if rollout.action_masks is None else random_masks(rng, envs, n_actions),
        )
    rollout.last_obs[:] = rng.normal(size=rollout.last_obs.shape)
    return rollout


def new_learner(cls, config, threads=1, n_obs=7, n_actions=3):
    """A learner with a rollout whose actions its own policy chose."""
    policy = build_policy(config, *spaces(n_obs, n_actions, config.policy == "Categorical_AC"))
    discrete = config.policy == "Categorical_AC"
    shape, dtype = ((), np.int64) if discrete else ((n_actions,), np.float32)
    num_actions = n_actions if config.use_actions_mask else None
    empty = Rollout(config.horizon_size, config.parallels, (n_obs,), shape, dtype, num_actions=num_actions)
    rollout = fill(empty, config.seed, n_actions)
    masks = () if rollout.action_masks is None else (torch.from_numpy(rollout.action_masks.reshape(-1, n_actions)),)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        output = policy.act(torch.from_numpy(rollout.obs.reshape(-1, n_obs)), *masks)
        if discrete:
            noise = torch.rand(len(output), generator=generator, dtype=torch.float64)
        else:
            noise = torch.randn(output.shape, generator=generator)
        rollout.actions[:] = policy.actor.sample(output, noise).numpy().reshape(rollout.actions.shape)
    rewards = RewardNormalizer(config.parallels, gamma=config.gamma, enabled=config.use_rewnorm)
    return cls(policy.double() if cls is Torch64 else policy, config, rollout, rewards, threads), rollout


@pytest.mark.parametrize(("place", "words"), [("cpu", "on the CPU, not on cuda:1, where"), ("meta", "on meta, where")])
def test_another_optimizer_than_adam_is_served_where_its_parameters_are(small, place, words):
    """The device without data stands for a GPU."""
    config = small()
    policy = build_policy(config, *spaces(7, 3, False)).to(place)
    rollout = Rollout(config.horizon_size, config.parallels, (7,), (3,))
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    device = torch.device("cuda", 1)
    learner, reason = make_learner(config, policy, rollout, None, 1, device=device, optimizer=optimizer)
    assert learner.device.type == place and learner.optimizer is optimizer
    assert reason == f"{words} the policy's parameters are: the optimizer is SGD, not Adam"


class Torch64(TorchLearner):
    """TorchLearner in float64, on the same float32 rollout."""

    def _to_device(self, array):
        tensor = torch.from_numpy(array)
        return tensor.double() if tensor.is_floating_point() else tensor

    def _gather(self, rollout, indices, on_device):
        return [self._to_device(x.numpy()) for x in super()._gather(rollout, indices, on_device)]


def weights(learner):
    return np.concatenate([p.detach().double().numpy().ravel() for p in learner.policy.parameters()])


@pytest.mark.parametrize(
    ("policy", "width", "agent"),
    [(POLICIES[0], 256, "PPO"), (POLICIES[1], 64, "PPO"), (POLICIES[0], 64, "PPO_KL"), (MASKED, 64, "PPO_KL")],
    ids=str,
)
def test_an_iteration_ends_where_torchs_does(small, policy, width, agent):
    """After 128 gradient steps, the distance from float64 is torch's own.

    Now and then a rounding error pushes a sample over the edge of the clip range, in either learner, and the weights
    part by a thousandth of the way: hence the median of several seeds.
    """
    hidden = {f"{part}_hidden_size": [width] for part in ("representation", "actor", "critic")}
    keys = {
        "n_epochs": 16,
        "n_minibatch": 8,
        "parallels": 8,
        "horizon_size": 37,
        "running_steps": 2960,
        "activation": "tanh",
    }
    distances = []
    for seed in range(3):
        config = small(agent=agent, seed=seed, ent_coef=1e-3, **policy, **keys, **hidden)
        start = weights(new_learner(TorchLearner, config)[0])
        ends = []
        for cls in (Torch64, TorchLearner, NativeLearner):
            learner, rollout = new_learner(cls, config)
            learner.update(rollout, 3)
            ends.append(weights(learner))
        way = np.linalg.norm(ends[0] - start)
        distances.append([np.linalg.norm(end - ends[0]) / way for end in ends[1:]])
    torchs, natives = np.median(distances, axis=0)
    assert 0 < natives <= 10 * torchs


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"policy": "Categorical_AC", "ent_coef": 0.01},
        {**MASKED, "ent_coef": 0.01},
        {"use_gae": False},
        {"use_rewnorm": False},
        {"use_grad_clip": False},
        {"use_advnorm": False},
        {"agent": "PPO_KL", "kl_coef": 5.0},
        {"agent": "PPO_KL", "policy": "Categorical_AC", "kl_coef": 5.0, "n_minibatch": 5},
        {"clip_value_range": 0.01, "learning_rate": 3e-3},
    ],
)
def test_settings_reach_the_update(small, keys):
    config = small(**keys)
    start = weights(new_learner(TorchLearner, config)[0])
    ends, metrics, rollouts = [], [], []
    for cls in (TorchLearner, NativeLearner):
        learner, rollout = new_learner(cls, config)
        metrics.append(learner.update(rollout, 1))
        ends.append(weights(learner))
        rollouts.append(rollout)
    assert np.linalg.norm(ends[1] - ends[0]) <= 1e-4 * np.linalg.norm(ends[0] - start)
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4, abs=1e-6)
    for name in ("values", "log_probs", "advantages", "returns"):
        arrays = [getattr(rollout, name) for rollout in rollouts]
        np.testing.assert_allclose(arrays[1], arrays[0], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("policy", ["Gaussian_AC", "Categorical_AC"])
@pytest.mark.parametrize("n_minibatch", [1, 3, 7, 128])
def test_bits_do_not_depend_on_the_number_of_threads(small, policy, n_minibatch):
    config = small(
        policy=policy,
        agent="PPO_KL" if n_minibatch == 7 else "PPO",
        n_minibatch=n_minibatch,
        use_advnorm=n_minibatch < 128,  # one step has no deviation
        representation_hidden_size=[70],
        shared_representation=False,
        ent_coef=0.01,
    )
    results = []
    for threads in (1, 2, 5):
        learner, rollout = new_learner(NativeLearner, config, threads)
        metrics = learner.update(rollout, 1)
        results.append((weights(learner).tobytes(), metrics, rollout.returns.tobytes()))
    assert results[0] == results[1] == results[2]


def test_first_ratio_is_exactly_one(small):
    learner, rollout = new_learner(NativeLearner, small(n_epochs=1, n_minibatch=1))
    metrics = learner.update(rollout, 0)
    assert metrics["losses/approx_kl"] == 0.0
    assert metrics["losses/clipfrac"] == 0.0


def test_two_halves_make_an_update(small):
    """The core's compute_gradients and apply, called one by one, do what an update of the learner does."""
    config = small(n_epochs=1, n_minibatch=1, use_rewnorm=False)
    whole, rollout = new_learner(NativeLearner, config)
    policy = new_learner(NativeLearner, config)[0].policy
    start = weights(whole)
    metrics = whole.update(rollout, 0)
    core, flat, _ = make_core(policy, config, rows=config.batch_size)
    arrays = [getattr(rollout, name) for name in ("obs", "actions", "log_probs", "advantages", "returns")]
    indices, _ = rollout.minibatch_indices(config.seed, 0, 0, 1)
    losses = core.compute_gradients(*(a.reshape(-1, *a.shape[2:]) for a in arrays), config.use_advnorm, indices)
    assert core.gradient.shape == start.shape
    assert core.apply(config.learning_rate, config.grad_clip_norm, 1) == metrics["losses/grad_norm"]
    np.testing.assert_array_equal(flat.array, weights(whole))
    assert [metrics[f"losses/{name}"] for name in LOSSES[:-1]] == losses[:-1]
    assert not np.array_equal(weights(whole), start)


@pytest.mark.parametrize("policy", ["Gaussian_AC", "Categorical_AC"])
def test_the_penalty_needs_the_old_distributions(small, policy):
    config = small(agent="PPO_KL", policy=policy, kl_coef=3.0)
    model = make_policy(config)
    batch = Batch(model, 33)
    core, *_ = make_core(model, config)
    losses = core.compute_gradients(*batch.arrays(), True, None, batch.old_outputs, batch.old_log_std)
    assert losses[-1] > 0.01
    with pytest.raises(ValueError, match="the penalty needs old_outputs"):
        core.compute_gradients(*batch.arrays(), True)


@pytest.mark.parametrize("first", [TorchLearner, NativeLearner])
@pytest.mark.parametrize("second", [TorchLearner, NativeLearner])
def test_engines_may_be_switched(small, first, second):
    """Iterations with a change between them end where torch alone does; a resume of one engine changes no bit."""
    config = small(n_epochs=2)

    def run(before, after, resume=True):
        learner, rollout = new_learner(before, config)
        learner.update(rollout, 0)
        if resume:
            state = copy.deepcopy(
                (learner.policy.state_dict(), learner.state_dict(), learner._reward_normalizer.state_dict())
            )
            learner, rollout = new_learner(after, config)
            learner.policy.load_state_dict(state[0])
            learner.load_state_dict(state[1])
            learner._reward_normalizer.load_state_dict(state[2])
        learner.update(rollout, 1)
        steps = {float(s["step"]) for s in learner.state_dict()["optimizer"]["state"].values()}
        assert steps == {2.0 * config.n_epochs * config.n_minibatch}
        return weights(learner)

    end = run(first, second)
    if first is second:
        np.testing.assert_array_equal(end, run(first, first, resume=False))
    wanted = run(TorchLearner, TorchLearner, resume=False)
    start = weights(new_learner(TorchLearner, config)[0])
    assert np.linalg.norm(end - wanted) <= 1e-4 * np.linalg.norm(wanted - start)


def test_state_of_a_fresh_learner_loads(small):
    fresh = new_learner(TorchLearner, small())[0].state_dict()
    learner, rollout = new_learner(NativeLearner, small())
    unused = copy.deepcopy(learner.state_dict())
    learner.update(rollout, 0)
    learner.load_state_dict(fresh)
    state = learner.state_dict()["optimizer"]["state"]
    for key, value in state.items():
        assert float(value["step"]) == 0.0
        assert torch.equal(value["exp_avg"], unused["optimizer"]["state"][key]["exp_avg"])


def test_parameters_stay_torchs(small):
    learner, rollout = new_learner(NativeLearner, small(learning_rate=1e-8))
    policy = learner.policy
    obs = torch.from_numpy(rollout.obs[0].copy())
    with torch.no_grad():
        before = policy.act(obs)
        learner.update(rollout, 0)
        assert not torch.equal(policy.act(obs), before)
        for parameter in policy.parameters():  # memory replaced behind the learner's back
            parameter.data = parameter.data.clone() * 0.5
    replaced = weights(learner)
    learner.update(rollout, 1)
    assert not np.array_equal(weights(learner), replaced)
    np.testing.assert_allclose(weights(learner), replaced, rtol=0, atol=1e-6)


def test_non_finite_update_restores_weights_and_optimiser(small):
    learner, rollout = new_learner(NativeLearner, small())
    learner.update(rollout, 0)
    before = weights(learner)
    state = copy.deepcopy(learner.state_dict())
    rollout.obs[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="iteration 1.*policy_loss"):
        learner.update(rollout, 1)
    np.testing.assert_array_equal(weights(learner), before)
    after = learner.state_dict()
    for key, saved in state["optimizer"]["state"].items():
        assert all(torch.equal(saved[name], after["optimizer"]["state"][key][name]) for name in saved)
    assert after["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]


def test_a_signal_handler_ends_an_update(small):
    """An update of 4,000 epochs takes many seconds; the handler ends it at once, and nothing of it is left."""
    config = small(horizon_size=256, n_epochs=4000, n_minibatch=1, running_steps=10**6)
    learner, rollout = new_learner(NativeLearner, config)
    before = everything(learner)
    start = time.monotonic()
    with pytest.raises(Interrupted), interrupted_after(0.3):
        learner.update(rollout, 0)
    assert time.monotonic() - start < 1.3
    assert everything(learner) == before


def everything(learner):
    """All that an update may change, as numbers that compare bit for bit."""
    state = learner.policy.state_dict(), learner.state_dict(), learner._reward_normalizer.state_dict()
    return pytree.tree_map(lambda x: x.tolist() if hasattr(x, "tolist") else x, state)


def cuda_learner(config):
    torchs, rollout = new_learner(TorchLearner, config)
    return CudaLearner(torchs.policy, config, rollout, torchs._reward_normalizer, torch.device("cpu")), rollout


@pytest.mark.parametrize("keys", [{}, {"agent": "PPO_KL", "target_kl": 0.01}, {"lr_schedule": "kl"}], ids=str)
@pytest.mark.parametrize(
    "build",
    [partial(new_learner, TorchLearner), partial(new_learner, NativeLearner), cuda_learner],
    ids=["torch", "native", "cuda"],
)
def test_an_update_after_a_failed_one_is_as_if_none_had_failed(small, build, keys):
    config = small(use_rewnorm=True, compile="off", **keys)
    learner, rollout = build(config)
    other, same_rollout = build(config)
    for iteration in range(2):
        row = rollout.obs[3, 1].copy()
        rollout.obs[3, 1] = np.nan
        before = everything(learner)
        with pytest.raises(NonFiniteError):
            learner.update(rollout, iteration)
        assert everything(learner) == before
        rollout.obs[3, 1] = row
        assert learner.update(rollout, iteration) == other.update(same_rollout, iteration)
        assert everything(learner) == everything(other)


@pytest.mark.parametrize("cls", [TorchLearner, NativeLearner])
def test_a_second_thread_is_refused_and_disturbs_nothing(small, cls):
    config = small(representation_hidden_size=[512], actor_hidden_size=[512], n_epochs=30)
    alone, rollout = new_learner(cls, config)
    alone.update(rollout, 0)
    learner, rollout = new_learner(cls, config)
    thread = threading.Thread(target=learner.update, args=(rollout, 0))
    thread.start()
    while thread.is_alive() and not learner._guard._busy.locked():
        pass
    for _ in range(3):  # at the beginning of an update of a second
        with pytest.raises(RuntimeError, match="another thread"):
            learner.update(rollout, 0)
    thread.join(60)
    np.testing.assert_array_equal(weights(learner), weights(alone))


def test_reasons_not_to_serve(small):
    config = small()
    assert NativeLearner.reason_not(config, make_policy(config)) is None
    normalized = small(normalize="LayerNorm")
    policy = make_policy(normalized)
    assert "LayerNorm" in NativeLearner.reason_not(normalized, policy)
    assert "float32" in NativeLearner.reason_not(config, make_policy(config).double())
    rollout = Rollout(config.horizon_size, config.parallels, (7,), (3,))
    with pytest.raises(ValueError, match="LayerNorm"):
        NativeLearner(policy, normalized, rollout, RewardNormalizer(config.parallels), 1)


def test_choice_of_the_learner(small):
    def choose(config):
        rollout = Rollout(config.horizon_size, config.parallels, (7,), (3,))
        learner, reason = make_learner(config, make_policy(config), rollout, RewardNormalizer(config.parallels), 2)
        return learner.name, reason

    config = small()
    assert choose(config) == ("native", "the update in C++, 2 threads")
    assert choose(small(learner_backend="torch")) == ("torch", "as configured")
    name, reason = choose(small(normalize="LayerNorm"))
    assert name == "torch" and "LayerNorm" in reason
    forced = SimpleNamespace(**{**small(normalize="LayerNorm").to_dict(), "learner_backend": "native"})
    with pytest.raises(ConfigError, match=r"learner_backend.*LayerNorm"):
        make_learner(forced, make_policy(small(normalize="LayerNorm")), None, None, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((50, 7))}, "obs must be"),
        ({"actions": np.zeros((50, 2), np.float32)}, "actions must be"),
        ({"returns": np.zeros(49, np.float32)}, "returns must be"),
        ({"indices": np.array([0, 50])}, "indices"),
        ({"indices": np.array([], np.int64)}, "at least one"),
    ],
    ids=lambda x: str(list(x)) if isinstance(x, dict) else "",
)
def test_wrong_arguments_are_named(small, change, message):
    config = small()
    model = make_policy(config)
    core, *_ = make_core(model, config)
    names = ("obs", "actions", "log_probs", "advantages", "returns")
    arguments = {**dict(zip(names, Batch(model, 50).arrays(), strict=True)), "normalize_advantages": True, **change}
    with pytest.raises(ValueError, match=message):
        core.compute_gradients(**arguments)


def test_discrete_actions_are_checked(small):
    config = small(policy="Categorical_AC")
    model = make_policy(config)
    batch = Batch(model, 5)
    batch.actions[2] = 3
    core, *_ = make_core(model, config)
    with pytest.raises(ValueError, match="actions must be in"):
        core.compute_gradients(*batch.arrays(), True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_masks": np.ones((5, 2), bool)}, "action_masks must be"),
        ({"action_masks": np.ones((5, 3), np.uint8)}, "action_masks must be"),
        ({"action_masks": np.array([[True, True, False]] * 5)}, "row 2 forbids 2"),
    ],
    ids=["shape", "dtype", "forbidden"],
)
def test_masks_are_checked(small, change, message):
    config = small(**MASKED)
    model = make_policy(config)
    batch = Batch(model, 5)
    batch.actions[:] = [0, 1, 2, 0, 1]
    core, *_ = make_core(model, config)
    with pytest.raises(ValueError, match=message):
        core.compute_gradients(*batch.arrays(), True, **change)


def test_masks_of_a_gaussian_policy_are_refused(small):
    config = small()
    model = make_policy(config)
    core, *_ = make_core(model, config)
    with pytest.raises(ValueError, match="for a Categorical policy"):
        core.compute_gradients(*Batch(model, 5).arrays(), True, action_masks=np.ones((5, 3), bool))


def test_masks_that_allow_all_change_nothing(small):
    config = small(policy="Categorical_AC", ent_coef=0.02)
    model = make_policy(config)
    batch = Batch(model, 40)
    core, *_ = make_core(model, config)
    losses = core.compute_gradients(*batch.arrays(), True)
    gradient = core.gradient.copy()
    assert core.compute_gradients(*batch.arrays(), True, action_masks=np.ones((40, 3), bool)) == losses
    np.testing.assert_array_equal(core.gradient, gradient)
