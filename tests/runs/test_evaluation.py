import numpy as np
import pytest

from xcfast import ObservationNormalizer
from xcfast.envs import make_env_fn
from xcfast.policy import ActionMap, build_policy
from xcfast.runs.evaluation import MAX_ENVS, EvaluationStopped, Evaluator, evaluation_seeds, num_evaluation_envs
from xcfast.runs.player import Player


def make_evaluator(config):
    env = make_env_fn(config.env_id)()
    policy = build_policy(config, env.observation_space, env.action_space)
    normalizer = ObservationNormalizer(env.observation_space.shape, num_envs=config.parallels)
    return (
        Evaluator(config, Player(policy, normalizer, ActionMap(env.action_space, config.activation_action))),
        policy,
        normalizer,
    )


def test_seeds_never_meet_the_training_ones(small):
    config = small(env_seed=1, parallels=4)
    seen = [seed for number in range(50) for seed in evaluation_seeds(config, number, 5)]
    assert len(set(seen)) == len(seen)
    assert 0 <= min(seen) and max(seen) < 2**32
    assert evaluation_seeds(config, 3, 5) == evaluation_seeds(config, 3, 5)
    assert evaluation_seeds(small(env_seed=2), 3, 5) != evaluation_seeds(config, 3, 5)
    # a run whose training seeds would include the first ones drawn
    first = evaluation_seeds(config, 0, 1)[0]
    assert not set(evaluation_seeds(small(env_seed=first), 0, 5)) & set(range(first, first + 4))
    crowded = small(env_seed=0, parallels=64, running_steps=4096)
    assert not set(evaluation_seeds(crowded, 7, 64)) & set(range(64))


@pytest.mark.parametrize(("episodes", "envs"), [(1, 1), (5, 5), (64, 64), (100, 50), (67, 34), (97, 49), (130, 44)])
def test_envs_share_the_episodes_as_evenly_as_can_be(episodes, envs):
    """At most MAX_ENVS of them, and fewer episodes too many than any environment plays."""
    assert num_evaluation_envs(episodes) == envs <= MAX_ENVS
    per_env = -(-episodes // envs)
    assert 0 <= per_env * envs - episodes < per_env


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
def test_scores_are_those_of_bare_gymnasium_episodes(small, vectorize):
    """Quota, determinism and seeds: what a plain loop over single envs gives."""
    import torch

    config = small(test_episode=4, vectorize=vectorize, num_workers=2)
    evaluator, policy, normalizer = make_evaluator(config)
    count = normalizer.rms.count
    try:
        scores = evaluator(3)
        again = evaluator(3)
        other = evaluator(4)
    finally:
        evaluator.close()
    np.testing.assert_array_equal(scores, again)
    assert not np.array_equal(scores, other)
    assert normalizer.rms.count == count

    expected = []
    env = make_env_fn(config.env_id)()
    action_map = ActionMap(env.action_space, config.activation_action)
    for seed in evaluation_seeds(config, 3, 4):
        obs, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            with torch.no_grad():
                # the evaluator's batch has 4 rows; a matrix product of 1 row may round differently
                batch = torch.from_numpy(normalizer.normalize(np.repeat(obs[None], 4, 0)))
                action = action_map(policy.act(batch).numpy())[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            over = terminated or truncated
        expected.append(total)
    np.testing.assert_allclose(scores, expected)


def test_a_stop_request_ends_an_endless_evaluation(small):
    config = small(env_id="toys:toy/Endless-v0")
    env = make_env_fn(config.env_id)()
    policy = build_policy(config, env.observation_space, env.action_space)
    normalizer = ObservationNormalizer(env.observation_space.shape, num_envs=config.parallels)
    action_map = ActionMap(env.action_space, config.activation_action)
    calls = iter(range(1000))
    evaluator = Evaluator(config, Player(policy, normalizer, action_map), should_stop=lambda: next(calls) > 50)
    try:
        with pytest.raises(EvaluationStopped):
            evaluator(0)
    finally:
        evaluator.close()
