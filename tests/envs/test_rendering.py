"""Rendering where it is not possible: one sentence, and the test of the model goes on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from xcfast.envs.construct import make_env_fn
from xcfast.envs.rendering import find_backend, render_kwargs
from xcfast.runs.run import run

BROKEN_LIBRARY = "raise AttributeError(\"'NoneType' object has no attribute 'glGetError'\")\n"


@pytest.fixture
def test_the_model(small, tmp_path: Path):
    """Trains a little; then tests the model by the command line, in a process with the given environment."""
    summary = run(small(running_steps=128, logger="none"), mode="train", quiet=True)
    (tmp_path / "OpenGL").mkdir()  # PyOpenGL on a machine without the C library that it loads
    (tmp_path / "OpenGL" / "__init__.py").write_text(BROKEN_LIBRARY)

    def test(*keys: str, **environ: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
        inherited.pop("MUJOCO_GL", None)
        path = os.pathsep.join([str(tmp_path), *sys.path])
        command = [sys.executable, "-m", "xcfast.train", "--resume", summary.log_dir, "--benchmark", "0", "--test", "1"]
        return subprocess.run(
            [*command, "render=True", *keys],
            env={**inherited, "PYTHONPATH": path, **environ},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return test


@pytest.mark.parametrize(
    ("key", "environ", "words"),
    [
        ("render_mode=human", {}, "no window: there is no display"),
        ("render_mode=rgb_array", {"MUJOCO_GL": "osmesa"}, "no video: .*apt-get install libosmesa6"),
        ("render_mode=rgb_array", {"MUJOCO_GL": "nonsense"}, "no video: .*unset MUJOCO_GL=nonsense"),
        ("render_mode=rgb_array", {}, "no video: .*apt-get install libegl1"),
    ],
)
def test_a_test_goes_on_without_rendering(test_the_model, key: str, environ: dict[str, str], words: str) -> None:
    result = test_the_model(key, **environ)
    assert result.returncode == 0, result.stderr
    assert "Mean Score" in result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("no ")]
    assert len(lines) == 1 and re.match(words, lines[0]), result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr


def test_training_with_a_broken_library_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "OpenGL").mkdir()
    (tmp_path / "OpenGL" / "__init__.py").write_text(BROKEN_LIBRARY)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "MUJOCO_GL": "osmesa"}
    code = "from xcfast.envs import make_env_fn; make_env_fn('InvertedPendulum-v4')()"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    last = result.stderr.splitlines()[-1]
    assert last.startswith("xcfast.errors.EnvError: env_id 'InvertedPendulum-v4' cannot be made: MuJoCo cannot be")
    assert "apt-get install libosmesa6" in last


class NoRenderMode(gymnasium.Env):
    """Cannot be rendered, because nobody wrote it so that it could."""

    observation_space = action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, True, False, {}


class NoRender(NoRenderMode):
    def __init__(self, render_mode=None):
        self.render_mode = render_mode


class RendersText(NoRender):
    def render(self):
        return "a text"


class RenderRaises(NoRender):
    def render(self):
        raise ValueError("the sprites are missing")


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (NoRenderMode, "its constructor takes no render_mode"),
        (NoRender, "it has no render()"),
        (RendersText, "its render() returns str, not a picture (uint8 [height, width, 3])"),
        (RenderRaises, "the sprites are missing"),
    ],
)
def test_an_env_that_cannot_render_is_not_told_to_install_opengl(env, reason, monkeypatch):
    """The ids are registered in this process alone, as a user's script does it."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    env_id = f"toy/{env.__name__}-v0"
    gymnasium.register(env_id, env)
    try:
        assert find_backend(env_id, "rgb_array") == (None, f"{env_id} cannot be rendered: {reason}")
    finally:
        del gymnasium.registry[env_id]


def test_the_video_camera_follows_the_robot():
    follows = {"render_mode": "rgb_array", "camera_name": "track"}
    for env_id in ("Ant-v4", "HalfCheetah-v5", "Hopper-v5"):
        kwargs = render_kwargs(env_id, "rgb_array")
        assert kwargs == follows
        make_env_fn(env_id, **kwargs)().close()  # no renderer, so no OpenGL, before the first frame
    assert render_kwargs("InvertedPendulum-v5", "rgb_array") == {"render_mode": "rgb_array"}  # has no such camera
    assert render_kwargs("CartPole-v1", "rgb_array") == {"render_mode": "rgb_array"}
    assert render_kwargs("Hopper-v5", "human") == {"render_mode": "human"}


def test_a_camera_that_was_chosen_stays():
    assert render_kwargs(make_env_fn("Ant-v5", camera_id=-1), "rgb_array") == {
        "camera_id": -1,
        "render_mode": "rgb_array",
    }
    gymnasium.register("toy/FarAnt-v0", "gymnasium.envs.mujoco.ant_v5:AntEnv", kwargs={"camera_name": "far"})
    try:
        assert render_kwargs("toy/FarAnt-v0", "rgb_array") == {"render_mode": "rgb_array"}
    finally:
        del gymnasium.registry["toy/FarAnt-v0"]
