"""Finds the members of mjData that Python shows only as numbers: time, the number of contacts, and where these are."""

import ctypes
from functools import cache
from typing import Any

import numpy as np

from xcfast.errors import NotNativeError

_MODEL = """
<mujoco><option timestep="0.001"/><worldbody><geom type="plane" size="9 9 1"/>{bodies}</worldbody></mujoco>
"""
_BALL = '<body pos="{x} 0 {z}"><freejoint/><geom size=".1"/></body>'


@cache
def _scene() -> tuple[Any, list[Any]]:
    """Returns a model of seven balls, and simulations of it in which 1, 3, 6 and 7 of them touch the ground."""
    import mujoco

    balls = "".join(_BALL.format(x=k, z=1) for k in range(7))
    model = mujoco.MjModel.from_xml_string(_MODEL.format(bodies=balls))
    datas = []
    for touching in (1, 3, 6, 7):
        data = mujoco.MjData(model)
        data.qpos[2 : 7 * touching : 7] = 0.099
        mujoco.mj_forward(model, data)
        assert data.ncon == touching
        datas.append(data)
    return model, datas


@cache
def contact_dtype() -> np.dtype:
    """Returns the layout of a contact (mjContact), with the members that this version shows."""
    data = _scene()[1][-1]
    contact = data.contact
    start = _address(contact.dist)
    members = {}
    for name in dir(contact):
        value = None if name.startswith("_") else getattr(contact, name)
        if isinstance(value, np.ndarray) and not value.flags.owndata and len(value) == data.ncon:
            members[name] = (value.dtype.str, value.shape[1:]), _address(value) - start
    return np.dtype(
        {
            "names": list(members),
            "formats": [form for form, _ in members.values()],
            "offsets": [offset for _, offset in members.values()],
            "itemsize": contact.dist.strides[0],
        }
    )


@cache
def _offsets() -> dict[str, int]:
    """Returns where, in bytes from the start of mjData, time, ncon and the pointer to the contacts are."""
    datas = _scene()[1]
    starts = [_address(data.energy) for data in datas]
    time = -8  # the member before energy
    for k, (data, start) in enumerate(zip(datas, starts, strict=True)):
        data.time = 0.125 * (k + 1)
        if ctypes.c_double.from_address(start + time).value != data.time:
            raise NotNativeError("this MuJoCo keeps the time elsewhere in mjData")
    begin = max(-1024, _address(datas[0].solver_fwdinv) - starts[0])
    ncon = [k for k in range(time - 4, begin, -4) if all(_int(s + k) == d.ncon for d, s in zip(datas, starts, strict=True))]
    contacts = [_address(data.contact.dist) for data in datas]
    # The first match, since nothing says where mjData ends.
    pointer = next(
        k
        for k in range(16, 4096, 8)
        if all(ctypes.c_uint64.from_address(s + k).value == c for s, c in zip(starts, contacts, strict=True))
    )
    if len(ncon) != 1:
        raise NotNativeError("this MuJoCo keeps the number of its contacts elsewhere in mjData")
    return {"time": time, "ncon": ncon[0], "contact": pointer}


def field_address(data: Any, name: str) -> int:
    """Returns the address of a field of mjData: of the first element of an array, of time or ncon, or of the pointer.

    Raises:
        NotNativeError: This MuJoCo does not show where it is.
    """
    if name in ("time", "ncon", "contact"):
        return _address(data.energy) + _offsets()[name]
    return _address(getattr(data, name))


def _address(array: Any) -> int:
    if array.flags.owndata:
        raise NotNativeError("this MuJoCo hands out copies of its arrays")
    return int(array.__array_interface__["data"][0])


def _int(address: int) -> int:
    return ctypes.c_int32.from_address(address).value
