"""ClassicControlVecEnv against gymnasium.make, bit for bit, and as a vector environment."""

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from equality import assert_equal
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, PendulumEnv

from xcfast.envs import (
    ClassicControlVecEnv,
    DummyVecEnv,
    EnvError,
    MujocoVecEnv,
    NotNativeError,
    SubprocVecEnv,
    VecEnv,
    make_env_fn,
    make_envs,
    make_native_or_subproc,
    native_check,
)
from xcfast.envs.registration import CLASSIC_IDS

NUM_ENVS = 3


def choose(env_id: str, obs: np.ndarray, rng: np.random.Generator, step: int) -> np.ndarray:
    """By turns of 40 steps: random, also beyond the bounds, and what gets somewhere (balance, swing up)."""
    discrete = not env_id.startswith(("Pendulum", "MountainCarContinuous"))
    n = 2 if env_id.startswith("CartPole") else 3
    if step // 40 % 2 == 0:
        if discrete:
            return rng.integers(0, n, len(obs))
        return (rng.uniform(-2.0, 2.0, (len(obs), 1)) * rng.choice([0.1, 1.0, 1.5])).astype(np.float32)
    if env_id.startswith("CartPole"):
        return (obs[:, 2] + obs[:, 3] > 0).astype(np.int64)
    speed = obs[:, 4] if env_id.startswith("Acrobot") else obs[:, -1]
    sign = np.where(speed >= 0, 1, -1)
    if env_id.startswith("Acrobot"):
        sign = -sign
    return sign + 1 if discrete else 2.0 * sign[:, None].astype(np.float32)


def check(env_id: str, *, steps: int, num_envs: int, num_threads: int, seed: int, **kwargs: Any) -> dict[str, int]:
    """Steps both kinds and compares everything, the hidden states too; returns how often what happened."""
    counts = {"terminated": 0, "truncated": 0}
    rng = np.random.default_rng(seed)
    ours = ClassicControlVecEnv(env_id, num_envs, num_threads, **kwargs)
    theirs = [make_env_fn(env_id, **kwargs)() for _ in range(num_envs)]
    obs, infos = ours.reset(seed=seed)
    assert infos == {}
    np.testing.assert_array_equal(obs, [env.reset(seed=seed + i)[0] for i, env in enumerate(theirs)], strict=True)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, int)
    for step in range(steps):
        actions = choose(env_id, obs, rng, step)
        obs, rewards, terminated, truncated, infos = ours.step(actions)
        assert (obs.dtype, rewards.dtype) == (np.float32, np.float64)
        done = terminated | truncated
        assert bool(infos) == done.any()
        for i, (env, state) in enumerate(zip(theirs, ours.get_attr("state"), strict=True)):
            ob, reward, is_terminated, is_truncated, _ = env.step(actions[i])
            assert rewards[i] == reward
            assert (terminated[i], truncated[i]) == (is_terminated, is_truncated)
            returns[i] += rewards[i]
            lengths[i] += 1
            if done[i]:
                np.testing.assert_array_equal(infos["final_obs"][i], ob, strict=True)
                assert (infos["episode"]["r"][i], infos["episode"]["l"][i]) == (returns[i], lengths[i])
                returns[i], lengths[i] = 0, 0
                ob, _ = env.reset()
                counts["terminated"] += is_terminated
                counts["truncated"] += is_truncated
            np.testing.assert_array_equal(obs[i], ob, strict=True)
            np.testing.assert_array_equal(state, np.array(env.unwrapped.state), strict=True)
        np.testing.assert_array_equal(ours.episode_returns, returns)
        np.testing.assert_array_equal(ours.episode_lengths, lengths)
    ours.close()
    for env in theirs:
        env.close()
    return counts


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("env_id", CLASSIC_IDS)
def test_equals_gymnasium(env_id: str, seed: int) -> None:
    """Through the ends that the task knows; Acrobot is slow in Python."""
    steps = 700 if env_id.startswith("Acrobot") else 1500
    counts = check(env_id, steps=steps, num_envs=2, num_threads=seed, seed=seed)
    assert counts["truncated" if env_id.startswith("Pendulum") else "terminated"] > 0


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        *((env_id, {"max_episode_steps": 9}) for env_id in CLASSIC_IDS),
        ("CartPole-v1", {"sutton_barto_reward": True, "max_episode_steps": 40}),
        ("CartPole-v1", {"max_episode_steps": -1}),
        ("Pendulum-v1", {"g": 9.81}),
        ("Pendulum-v1", {"g": 3}),
        ("MountainCar-v0", {"goal_velocity": 0.02}),
        ("MountainCarContinuous-v0", {"goal_velocity": 0.03}),
        ("MountainCarContinuous-v0", {"goal_velocity": -1}),
    ],
)
def test_equals_gymnasium_with_arguments(env_id: str, kwargs: dict[str, Any]) -> None:
    counts = check(env_id, steps=300, num_envs=3, num_threads=2, seed=5, **kwargs)
    assert counts["truncated"] > 0 or kwargs.get("max_episode_steps", 0) <= 0


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("goal_velocity", [0.07, 0.07 + 1e-12, 0.07 - 1e-12, float(np.float32(0.07)), 0, 1e-300])
def test_a_clipped_speed_is_compared_with_the_goal_as_a_python_number(goal_velocity: float, precision: Any) -> None:
    """float32 0.07 is below the Python number 0.07, and Gymnasium compares either, depending on what clipped last."""
    ours = ClassicControlVecEnv("MountainCarContinuous-v0", 4, 1, goal_velocity=goal_velocity)
    dummy = DummyVecEnv([make_env_fn("MountainCarContinuous-v0", goal_velocity=goal_velocity)] * 4)
    dummy.reset(seed=0)
    state = dummy.get_state()
    cases = [(0.44, 0.07, 3.0), (0.44, 0.0695, 0.5), (0.59, 0.07, 1.0), (-1.19, -0.07, -1.0)]
    for env, (position, velocity, _) in zip(state["envs"], cases, strict=True):
        env["physics"] = np.array([position, velocity], precision)
    actions = np.array([[action] for *_, action in cases], np.float32)
    results = []
    for envs in (ours, dummy):
        envs.set_state(state)
        results.append(envs.step(actions)[:4])
        envs.close()
    for our, their in zip(*results, strict=True):
        np.testing.assert_array_equal(our, their, strict=True)


