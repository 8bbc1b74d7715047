"""Compiles a task's functions with numba into C functions that threads call without the GIL."""

import atexit
import hashlib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from xcfast.errors import NotNativeError, TaskError
from xcfast.tasks.contacts import contact_dtype
from xcfast.tasks.env import TaskEnv
from xcfast.tasks.expressions import RefusedError
from xcfast.tasks.records import empty_record
from xcfast.tasks.source import Source, write_source
from xcfast.tasks.task import COMPILED

CACHE_FOLDER = "XCFAST_CACHE_DIR"


@dataclass(frozen=True)
class CompiledTask:
    """A task's functions as machine code.

    Attributes:
        addresses: The address of each function by the method's name; 0 where the task does not define it.
        constants: The record that stands for `self`, an array of one element.
        fields: The fields of mjData that the functions use, in the order of their addresses.
        module: The module that holds the code, which must live as long as the code is used.
    """

    addresses: dict[str, int]
    constants: np.recarray
    fields: tuple[str, ...]
    module: Any


def compile_task(env: TaskEnv) -> CompiledTask:
    """Compiles the functions of an environment's task. Code that has been compiled before is loaded from disk.

    Args:
        env: An environment of the task.

    Raises:
        NotNativeError: A statement cannot be compiled. The message has its place and what to write instead.
    """
    task = env.task
    methods = tuple(name for name in COMPILED if task.defines(name))
    try:
        source = write_source(task, env.data, methods, env.term_names)
        constants = _constants(source)
        text, first = _module_text(source, constants, env)
    except RefusedError as error:
        raise NotNativeError(str(error)) from None
    module = _load(text, tuple(source.lines), first)
    addresses = {name: getattr(module, f"call_{name}").address if name in methods else 0 for name in COMPILED}
    return CompiledTask(addresses, constants, tuple(source.fields), module)


def _constants(source: Source) -> np.recarray:
    kinds = {"b": "?", "i": "i8", "u": "i8", "f": "f8"}
    arrays = {name: np.asarray(value) for name, value in source.constants.items()}
    record = empty_record((name, kinds[array.dtype.kind], array.shape) for name, array in arrays.items())
    for name, array in arrays.items():
        record[name][0] = array
    return record


_HEADER = """\
# Written by xcfast from a task's functions. It may be deleted.
import math
from collections import namedtuple

import numpy
import numpy.linalg
from numba import carray, cfunc, from_dtype, njit, types

from xcfast.tasks.arithmetic import at, xcfast_clip, xcfast_dot, xcfast_mean, xcfast_norm, xcfast_sum, xcfast_unpacked

OPTIONS = dict(error_model="numpy", boundscheck=True)
Self = from_dtype(numpy.dtype({constants}, align=True))
Memory = from_dtype(numpy.dtype({memory}, align=True))
Terms = from_dtype(numpy.dtype({terms}, align=True))
Data = namedtuple("Data", {fields})
CONTACT = numpy.dtype({contact})
NUMBERS = types.CPointer(types.float64)
SIGNATURE = types.int32(
    types.CPointer(types.uintp), types.CPointer(Self), types.CPointer(Memory), types.CPointer(Terms), NUMBERS, NUMBERS
)


@njit
def data_of(fields):
    return Data({views})

"""
_CALL = """
@cfunc(SIGNATURE, cache=True)
def call_{name}(fields, constants, memory, terms, action, out):
    try:
        {body}
        return 0
    except Exception:
        return 1
"""
_ARGUMENTS = {
    "data": "data_of(fields)",
    "action": "carray(action, ({action_size},))",
    "memory": "carray(memory, 1)[0]",
    "terms": "carray(terms, 1)[0]",
}
_BODIES = {
    "before_step": ("data", "action", "memory"),
    "control": ("data", "action", "memory"),
    "step": ("data", "action", "memory", "terms"),
    "observe": ("data", "memory"),
}


def _module_text(source: Source, constants: np.recarray, env: TaskEnv) -> tuple[str, int]:
    """Returns the module, and the number of its lines before the task's functions."""
    header = _HEADER.format(
        constants=_listed(constants.dtype),
        memory=_listed(env.memory.dtype),
        terms=_listed(env.terms.dtype),
        fields=repr(tuple(source.fields)),
        contact=repr(contact_dtype()).removeprefix("dtype(").removesuffix(")")
        if "contact" in source.fields
        else "[('dist', 'f8')]",
        views="".join(f"\n        {_view(name, source.fields, env)}," for name in source.fields),
    )
    calls = []
    for name, function in source.names.items():
        arguments = [_ARGUMENTS[one].format(action_size=env.action_size) for one in _BODIES[name]]
        call = f"{function}(carray(constants, 1)[0], {', '.join(arguments)})"
        if name == "step":
            call = f"reward, terminated = {call}\n        out[0] = reward\n        out[1] = 1.0 if terminated else 0.0"
        elif name == "observe":
            size = env.obs_size
            call = f"ob = {call}\n        if ob.size != {size}:\n            return 2"
            call += f"\n        carray(out, ({size},))[:] = ob"
        calls.append(_CALL.format(name=name, body=call))
    return header + source.text + "".join(calls), header.count("\n")


