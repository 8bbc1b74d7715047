"""Which OpenGL library MuJoCo uses: the variable MUJOCO_GL, and what to do where its library is missing."""

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
    """Sets MUJOCO_GL, which MuJoCo reads at its import and Gymnasium whenever it makes a renderer; None: not at all."""
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
    """Why MuJoCo cannot be imported with this MUJOCO_GL, and what to do; None where it can."""
    wanted = os.environ.get("MUJOCO_GL")
    if not wanted:
        return None
    try:
        import mujoco  # noqa: F401
    except Exception as error:  # OpenGL loaders fail in many ways, AttributeError being a common one
        return f"MuJoCo cannot be loaded with MUJOCO_GL={wanted} ({first_line(error)}); {advice(wanted)}"
    return None


def advice(wanted: str | None) -> str:
    """What to install or unset, for the value `wanted` of MUJOCO_GL."""
    if wanted:
        known = INSTALL.get(wanted.lower())
        return f"{f'install its library ({known}) or ' if known else ''}unset MUJOCO_GL={wanted}"
    return f"install {INSTALL['']}"


def first_line(error: BaseException) -> str:
    """First line of an exception's text, or its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]
