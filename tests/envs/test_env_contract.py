"""What Gymnasium's vector wrappers, CleanRL's loops and other users of vector environments rely on."""

import random
import warnings
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from equality import assert_equal
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import ClipReward, RecordEpisodeStatistics
from returning_envs import GlobalDraws
from toy_envs import Toy

from xcfast.envs import ClassicControlVecEnv, DummyVecEnv, MujocoVecEnv, SubprocVecEnv, make_env_fn

NUM_ENVS = 3
KINDS = ["Dummy", "Subproc", "native"]


def make(kind: str, env_id: str, **more: Any) -> Any:
    if kind == "native":
        native: Any = ClassicControlVecEnv if env_id.startswith(("CartPole", "Pendulum")) else MujocoVecEnv
        return native(env_id, NUM_ENVS, 2, **more)
    env_fns = [make_env_fn(env_id)] * NUM_ENVS
    return DummyVecEnv(env_fns, **more) if kind == "Dummy" else SubprocVecEnv(env_fns, 2, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v4"])
def test_next_step_is_gymnasiums(kind: str, env_id: str) -> None:
    """Also through a reset of some envs, and from a saved state, with episodes that wait for their reset."""
    gym = SyncVectorEnv([make_env_fn(env_id)] * NUM_ENVS, autoreset_mode=AutoresetMode.NEXT_STEP)
    envs = make(kind, env_id, infos=True, autoreset_mode="next_step", episode_statistics=False)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    rng = np.random.default_rng(0)
    assert_equal(envs.reset(seed=5), gym.reset(seed=5))
    episodes = masked = restored = 0
    for step in range(150):
        space: Any = gym.single_action_space
        actions = rng.integers(2, size=NUM_ENVS) if env_id == "CartPole-v1" else rng.uniform(-1, 1, (NUM_ENVS, 3))
        actions = actions.astype(space.dtype)
        ours, theirs = envs.step(actions), gym.step(actions)
        for one, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
        assert_equal(ours[4], theirs[4])
        done = theirs[2] | theirs[3]
        episodes += int(done.sum())
        if done.any() and step % 2:
            mask = np.array([True, False, bool(done[2])])
            masked += bool((done & mask).any())
            np.testing.assert_array_equal(
                envs.reset(options={"reset_mask": mask})[0], gym.reset(options={"reset_mask": mask})[0]
            )
        elif done.any():
            state = envs.get_state()
            envs.reset(seed=99)
            envs.set_state(state)
            restored += 1
    assert episodes > 5 and masked and restored
    envs.close(), gym.close()


def test_a_state_fits_one_autoreset_mode() -> None:
    one, other = make("Dummy", "CartPole-v1"), make("native", "CartPole-v1", autoreset_mode=AutoresetMode.NEXT_STEP)
    one.reset(seed=1), other.reset(seed=1)
    with pytest.raises(ValueError, match="state has autoreset mode 'next_step'; this .* needs 'same_step'"):
        one.set_state(other.get_state())
    with pytest.raises(ValueError, match="state has autoreset mode 'same_step'; this .* needs 'next_step'"):
        other.set_state(one.get_state())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["disabled", AutoresetMode.DISABLED, None])
def test_other_autoreset_modes(kind: str, mode: Any) -> None:
    with pytest.raises(ValueError, match="autoreset_mode must be 'same_step' or 'next_step'; got"):
        make(kind, "CartPole-v1", autoreset_mode=mode)


def played(envs: Any, wrapper: Any = None) -> list[tuple[int, float, int]]:
    """What the infos of 60 steps tell of ends of episodes: (env, return, length)."""
    envs.reset(seed=3)
    ends = []
    for _ in range(60):
        infos = envs.step(np.zeros(NUM_ENVS, np.int64))[4]
        if "episode" in infos:
            stats = infos["episode"]
            ends += [(int(i), float(stats["r"][i]), int(stats["l"][i])) for i in np.flatnonzero(infos["_episode"])]
    return ends


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_record_episode_statistics_wraps(kind: str, mode: str) -> None:
    """Gymnasium's wrapper says what the vector environment says without it."""
    bare, inner = (make(kind, "CartPole-v1", autoreset_mode=mode) for _ in range(2))
    wanted = played(bare)
    assert len(wanted) > 9
    assert played(RecordEpisodeStatistics(inner)) == wanted
    assert played(RecordEpisodeStatistics(ClipReward(inner, -9, 9))) == wanted
    assert played(inner) == wanted, "without the wrapper it reports its own again"
    assert played(ClipReward(inner, -9, 9)) == wanted
    silent = make(kind, "CartPole-v1", autoreset_mode=mode, episode_statistics=False)
    assert played(silent) == []
    for envs in (bare, inner, silent):
        envs.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("infos_wanted", [False, True])
