"""MujocoVecEnv as a vector environment: state, infos, resets, threads, forks, errors; and what serves in its stead."""

import multiprocessing
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from equality import assert_equal
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv

from xcfast.envs import (
    ClassicControlVecEnv,
    DummyVecEnv,
    EnvError,
    MujocoVecEnv,
    NotNativeError,
    SubprocVecEnv,
    VecEnv,
    make,
    make_env_fn,
    make_envs,
    make_native_or_subproc,
    native_check,
)
from xcfast.envs.registration import MUJOCO_IDS

IDS = [env_id for env_id in MUJOCO_IDS if env_id != "Pusher-v4"]
NUM_ENVS = 3


def random_actions(envs: VecEnv, steps: int, seed: int = 0) -> np.ndarray:
    space, shape = envs.action_space, (steps, *envs.action_space.shape)
    return np.random.default_rng(seed).uniform(space.low, space.high, shape).astype(np.float32)


def both(env_id: str, **kwargs: Any) -> tuple[MujocoVecEnv, DummyVecEnv]:
    infos = kwargs.pop("infos", False)
    dummy = DummyVecEnv([make_env_fn(env_id, **kwargs)] * NUM_ENVS, infos=infos)
    return MujocoVecEnv(env_id, NUM_ENVS, 2, infos=infos, **kwargs), dummy


# --- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env_id", ["Ant-v5", "HalfCheetah-v4", "Humanoid-v4", "Reacher-v4", "Pusher-v5", "InvertedPendulum-v4"]
)
def test_state_goes_on_in_either_kind(env_id: str) -> None:
    ours, dummy = both(env_id, max_episode_steps=13)
    actions = random_actions(ours, 90)
    assert_equal(ours.reset(seed=5), dummy.reset(seed=5))
    for action in actions[:30]:
        assert_equal(ours.step(action), dummy.step(action))
    state = ours.get_state()
    assert_equal(state, dummy.get_state())  # initial states drawn ahead do not show

    fresh, fresh_dummy = both(env_id, max_episode_steps=13)
    fresh.set_state(dummy.get_state())
    fresh_dummy.set_state(state)
    for action in actions[30:60]:
        wanted = dummy.step(action)
        for envs in (ours, fresh, fresh_dummy):
            assert_equal(envs.step(action), wanted)
    ours.set_state(state)  # back in time
    fresh.set_state(state)
    for action in actions[60:]:
        assert_equal(ours.step(action), fresh.step(action))
    for envs in (ours, dummy, fresh, fresh_dummy):
        envs.close()


def test_state_of_others_is_refused() -> None:
    ours, _ = both("InvertedPendulum-v4")
    with pytest.raises(RuntimeError, match=r"reset\(\) must be called before get_state"):
        ours.get_state()
    ours.reset(seed=0)
    reacher = MujocoVecEnv("Reacher-v4", NUM_ENVS)
    with pytest.raises(ValueError, match=r"env_id 'InvertedPendulum-v4'.*needs 'Reacher-v4'"):
        reacher.set_state(ours.get_state())


# --- resets ---------------------------------------------------------------------------------------------------------


def test_resets_follow_gymnasiums_streams() -> None:
    ours, dummy = both("Ant-v4")
    mask = {"reset_mask": np.array([False, True, False])}
    for seed, options in ((3, None), (None, None), ([9, None, 4], None), (None, mask), ([1, 2, 3], mask), (None, None)):
        assert_equal(ours.reset(seed=seed, options=options), dummy.reset(seed=seed, options=options))
        action = random_actions(ours, 1)[0]
        assert_equal(ours.step(action), dummy.step(action))


def test_unseeded_resets_differ() -> None:
    first, second = MujocoVecEnv("Hopper-v4", 2), MujocoVecEnv("Hopper-v4", 2)
    a, b = first.reset()[0], second.reset()[0]
    assert len({row.tobytes() for row in (*a, *b)}) == 4


