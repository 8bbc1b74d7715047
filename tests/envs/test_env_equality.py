"""DummyVecEnv, SubprocVecEnv and Gymnasium's SyncVectorEnv take the same path, bit for bit."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from toy_envs import OneHotRoom, Toy

from xcfast.envs import DummyVecEnv, SubprocVecEnv, make_env_fn


def assert_same(left: Any, right: Any, path: str = "infos") -> None:
    if isinstance(left, dict):
        assert isinstance(right, dict) and left.keys() == right.keys(), f"{path}: {left.keys()} and {right.keys()}"
        for key in left:
            assert_same(left[key], right[key], f"{path}[{key!r}]")
    elif isinstance(left, np.ndarray) and left.dtype == object:
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    else:
        np.testing.assert_array_equal(left, right, err_msg=path, strict=isinstance(left, np.ndarray))


def random_actions(envs: VectorEnv, rng: np.random.Generator) -> np.ndarray:
    space = envs.action_space
    if hasattr(space, "nvec"):
        return space.start + rng.integers(space.nvec)
    return rng.uniform(space.low, space.high).astype(space.dtype)


CASES = [
    pytest.param(make_env_fn("InvertedPendulum-v4"), 7, 3, 120, id="InvertedPendulum-7x3"),
    pytest.param(make_env_fn("Ant-v4"), 3, 2, 120, id="Ant-3x2"),
    pytest.param(make_env_fn("HalfCheetah-v5", max_episode_steps=25), 2, 2, 90, id="HalfCheetah-2x2"),
    pytest.param(make_env_fn("CartPole-v1"), 6, 5, 120, id="CartPole-6x5"),
    pytest.param(make_env_fn("Pendulum-v1", max_episode_steps=30), 1, 1, 120, id="Pendulum-1x1"),
    pytest.param(make_env_fn("MountainCarContinuous-v0", max_episode_steps=20), 3, 9, 75, id="MountainCar-3x9"),
    pytest.param(OneHotRoom, 5, 2, 60, id="Discrete-5x2"),
]


@pytest.mark.parametrize("env_fn, num_envs, num_workers, steps", CASES)
def test_trajectories_are_gymnasiums(env_fn: Any, num_envs: int, num_workers: int, steps: int) -> None:
    env_fns = [env_fn] * num_envs
    gym = RecordEpisodeStatistics(SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP))
    dummy, subproc = DummyVecEnv(env_fns), SubprocVecEnv(env_fns, num_workers)
    assert subproc.num_workers == min(num_envs, num_workers)
    for envs in (dummy, subproc):
        assert envs.observation_space == gym.observation_space
        assert envs.action_space == gym.action_space
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP

    rng = np.random.default_rng(0)
    episodes = 0
    for seed in (11, list(range(num_envs)), None):  # the last one goes on with the generators as they are
        wanted, _ = gym.reset(seed=seed)
        for envs in (dummy, subproc):
            obs, infos = envs.reset(seed=seed)
            assert infos == {}
            assert_same(obs, wanted)
        for _ in range(steps // 3):
            actions = random_actions(gym, rng)
            wanted = gym.step(actions)
            for envs in (dummy, subproc):
                got = envs.step(actions)
                for array, wanted_array in zip(got[:4], wanted[:4], strict=True):
                    assert_same(array, wanted_array)
                infos = got[4]
                if not (wanted[2] | wanted[3]).any():
                    assert infos == {}
                    continue
                assert infos.keys() == {
                    f"{mask}{key}" for mask in ("", "_") for key in ("final_obs", "final_info", "episode")
                }
                for key in ("final_obs", "_final_obs", "_final_info", "_episode"):
                    assert_same(infos[key], wanted[4][key], key)
                for key in ("r", "l"):
                    assert_same(infos["episode"][key], wanted[4]["episode"][key], key)
            episodes += int((wanted[2] | wanted[3]).sum())
    assert episodes > 0, "the case must see an episode end"
    for envs in (gym, dummy, subproc):
        envs.close()


def test_infos_are_gymnasiums() -> None:
    env_fns = [make_env_fn("Hopper-v4")] * 3
    gym = SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)
    both = DummyVecEnv(env_fns, infos=True), SubprocVecEnv(env_fns, 2, infos=True)
    _, wanted = gym.reset(seed=5)
    for envs in both:
        assert_same(envs.reset(seed=5)[1], wanted)
    rng = np.random.default_rng(1)
    episodes = 0
    for _ in range(60):
        actions = random_actions(gym, rng)
        *_, terminated, truncated, wanted = gym.step(actions)
        for envs in both:
            infos = envs.step(actions)[4]
            for place in (infos, infos.get("final_info", {})):  # what Gymnasium's RecordEpisodeStatistics adds
                place.pop("episode", None), place.pop("_episode", None)
            assert_same(infos, wanted)
        episodes += int((terminated | truncated).sum())
    assert episodes > 0
    for envs in (gym, *both):
        envs.close()


@pytest.mark.parametrize("make", [DummyVecEnv, partial(SubprocVecEnv, num_workers=2)], ids=["Dummy", "Subproc"])
def test_one_vector_env_in_detail(make: Any) -> None:
    """What comes back is a copy or the buffer as asked; an env may keep its action; masks reset some envs."""
    with_copies, without = make([Toy] * 3), make([partial(Toy, length=2)] * 3, copy=False)
    with_copies.reset(seed=0)
    first = with_copies.step(np.full((3, 1), 0.5))
    kept = [array.copy() for array in first[:4]]
    second = with_copies.step(np.full((3, 1), -0.25))
    for array, copy in zip(first[:4], kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(second[0][:, 1], [0.5] * 3)  # the action that the env has kept from the step before

    obs, _ = without.reset(seed=0)
    assert all(without.step(np.zeros((3, 1)))[0] is obs for _ in range(3))
    np.testing.assert_array_equal(without.episode_lengths, [1, 1, 1])

    mask = np.array([False, True, False])
    before, _ = with_copies.reset(seed=1)
    with_copies.step(np.ones((3, 1)))
    after, _ = with_copies.reset(seed=1, options={"reset_mask": mask})
    np.testing.assert_array_equal(after[mask], before[mask])
    np.testing.assert_array_equal(after[~mask][:, 0], [1.0, 1.0])
    np.testing.assert_array_equal(with_copies.episode_returns, [1.0, 0.0, 1.0])

    assert with_copies.get_attr("count") == (1, 0, 1)
    with_copies.set_attr("count", [4, 5, 6])
    np.testing.assert_array_equal(with_copies.step(np.ones((3, 1)))[0][:, 0], [5, 6, 7])
    for envs in (with_copies, without):
        envs.close()