@pytest.mark.parametrize("env_id", CLASSIC_IDS)
def test_threads_and_more_envs_than_a_task(env_id: str) -> None:
    """Several blocks of a step, on any number of threads."""
    results = []
    for threads in (1, 2, 5):
        envs = ClassicControlVecEnv(env_id, 700, threads, max_episode_steps=7)
        obs, rng = envs.reset(seed=3)[0], np.random.default_rng(0)
        arrays = []
        for step in range(20):
            *arrays, infos = envs.step(choose(env_id, obs, rng, step))
            obs = arrays[0]
        results.append([*arrays, *envs.get_attr("state"), *infos.get("final_obs", ())])
        envs.close()
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two, strict=True)


# --- states, resets, infos ------------------------------------------------------------------------------------------


def both(env_id: str, **kwargs: Any) -> tuple[ClassicControlVecEnv, DummyVecEnv]:
    infos = kwargs.pop("infos", False)
    dummy = DummyVecEnv([make_env_fn(env_id, **kwargs)] * NUM_ENVS, infos=infos)
    return ClassicControlVecEnv(env_id, NUM_ENVS, 2, infos=infos, **kwargs), dummy


def roll(envs: VecEnv, env_id: str, steps: int, obs: np.ndarray) -> list[Any]:
    rng, results = np.random.default_rng(9), []
    for step in range(steps):
        results.append(envs.step(choose(env_id, obs, rng, step)))
        obs = results[-1][0]
    return results


@pytest.mark.parametrize("after", [0, 1, 13, 14])  # just after a reset, a step, an end, a step after that
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", *CLASSIC_IDS[3:]])
def test_state_goes_on_in_either_kind(env_id: str, after: int) -> None:
    ours, dummy = both(env_id, max_episode_steps=13)
    obs = ours.reset(seed=5)[0]
    dummy.reset(seed=5)
    assert_equal(roll(ours, env_id, after, obs), roll(dummy, env_id, after, obs))
    state = ours.get_state()
    assert_equal(state, dummy.get_state())  # initial states drawn ahead do not show
    again, other = both(env_id, max_episode_steps=13)
    again.set_state(state), other.set_state(state)
    expected = roll(ours, env_id, 30, state["obs"])
    for envs in (again, other, dummy):
        assert_equal(roll(envs, env_id, 30, state["obs"]), expected)
        assert_equal(envs.get_state(), ours.get_state())
        envs.close()
    ours.close()