# --- infos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
def test_infos_are_gymnasiums(env_id: str) -> None:
    ours, dummy = both(env_id, infos=True, max_episode_steps=7)
    assert_equal(ours.reset(seed=2), dummy.reset(seed=2))
    for action in random_actions(ours, 16):
        *_, infos = ours.step(action)
        *_, wanted = dummy.step(action)
        assert_equal(dict(sorted(infos.items())), dict(sorted(wanted.items())))
    ours.close()


def test_contact_forces_replace_the_control_cost_in_ant_v4s_infos() -> None:
    ours, dummy = both("Ant-v4", infos=True, use_contact_forces=True)
    ours.reset(seed=2), dummy.reset(seed=2)
    for action in random_actions(ours, 10):
        assert_equal(ours.step(action)[-1]["reward_ctrl"], dummy.step(action)[-1]["reward_ctrl"])


# --- a vector environment of Gymnasium ------------------------------------------------------------------------------


def test_make_vec() -> None:
    envs = gymnasium.make_vec("xcfast.envs:xcfast/Ant-v5", num_envs=4, ctrl_cost_weight=0.1, max_episode_steps=5)
    assert isinstance(envs, MujocoVecEnv) and envs.num_envs == 4
    assert envs.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    obs, _ = envs.reset(seed=1)
    assert envs.observation_space.contains(obs) and obs.shape == (4, 105)
    for _ in range(5):
        *_, truncated, infos = envs.step(envs.action_space.sample())
    assert truncated.all() and infos["episode"]["l"].tolist() == [5] * 4
    envs.close()
    assert envs.closed
    with pytest.raises(RuntimeError, match="is closed"):
        envs.reset()


def test_calls() -> None:
    envs = MujocoVecEnv("HalfCheetah-v4", 2, copy=False)
    with pytest.raises(RuntimeError, match=r"reset\(\) must be called before step"):
        envs.step(np.zeros((2, 6), np.float32))
    obs, _ = envs.reset(seed=1)
    assert envs.step(np.zeros((2, 6)))[0] is obs, "copy=False hands out the buffer; float64 actions are cast"
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 6\); got \(2, 5\)"):
        envs.step(np.zeros((2, 5), np.float32))
    assert envs.get_attr("dt") == (0.05, 0.05)
    with pytest.raises(AttributeError, match="not Python objects"):
        envs.set_attr("frame_skip", 3)
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        MujocoVecEnv("HalfCheetah-v4", 0)
    with pytest.raises(EnvError, match="the nearest is 'HalfCheetah-v4'"):
        MujocoVecEnv("HalfCheetah-v44", 2)


# --- threads and processes ------------------------------------------------------------------------------------------


def test_a_second_thread_is_refused() -> None:
    envs = MujocoVecEnv("HumanoidStandup-v4", 32, 2)
    envs.reset(seed=0)
    actions = random_actions(envs, 1)[0]
    stop, refused = threading.Event(), []

    def step_on() -> None:
        while not stop.is_set():
            try:
                envs.step(actions)
            except RuntimeError as error:
                refused.append(str(error))
                return

    other = threading.Thread(target=step_on)
    other.start()
    deadline = time.monotonic() + 30
    while not refused and time.monotonic() < deadline:
        try:
            envs.step(actions)
        except RuntimeError as error:
            refused.append(str(error))
    stop.set()
    other.join()
    assert refused and all("one thread at a time" in message for message in refused)
    envs.reset(seed=0)  # and it still works
    envs.step(actions)


def _step_in_child(envs: MujocoVecEnv, actions: np.ndarray, pipe: Any) -> None:
    pipe.send([envs.step(action)[:4] for action in actions])
    envs.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_goes_on_after_a_fork() -> None:
    envs = MujocoVecEnv("Hopper-v4", 5, 2)
    envs.reset(seed=0)
    actions = random_actions(envs, 30)
    for action in actions[:10]:
        envs.step(action)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_step_in_child, args=(envs, actions[10:], theirs))
    child.start()
    assert ours.poll(60)
    got = ours.recv()
    child.join(60)
    assert child.exitcode == 0
    assert_equal(got, [envs.step(action)[:4] for action in actions[10:]])