def test_cleanrls_loop(kind: str, infos_wanted: bool) -> None:
    envs = make(kind, "CartPole-v1", infos=infos_wanted)
    wanted = played(envs)
    envs.reset(seed=3)
    ends = []
    for _ in range(60):
        infos = envs.step(np.zeros(NUM_ENVS, np.int64))[4]
        if "final_info" in infos:
            for index, ended in enumerate(infos["final_info"]["_episode"]):
                if ended:
                    episode = infos["final_info"]["episode"]
                    ends.append((index, float(episode["r"][index]), int(episode["l"][index])))
    assert ends == wanted and len(ends) > 9
    envs.close()


def test_statistics_of_a_wrapper_of_single_envs_stay() -> None:
    envs = DummyVecEnv([lambda: gymnasium.wrappers.RecordEpisodeStatistics(Toy(length=2))], infos=True)
    envs.reset(seed=1)
    envs.step(np.ones((1, 1)))
    infos = envs.step(np.ones((1, 1)))[4]
    assert "t" in infos["final_info"]["episode"] and infos["episode"]["r"].tolist() == [2.0]


@pytest.mark.parametrize("kind", KINDS)
def test_uses_counts_resets_and_steps(kind: str) -> None:
    envs = make(kind, "CartPole-v1")
    envs.reset(seed=1)
    envs.step(np.zeros(NUM_ENVS, np.int64))
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(ValueError, match="actions must have shape"):
        envs.step(np.zeros((NUM_ENVS, 2), np.int64))
    assert envs.uses == 3
    envs.get_state(), envs.get_attr("gravity")
    assert envs.uses == 3
    envs.close()


@pytest.mark.parametrize("make_one", [DummyVecEnv, partial(SubprocVecEnv, num_workers=2)], ids=["Dummy", "Subproc"])
def test_global_generators_repeat(make_one: Any) -> None:
    def run(seed: int) -> list[Any]:
        envs = make_one([GlobalDraws] * 4)
        seen = [envs.reset(seed=seed)[0]]
        seen += [envs.step(np.zeros((4, 1)))[0] for _ in range(3)]
        seen.append(envs.reset(seed=seed)[0])
        envs.close()
        return seen

    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        first = run(3)
        assert_equal(run(3), first)
        assert_equal(first[0], first[-1])
        assert not np.array_equal(run(4)[0], first[0])
    finally:
        random.setstate(state), np.random.set_state(numpy_state)  # noqa: NPY002


def test_global_generators_are_left_alone_without_a_seed() -> None:
    envs = DummyVecEnv([Toy] * 2)
    random.seed(8), np.random.seed(8)  # noqa: NPY002
    wanted = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(8), np.random.seed(8)  # noqa: NPY002
    envs.reset()
    envs.reset(seed=[None, 3], options={"reset_mask": np.array([False, True])})
    assert (random.random(), np.random.rand()) == wanted  # noqa: NPY002


def test_close_closes_all_and_names_those_that_raise() -> None:
    env_fns = [Toy, partial(Toy, trouble="raise", where="close"), Toy, partial(Toy, trouble="raise", where="close")]
    envs = DummyVecEnv(env_fns)
    all_envs = [one.unwrapped for one in envs._slice.envs]
    with pytest.warns(RuntimeWarning) as caught:
        envs.close()
    assert [str(one.message) for one in caught] == [
        f"environment {index} raised in close: ValueError: toy trouble in close" for index in (1, 3)
    ]
    assert envs.closed and [one.calls["close"] for one in all_envs] == [1] * 4  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.close()


def test_native_renders_every_env_and_disturbs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MuJoCo's renderer would see (drawing needs OpenGL); the run goes on as if nothing had been drawn."""
    from gymnasium.envs.mujoco.hopper_v4 import HopperEnv

    monkeypatch.setattr(HopperEnv, "render", lambda self: self.data.qpos.copy())
    ours, dummy = make("native", "Hopper-v4"), make("Dummy", "Hopper-v4")
    rng = np.random.default_rng(0)
    ours.reset(seed=3), dummy.reset(seed=3)
    for _ in range(30):
        actions = rng.uniform(-1, 1, (NUM_ENVS, 3)).astype(np.float32)
        assert_equal(ours.step(actions)[0], dummy.step(actions)[0])
        frames = ours.render()
        assert len(frames) == NUM_ENVS and isinstance(frames, tuple)
        assert_equal(frames, dummy.render())
    ours.close(), dummy.close()
