"""Finds out whether an environment can be rendered on this machine.

A child process tries it, because a broken OpenGL library may end the process that loads it. The child is
``python -m xcfast.envs.rendering RENDER_MODE``; it reads a pickled constructor from stdin and prints one line.
"""

import importlib.util
import os
import pickle
import re
import subprocess
import sys
import traceback
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from xcfast.envs.construct import EnvConstructor, make_env_fn
from xcfast.envs.opengl import advice, first_line
from xcfast.envs.sending import to_send
from xcfast.errors import EnvError
from xcfast.resources import module_path

_RENDERED = "xcfast: rendered"
_NO_OPENGL = "xcfast: no OpenGL: "
_NO_FRAME = "xcfast: no frame: "
_SECONDS = 120.0


def find_backend(env: EnvConstructor | str, render_mode: str) -> tuple[str | None, str | None]:
    """Finds the value of MUJOCO_GL with which an environment can be rendered here.

    Nothing is imported into this process.

    Args:
        env: Its constructor, or its id.
        render_mode: ``rgb_array`` or ``human``.

    Returns:
        The value for `mujoco_gl` (None leaves the variable alone), and the reason why the environment cannot be
        rendered, or None if it can. If it cannot, everything else works with that value.
    """
    wanted = os.environ.get("MUJOCO_GL")
    headless = sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if headless and render_mode == "human":
        return _without_opengl(wanted), (
            "there is no display for a window (neither DISPLAY nor WAYLAND_DISPLAY is set); "
            "run it on a desktop, or record a video with render_mode=rgb_array"
        )
    problem = None
    constructor = _constructor(env)
    env_id, pickled = constructor.env_id, to_send(constructor, "the environment's constructor")
    for backend in ("egl", "osmesa") if headless and not wanted else (None,):
        reason, of_opengl = _try_frame(pickled, render_mode, backend)
        if reason is None:
            return backend, None
        if not of_opengl:  # no library would help
            return _without_opengl(wanted), f"{env_id} cannot be rendered: {reason}"
        problem = problem or f"this machine cannot render {env_id} ({reason}); {advice(wanted)}"
    return _without_opengl(wanted), problem


def render_kwargs(env: EnvConstructor | str, render_mode: str) -> dict[str, Any]:
    """Returns the arguments with which `gymnasium.make` makes an environment that renders.

    Most of Gymnasium's MuJoCo models have a camera "track" that follows the robot. Videos use it, unless a
    camera was chosen; without it, a walking Ant or HalfCheetah leaves the picture.

    Args:
        env: Its constructor, or its id.
        render_mode: ``rgb_array`` or ``human``; a window has a camera that the user moves.

    Returns:
        The constructor's own arguments, ``render_mode``, and ``camera_name`` if there is such a camera.
    """
    constructor = _constructor(env)
    kwargs = {**constructor.kwargs, "render_mode": render_mode}
    if render_mode == "rgb_array" and _has_free_tracking_camera(constructor):
        kwargs["camera_name"] = "track"
    return kwargs


def _constructor(env: EnvConstructor | str) -> EnvConstructor:
    return make_env_fn(env) if isinstance(env, str) else env


def _has_free_tracking_camera(constructor: EnvConstructor) -> bool:
    """Returns whether the constructor makes a MuJoCo task with a camera "track" and does not choose a camera itself."""
    try:
        import mujoco
        from gymnasium.envs.mujoco import MujocoEnv

        from xcfast.tasks.env import TaskEnv

        spec = constructor.spec or gymnasium.spec(constructor.env_id)
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        if not (isinstance(creator, type) and issubclass(creator, MujocoEnv | TaskEnv)):
            return False
        chosen = {**spec.kwargs, **constructor.kwargs}
        if {"camera_name", "camera_id", "default_camera_config"} & chosen.keys():
            return False
        env = replace(constructor, kwargs={**constructor.kwargs, "camera_name": "track"})()
    except Exception:  # such as a class that does not take the argument
        return False
    model = env.unwrapped.model
    env.close()
    return bool(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0)


def _without_opengl(wanted: str | None) -> str | None:
    return "disable" if wanted else None  # with a broken library behind MUJOCO_GL, MuJoCo could not even be imported


def _try_frame(constructor: bytes, render_mode: str, backend: str | None) -> tuple[str | None, bool]:
    """Renders one frame in a child process.

    Returns:
        The reason why there is no frame, or None; and whether OpenGL is to blame.
    """
    environ = {**os.environ, **module_path()}
    if backend is not None:
        environ["MUJOCO_GL"] = backend
    try:
        child = subprocess.run(
            [sys.executable, "-m", "xcfast.envs.rendering", render_mode],
            env=environ,
            input=constructor,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no frame within {_SECONDS:g} s", True
    for line in child.stdout.decode(errors="replace").splitlines():
        if line == _RENDERED:
            return None, False
        for start in (_NO_OPENGL, _NO_FRAME):
            if line.startswith(start):
                return line.removeprefix(start), start == _NO_OPENGL
    return f"the process that tried it ended with status {child.returncode}", True


def _why_not(constructor: EnvConstructor, render_mode: str) -> str | None:
    """Renders one frame; returns None, or the reason why the environment itself, not OpenGL, gives none."""
    try:
        env = replace(constructor, kwargs=render_kwargs(constructor, render_mode))()
    except (TypeError, EnvError) as error:
        if not re.search("argument 'render_mode'|takes no arguments", str(error)):
            raise
        return "its constructor takes no render_mode"
    env.reset(seed=0)
    try:
        frame = env.render()
    except NotImplementedError:
        return "it has no render()"
    if render_mode == "rgb_array" and not isinstance(frame, np.ndarray):
        return f"its render() returns {type(frame).__name__}, not a picture (uint8 [height, width, 3])"
    env.close()
    return None


def _opengl_is_to_blame(error: BaseException | None) -> bool:
    """Returns whether an error, or one that led to it, came from MuJoCo or a package below it."""
    specs = [importlib.util.find_spec(package) for package in ("OpenGL", "mujoco", "glfw")]
    folders = tuple(folder for spec in specs if spec for folder in spec.submodule_search_locations or ())
    while error is not None:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if any(file.startswith(folders) or file.endswith("mujoco_rendering.py") for file in files):
            return True
        error = error.__context__
    return False


def _main(render_mode: str) -> None:
    try:
        reason = _why_not(pickle.loads(sys.stdin.buffer.read()), render_mode)
    except Exception as error:
        print((_NO_OPENGL if _opengl_is_to_blame(error) else _NO_FRAME) + first_line(error), flush=True)
    else:
        print(_RENDERED if reason is None else _NO_FRAME + reason, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