def test_state_of_others_is_refused() -> None:
    cart, car = ClassicControlVecEnv("CartPole-v1", 1), ClassicControlVecEnv("MountainCar-v0", 1)
    cart.reset(seed=0), car.reset(seed=0)
    with pytest.raises(ValueError, match="env_id 'CartPole-v1'"):
        car.set_state(cart.get_state())
    state = car.get_state()
    state["envs"][0]["physics"] = np.zeros(4)
    with pytest.raises(ValueError, match=r"must be float32 or float64 \[2\] for MountainCar; got float64 \[4\]"):
        car.set_state(state)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"])
def test_resets_follow_gymnasiums_streams(env_id: str) -> None:
    """With seeds, masks and options, which count for one reset."""
    bounds = {"x_init": 0.3, "y_init": 0.2} if env_id == "Pendulum-v1" else {"low": -0.01, "high": 0.02}
    if env_id == "MountainCar-v0":
        bounds = {"low": -0.55}
    ours, dummy = both(env_id, max_episode_steps=5)
    mask = {"reset_mask": np.array([True, False, True])}
    for arguments in (
        {"seed": 4},
        {"options": bounds},
        {"seed": [7, None, 9], "options": bounds},
        {"seed": [7, None, 9], "options": {**bounds, **mask}},
        {"options": mask},
        {"options": {}},
        {},
    ):
        obs, infos = ours.reset(**arguments)
        assert_equal((obs, infos), dummy.reset(**arguments))
        assert_equal(roll(ours, env_id, 12, obs), roll(dummy, env_id, 12, obs))
        assert_equal(ours.get_state(), dummy.get_state())
    with pytest.raises(ValueError, match="could not be converted to a float"):
        ours.reset(options=dict.fromkeys(bounds, "wide"))


def test_infos_are_gymnasiums() -> None:
    ours, dummy = both("CartPole-v1", max_episode_steps=5, infos=True)
    obs, infos = ours.reset(seed=1)
    assert_equal((obs, infos), dummy.reset(seed=1))
    results = roll(ours, "CartPole-v1", 40, obs)
    assert_equal(results, roll(dummy, "CartPole-v1", 40, obs))
    assert any("final_info" in infos for *_, infos in results)


def test_calls() -> None:
    envs = ClassicControlVecEnv("CartPole-v1", 2, copy=False)
    with pytest.raises(RuntimeError, match=r"reset\(\) must be called before step"):
        envs.step(np.zeros(2, np.int64))
    obs, _ = envs.reset(seed=1)
    assert envs.observation_space.contains(obs)
    assert envs.step(np.array([0, 1]))[0] is obs, "copy=False hands out the buffer"
    before = obs.copy()
    for wrong in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match=r"actions must be in \[0, 2\); got"):
            envs.step(np.array(wrong))
    with pytest.raises(ValueError, match=r"actions must have shape \(2,\); got \(2, 1\)"):
        envs.step(np.zeros((2, 1), np.int64))
    np.testing.assert_array_equal(obs, before)
    assert envs.get_attr("gravity") == (9.8, 9.8)
    with pytest.raises(AttributeError, match="not Python objects.*one can get state, metadata, gravity"):
        envs.set_attr("gravity", 3)
    envs.close()
    with pytest.raises(RuntimeError, match="ClassicControlVecEnv is closed"):
        envs.reset()


