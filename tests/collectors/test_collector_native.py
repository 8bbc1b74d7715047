"""NativeCollector against TorchCollector and against Gymnasium."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from collecting import Collecting

from xcfast import load_config
from xcfast.collectors.native import EnvLoop, NativeCollector, reason_not_native
from xcfast.collectors.torch import TorchCollector
from xcfast.config import ConfigError
from xcfast.envs import MujocoVecEnv, SimulationError, make_env_fn, make_envs
from xcfast.errors import NonFiniteError
from xcfast.moments import RunningMeanStd
from xcfast.normalize import ObservationNormalizer
from xcfast.output import checkpoint as ckpt
from xcfast.policy import ActionMap, build_policy
from xcfast.runs.engines import make_collector
from xcfast.runs.evaluation import Evaluator
from xcfast.runs.player import Player
from xcfast.runs.start_table import describe

ARRAYS = (
    *("obs", "actions", "rewards", "terminated", "truncated", "last_obs"),
    *("final_obs", "final_index", "episodes", "episode_returns", "episode_lengths"),
)


class Setup(Collecting):
    """On MujocoVecEnv, whichever the engine."""

    def __init__(self, config, backend="native", threads=None, num_envs=None, limit=None):
        kwargs = {} if limit is None else {"max_episode_steps": limit}
        num_envs, threads = num_envs or config.parallels, threads or config.num_threads
        super().__init__(config, MujocoVecEnv(config.env_id, num_envs, threads, copy=False, **kwargs), backend)

    def lively(self, seed=0):
        self.weigh(0.2, 2.0, seed)
        with torch.no_grad():
            self.policy.actor.logstd.copy_(torch.linspace(-1.0, 0.0, self.policy.actor.logstd.numel()))
        return self


def assert_same(a, b, names=ARRAYS):
    for name in names:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def assert_same_moments(a, b):
    for name in ("mean", "var", "count"):
        np.testing.assert_array_equal(getattr(a.rms, name), getattr(b.rms, name), err_msg=name)


# --- against the reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "tanh", "sigmoid", "elu", "softmax"])
def test_one_step_agrees_with_the_torch_collector(small, activation):
    """The same state, weights and noise: identical observations and noise, means that differ by rounding.

    A dot product of n terms in any order has an error of at most n eps times the sum of the absolute terms; the bound
    is carried through the layers with the largest row sum of the weights. Activations have slope <= 1; those that are
    not piecewise linear are accurate to a few units in the last place of numbers below the bound, hence the 16.
    """
    config = small(
        env_id="Ant-v4",
        parallels=5,
        horizon_size=4,
        activation=activation,
        actor_hidden_size=[24],
        collector_backend="auto",
    )
    native, reference = Setup(config).lively(), Setup(config, "torch").lively()
    assert (native.collector.name, reference.collector.name) == ("native", "torch")
    for setup in (native, reference):
        setup.collector.reset(7)
        setup.collector.collect(setup.rollout, 1)
    np.testing.assert_array_equal(native.rollout.obs[0], reference.rollout.obs[0])
    np.testing.assert_array_equal(native.normalizer.state_dict()["m2s"], reference.normalizer.state_dict()["m2s"])
    eps, bound, error = float(np.finfo(np.float32).eps), 5.0, 0.0
    for layer in (*native.policy.representation.model, *native.policy.actor.mu):
        if isinstance(layer, torch.nn.Linear):
            gain = float(layer.weight.detach().abs().sum(1).max())
            bias = float(layer.bias.detach().abs().max())
            error = gain * error + 2 * (layer.in_features + 2) * eps * (gain * bound + bias)
            bound = gain * bound + bias
        else:
            error += 16 * eps * bound
    noise_part = 4 * eps * 6  # sample = mean + std * noise with std <= 1, |noise| < 6
    difference = np.abs(native.rollout.actions[0] - reference.rollout.actions[0])
    assert difference.max() <= error + noise_part
    assert np.ptp(native.rollout.actions[0]) > 0.1
    # then the physics agree to what that difference does to them in one step
    np.testing.assert_allclose(native.rollout.rewards[0], reference.rollout.rewards[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(native.collector.noise.counters, reference.collector.noise.counters)


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [
        ("HalfCheetah-v4", 15),
        ("Hopper-v4", None),
        ("Ant-v5", 30),
        ("Humanoid-v4", None),
        ("InvertedDoublePendulum-v4", 4),
        ("Reacher-v4", None),
        ("Swimmer-v5", 25),
    ],
)
def test_rollout_replays_through_gymnasium(small, env_id, limit):
    """The recorded raw actions, mapped and stepped through bare Gymnasium envs, give exactly the trajectory."""
    num_steps, num_envs = 70, 3
    setup = Setup(small(env_id=env_id, horizon_size=num_steps, parallels=num_envs), limit=limit).lively()
    rollout, frozen = setup.rollout, RunningMeanStd(setup.normalizer.rms.shape)
    frozen.load_state_dict(setup.normalizer.rms.state_dict())
    setup.collector.reset(7)
    setup.collector.collect(rollout)
    episodes, finals = [], {}
    for index in range(num_envs):
        env = make_env_fn(env_id, **({"max_episode_steps": limit} if limit else {}))()
        obs, _ = env.reset(seed=7 + index)
        total, length = 0.0, 0
        for t in range(num_steps):
            np.testing.assert_array_equal(rollout.obs[t, index], frozen.normalize(obs, 5.0), err_msg=f"step {t}")
            action = setup.action_map(rollout.actions[t, index][None])[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            if env_id.startswith("Reacher"):  # numpy's BLAS: one unit in the last place, see MujocoVecEnv
                np.testing.assert_array_max_ulp(rollout.rewards[t, index], np.float32(reward), 1)
            else:
                assert rollout.rewards[t, index] == np.float32(reward)
            assert (rollout.terminated[t, index], rollout.truncated[t, index]) == (terminated, truncated)
            total, length = total + float(reward), length + 1
            if terminated or truncated:
                episodes.append((t, index, total, length))
                if not terminated:
                    finals[t * num_envs + index] = frozen.normalize(obs, 5.0)
                obs, _ = env.reset()
                total, length = 0.0, 0
        np.testing.assert_array_equal(rollout.last_obs[index], frozen.normalize(obs, 5.0))
        assert rollout.episode_lengths[index] == length
        env.close()
    assert episodes
    assert [(step, env, length) for step, env, _, length in rollout.episodes.tolist()] == [
        (step, env, length) for step, env, _, length in sorted(episodes)
    ]
    np.testing.assert_allclose(rollout.episodes["ret"], [ret for *_, ret, _ in sorted(episodes)], rtol=1e-12)
    assert bool(finals) == (limit is not None or env_id.startswith("Reacher"))
    np.testing.assert_array_equal(rollout.final_index, sorted(finals))
    np.testing.assert_array_equal(
        rollout.final_obs, np.array([finals[k] for k in sorted(finals)]).reshape(rollout.final_obs.shape)
    )


# --- bit-identity ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hopper():
    """Hopper with short episodes: 7 envs, 3 rollouts of 40 steps on one thread."""
    config = load_config(
        overrides={
            "env_id": "Hopper-v4",
            "vectorize": "MujocoVecEnv",
            "device": "cpu",
            "parallels": 7,
            "horizon_size": 40,
            "running_steps": 280,
            "representation_hidden_size": [20],
            "actor_hidden_size": [20],
            "num_threads": 1,
        }
    )
    setup = Setup(config, limit=12).lively()
    setup.collector.reset(3)
    for _ in range(2):
        setup.collector.collect(setup.rollout)
        setup.rollout.clear()
    setup.collector.collect(setup.rollout)
    assert len(setup.rollout.episodes) > 20 and len(setup.rollout.final_obs) > 5
    return config, setup


@pytest.mark.parametrize(
    "variation",
    [
        "2 threads",
        "5 threads",
        "pieces",
        "queues of 1",
        "queues of 2, pieces, 5 threads",
        "pauses",
        "pauses, 5 threads",
    ],
)
def test_bits_do_not_depend_on(hopper, monkeypatch, variation):
    config, expected = hopper
    if "queues" in variation:
        monkeypatch.setattr("xcfast.envs.native._DRAWN_AHEAD", int(variation[10]))
    if "pauses" in variation:  # after every step of a block
        monkeypatch.setattr("xcfast.collectors.native._TURN_SECONDS", 0.0)
    threads = next((n for n in (2, 5) if f"{n} threads" in variation), 1)
    setup = Setup(config, threads=threads, limit=12).lively()
    setup.collector.reset(3)
    for rollout_number in range(3):
        for count in (1, 17, 0, 13) if "pieces" in variation else ():
            setup.collector.collect(setup.rollout, count)
        setup.collector.collect(setup.rollout)
        if rollout_number < 2:
            setup.rollout.clear()
    assert_same(setup.rollout, expected.rollout)
    assert_same_moments(setup.normalizer, expected.normalizer)
    np.testing.assert_array_equal(setup.collector.noise.counters, 120)
    states = [s.collector.state_dict() for s in (setup, expected)]
    assert_same_trees(*states)


def assert_same_trees(a, b, where=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_trees(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same_trees(*pair, f"{where}[{index}]")
    else:
        np.testing.assert_array_equal(a, b, err_msg=where)


@pytest.mark.parametrize("num_envs", [1, 9, 33])
def test_an_env_does_not_depend_on_its_neighbours(hopper, num_envs):
    """Env i is the same among any number of others, so however rows of the matrix products are grouped."""
    config, _ = hopper
    setup = Setup(config, threads=2, num_envs=num_envs, limit=12).lively()
    setup.collector.reset(3)
    setup.collector.collect(setup.rollout)
    first = Setup(config, limit=12).lively()
    first.collector.reset(3)
    first.collector.collect(first.rollout)
    shared = min(num_envs, 7)
    for name in ("obs", "actions", "rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(
            getattr(setup.rollout, name)[:, :shared], getattr(first.rollout, name)[:, :shared]
        )


def test_without_normalisation_nothing_is_tracked(small):
    config = small(env_id="Hopper-v4", use_obsnorm=False, horizon_size=8)
    native, reference = Setup(config), Setup(config, "torch")
    for setup in (native, reference):
        setup.collector.reset(1)
        setup.collector.collect(setup.rollout)
    np.testing.assert_array_equal(native.rollout.obs[0], reference.rollout.obs[0])
    assert native.rollout.last_obs.any() and native.normalizer.rms.count == 0


# --- state ----------------------------------------------------------------------------------------------------------


def test_resumes_in_a_new_instance_bit_for_bit(hopper):
    config, _ = hopper
    whole, stopped = (Setup(config, limit=12).lively() for _ in range(2))
    for setup in (whole, stopped):
        setup.collector.reset(3)
        setup.collector.collect(setup.rollout)
        setup.rollout.clear()
    again = Setup(config, threads=2, limit=12).lively()
    assert again.collector.load_state_dict(stopped.collector.state_dict())
    again.normalizer.load_state_dict(stopped.normalizer.state_dict())
    again.rollout.episode_returns[:] = stopped.rollout.episode_returns
    again.rollout.episode_lengths[:] = stopped.rollout.episode_lengths
    for setup in (whole, again):
        setup.collector.collect(setup.rollout)
    assert_same(whole.rollout, again.rollout)
    assert_same_moments(whole.normalizer, again.normalizer)


@pytest.mark.parametrize(("first", "second"), [("torch", "native"), ("native", "torch")])
def test_engines_take_over_from_each_other(hopper, first, second):
    """A rollout begun by one engine and finished by the other goes through the same states: its actions replay it."""
    config, _ = hopper
    begun, finished = Setup(config, first, limit=12).lively(), Setup(config, second, limit=12).lively()
    begun.collector.reset(3)
    begun.collector.collect(begun.rollout, 15)
    state = begun.collector.state_dict()
    assert finished.collector.load_state_dict(state)
    finished.normalizer.load_state_dict(begun.normalizer.state_dict())
    begun.collector.collect(begun.rollout, 1)
    finished.collector.collect(finished.rollout, 1)
    np.testing.assert_array_equal(finished.rollout.obs[0], begun.rollout.obs[15])
    np.testing.assert_allclose(finished.rollout.actions[0], begun.rollout.actions[15], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(finished.collector.noise.counters, begun.collector.noise.counters)


def test_state_without_envs_asks_for_a_reset(hopper):
    config, expected = hopper
    setup = Setup(config)
    assert not setup.collector.load_state_dict(expected.collector.state_dict(with_envs=False))
    np.testing.assert_array_equal(setup.collector.noise.counters, 120)
    with pytest.raises(RuntimeError, match="before reset"):
        setup.collector.collect(setup.rollout)


@pytest.mark.parametrize("outside", [False, True])
def test_a_loaded_formula_of_the_deviation_counts_from_the_next_call(hopper, outside):
    """A state may be loaded after the collector was made; both formulas give the bits of the normalizer's own call."""
    config, _ = hopper
    setup = Setup(config).lively()
    setup.collector.reset(3)
    rms = setup.normalizer.rms
    rms.epsilon = 0.25
    rms.load_state_dict({**rms.state_dict(), "epsilon_outside": outside})
    raw = setup.envs.observations.copy()
    setup.collector.collect(setup.rollout, 1)
    np.testing.assert_array_equal(setup.rollout.obs[0], rms.normalize(raw, setup.normalizer.clip))
    deviation = np.sqrt(rms.var) + 0.25 if outside else np.sqrt(rms.var + 0.25)
    wanted = np.clip((raw - rms.mean) / deviation, -setup.normalizer.clip, setup.normalizer.clip)
    np.testing.assert_allclose(setup.rollout.obs[0], wanted, rtol=2**-23, atol=0)


