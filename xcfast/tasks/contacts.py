"""Finds the members of mjData that Python shows only as numbers: time, the number of contacts, and where these are."""

import ctypes
from functools import cache
from typing import Any

import numpy as np

from xcfast.errors import NotNativeError

_BODY = '<body pos="{x} 0 9"><freejoint/><geom type="{kind}" size=".1 .1 .1"/></body>'
_BODIES = "".join(_BODY.format(x=x, kind="sphere" if x else "box") for x in range(4))
_MODEL = f"""
<mujoco><worldbody>
  <geom type="plane" size="99 99 1"/>{_BODIES}
</worldbody></mujoco>
"""
# Which of the bodies, a box and three balls, touch the ground, and in how many places. A box touches it in four, so
# the number of contacts is not always that of the bodies that touch.
_TOUCHING = (((0,), 4), ((1,), 1), ((1, 2, 3), 3), ((0, 1, 2, 3), 7))


@cache
def _simulations() -> list[Any]:
    """Returns simulations of the scene, one for each entry of _TOUCHING."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(_MODEL)
    datas = []
    for bodies, contacts in _TOUCHING:
        data = mujoco.MjData(model)
        data.qpos[[7 * body + 2 for body in bodies]] = 0.099
        mujoco.mj_forward(model, data)
        if data.ncon != contacts:
            raise NotNativeError(f"this MuJoCo finds {data.ncon} contacts where {contacts} are expected")
        datas.append(data)
    return datas


@cache
def contact_dtype() -> np.dtype:
    """Returns the layout of a contact (mjContact), with the members that this version shows."""
    data = _simulations()[-1]
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
    datas = _simulations()
    starts = [_address(data.energy) for data in datas]
    time = -8  # the member before energy
    for k, (data, start) in enumerate(zip(datas, starts, strict=True)):
        data.time = 0.125 * (k + 1)
        if ctypes.c_double.from_address(start + time).value != data.time:
            raise NotNativeError("this MuJoCo keeps the time elsewhere in mjData")
    begin = max(-1024, _address(datas[0].solver_fwdinv) - starts[0])
    ncon = [
        k for k in range(time - 4, begin, -4) if all(_int(s + k) == d.ncon for d, s in zip(datas, starts, strict=True))
    ]
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
    if array.flags.owndata and array.size:
        raise NotNativeError("this MuJoCo hands out copies of its arrays")
    return int(array.__array_interface__["data"][0])


def _int(address: int) -> int:
    return ctypes.c_int32.from_address(address).value