# --- unstable physics and errors of MuJoCo --------------------------------------------------------------------------


def test_unstable_physics_is_counted_and_stays_quiet(tmp_path: Any, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    envs = MujocoVecEnv("HalfCheetah-v4", 3, 2, max_episode_steps=5)
    envs.reset(seed=0)
    assert envs.warning_counts == {}
    actions = np.zeros((3, 6), np.float32)
    actions[1] = np.nan
    envs.step(actions)
    assert envs.warning_counts.keys() == {"BADCTRL"}
    actions[1] = 0
    for _ in range(2):
        envs.get_attr("data")[2].qvel[3] = np.nan
        for _ in range(5):
            obs, *_ = envs.step(actions)
            assert np.isfinite(obs).all(), "MuJoCo starts an unstable simulation over"
    counts = envs.warning_counts
    assert counts.keys() == {"BADCTRL", "BADQVEL"} and counts["BADQVEL"] == 2
    envs.reset(seed=1)
    assert envs.warning_counts == counts, "a reset does not forget"
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


# Eight boxes that reach the ground after half a second, where MuJoCo's memory for contacts ends.
TOO_SMALL = """
<mujoco><size memory="2K"/><option timestep="0.02"/>
<worldbody><geom type="plane" size="9 9 .1"/>
<body pos="0 0 5"><joint type="slide" axis="1 0 0"/><geom size=".1"/></body>
<body pos="1 0 5"><joint name="hinge" axis="0 1 0"/><geom size=".1" pos="0 0 .2"/></body>
{boxes}</worldbody><actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator></mujoco>
"""
BOX = '<body pos="{} 0 2"><joint type="slide" axis="0 0 1"/><geom type="box" size=".1 .1 .1"/></body>'


@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_error_of_mujoco_is_an_exception(tmp_path: Path, num_threads: int, capfd: Any) -> None:
    xml = tmp_path / "too_small.xml"
    xml.write_text(TOO_SMALL.format(boxes="".join(BOX.format(x) for x in range(2, 10))))
    envs = MujocoVecEnv("HalfCheetah-v5", 3, num_threads, xml_file=str(xml), frame_skip=2)
    zeros = np.zeros((3, 1), np.float32)
    for _ in range(2):
        envs.reset(seed=0)
        with pytest.raises(RuntimeError, match=r"environment 0: MuJoCo raised an error: .*stack overflow"):
            for _ in range(30):
                envs.step(zeros)
        with pytest.raises(RuntimeError, match=r"call reset\(\)"):
            envs.step(zeros)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(mujoco.FatalError):  # MuJoCo's own bindings still have their handler
        data = mujoco.MjData(envs.get_attr("model")[0])
        mujoco.mj_step(envs.get_attr("model")[0], data, 100)


# --- who serves where the engine cannot -----------------------------------------------------------------------------


class Tilted(InvertedPendulumEnv):
    """A user's subclass."""


@pytest.mark.parametrize(
    "env_id, kwargs, reason",
    [
        ("Pendulum-v1", {}, "PendulumEnv is not one of Gymnasium's MuJoCo classes"),
        ("Tilted-v0", {}, "Tilted is not one of Gymnasium's MuJoCo classes"),
        ("Wrapped-v0", {}, "it is wrapped in ClipAction"),
        ("Hopper-v5", {"ctrl_cost_weight": np.float64(0.1)}, "ctrl_cost_weight is not a plain number"),
        ("Hopper-v5", {"render_mode": "human"}, "render_mode='human' draws a window"),
    ],
)
def test_what_is_not_native(env_id: str, kwargs: dict[str, Any], reason: str, capsys: Any) -> None:
    wrappers = (gymnasium.wrappers.ClipAction.wrapper_spec(),)
    gymnasium.register("Tilted-v0", entry_point=Tilted)
    gymnasium.register("Wrapped-v0", entry_point=Tilted.__mro__[1], additional_wrappers=wrappers)
    try:
        with pytest.raises(NotNativeError, match=reason):
            MujocoVecEnv(env_id, 2, **kwargs)
        if kwargs.get("render_mode") != "human":
            envs = make_native_or_subproc("Pendulum-v1", 2, num_workers=1, kind=MujocoVecEnv)
            assert isinstance(envs, SubprocVecEnv) and envs.num_envs == 2
            envs.close()
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and "Pendulum-v1 is stepped by SubprocVecEnv" in lines[0]
    finally:
        del gymnasium.registry["Tilted-v0"], gymnasium.registry["Wrapped-v0"]


def test_callbacks_into_python_are_not_native() -> None:
    mujoco.set_mjcb_sensor(lambda model, data, stage: None)
    try:
        with pytest.raises(NotNativeError, match="mjcb_sensor is set"):
            MujocoVecEnv("Swimmer-v4", 2, reset_noise_scale=0.2)
    finally:
        mujoco.set_mjcb_sensor(None)


def test_a_difference_from_gymnasium_falls_back(monkeypatch: Any, capsys: Any) -> None:
    control_cost = SwimmerEnv.control_cost
    monkeypatch.setattr(SwimmerEnv, "control_cost", lambda self, action: control_cost(self, action) + 0.25)
    monkeypatch.setattr(native_check, "_VERDICTS", {})
    config = SimpleNamespace(env_id="Swimmer-v5", vectorize="MujocoVecEnv", parallels=2, num_workers=1)
    for _ in range(2):  # the verdict is kept
        envs = make_envs(config)
        assert isinstance(envs, SubprocVecEnv)
        envs.close()
        assert "its reward differs from Gymnasium's" in capsys.readouterr().err
        monkeypatch.setattr(SwimmerEnv, "control_cost", control_cost)


def test_make_envs() -> None:
    config = SimpleNamespace(env_id="Ant-v4", vectorize="MujocoVecEnv", parallels=5, num_workers=0, num_threads=3)
    envs = make_envs(config)
    assert isinstance(envs, MujocoVecEnv) and (envs.num_envs, envs.num_threads) == (5, 3)
    assert envs.reset(seed=1)[0] is envs.step(random_actions(envs, 1)[0])[0], "made for the trainer: no copies"
    envs.close()


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize("env_id, kind", [("Hopper-v4", MujocoVecEnv), ("CartPole-v1", ClassicControlVecEnv)])
def test_native_by_default(env_id: str, kind: type, vectorize: str, monkeypatch: Any, capsys: Any) -> None:
    """What a file says of `vectorize` is served natively, with the same numbers, and one line says so."""
    monkeypatch.setattr(make, "_announced", set())
    config = SimpleNamespace(env_id=env_id, vectorize=vectorize, parallels=2, num_workers=1, native_envs="auto")
    for _ in range(2):
        envs = make_envs(config)
        assert type(envs) is kind
        envs.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"xcfast: {env_id} is stepped by {kind.__name__}, with the numbers of {vectorize}; native_envs: off forbids it"
    ]
    config.native_envs = "off"
    envs = make_envs(config)
    assert type(envs).__name__ == vectorize
    envs.close()
    assert capsys.readouterr().err == ""


def test_a_subclass_of_a_known_task_is_stepped_as_the_file_says(monkeypatch: Any, capsys: Any) -> None:
    """Also one under an id whose class Gymnasium defines, with a wrapper that the engine does not know."""
    monkeypatch.setattr(make, "_announced", set())
    gymnasium.register("Tilted-v0", entry_point=Tilted)
    clipped = (gymnasium.wrappers.ClipAction.wrapper_spec(),)
    entry_point = gymnasium.spec("Hopper-v4").entry_point
    gymnasium.register("Clipped-v0", entry_point=entry_point, additional_wrappers=clipped)
    for env_id in ("Tilted-v0", "Clipped-v0"):
        config = SimpleNamespace(env_id=env_id, vectorize="DummyVecEnv", parallels=2, num_workers=0)
        envs = make_envs(config)
        assert type(envs) is DummyVecEnv
        envs.close()
        del gymnasium.registry[env_id]
    assert capsys.readouterr().err == ""