def test_weights_are_read_at_each_call(hopper):
    config, _ = hopper
    setup = Setup(config).lively()
    setup.collector.reset(3)
    setup.collector.collect(setup.rollout, 1)
    with torch.no_grad():
        setup.policy.actor.logstd.fill_(-20.0)
        setup.policy.actor.mu[-2].weight.zero_()
        setup.policy.actor.mu[-2].bias.fill_(0.25)
    setup.collector.collect(setup.rollout, 1)
    assert np.abs(setup.rollout.actions[0] - np.tanh(0.25)).max() > 0.1
    np.testing.assert_allclose(setup.rollout.actions[1], np.tanh(np.float32(0.25)), rtol=1e-6)


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_obsnorm", [True, False])
def test_non_finite_observation_is_named(small, use_obsnorm):
    setup = Setup(small(env_id="Hopper-v4", horizon_size=4, use_obsnorm=use_obsnorm))
    setup.collector.reset(0)
    setup.envs.observations[2, 5] = np.nan
    with pytest.raises(NonFiniteError, match=r"env 2 .*\[5\]"):
        setup.collector.collect(setup.rollout)


@pytest.mark.parametrize("use_obsnorm", [True, False])
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (4, "^final observation of env 0 at step 3 of the rollout is not finite$"),
        (100, "^observation of env 0 after the last step of the rollout is not finite$"),
    ],
)
def test_infinite_observations_that_only_the_critic_sees(small, use_obsnorm, limit, message):
    """The last observation of an episode that a time limit ends, and of a rollout. Normalization clips infinity."""
    setup = Setup(small(env_id="Reacher-v4", horizon_size=4, use_obsnorm=use_obsnorm), limit=limit)
    setup.collector.reset(0)
    setup.collector.collect(setup.rollout, 3)
    model = setup.envs.get_attr("model")[0]
    model.body("fingertip").pos[2] = np.inf  # the observation holds the distance to the target
    with pytest.raises(NonFiniteError, match=message):
        setup.collector.collect(setup.rollout)


