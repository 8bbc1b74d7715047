"""MujocoVecEnv against gymnasium.make, bit for bit: every id, through terminations, time limits and resets."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from xcfast.envs import MujocoVecEnv, make_env_fn
from xcfast.envs.registration import MUJOCO_IDS

# Pusher-v4 refuses MuJoCo 3 and later.
IDS = [env_id for env_id in MUJOCO_IDS if env_id != "Pusher-v4"]
# numpy takes these tasks' norms from its BLAS, whose order of operations depends on the CPU.
NORM_IDS = {"Reacher-v4", "Reacher-v5", "Pusher-v5"}

# Every keyword argument of Gymnasium's classes that changes a number, away from its default.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("Ant-v4", {"use_contact_forces": True, "contact_cost_weight": 0.1, "contact_force_range": (-0.5, 2.0)}),
    ("Ant-v4", {"ctrl_cost_weight": 0.3, "healthy_reward": 2, "healthy_z_range": (0.4, 0.9), "reset_noise_scale": 0.3}),
    ("Ant-v4", {"terminate_when_unhealthy": False, "exclude_current_positions_from_observation": False}),
    (
        "Ant-v5",
        {"forward_reward_weight": 0.7, "contact_cost_weight": 0.2, "contact_force_range": (-3, 0.5), "main_body": 4},
    ),
    ("Ant-v5", {"include_cfrc_ext_in_observation": False, "main_body": "front_left_leg", "frame_skip": 3}),
    ("Ant-v5", {"terminate_when_unhealthy": False, "exclude_current_positions_from_observation": False}),
    ("HalfCheetah-v4", {"forward_reward_weight": 0.3, "ctrl_cost_weight": 0.7, "reset_noise_scale": 0.5}),
    ("HalfCheetah-v4", {"exclude_current_positions_from_observation": False}),
    ("HalfCheetah-v5", {"frame_skip": 2, "xml_file": "half_cheetah.xml", "ctrl_cost_weight": 1}),
    ("Hopper-v4", {"healthy_state_range": (-2.0, 2.0), "healthy_angle_range": (-0.1, 0.3), "healthy_reward": 0.5}),
    ("Hopper-v5", {"terminate_when_unhealthy": False, "healthy_z_range": (1.1, 1.3), "forward_reward_weight": 2.0}),
    ("Hopper-v5", {"exclude_current_positions_from_observation": False, "frame_skip": 1, "ctrl_cost_weight": 0.5}),
    ("Walker2d-v4", {"terminate_when_unhealthy": False, "healthy_z_range": (1.0, 1.3), "healthy_reward": 3.0}),
    ("Walker2d-v5", {"healthy_angle_range": (-0.2, 0.2), "reset_noise_scale": 0.1, "xml_file": "walker2d.xml"}),
    ("Walker2d-v5", {"exclude_current_positions_from_observation": False, "ctrl_cost_weight": 0.3}),
    ("Humanoid-v4", {"healthy_z_range": (1.2, 1.5), "ctrl_cost_weight": 1.5, "forward_reward_weight": 0.5}),
    ("Humanoid-v4", {"exclude_current_positions_from_observation": False, "terminate_when_unhealthy": False}),
    (
        "Humanoid-v5",
        {"contact_cost_weight": 1e-3, "contact_cost_range": (0.5, 2.0), "include_cinert_in_observation": False},
    ),
    ("Humanoid-v5", {"include_cvel_in_observation": False, "include_qfrc_actuator_in_observation": False}),
    ("Humanoid-v5", {"include_cfrc_ext_in_observation": False, "exclude_current_positions_from_observation": False}),
    ("HumanoidStandup-v5", {"ctrl_cost_weight": 0.5, "impact_cost_weight": 1e-4, "impact_cost_range": (0.1, 3.0)}),
    ("HumanoidStandup-v5", {"include_cinert_in_observation": False, "include_cfrc_ext_in_observation": False}),
    ("Swimmer-v4", {"forward_reward_weight": 3.0, "ctrl_cost_weight": 0.4, "reset_noise_scale": 0.2}),
    ("Swimmer-v5", {"exclude_current_positions_from_observation": False, "frame_skip": 2}),
    ("Reacher-v5", {"reward_dist_weight": 0.7, "reward_control_weight": 0.3, "frame_skip": 3}),
    ("Pusher-v5", {"reward_near_weight": 0.3, "reward_dist_weight": 2.0, "reward_control_weight": 0.7}),
    ("InvertedPendulum-v5", {"reset_noise_scale": 0.1, "frame_skip": 4}),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 3.0, "reset_noise_scale": 0.05, "frame_skip": 2}),
]


def actions_of(space: gymnasium.spaces.Box, num_envs: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """By turns of ten steps: uniform, zero, extreme (also beyond the bounds) and slowly varying, as a policy's are."""
    rng = np.random.default_rng(seed)
    low, high, shape = space.low, space.high, (num_envs, *space.shape)
    phase = rng.uniform(0, 6, shape)
    for step in range(steps):
        kind = step // 10 % 4
        if kind == 0:
            actions = rng.uniform(low, high, shape)
        elif kind == 1:
            actions = np.zeros(shape)
        elif kind == 2:
            actions = np.where(rng.random(shape) < 0.5, low, high) * rng.choice([1.0, 1.5])
        else:
            actions = np.clip(0.6 * np.sin(0.3 * step + phase) + 0.2 * rng.standard_normal(shape), low, high)
        yield actions.astype(np.float32)


