"""MuJoCo's errors are caught, or the engine does not serve; its notices neither reach the user nor leave a file."""

import ctypes
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xcfast import _core
from xcfast.envs import MujocoVecEnv, NotNativeError, SimulationError, SubprocVecEnv, make_envs, mujoco_engine


def test_the_check_provokes_an_error_that_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _core.mujoco_errors_arrive(mujoco_engine.functions())
    assert list(tmp_path.iterdir()) == []


def test_mujocos_own_bindings_raise_errors_as_before_the_check() -> None:
    import mujoco

    assert _core.mujoco_errors_arrive(mujoco_engine.functions())
    ball_on_a_plane = """<mujoco><worldbody><geom type="plane" size="1 1 1"/>
        <body pos="0 0 .05"><freejoint/><geom size=".1"/></body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(ball_on_a_plane)
    data = mujoco.MjData(model)
    data.narena = 1
    with pytest.raises(mujoco.FatalError, match="out of memory"):
        mujoco.mj_step(model, data)


@pytest.mark.parametrize("setter", ["of another shape", "missing"])
def test_an_error_that_misses_the_engines_handler_is_noticed(setter: str) -> None:
    does_nothing = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda handler: None)
    address = ctypes.cast(does_nothing, ctypes.c_void_p).value if setter == "of another shape" else 0
    api = {**mujoco_engine.functions(), "set_log_handler": address, "set_error_handler": 0, "set_warning_handler": 0}
    assert _core.mujoco_errors_arrive(api) is False
    assert _core.mujoco_errors_arrive(mujoco_engine.functions()), "the process is as it was"


def test_an_engine_that_cannot_catch_errors_does_not_serve(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    mujoco_engine.functions.cache_clear()
    monkeypatch.setattr(_core, "mujoco_errors_arrive", lambda api: False)
    reason = r"the engine cannot catch the errors of libmujoco.*, which would end the process"
    with pytest.raises(NotNativeError, match=reason):
        MujocoVecEnv("Hopper-v4", 1, check=False)
    envs = make_envs(SimpleNamespace(env_id="Hopper-v4", vectorize="MujocoVecEnv", parallels=2, num_workers=1))
    assert isinstance(envs, SubprocVecEnv)
    envs.close()
    assert "Hopper-v4 is stepped by SubprocVecEnv, not by the native engine: the engine" in capsys.readouterr().err


def test_errors_of_mujoco_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    envs = MujocoVecEnv("Ant-v4", 2, 2, check=False)
    envs.reset(seed=0)
    envs.call("data")[1].narena = 1
    with pytest.raises(SimulationError, match="environment 1: "):
        for _ in range(100):
            envs.step(envs.action_space.sample())
    envs.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entry_point",
    ["Mine", "'user_tasks:Mine'", "lambda **kwargs: Mine(**kwargs)"],
    ids=["class", "name", "function"],
)
@pytest.mark.parametrize("kind", ["DummyVecEnv", "SubprocVecEnv"])
def test_subclasses_of_gymnasiums_tasks_are_made_in_silence(tmp_path: Path, entry_point: str, kind: str) -> None:
    """HalfCheetah's model file has an attribute, `settotalmass`, that MuJoCo calls deprecated for each environment."""
    (tmp_path / "user_tasks.py").write_text(
        "from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv\nclass Mine(HalfCheetahEnv): pass\n"
    )
    script = f"""
    import sys
    sys.path[:0] = {[str(tmp_path), *sys.path]!r}
    import gymnasium
    from user_tasks import Mine
    from xcfast.envs import {kind}, make_env_fn
    gymnasium.register("Mine-v0", {entry_point}, max_episode_steps=10)
    envs = {kind}([make_env_fn("Mine-v0")] * 2)
    envs.reset(seed=0)
    envs.close()
    """
    folder = tmp_path / "working"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(folder.iterdir()) == []