def test_error_of_mujoco_names_the_env(small):
    """An arena that is too small for the contacts' constraints makes MuJoCo raise an error."""
    setup = Setup(small(env_id="Ant-v4", horizon_size=50), threads=2)
    setup.collector.reset(0)
    setup.envs.call("data")[3].narena = 1
    with pytest.raises(SimulationError, match="environment 3: ") as failure:
        setup.collector.collect(setup.rollout)
    assert failure.value.env_index == 3
    assert setup.rollout.step == 0
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        setup.collector.collect(setup.rollout)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"vectorize": "DummyVecEnv"}, "these environments are DummyVecEnv"),
        ({"normalize": "LayerNorm"}, "has no LayerNorm"),
        ({"env_id": "CartPole-v1", "policy": "Categorical_AC", "vectorize": "DummyVecEnv"}, "DummyVecEnv"),
    ],
)
def test_what_native_code_cannot_serve(small, keys, reason):
    config = small(**{"vectorize": "MujocoVecEnv", "collector_backend": "native", **keys})
    envs = make_envs(config)
    policy = build_policy(config, envs.single_observation_space, envs.single_action_space)
    action_map = ActionMap(envs.single_action_space, config.activation_action)
    normalizer = ObservationNormalizer(envs.single_observation_space.shape, num_envs=config.parallels)
    parts = (envs, policy, normalizer, action_map)
    with pytest.raises(ConfigError, match=f"cannot be used.*{reason}.*native") as failure:
        make_collector(config, *parts)
    assert failure.value.key == "collector_backend"
    with pytest.raises(ValueError, match=reason):
        EnvLoop(*parts)
    collector, why = make_collector(replace(config, collector_backend="auto"), *parts)
    assert type(collector) is TorchCollector and reason in why
    envs.close()