@pytest.mark.parametrize("kind", [CartPoleEnv, PendulumEnv])
def test_what_is_drawn_is_gymnasiums(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class draws the first env from these attributes (that needs pygame)."""
    monkeypatch.setattr(kind, "render", lambda self: (self.state.copy(), getattr(self, "last_u", None)))
    ours, dummy = both("CartPole-v1" if kind is CartPoleEnv else "Pendulum-v1", render_mode="rgb_array")
    rng = np.random.default_rng(0)
    ours.reset(seed=3), dummy.reset(seed=3)
    for _ in range(4):
        assert_equal(ours.render(), dummy.render())
        actions = np.clip(native_check.random_actions(ours, rng), -2, 2)
        ours.step(actions), dummy.step(actions)
    ours.close(), dummy.close()


# --- who serves where the engine cannot -----------------------------------------------------------------------------


class Lighter(CartPoleEnv):
    """A user's subclass."""


@pytest.mark.parametrize(
    ("env_id", "kwargs", "reason"),
    [
        ("Hopper-v4", {}, "HopperEnv is not one of Gymnasium's classic control classes; MujocoVecEnv may step it"),
        ("Lighter-v0", {}, "Lighter is not one of Gymnasium's classic control classes"),
        ("Wrapped-v0", {}, "it is wrapped in TransformReward"),
        ("Pendulum-v1", {"g": np.float32(9.8)}, "its g is not a plain number"),
        ("CartPole-v1", {"render_mode": "human"}, "render_mode='human' draws a window"),
    ],
)
def test_what_is_not_native(env_id: str, kwargs: dict[str, Any], reason: str) -> None:
    wrappers = (gymnasium.wrappers.TransformReward.wrapper_spec(func=float),)
    gymnasium.register("Lighter-v0", entry_point=Lighter)
    gymnasium.register("Wrapped-v0", entry_point=CartPoleEnv, additional_wrappers=wrappers)
    try:
        with pytest.raises(NotNativeError, match=reason):
            ClassicControlVecEnv(env_id, 2, **kwargs)
    finally:
        del gymnasium.registry["Lighter-v0"], gymnasium.registry["Wrapped-v0"]


@pytest.mark.parametrize(
    ("vectorize", "env_id", "line"),
    [
        ("MujocoVecEnv", "CartPole-v1", "CartPoleEnv is not one of Gymnasium's MuJoCo classes; ClassicControlVecEnv"),
        ("ClassicControlVecEnv", "InvertedPendulum-v4", "classic control classes; MujocoVecEnv may step it"),
    ],
)
def test_the_wrong_kind_falls_back_and_names_the_right_one(vectorize: str, env_id: str, line: str, capsys: Any) -> None:
    config = SimpleNamespace(env_id=env_id, vectorize=vectorize, parallels=2, num_workers=1, num_threads=1)
    envs = make_envs(config)
    assert type(envs) is SubprocVecEnv
    envs.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and line in lines[0]


def test_noise_on_the_torque_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AcrobotEnv, "torque_noise_max", 0.5)
    with pytest.raises(NotNativeError, match="its torque is noisy"):
        ClassicControlVecEnv("Acrobot-v1", 2, max_episode_steps=77)


def test_changed_constants_are_gymnasiums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AcrobotEnv, "book_or_nips", "nips")
    monkeypatch.setattr(AcrobotEnv, "LINK_MASS_2", 1.3)
    monkeypatch.setattr(native_check, "_VERDICTS", {})
    check("Acrobot-v1", steps=100, num_envs=2, num_threads=1, seed=3)


def test_a_difference_from_gymnasium_falls_back(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Even of the last place of a hidden state: the observations are rounded."""
    step = CartPoleEnv.step

    def changed(self: Any, action: Any) -> Any:
        result = step(self, action)
        self.state[3] = np.nextafter(self.state[3], np.inf)
        return result

    monkeypatch.setattr(CartPoleEnv, "step", changed)
    monkeypatch.setattr(native_check, "_VERDICTS", {})
    envs = make_native_or_subproc("CartPole-v1", 2, num_workers=1)
    assert isinstance(envs, SubprocVecEnv)
    envs.close()
    assert "differs from Gymnasium's" in capsys.readouterr().err


def test_make_envs_and_make_vec() -> None:
    config = SimpleNamespace(
        env_id="CartPole-v1", vectorize="ClassicControlVecEnv", parallels=5, num_workers=0, num_threads=3
    )
    envs = make_envs(config)
    assert isinstance(envs, ClassicControlVecEnv) and (envs.num_envs, envs.num_threads, envs.copy) == (5, 3, False)
    envs.close()
    envs = gymnasium.make_vec("xcfast.envs:xcfast/Pendulum-v1", num_envs=4, g=9.0)
    assert isinstance(envs, ClassicControlVecEnv) and envs.get_attr("g") == (9.0,) * 4
    envs.close()
    envs = gymnasium.make_vec("xcfast.envs:xcfast/InvertedPendulum-v5", num_envs=2)
    assert isinstance(envs, MujocoVecEnv)
    envs.close()


def test_masks_are_refused_by_name() -> None:
    """As by DummyVecEnv: none of these tasks has any."""
    for vectorize in ("ClassicControlVecEnv", "DummyVecEnv"):
        config = SimpleNamespace(
            env_id="CartPole-v1", vectorize=vectorize, parallels=2, num_workers=0, use_actions_mask=True
        )
        with pytest.raises(EnvError, match="CartPole-v1 has no action masks.*use_actions_mask: False to train"):
            make_envs(config)
