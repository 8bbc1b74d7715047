"""NativeCollector in classic control, of Categorical and Gaussian policies, against TorchCollector on DummyVecEnv."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from collecting import Collecting

from xcfast.collectors.native import NativeCollector
from xcfast.collectors.torch import TorchCollector
from xcfast.config import ConfigError
from xcfast.envs import ClassicControlVecEnv, DummyVecEnv, EnvError, make_env_fn
from xcfast.errors import NonFiniteError
from xcfast.rollout import Rollout
from xcfast.runs.evaluation import Evaluator
from xcfast.runs.player import Player

DISCRETE = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"]
CONTINUOUS = ["Pendulum-v1", "MountainCarContinuous-v0"]
FIELDS = (
    *("obs", "actions", "rewards", "terminated", "truncated", "last_obs"),
    *("final_obs", "final_index", "episodes", "episode_returns", "episode_lengths"),
)


class Setup(Collecting):
    """Native on ClassicControlVecEnv, torch on DummyVecEnv."""

    def __init__(self, config, backend="native", threads=1, limit=11, kind=None):
        num_envs, kwargs = config.parallels, {"max_episode_steps": limit}
        if kind is ClassicControlVecEnv or (kind is None and backend == "native"):
            envs = ClassicControlVecEnv(config.env_id, num_envs, threads, copy=False, **kwargs)
        else:
            envs = DummyVecEnv([make_env_fn(config.env_id, **kwargs)] * num_envs, copy=False)
        super().__init__(config, envs, backend)
        assert type(self.collector) is (NativeCollector if backend == "native" else TorchCollector)

    def lively(self):
        self.weigh(0.3, 0.5, 0)
        return self


def configuration(small, env_id, **keys):
    policy = "Categorical_AC" if env_id in DISCRETE else "Gaussian_AC"
    return small(**{"env_id": env_id, "policy": policy, "parallels": 5, "horizon_size": 60, **keys})


def assert_same(a, b, names=FIELDS):
    for name in names:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def output_error(policy, obs):
    """How far the network's outputs [B] may be apart in two engines, for observations [B, D].

    A dot product of n terms in any order has an error of at most n eps / 2 times the sum of the absolute terms, hence
    two orders differ by twice that; the errors pass on through the absolute weights. Activations have slope <= 1 and,
    being piecewise linear here, round at most twice.
    """
    eps, error, value = float(np.finfo(np.float32).eps), np.zeros(obs.shape), obs.astype(np.float64)
    head = policy.actor.model if hasattr(policy.actor, "model") else policy.actor.mu
    for layer in (*policy.representation.model, *head):
        if isinstance(layer, torch.nn.Linear):
            weight, bias = (x.detach().double().numpy() for x in (layer.weight, layer.bias))
            size = np.abs(value) @ np.abs(weight).T + np.abs(bias)
            error = error @ np.abs(weight).T + (layer.in_features + 2) * eps * size
            value = value @ weight.T + bias
        else:
            error += 2 * eps * np.abs(value)
            value = layer(torch.from_numpy(value)).numpy()
    return error.max(-1)


def collected(config, backend, rollouts=2, **kwargs):
    setup = Setup(config, backend, **kwargs).lively()
    setup.collector.reset(7)
    for number in range(rollouts):
        setup.collector.collect(setup.rollout)
        if number < rollouts - 1:
            setup.rollout.clear()
    return setup


# --- Categorical ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_obsnorm", [True, False])
@pytest.mark.parametrize("env_id", DISCRETE)
def test_the_same_rollouts_as_torch(small, env_id, use_obsnorm):
    """Bit for bit: choices are the same unless the noise lies within the outputs' rounding of a cumulative probability.

    That is checked for every step: with an error of e per logit, softmax probabilities p move by at most 2 e p (1 - p),
    sums of them by at most e / 2 (the largest of 2 e q (1 - q)); 1e-15 is for the double arithmetic behind the logits.
    """
    config = configuration(small, env_id, use_obsnorm=use_obsnorm, actor_hidden_size=[12])
    native, reference = (collected(config, backend) for backend in ("native", "torch"))
    noise = type(native.collector.noise)(native.policy, config.seed, config.parallels)
    noise.counters[:] = native.collector.noise.counters - config.horizon_size
    chosen = set()
    draws = noise.steps(config.horizon_size)
    for obs, actions, draw in zip(reference.rollout.obs, reference.rollout.actions, draws, strict=True):
        with torch.no_grad():
            cumulative = native.policy.act(torch.from_numpy(obs)).double().softmax(-1).cumsum(-1).numpy()
        margin = output_error(native.policy, obs) / 2 + 1e-15
        distance = np.abs(cumulative[:, :-1] - draw[:, None]).min(-1)
        assert (distance > margin).all(), "a tie: choose another seed"
        chosen |= set(actions.tolist())
    assert chosen == set(range(native.envs.single_action_space.n))
    assert_same(native.rollout, reference.rollout)
    assert len(native.rollout.episodes) > 20 and len(native.rollout.final_obs) > 20
    assert native.rollout.actions.dtype == np.int64
    np.testing.assert_array_equal(native.collector.noise.counters, reference.collector.noise.counters)
    for name in ("mean", "var", "count"):
        np.testing.assert_array_equal(getattr(native.normalizer.rms, name), getattr(reference.normalizer.rms, name))


def test_choices_are_torchs_for_the_same_logits(small):
    """Without weights in front of it the head's biases are the logits, exactly, in both engines."""
    config = configuration(small, "Acrobot-v1", parallels=33, horizon_size=15)
    native, reference = Setup(config), Setup(config, "torch")
    for biases in ([0.1, -2.0, 0.7], [30.0, -30.0, 29.0], [-1e4, 0.0, -0.5], [0.0, 0.0, 0.0]):
        for setup in (native, reference):
            with torch.no_grad():
                setup.policy.actor.model[-1].weight.zero_()
                setup.policy.actor.model[-1].bias.copy_(torch.tensor(biases))
            setup.collector.reset(7)
            setup.rollout.clear()
            setup.collector.collect(setup.rollout)
        assert_same(native.rollout, reference.rollout, ("actions",))
        probabilities = torch.tensor(biases).double().softmax(-1).numpy()
        counts = np.bincount(native.rollout.actions.ravel(), minlength=3)
        total = native.rollout.actions.size
        assert (np.abs(counts - total * probabilities) <= 5 * np.sqrt(total * probabilities + 1e-9)).all()