def test_choice_of_the_engine(small):
    config = small(vectorize="MujocoVecEnv")
    setup = Setup(config, "auto")
    parts = (setup.envs, setup.policy, setup.normalizer, setup.action_map)
    assert reason_not_native(setup.envs, setup.policy) is None
    for backend, kind in (("auto", NativeCollector), ("native", NativeCollector), ("torch", TorchCollector)):
        collector, reason = make_collector(replace(config, collector_backend=backend), *parts)
        assert type(collector) is kind
        assert ("as configured" in reason) == (backend != "auto")
    assert "native if possible" in describe(config, "train")
    setup.policy.double()
    assert "float32" in reason_not_native(setup.envs, setup.policy)


def test_too_many_steps_are_refused(hopper):
    config, _ = hopper
    setup = Setup(config)
    setup.collector.reset(0)
    with pytest.raises(ValueError, match=r"within the rollout's 40; got \[0, 41\)"):
        setup.collector.collect(setup.rollout, 41)


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env_id", "episodes"), [("InvertedDoublePendulum-v4", 6), ("Hopper-v4", 67)])
def test_evaluation_scores_are_the_torch_evaluators(small, monkeypatch, env_id, episodes):
    """The same episodes: same seeds, same number in each env.

    Rounding of the actor moves the returns by little only while
    the physics are not chaotic, hence short episodes of simple tasks. 67 episodes are one after the other in one env.
    """
    monkeypatch.setattr("xcfast.envs.native._DRAWN_AHEAD", 3)
    config = small(env_id=env_id, vectorize="MujocoVecEnv", test_episode=episodes, num_threads=2)
    setup = Setup(config).lively()
    native, reference = (
        Evaluator(replace(config, collector_backend=b), Player(setup.policy, setup.normalizer, setup.action_map))
        for b in ("auto", "torch")
    )
    before = setup.normalizer.state_dict()
    try:
        for number in (0, 5):
            scores, expected = native(number), reference(number)
            assert len(scores) == episodes and len(set(scores)) > episodes // 2
            np.testing.assert_allclose(scores, expected, rtol=1e-4)
            np.testing.assert_array_equal(scores, native(number))
    finally:
        native.close()
        reference.close()
    assert_same_trees(setup.normalizer.state_dict(), before)


def test_evaluation_depends_neither_on_threads_nor_on_pauses(small, monkeypatch):
    config = small(env_id="Hopper-v4", vectorize="MujocoVecEnv", test_episode=10)
    setup = Setup(config).lively()
    scores = []
    for threads, turn in (1, 0.1), (2, 0.1), (5, 0.1), (2, 0.0):
        monkeypatch.setattr("xcfast.collectors.native._TURN_SECONDS", turn)
        evaluator = Evaluator(
            replace(config, num_threads=threads), Player(setup.policy, setup.normalizer, setup.action_map)
        )
        scores.append(evaluator(1))
        evaluator.close()
    for others in scores[1:]:
        np.testing.assert_array_equal(scores[0], others)


def test_checkpoints_hold_its_state(hopper, tmp_path):
    config, expected = hopper
    state = expected.collector.state_dict()
    ckpt.save_checkpoint(tmp_path / "state.pth", {"collector": state})
    setup = Setup(config, limit=12)
    assert setup.collector.load_state_dict(ckpt.read_torch_file(tmp_path / "state.pth")["collector"])
    assert_same_trees(setup.collector.state_dict(), state)
