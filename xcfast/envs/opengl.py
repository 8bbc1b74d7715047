"""MuJoCo's choice of OpenGL library: the variable MUJOCO_GL, and what to do if its library is missing."""

import contextlib
import os
from collections.abc import Iterator

INSTALL = {
    "egl": "`apt-get install libegl1 libgl1`",
    "osmesa": "`apt-get install libosmesa6`",
    "": "OpenGL, for example `apt-get install libegl1 libgl1` (or libosmesa6 with MUJOCO_GL=osmesa)",
}


@contextlib.contextmanager
def mujoco_gl(backend: str | None) -> Iterator[None]:
    """Sets MUJOCO_GL inside a `with` block; None leaves the variable alone.

    MuJoCo reads it when it is imported, Gymnasium whenever it makes a renderer.
    """
    before = os.environ.get("MUJOCO_GL")
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    try:
        yield
    finally:
        if backend is not None:
            os.environ.pop("MUJOCO_GL", None)
            if before is not None:
                os.environ["MUJOCO_GL"] = before


def opengl_problem() -> str | None:
    """Returns why MuJoCo cannot be imported with the current MUJOCO_GL and what to do, or None if it can."""
    wanted = os.environ.get("MUJOCO_GL")
    if not wanted:
        return None
    try:
        import mujoco  # noqa: F401
    except Exception as error:  # OpenGL loaders fail in many ways, AttributeError being a common one
        return f"MuJoCo cannot be loaded with MUJOCO_GL={wanted} ({first_line(error)}); {advice(wanted)}"
    return None


def advice(wanted: str | None) -> str:
    """Returns what to install or to unset.

    Args:
        wanted: The value of MUJOCO_GL, or None if it is not set.
    """
    if wanted:
        known = INSTALL.get(wanted.lower())
        return f"{f'install its library ({known}) or ' if known else ''}unset MUJOCO_GL={wanted}"
    return f"install {INSTALL['']}"


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's text, or the name of its class if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