# --- Gaussian -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", CONTINUOUS)
def test_gaussian_rollouts_are_torchs_up_to_rounding(small, env_id):
    """The first step's samples differ by rounding of the network; the recorded samples replay through DummyVecEnv."""
    config = configuration(small, env_id, activation_action=None)
    native, reference = Setup(config).lively(), Setup(config, "torch").lively()
    for setup in (native, reference):
        setup.collector.reset(7)
        setup.collector.collect(setup.rollout, 1)
    np.testing.assert_array_equal(native.rollout.obs[0], reference.rollout.obs[0])
    eps = float(np.finfo(np.float32).eps)
    samples = [setup.rollout.actions[0, :, 0] for setup in (native, reference)]
    arithmetic = 2 * eps * (np.abs(samples[1]) + 6 * float(native.policy.actor.logstd.detach().exp().max()))
    assert (np.abs(samples[0] - samples[1]) <= output_error(native.policy, native.rollout.obs[0]) + arithmetic).all()
    np.testing.assert_array_equal(native.collector.noise.counters, reference.collector.noise.counters)

    native.collector.collect(native.rollout)
    rollout, dummy = native.rollout, Setup(config, "torch").lively()
    obs, _ = dummy.envs.reset(seed=7)
    final_obs = []
    for t in range(config.horizon_size):
        np.testing.assert_array_equal(rollout.obs[t], dummy.normalizer.normalize(obs))
        obs, rewards, terminated, truncated, infos = dummy.envs.step(dummy.action_map(rollout.actions[t]))
        np.testing.assert_array_equal(rollout.rewards[t], rewards.astype(np.float32))
        np.testing.assert_array_equal(rollout.terminated[t], terminated)
        np.testing.assert_array_equal(rollout.truncated[t], truncated)
        if infos:
            final_obs += [dummy.normalizer.normalize(infos["final_obs"][i][None])[0] for i in np.flatnonzero(truncated)]
    np.testing.assert_array_equal(rollout.last_obs, dummy.normalizer.normalize(obs))
    np.testing.assert_array_equal(rollout.final_obs, final_obs)
    assert len(final_obs) > 20


