"""Writes a task's functions, and what they call, as one Python module that numba can compile.

The module is made of the user's own statements. Names that come from elsewhere become what they stand for: constants of
`self` are read from a record, fields of mjData from a named tuple of arrays, methods and functions are written along.
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import numpy as np

from xcfast.tasks.expressions import RefusedError, line_map, listed, same
from xcfast.tasks.rewriting import Rewriter


@dataclass
class Source:
    """A task's functions as one module.

    Attributes:
        text: The functions, one after the other.
        names: The module's name of each function that the engine calls, by the name of the method.
        lines: For each line of the text, the user's file and line that it comes from.
        fields: The fields of mjData that the functions read or write, in the order of the named tuple.
        constants: The values of the record that stands for `self`.
    """

    text: str = ""
    names: dict[str, str] = field(default_factory=dict)
    lines: list[tuple[str, int]] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)


def write_source(task: Any, data: Any, methods: tuple[str, ...], terms: tuple[str, ...]) -> Source:
    """Writes the source of a task's methods.

    Args:
        task: The task, built.
        data: An mjData of its model.
        methods: The names of the methods.
        terms: The names of the terms.

    Raises:
        RefusedError: A statement cannot be compiled.
    """
    writer = Writer(task, data, terms)
    for name in methods:
        writer.source.names[name] = writer.name_of(getattr(type(task), name))
    writer.write()
    _refuse_writes_to_model(task)
    return writer.source


def _refuse_writes_to_model(task: Any) -> None:
    """Raises RefusedError where reset, which is not compiled, changes the model: native environments share it."""
    function = getattr(type(task), "reset", None)
    if function is None:
        return
    try:
        lines, first = inspect.getsourcelines(function.__code__)
    except (OSError, TypeError):
        return
    for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
        if not isinstance(node, ast.Assign | ast.AugAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Subscript | ast.Attribute) and ast.unparse(target).startswith("self.model."):
                place = f"{function.__code__.co_filename}:{first + node.lineno - 1}: {lines[node.lineno - 1].strip()}"
                raise RefusedError(f"{place}: native environments share the model, so it is constant after build")


class Writer:
    """Writes functions until everything that they call has been written."""

    def __init__(self, task: Any, data: Any, terms: tuple[str, ...]) -> None:
        self.task, self.data, self.terms = task, data, terms
        self.memory = task.initial_memory.dtype
        self.source = Source()
        self._names: dict[FunctionType, str] = {}
        self._calls: dict[FunctionType, set[FunctionType]] = {}
        self._waiting: list[FunctionType] = []
        self._arrays: dict[int, str] = {}
        self._written: list[tuple[str, list[tuple[str, int]]]] = []

    def name_of(self, function: FunctionType, caller: FunctionType | None = None) -> str:
        """Returns the module's name of a function, which will be written too.

        Raises:
            RecursionError: The function calls its caller, in one call or in several.
        """
        if caller is not None:
            self._calls.setdefault(caller, set()).add(function)
            if self._reaches(function, caller):
                raise RecursionError
        if function not in self._names:
            self._names[function] = f"{function.__name__}_{len(self._names)}"
            self._waiting.append(function)
        return self._names[function]

    def _reaches(self, function: FunctionType, other: FunctionType) -> bool:
        return function is other or any(self._reaches(one, other) for one in self._calls.get(function, ()))

    def array(self, value: np.ndarray) -> str:
        """Returns the name of a module constant with this array's contents."""
        if id(value) not in self._arrays:
            name = self._arrays[id(value)] = f"ARRAY_{len(self._arrays)}"
            content = f"numpy.frombuffer(bytes.fromhex({value.tobytes().hex()!r}), {value.dtype.str!r})"
            self._written.insert(0, (f"{name} = {content}.reshape({value.shape})", [("", 0)]))
        return self._arrays[id(value)]

    def constant(self, name: str, value: Any) -> str:
        """Returns the name of the field of `self`'s record for this value."""
        constants, base, count = self.source.constants, name, 1
        while name in constants and constants[name] is not value and not same(constants[name], value):
            count += 1
            name = f"{base}_{count}"
        constants[name] = value
        return name

    def field(self, name: str) -> None:
        """Notes that a field of mjData is used."""
        if name not in self.source.fields:
            self.source.fields.append(name)

    def write(self) -> None:
        """Writes the functions that were asked for, and those that they call."""
        while self._waiting:
            self._written.append(self._function(self._waiting.pop()))
        self.source.text = "\n\n".join(text for text, _ in self._written) + "\n"
        for _, lines in self._written:
            self.source.lines += [*lines, ("", 0)]

    def _function(self, function: FunctionType) -> tuple[str, list[tuple[str, int]]]:
        file = function.__code__.co_filename
        try:
            lines, first = inspect.getsourcelines(function.__code__)
        except (OSError, TypeError):
            place = f"the source of {function.__qualname__} cannot be read"
            raise RefusedError(f"{place}; a task that is to be compiled is saved in a file") from None
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            raise RefusedError(f"{file}:{first}: {lines[0].strip()}: only functions made with def can be compiled")
        if tree.args.vararg or tree.args.kwarg or tree.args.kwonlyargs:
            reason = "parameters after * and ** cannot be compiled"
            raise RefusedError(f"{file}:{first}: {lines[0].strip()}: {reason}")
        ast.increment_lineno(tree, first - 1)
        rewriter = Rewriter(self, function, file, lines, first)
        tree.name = self._names[function]
        tree.decorator_list, tree.returns = [], None
        for argument in (*tree.args.posonlyargs, *tree.args.args):
            argument.annotation = None
        if ast.get_docstring(tree) is not None and len(tree.body) > 1:
            del tree.body[0]
        tree.args = rewriter.visit(tree.args)
        tree.body = [new for statement in tree.body for new in listed(rewriter.visit(statement))]
        ast.fix_missing_locations(tree)
        text = "@njit(**OPTIONS)\n" + ast.unparse(tree)
        return text, line_map(tree, text, file)

    def super_method(self, function: FunctionType, name: str) -> Any:
        """Returns what super().name is in a method; None if there is none."""
        defined_in = inspect.getclosurevars(function).nonlocals.get("__class__")
        mro = type(self.task).__mro__
        after = mro[mro.index(defined_in) + 1 :] if defined_in in mro else ()
        return next((vars(one)[name] for one in after if name in vars(one)), None)
