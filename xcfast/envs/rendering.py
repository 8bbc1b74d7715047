"""Whether an environment can be rendered here: tried in a child process, since OpenGL may end the one that tries.

The child is ``python -m xcfast.envs.rendering ENV_ID RENDER_MODE``; it prints one line.
"""

import os
import subprocess
import sys

import numpy as np

from xcfast.envs.construct import make_env_fn
from xcfast.envs.opengl import advice, first_line

_RENDERED = "xcfast: rendered"
_PROBLEM = "xcfast: problem: "
_SECONDS = 120.0


def find_backend(env_id: str, render_mode: str) -> tuple[str | None, str | None]:
    """Finds what MUJOCO_GL must be to render `env_id` here, without importing anything into this process.

    Args:
        env_id: Gymnasium id, registered by its own module where it is "module:id".
        render_mode: ``rgb_array`` or ``human``.

    Returns:
        The value for `mujoco_gl` (None: leave it), and None or the sentence that says why nothing can be rendered.
        With such a sentence the value is one with which everything but rendering works.
    """
    wanted = os.environ.get("MUJOCO_GL")
    headless = sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if headless and render_mode == "human":
        problem: str | None = (
            "there is no display for a window (neither DISPLAY nor WAYLAND_DISPLAY is set); "
            "run it on a desktop, or record a video with render_mode=rgb_array"
        )
        return _without_opengl(wanted), problem
    problem = None
    for backend in ("egl", "osmesa") if headless and not wanted else (None,):
        reason = _try_frame(env_id, render_mode, backend)
        if reason is None:
            return backend, None
        problem = problem or f"this machine cannot render {env_id} ({reason}); {advice(wanted)}"
    return _without_opengl(wanted), problem


def _without_opengl(wanted: str | None) -> str | None:
    return "disable" if wanted else None  # with a broken library behind MUJOCO_GL, MuJoCo could not even be imported


def _try_frame(env_id: str, render_mode: str, backend: str | None) -> str | None:
    """Renders one frame in a child process; None, or the reason why there is none."""
    command = [sys.executable, "-m", "xcfast.envs.rendering", env_id, render_mode]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    if backend is not None:
        environ["MUJOCO_GL"] = backend
    try:
        child = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no frame within {_SECONDS:g} s"
    for line in child.stdout.splitlines():
        if line == _RENDERED:
            return None
        if line.startswith(_PROBLEM):
            return line.removeprefix(_PROBLEM)
    return f"the process that tried ended with status {child.returncode}"


def _main(env_id: str, render_mode: str) -> None:
    try:
        env = make_env_fn(env_id, render_mode=render_mode)()
        env.reset(seed=0)
        frame = env.render()
        if render_mode == "rgb_array" and not isinstance(frame, np.ndarray):
            raise RuntimeError("it does not render pictures")
    except Exception as error:
        print(_PROBLEM + first_line(error), flush=True)
    else:
        print(_RENDERED, flush=True)
        env.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
