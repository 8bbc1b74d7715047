"""Action masks from the environment to the update: an action that is not allowed ends these runs with an error."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import toys
from small_config import SMALL
from torch.distributions import Categorical

from xcfast import Rollout, load_config, run
from xcfast.collectors.torch import TorchCollector
from xcfast.config import ConfigError
from xcfast.envs import DummyVecEnv, EnvError, SubprocVecEnv, WorkerError, make_env_fn, make_envs, serial
from xcfast.envs.action_masks import find_mask_source
from xcfast.errors import RunFailed
from xcfast.normalize import ObservationNormalizer, RewardNormalizer
from xcfast.policy import ActionMap, CategoricalActor, build_policy, masked
from xcfast.runs.engines import make_learner
from xcfast.runs.evaluation import Evaluator
from xcfast.runs.player import Player
from xcfast.runs.run import train_to_the_end
from xcfast.runs.trainer import Trainer

MASKED = {"env_id": "toys:toy/Masked-v0", "policy": "Categorical_AC", "use_actions_mask": True}
KINDS = ["DummyVecEnv", "SubprocVecEnv"]


def vec_env(kind, env_id, num_envs=3, **kwargs):
    env_fns = [make_env_fn(f"toys:toy/{env_id}-v0")] * num_envs
    made = DummyVecEnv if kind == "DummyVecEnv" else SubprocVecEnv
    return made(env_fns, action_masks=True, **({"num_workers": 2} if made is SubprocVecEnv else {}), **kwargs)


# ---- Where masks come from


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("env_id", ["Masked", "MaskedAvail", "MaskedByMethod"])
def test_masks_come_with_their_observations(kind, env_id):
    """At a reset, at a step, and of the new episode where one ended; not through infos."""
    envs = vec_env(kind, env_id)
    places = [[9 + i, 0, 0] for i in range(3)]
    obs, infos = envs.reset(seed=9)
    ends = 0
    for _ in range(40):
        assert envs.action_masks.dtype == np.bool_
        for i, place in enumerate(places):
            expected_obs, expected_mask, _ = toys.Masked.at(*place)
            np.testing.assert_array_equal(obs[i], expected_obs)
            np.testing.assert_array_equal(envs.action_masks[i], expected_mask)
        obs, _, terminated, truncated, infos = envs.step(envs.action_masks.argmax(1))
        assert not any("mask" in key or "avail" in key for key in infos)
        for i, done in enumerate(terminated | truncated):
            ends += done
            places[i] = [places[i][0], places[i][1] + 1, 0] if done else [*places[i][:2], places[i][2] + 1]
    assert ends > 5
    envs.close()


def test_masks_are_copies_or_the_buffer_as_asked():
    for copies in (True, False):
        envs = vec_env("DummyVecEnv", "Masked", copy=copies)
        envs.reset(seed=1)
        before = envs.action_masks
        kept = before.copy()
        while (envs.action_masks == kept).all():
            envs.step(envs.action_masks.argmax(1))
        assert (before == kept).all() == copies


@pytest.mark.parametrize("kind", KINDS)
def test_an_env_without_masks_says_what_is_missing(small, kind):
    config = small(**{**MASKED, "env_id": "toys:toy/Choice-v0"}, vectorize=kind, num_workers=2)
    with pytest.raises(EnvError, match=r"toy/Choice-v0 .*neither a method action_masks.*nor 'action_mask' nor"):
        make_envs(config)


def test_masks_of_continuous_actions_are_refused(small):
    with pytest.raises(EnvError, match=r"Discrete actions; the action space is Box"):
        vec_env("DummyVecEnv", "RewardOne")
    with pytest.raises(ConfigError, match=r"use_actions_mask.*allowed: False with policy Gaussian_AC"):
        small(policy="Gaussian_AC", use_actions_mask=True)


def test_masks_that_were_not_asked_for_are_not_there():
    envs = DummyVecEnv([make_env_fn("toys:toy/Masked-v0")])
    envs.reset()
    with pytest.raises(EnvError, match="made without action_masks=True"):
        _ = envs.action_masks


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_end_names_env_and_step(kind):
    envs = vec_env(kind, "DeadEnd", 2)
    # Env 0 begins its second episode while env 1 goes on to its second step.
    short = next(s for s in range(100) if toys.Masked.at(s, 0, 0)[2])
    seeds = [short, next(s for s in range(100) if not any(toys.Masked.at(s, 0, t)[2] for t in range(3)))]
    envs.reset(seed=seeds)
    envs.step(envs.action_masks.argmax(1))
    with pytest.raises(EnvError, match=r"action mask of env 1 allows no action after step 2 of its episode"):
        envs.step(envs.action_masks.argmax(1))
    with pytest.raises(RuntimeError, match=r"allows no action.*reset\(\)"):
        envs.step(np.zeros(2, np.int64))
    envs.reset(seed=seeds)
    envs.close()


class Told(gym.Env):
    """Delivers what it is told to as its mask."""

    observation_space, action_space = toys.BOX1, gym.spaces.Discrete(3)

    def __init__(self, *masks):
        self._masks = iter(masks)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1), next(self._masks)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True, True], r"bool \[3\].*got bool \[2\]"),
        ([0.5, 1.0, 0.0], r"got float64 \[3\]"),
        ([0, 1, 2], r"got int64 \[3\] with \[0, 1, 2\]"),
        (np.ones((1, 3), bool), r"got bool \[1, 3\]"),
        (None, r"got object \[\]"),
    ],
    ids=str,
)
def test_a_mask_of_another_kind_is_refused(mask, message):
    envs = DummyVecEnv([lambda: Told({"action_mask": [1, 1, 1]}, {"action_mask": mask})], action_masks=True)
    with pytest.raises(EnvError, match=r"info\['action_mask'\] must be .*" + message):
        envs.reset()


def test_masks_that_stop_coming_are_missed():
    source = find_mask_source(Told({"action_mask": [1, 0, 1]}))
    assert source({"action_mask": np.array([0, 1, 1], np.int8)}).tolist() == [False, True, True]
    with pytest.raises(EnvError, match=r"no 'action_mask'.*keys are \['other'\]"):
        source({"other": 1})


def test_a_bad_mask_in_a_worker_is_the_workers_error():
    def env_fn():
        return Told({"action_mask": [1, 1, 1]}, {"action_mask": [1, 1]})

    envs = SubprocVecEnv([env_fn] * 2, 1, action_masks=True)
    with pytest.raises(WorkerError, match=r"environment 0") as caught:
        envs.reset()
    assert caught.value.exception_type == "EnvError"
    envs.close()


# ---- The distribution


def distribution(rows=200, n=6):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(scale=3.0, size=(rows, n)))
    masks = rng.random((rows, n)) < 0.4
    masks[np.arange(rows), rng.integers(n, size=rows)] = True
    return logits, torch.from_numpy(masks), CategoricalActor(4, [], n, "tanh")


def test_a_masked_distribution_is_that_of_the_allowed_actions_alone():
    logits, masks, actor = distribution()
    logits.requires_grad_(True)
    actions = actor.mode(masked(logits, masks))
    log_probs, entropy = actor.log_prob(masked(logits, masks), actions), actor.entropy(masked(logits, masks))
    (log_probs.sum() + 0.7 * entropy.sum()).backward()
    gradient = logits.grad
    for row in range(len(logits)):
        allowed = masks[row].nonzero().squeeze(1)
        reduced = logits[row, allowed].detach().requires_grad_(True)
        reference = Categorical(logits=reduced)
        assert actions[row] == allowed[reduced.argmax()]
        chosen = (allowed == actions[row]).nonzero().squeeze()
        one = reference.log_prob(chosen)
        np.testing.assert_allclose(log_probs[row].item(), one.item(), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(entropy[row].item(), reference.entropy().item(), rtol=1e-12, atol=1e-14)
        (one + 0.7 * reference.entropy()).backward()
        np.testing.assert_allclose(gradient[row, allowed], reduced.grad, rtol=1e-10, atol=1e-12)
        assert (gradient[row, ~masks[row]] == 0.0).all()


def test_masked_sampling_inverts_the_cumulative_distribution_of_the_allowed_actions():
    logits, masks, actor = distribution()
    # The ends too, where rounding could let a sum of probabilities below 1 pass by the last allowed action.
    tiny = np.nextafter(0.0, 1.0)
    for u in (tiny, 0.1, 0.25, 0.5, 0.9, np.nextafter(1.0, 0.0)):
        noise = torch.full((len(logits),), u, dtype=torch.float64)
        actions = actor.sample(masked(logits, masks), noise)
        assert masks.gather(1, actions[:, None]).all()
        for row in range(len(logits)):
            allowed = masks[row].nonzero().squeeze(1)
            cumulative = logits[row, allowed].softmax(0).cumsum(0)
            place = int(torch.searchsorted(cumulative, u).clamp(max=len(allowed) - 1))
            edge = (cumulative - u).abs().min()
            assert actions[row] == allowed[place] or edge < 1e-14


def test_no_sum_of_probabilities_below_one_lets_a_forbidden_action_pass():
    actor = CategoricalActor(4, [], 4, "tanh")
    logits = torch.tensor([[0.1, 0.2, 0.3, 50.0]] * 500).double() + torch.rand(500, 1).double()
    masks = torch.tensor([[True, True, True, False]] * 500)
    noise = torch.full((500,), np.nextafter(1.0, 0.0), dtype=torch.float64)
    assert (actor.sample(masked(logits, masks), noise) == 2).all()


def test_masks_that_allow_all_change_no_bit():
    logits, masks, actor = distribution()
    everything, actions = torch.ones_like(masks), actor.mode(logits)
    noise = torch.rand(len(logits), dtype=torch.float64)
    assert torch.equal(actor.mode(masked(logits, everything)), actions)
    assert torch.equal(actor.sample(masked(logits, everything), noise), actor.sample(logits, noise))
    assert torch.equal(actor.log_prob(masked(logits, everything), actions), actor.log_prob(logits, actions))
    assert torch.equal(actor.entropy(masked(logits, everything)), actor.entropy(logits))


# ---- The rollout


def test_rollout_keeps_and_gathers_masks():
    rollout = Rollout(4, 2, (3,), (), np.int64, num_actions=5)
    masks = np.random.default_rng(0).random((4, 2, 5)) < 0.5
    step = (np.zeros((2, 3), np.float32), np.zeros(2, np.int64), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    for row in masks:
        rollout.store(*step, action_masks=row)
    np.testing.assert_array_equal(rollout.action_masks, masks)
    batch = rollout.gather(np.array([7, 0, 3]), rollout.minibatch(4))
    assert batch.action_masks.dtype == np.bool_
    np.testing.assert_array_equal(batch.action_masks, masks.reshape(8, 5)[[7, 0, 3]])
    with pytest.raises(IndexError, match="full"):
        rollout.store(*step, action_masks=masks[0])
    np.testing.assert_array_equal(rollout.action_masks, masks)


def test_rollout_wants_masks_where_it_has_room_for_them_only():
    step = (np.zeros((2, 3), np.float32), np.zeros(2, np.int64), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    plain, with_masks = Rollout(4, 2, (3,), (), np.int64), Rollout(4, 2, (3,), (), np.int64, num_actions=5)
    assert plain.action_masks is None and plain.minibatch(2).action_masks is None
    with pytest.raises(ValueError, match="num_actions"):
        plain.store(*step, action_masks=np.ones((2, 5), bool))
    for masks in (None, np.ones((2, 4), bool), np.ones((2, 5), np.int8)):
        with pytest.raises(ValueError, match=r"action_masks must be bool \[2, 5\]; got"):
            with_masks.store(*step, action_masks=masks)
    assert plain.step == with_masks.step == 0
    with pytest.raises(ValueError, match="arrays from minibatch"):
        with_masks.gather(np.array([0]), plain.minibatch(1))


# ---- Collecting, evaluating, training


def parts_of(config):
    envs = make_envs(config)
    space = envs.single_observation_space
    policy = build_policy(config, space, envs.single_action_space)
    normalizer = ObservationNormalizer(space.shape, num_envs=config.parallels, clip=5.0)
    action_map = ActionMap(envs.single_action_space, None)
    collector = TorchCollector(envs, policy, normalizer, action_map, config.seed)
    num_actions = 5 if config.use_actions_mask else None
    rollout = Rollout(config.horizon_size, config.parallels, space.shape, (), np.int64, num_actions=num_actions)
    return SimpleNamespace(envs=envs, policy=policy, normalizer=normalizer, collector=collector, rollout=rollout)


@pytest.mark.parametrize("kind", KINDS)
def test_collected_masks_are_those_that_the_actions_obeyed(small, kind):
    parts = parts_of(small(**MASKED, vectorize=kind, num_workers=2))
    rollout = parts.rollout
    parts.collector.reset(3)
    for _ in range(3):
        parts.collector.collect(rollout, 5)
        parts.collector.collect(rollout)
        assert np.take_along_axis(rollout.action_masks, rollout.actions[..., None], -1).all()
        assert 0.2 < rollout.action_masks.mean() < 0.8
        rollout.clear()
    parts.envs.close()


def test_the_toy_tells_masks_that_are_not_obeyed(small):
    """Without masks a rollout, an evaluation and a run end with the error that all the other tests would see."""
    config = small(**{**MASKED, "use_actions_mask": False})
    parts = parts_of(config)
    parts.collector.reset(3)
    with pytest.raises(ValueError, match="forbidden"):
        parts.collector.collect(parts.rollout)
    with pytest.raises(ValueError, match="forbidden"):
        Evaluator(config, Player(parts.policy, parts.normalizer, ActionMap(parts.envs.single_action_space, None)))(0)
    with pytest.raises(RunFailed, match="forbidden"):
        run(config, quiet=True)


@pytest.mark.parametrize("env_id", ["Masked", "MaskedByMethod"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learner", ["torch", "native"])
def test_a_run_never_takes_a_forbidden_action(small, env_id, kind, learner):
    keys = {**MASKED, "env_id": f"toys:toy/{env_id}-v0"}
    config = small(**keys, vectorize=kind, num_workers=2, learner_backend=learner, ent_coef=0.01)
    done = run(config, quiet=True)
    assert done.steps == 512
    assert done.learner_backend == learner
    tested = run(replace(config, use_actions_mask=False), mode="test", resume=done.model_dir, quiet=True)
    assert tested.best_mean is not None  # the model says that it wants masks, whatever the file says


def test_masked_training_learns(small):
    """The reward is for the last of the allowed actions, so the best policy wants the last of all and is masked."""
    keys = {"running_steps": 12288, "parallels": 8, "horizon_size": 64, "n_epochs": 8, "learning_rate": 3e-3}
    trainer = Trainer(small(**MASKED, **keys), "train", quiet=True)
    try:
        trainer.start()
        trainer.components.collector.collect(trainer.components.rollout)
        before = trainer.components.rollout.rewards.mean()
        trainer.components.rollout.clear()
        train_to_the_end(trainer)
        trainer.components.collector.collect(trainer.components.rollout)
        assert before < 0.7 and trainer.components.rollout.rewards.mean() > 0.9
    finally:
        trainer.close()


@pytest.mark.parametrize("agent", ["PPO", "PPO_KL"])
def test_engines_agree_on_a_masked_rollout(small, agent):
    """The same rollout in the torch, native and CUDA learners (the last on the CPU): same weights, to rounding."""
    from xcfast.learners.cuda import CudaLearner

    config = small(**MASKED, agent=agent, ent_coef=0.01, activation="tanh")
    parts = parts_of(config)
    parts.collector.reset(3)
    parts.collector.collect(parts.rollout)
    start = torch.nn.utils.parameters_to_vector(parts.policy.parameters()).detach()
    ends = []
    for backend in ("torch", "native", "cuda"):
        policy, rewards = copy.deepcopy(parts.policy), RewardNormalizer(config.parallels, gamma=config.gamma)
        if backend == "cuda":
            off = replace(config, compile="off")
            learner = CudaLearner(policy, off, parts.rollout, rewards, torch.device("cpu"))
        else:
            learner, _ = make_learner(replace(config, learner_backend=backend), policy, parts.rollout, rewards, 1)
        metrics = learner.update(parts.rollout, 0)
        assert 0 < metrics["losses/entropy"] < np.log(5)
        ends.append(torch.nn.utils.parameters_to_vector(learner.policy.parameters()).detach())
    way = (ends[0] - start).norm()
    assert all((end - ends[0]).norm() <= 1e-4 * way for end in ends[1:])


def test_a_dead_end_ends_the_run_with_env_and_step(small):
    with pytest.raises(RunFailed, match=r"mask of env \d allows no action after step 2 of its episode") as caught:
        run(small(**{**MASKED, "env_id": "toys:toy/DeadEnd-v0"}), quiet=True)
    assert caught.value.expected


# ---- Resuming


@pytest.fixture
def saved_places(monkeypatch):
    """The toy's state can be saved, as that of MuJoCo's tasks can."""

    def get_state(env):
        generator = env.unwrapped.np_random.bit_generator.state
        own = {"np_random": generator, "np_random_seed": None, "elapsed_steps": None, "has_reset": None}
        return {"physics": np.array(env.unwrapped.place, np.float64), **own}

    def set_state(env, state):
        env.unwrapped.place = np.asarray(state["physics"]).astype(int).tolist()
        env.unwrapped._now()

    told = SimpleNamespace(state_supported=lambda env: True, get_state=get_state, set_state=set_state)
    monkeypatch.setattr(serial, "env_state", told)


def test_a_resumed_run_ends_bit_identical(small, saved_places):
    config = small(**MASKED, running_steps=1024, checkpoint_interval=512, keep_checkpoints=9)
    whole = run(config, quiet=True)
    ends = []
    for resume in (None, next(Path(whole.model_dir).glob("checkpoint_*512.pth"))):
        trainer = Trainer(config, resume=resume, quiet=True)
        try:
            masks = trainer.components.envs.action_masks.copy()
            train_to_the_end(trainer)
            ends.append(
                (masks, torch.nn.utils.parameters_to_vector(trainer.components.policy.parameters()).detach().clone())
            )
        finally:
            trainer.close()
    assert not ends[0][0].any() and ends[1][0].any(axis=1).all()  # the resumed envs have their masks before a step
    assert torch.equal(ends[0][1], ends[1][1])


def test_default_configuration_has_no_masks():
    assert load_config(overrides=SMALL).use_actions_mask is False