def check(env_id: str, *, steps: int, num_envs: int, num_threads: int, seed: int = 3, **kwargs: Any) -> dict[str, int]:
    """Steps both kinds and compares everything; returns how often what happened."""
    counts = {"terminated": 0, "truncated": 0, "one_ulp": 0}
    ours = MujocoVecEnv(env_id, num_envs, num_threads, **kwargs)
    theirs = [make_env_fn(env_id, **kwargs)() for _ in range(num_envs)]
    obs, infos = ours.reset(seed=seed)
    assert infos == {}
    np.testing.assert_array_equal(obs, [env.reset(seed=seed + i)[0] for i, env in enumerate(theirs)])
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, int)
    for actions in actions_of(ours.single_action_space, num_envs, steps, seed):
        obs, rewards, terminated, truncated, infos = ours.step(actions)
        assert obs.dtype == np.float64
        done = terminated | truncated
        assert bool(infos) == done.any()
        for i, env in enumerate(theirs):
            ob, reward, is_terminated, is_truncated, _ = env.step(actions[i])
            if rewards[i] != reward and env_id in NORM_IDS:
                assert abs(rewards[i] - reward) <= np.spacing(np.float32(abs(reward)))
                counts["one_ulp"] += 1
            else:
                assert rewards[i] == reward
            assert (terminated[i], truncated[i]) == (is_terminated, is_truncated)
            returns[i] += rewards[i]
            lengths[i] += 1
            if done[i]:
                assert np.array_equal(infos["final_obs"][i], ob)
                assert infos["episode"]["r"][i] == returns[i]
                assert infos["episode"]["l"][i] == lengths[i]
                returns[i], lengths[i] = 0, 0
                ob, _ = env.reset()
                counts["terminated"] += is_terminated
                counts["truncated"] += is_truncated
            assert np.array_equal(obs[i], ob)
        assert np.array_equal(ours.episode_returns, returns)
        assert np.array_equal(ours.episode_lengths, lengths)
        if done.any():
            assert np.array_equal(infos["_final_obs"], done)
            assert np.array_equal(infos["_episode"], done)
    ours.close()
    for env in theirs:
        env.close()
    return counts


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("env_id", IDS)
def test_equals_gymnasium(env_id: str, num_threads: int) -> None:
    steps = 45 if env_id.startswith("Humanoid") else 90
    limit = 5 if env_id.startswith("Inverted") else 17
    counts = check(env_id, steps=steps, num_envs=3, num_threads=num_threads, seed=num_threads, max_episode_steps=limit)
    assert counts["truncated"] > 0


@pytest.mark.parametrize(("env_id", "kwargs"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_equals_gymnasium_with_other_arguments(env_id: str, kwargs: dict[str, Any]) -> None:
    check(env_id, steps=60, num_envs=2, num_threads=2, max_episode_steps=25, **kwargs)


@pytest.mark.parametrize(
    "env_id", ["Ant-v4", "Hopper-v5", "Walker2d-v4", "InvertedPendulum-v4", "InvertedDoublePendulum-v5"]
)
def test_terminations_are_reached(env_id: str) -> None:
    assert check(env_id, steps=200, num_envs=3, num_threads=2)["terminated"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("env_id", IDS)
def test_equals_gymnasium_for_long(env_id: str) -> None:
    check(env_id, steps=2000, num_envs=3, num_threads=2, seed=11)
    check(env_id, steps=700, num_envs=7, num_threads=5, seed=12, max_episode_steps=37)