# --- what holds for both --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCarContinuous-v0"])
def test_threads_pieces_and_resuming_do_not_matter(small, env_id, monkeypatch):
    config = configuration(small, env_id)
    expected = collected(config, "native", rollouts=2)
    monkeypatch.setattr("xcfast.envs.native._DRAWN_AHEAD", 2)
    first = collected(config, "native", rollouts=1, threads=3)
    first.rollout.clear()
    again = Setup(config, threads=2).lively()
    assert again.collector.load_state_dict(first.collector.state_dict())
    again.normalizer.load_state_dict(first.normalizer.state_dict())
    again.rollout.episode_returns[:] = first.rollout.episode_returns
    again.rollout.episode_lengths[:] = first.rollout.episode_lengths
    for setup in (first, again):
        for steps in (1, 17, 0):
            setup.collector.collect(setup.rollout, steps)
        setup.collector.collect(setup.rollout)
        assert_same(setup.rollout, expected.rollout)


@pytest.mark.parametrize(("first", "second"), [("torch", "native"), ("native", "torch")])
@pytest.mark.parametrize("kind", [ClassicControlVecEnv, None])
def test_engines_take_over_from_each_other(small, first, second, kind):
    """Also where the other one steps DummyVecEnv."""
    config = configuration(small, "CartPole-v1")
    whole = collected(config, "native", rollouts=1)
    begun, finished = Setup(config, first, kind=kind).lively(), Setup(config, second, kind=kind).lively()
    begun.collector.reset(7)
    begun.collector.collect(begun.rollout, 23)
    assert finished.collector.load_state_dict(begun.collector.state_dict())
    finished.collector.collect(finished.rollout, 37)
    for name in ("obs", "actions", "rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(finished.rollout, name)[:37], getattr(whole.rollout, name)[23:])


@pytest.mark.parametrize("use_obsnorm", [True, False])
def test_non_finite_observation_is_named(small, use_obsnorm):
    setup = Setup(configuration(small, "CartPole-v1", use_obsnorm=use_obsnorm))
    setup.collector.reset(0)
    setup.envs.observations[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"env 2 .*\[1\]"):
        setup.collector.collect(setup.rollout)


@pytest.mark.parametrize("use_obsnorm", [True, False])
def test_a_final_observation_that_is_not_a_number_is_named(small, use_obsnorm):
    setup = Setup(configuration(small, "Pendulum-v1", use_obsnorm=use_obsnorm, horizon_size=4), limit=4)
    setup.collector.reset(0)
    setup.collector.collect(setup.rollout, 3)
    state = setup.envs.get_state()
    state["envs"][3]["physics"][0] = np.nan
    setup.envs.set_state(state)
    with pytest.raises(NonFiniteError, match="^final observation of env 3 at step 3 of the rollout is not finite$"):
        setup.collector.collect(setup.rollout)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1"])
def test_evaluation_scores_are_the_torch_evaluators(small, env_id):
    """Equal returns where actions are choices (none of them a tie here); up to rounding where they are numbers."""
    config = configuration(small, env_id, vectorize="ClassicControlVecEnv", test_episode=6, num_threads=2)
    setup = Setup(config).lively()
    native, reference = (
        Evaluator(c, Player(setup.policy, setup.normalizer, setup.action_map))
        for c in (config, replace(config, collector_backend="torch", vectorize="DummyVecEnv"))
    )
    try:
        for number in (0, 5):
            scores, expected = native(number), reference(number)
            assert len(scores) == 6
            if env_id in DISCRETE:
                np.testing.assert_array_equal(scores, expected)
            else:
                np.testing.assert_allclose(scores, expected, rtol=1e-3)
            np.testing.assert_array_equal(scores, native(number))
        assert (native.backend, reference.backend) == ("native", "torch")
    finally:
        native.close()
        reference.close()


def test_masks_that_these_envs_cannot_have_are_not_ignored(small):
    """Where a caller's own native envs meet a configuration with masks: no native engine; an error that says why."""
    config = configuration(small, "CartPole-v1", use_actions_mask=True)
    with pytest.raises(ConfigError, match="native collector cannot be used: it does not support action masks"):
        Setup(config)
    setup = Setup(config, "torch", kind=ClassicControlVecEnv)
    setup.collector.reset(0)
    rollout = Rollout(4, 5, (4,), (), np.int64, num_actions=2)
    with pytest.raises(EnvError, match="there are no action masks"):
        setup.collector.collect(rollout)
    evaluator = Evaluator(config, Player(setup.policy, setup.normalizer, setup.action_map), envs=setup.envs)
    with pytest.raises(EnvError, match="there are no action masks"):
        evaluator(0)