def _listed(dtype: np.dtype) -> list[tuple[Any, ...]]:
    return [(name, field[0].base.str, field[0].shape) for name, field in (dtype.fields or {}).items()]


def _view(name: str, fields: list[str], env: TaskEnv) -> str:
    """Returns the expression for a field of mjData, whose address is in the array `fields`."""

    def one(field: str, dtype: str) -> str:
        return f"carray(at(fields[{fields.index(field)}]), (1,), numpy.{dtype})[0]"

    if name == "time":
        return one("time", "float64")
    if name == "ncon":
        return f"numpy.int64({one('ncon', 'int32')})"
    if name == "contact":  # whose address is that of the pointer to the contacts
        return f"carray(at({one('contact', 'uintp')}), ({one('ncon', 'int32')},), CONTACT)"
    array = getattr(env.data, name)
    return f"carray(at(fields[{fields.index(name)}]), {array.shape}, numpy.{array.dtype})"


@cache
def _load(text: str, lines: tuple[tuple[str, int], ...], first: int) -> ModuleType:
    """Runs the module's text, whose functions numba compiles or finds on disk."""
    import numba
    from numba.core.errors import NumbaError

    from xcfast.tasks import arithmetic

    support = Path(arithmetic.__file__).read_bytes()
    key = hashlib.sha256(support + repr((text, numba.__version__, np.__version__, sys.version)).encode()).hexdigest()
    file = _stored(text, f"xcfast_task_{key[:24]}.py")
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where numba looks for what it has on disk
    try:
        try:
            exec(compile(text, str(file), "exec"), module.__dict__)
        except NumbaError:
            raise
        except Exception:  # such as damaged machine code on disk
            for damaged in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
                damaged.unlink(missing_ok=True)
            exec(compile(text, str(file), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        raise NotNativeError(_explained(str(error), str(file), lines, first)) from None
    return module


def _stored(text: str, name: str) -> Path:
    """Writes the module where numba can keep its machine code beside it; returns its path.

    The file is for numba and for people who debug. Its contents are not read back.
    """
    wanted = os.environ.get(CACHE_FOLDER)
    places = [Path(wanted)] if wanted else [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xcfast"]
    for folder in (*places, None):
        if folder is None:
            folder = _temporary_folder()
            print(
                f"xcfast: {places[0]} cannot hold compiled tasks, so each start compiles them; "
                f"{CACHE_FOLDER} names another folder",
                file=sys.stderr,
            )
        path = folder / "tasks" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != text.encode():
                descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
                with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                    stream.write(text)
                os.replace(temporary, path)
            return path
        except OSError:
            continue
    raise TaskError(f"there is no folder to compile in; {CACHE_FOLDER} may name one")


@cache
def _temporary_folder() -> Path:
    """Makes a folder that goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="xcfast-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


_ADVICE = (
    ("unify", "let the name have one type, for example 0.0 instead of 0, on all ways"),
    ("Unknown attribute", "compiled code knows numbers, arrays, and the fields of data, memory and terms"),
    ("reflected list", "write np.array([...]) instead of a list"),
    ("list(", "write np.array([...]) instead of a list"),
    ("Untyped global name", "give it to the function as an argument, or keep it in self"),
    ("Use of unsupported NumPy function", "write it with functions that numba knows"),
    ("SciPy", "write it with functions that numba has without SciPy"),
)


def _explained(message: str, file: str, lines: tuple[tuple[str, int], ...], first: int) -> str:
    """Reduces numba's message to the user's line, the reason, and what to write instead."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    places = re.findall(
        re.escape(os.path.basename(file)) + r'"?, line (\d+)|' + re.escape(file) + r":(\d+)|\((\d+)\)", message
    )
    user, line = next(
        (
            lines[int(number) - first - 1]
            for groups in reversed(places)
            for number in groups
            if number and 0 < int(number) - first <= len(lines) and lines[int(number) - first - 1][0]
        ),
        ("", 0),
    )
    statement = ""
    if user:
        with open(user, encoding="utf-8") as stream:
            statement = next((text.strip() for k, text in enumerate(stream, 1) if k == line), "")
    told = [one.strip() for one in message.splitlines() if one.strip()]
    skipped = re.compile(r"^(Failed in|During:|File |>>>|There are|- Resolution|-{2,}|\^|\[\d\])")
    reasons = [one for one in told if not skipped.match(one)]
    reason = next(
        (
            one
            for one in reasons
            if one.startswith(("Cannot", "No implementation", "Unknown", "Untyped", "Use of", "Invalid"))
        ),
        reasons[0] if reasons else message.strip() or "it does not say why",
    )
    advice = next((text for part, text in _ADVICE if part in message), "")
    where = f"{user}:{line}: {statement}: " if user else ""
    if not user and not advice:
        advice = "step must return the reward and whether the episode terminates, observe a float64 array"
    return f"{where}numba cannot compile it: {reason}" + (f"; {advice}" if advice else "")
