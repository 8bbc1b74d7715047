"""Writes a task's functions, and what they call, as one Python module that numba can compile.

The module is made of the user's own statements. Names that come from elsewhere become what they stand for: constants of
`self` are read from a record, fields of mjData from a named tuple of arrays, methods and functions are written along.
"""

import ast
import builtins
import inspect
import math
import textwrap
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, NoReturn

import numpy as np

from xcfast.tasks.expressions import kind, line_map, listed, literal, named, nearest, parsed, place_of, root, same

_MODULES = ("numpy", "numpy.linalg", "math")
_BUILTINS = frozenset(
    ("abs", "all", "any", "bool", "divmod", "enumerate", "float", "int", "len", "max", "min", "pow", "range", "round")
) | {"sum", "zip", "True", "False", "None", "IndexError", "ValueError", "AssertionError", "Exception", "RuntimeError"}
_NO_STATEMENTS = {
    ast.Dict: "a dict",
    ast.DictComp: "a dict",
    ast.Set: "a set",
    ast.SetComp: "a set",
    ast.JoinedStr: "an f-string",
    ast.With: "a with statement",
    ast.Try: "a try statement",
    ast.Lambda: "a lambda",
    ast.Yield: "a generator",
    ast.YieldFrom: "a generator",
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.Global: "a global statement",
    ast.Nonlocal: "a nonlocal statement",
    ast.FunctionDef: "a function inside a function",
    ast.ClassDef: "a class",
}
# Functions whose order of additions is numpy's, or that numba lacks without SciPy; of xcfast.tasks.arithmetic.
_OWN_FUNCTIONS = {"numpy.sum": 1, "numpy.mean": 1, "numpy.dot": 2, "numpy.linalg.norm": 1}
_OWN_METHODS = {"sum": 0, "mean": 0, "dot": 1}
_ACCESSORS = frozenset(
    ("actuator", "body", "cam", "camera", "geom", "jnt", "joint", "light", "sensor", "site", "tendon")
)


class RefusedError(Exception):
    """A statement that cannot be compiled. The message says where it is, what it is, and what to write instead."""


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
    writer = _Writer(task, data, terms)
    for name in methods:
        writer.source.names[name] = writer.name_of(getattr(type(task), name))
    writer.write()
    return writer.source


class _Writer:
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
        if name not in self.source.fields:
            self.source.fields.append(name)

    def write(self) -> None:
        while self._waiting:
            self._written.append(self._function(self._waiting.pop()))
        self.source.text = "\n\n".join(text for text, _ in self._written) + "\n"
        for _, lines in self._written:
            self.source.lines += [*lines, ("", 0)]

    def _function(self, function: FunctionType) -> tuple[str, list[tuple[str, int]]]:
        file = function.__code__.co_filename
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError):
            raise RefusedError(f"the source of {function.__qualname__} cannot be read") from None
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            raise RefusedError(f"{file}:{first}: {lines[0].strip()}: only functions made with def can be compiled")
        ast.increment_lineno(tree, first - 1)
        rewriter = _Rewriter(self, function, file, lines, first)
        tree.name = self._names[function]
        tree.decorator_list, tree.returns = [], None
        for argument in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs):
            argument.annotation = None
        if ast.get_docstring(tree) is not None and len(tree.body) > 1:
            del tree.body[0]
        tree.args = rewriter.visit(tree.args)
        tree.body = [new for statement in tree.body for new in listed(rewriter.visit(statement))]
        ast.fix_missing_locations(tree)
        text = "@njit(**OPTIONS)\n" + ast.unparse(tree)
        return text, line_map(tree, text, file)


class _Rewriter(ast.NodeTransformer):
    """Rewrites one function."""

    def __init__(self, writer: _Writer, function: FunctionType, file: str, lines: list[str], first: int) -> None:
        self.writer, self.function, self.file, self.lines, self.first = writer, function, file, lines, first
        code = function.__code__
        self.locals = {*code.co_varnames, *code.co_cellvars}
        closure = inspect.getclosurevars(function)
        self.outer = {**closure.globals, **closure.nonlocals}
        self.temporaries = 0

    def refuse(self, node: ast.AST, why: str) -> NoReturn:
        line = getattr(node, "lineno", self.first)
        statement = self.lines[line - self.first].strip() if 0 <= line - self.first < len(self.lines) else ""
        raise RefusedError(f"{self.file}:{line}: {statement}: {why}")

    def generic_visit(self, node: ast.AST) -> Any:
        what = _NO_STATEMENTS.get(type(node))
        if what is not None:
            self.refuse(node, f"{what} cannot be compiled")
        return super().generic_visit(node)

    # Names.

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id in self.locals or not isinstance(node.ctx, ast.Load):
            return node
        if node.id not in self.outer:
            if node.id in _BUILTINS:
                return node
            known = hasattr(builtins, node.id)
            self.refuse(node, f"{node.id} cannot be compiled" if known else f"there is no {node.id}")
        return self.global_value(node, node.id, self.outer[node.id])

    def global_value(self, node: ast.expr, name: str, value: Any) -> ast.expr:
        """Returns an expression for a value from outside the function."""
        value = getattr(value, "py_func", value)  # a function that the user compiled already
        if isinstance(value, ModuleType) and value.__name__ in _MODULES:
            return parsed(value.__name__, node)
        if isinstance(value, FunctionType) and not value.__module__.startswith("numpy"):
            return self._function_name(node, value)
        for module in (math, np, np.linalg):
            if getattr(module, getattr(value, "__name__", ""), None) is value and callable(value):
                return parsed(f"{module.__name__}.{value.__name__}", node)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
            return named(self.writer.array(value), node)
        expression = literal(value)
        if expression is None:
            self.refuse(node, f"{name} is {kind(value)}; numbers, arrays and functions can be compiled")
        return ast.copy_location(expression, node)

    def _function_name(self, node: ast.expr, function: FunctionType) -> ast.expr:
        try:
            return named(self.writer.name_of(function, self.function), node)
        except RecursionError:
            self.refuse(node, f"{function.__name__} calls itself, which cannot be compiled")

    # self, data, memory, terms.

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        owner = root(node)
        if owner == "self" and "self" in self.locals:
            return self._constant(node)
        if owner == "data" and "data" in self.locals:
            part = self._named_access(node)
            if part is not None:
                return part
        if isinstance(node.value, ast.Name) and node.value.id in self.locals:
            owner = node.value.id
            if owner == "data":
                return self._field(node)
            names = {"memory": self.writer.memory.names or (), "terms": self.writer.terms}.get(owner)
            if names is not None and node.attr not in names:
                known = ", ".join(names) or "none"
                self.refuse(node, f"{owner} has no {node.attr}; the task declares {known}")
        self._check_module(node)
        return self.generic_visit(node)

    def _check_module(self, node: ast.Attribute) -> None:
        path = self._module_path(node)
        if path is None:
            return
        value: Any = self.outer[str(root(node))]
        for name in path.split(".")[len(getattr(value, "__name__", "").split(".")) :]:
            if not hasattr(value, name):
                self.refuse(node, f"{getattr(value, '__name__', 'it')} has no {name}")
            value = getattr(value, name)

    def _constant(self, node: ast.Attribute) -> ast.expr:
        if not isinstance(node.ctx, ast.Load):
            self.refuse(node, "self is constant after build; memory keeps what changes")
        try:
            value = self._evaluate(node)
        except AttributeError:
            self.refuse(node, f"self has no {ast.unparse(node).removeprefix('self.')} after build")
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
            return self._read_constant(node, value)
        if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
            return self._read_constant(node, value)
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(value, tuple) and all(isinstance(one, bool | int | float | np.number) for one in value):
            parts = [self._read_constant(node, one, f"_{k}") for k, one in enumerate(value)]
            return ast.copy_location(ast.Tuple(parts, ast.Load()), node)
        expression = literal(value)
        if expression is None:
            self.refuse(node, f"{ast.unparse(node)} is {kind(value)}; numbers, arrays and methods can be compiled")
        return ast.copy_location(expression, node)

    def _read_constant(self, node: ast.expr, value: Any, suffix: str = "") -> ast.expr:
        name = "".join(c if c.isalnum() else "_" for c in ast.unparse(node).removeprefix("self.")).strip("_")
        name = self.writer.constant(f"{name}{suffix}", value)
        return ast.copy_location(ast.Attribute(ast.Name("self", ast.Load()), name, ast.Load()), node)

    def _evaluate(self, node: ast.expr) -> Any:
        """Returns the value of an expression of self, its attributes, and calls with literals, such as of its model."""
        if isinstance(node, ast.Name) and node.id == "self":
            return self.writer.task
        if isinstance(node, ast.Attribute):
            return getattr(self._evaluate(node.value), node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords:
            return self._evaluate(node.func)(*[self._literal_argument(argument) for argument in node.args])
        self.refuse(node, f"{ast.unparse(node)} is not constant; let build keep it in self")

    def _literal_argument(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if root(node) == "self":
            return self._evaluate(node)
        self.refuse(node, f"{ast.unparse(node)} must be a literal or an attribute of self here")

    def _named_access(self, node: ast.Attribute) -> ast.expr | None:
        """Rewrites data.body("torso").xpos and its like as a part of a field."""
        call = node.value
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and len(call.args) == 1):
            return None
        func = call.func
        if not (isinstance(func.value, ast.Name) and func.value.id == "data" and func.attr in _ACCESSORS):
            return None
        data = self.writer.data
        try:
            view = getattr(getattr(data, func.attr)(self._literal_argument(call.args[0])), node.attr)
        except (KeyError, AttributeError, IndexError) as error:
            self.refuse(node, " ".join(str(error).strip("'\"").split()))
        if not isinstance(view, np.ndarray):
            expression = literal(view)
            if expression is None:
                self.refuse(node, f"{ast.unparse(node)} is {kind(view)}")
            return ast.copy_location(expression, node)
        where = place_of(data, view)
        if where is None:
            self.refuse(node, f"{ast.unparse(node)} is no part of a field of mjData")
        name, index = where
        self.writer.field(name)
        return parsed(f"data.{name}[{index}]", node, node.ctx)

    def _field(self, node: ast.Attribute) -> ast.expr:
        value = getattr(self.writer.data, node.attr, None)
        if value is None:
            self.refuse(node, f"data has no {node.attr}{nearest(node.attr, dir(self.writer.data))}")
        if node.attr in _ACCESSORS:
            self.refuse(node, f"data.{node.attr}(name) must be followed by one of its fields")
        if not isinstance(node.ctx, ast.Load):
            self.refuse(node, f"data.{node.attr} cannot be replaced; write into it, as in data.{node.attr}[:] = ...")
        known = node.attr in ("time", "ncon", "contact")
        if not known and not (
            isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.flags.c_contiguous
        ):
            self.refuse(node, f"data.{node.attr} is {kind(value)}, which compiled code cannot read")
        if node.attr.startswith(("efc_", "iefc_", "efm_", "island_", "map_")):
            self.refuse(node, f"data.{node.attr} moves in memory, which compiled code cannot follow")
        self.writer.field(node.attr)
        if node.attr == "contact":
            self.writer.field("ncon")
        return node

    # Calls, and operators with an order of additions.

    def visit_Call(self, node: ast.Call) -> Any:
        func = node.func
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "self":
            method = inspect.getattr_static(type(self.writer.task), func.attr, None)
            if isinstance(method, FunctionType | staticmethod):
                return self._method_call(node, func, method)
            if method is not None and not isinstance(method, property):
                self.refuse(node, f"self.{func.attr} is {kind(method)}, not a method")
        own = self._own_function(node)
        if own is not None:
            return own
        path = self._module_path(func)
        if path is not None and path.startswith("numpy.random"):
            self.refuse(node, "random numbers are drawn in reset, from its rng; memory keeps them")
        return self.generic_visit(node)

    def _method_call(self, node: ast.Call, func: ast.Attribute, method: FunctionType | staticmethod) -> ast.Call:
        arguments = [self.visit(one) for one in node.args]
        if isinstance(method, staticmethod):
            function = self.global_value(func, func.attr, method.__func__)
        else:
            function = self._function_name(func, method)
            arguments.insert(0, ast.Name("self", ast.Load()))
        keywords = [self.visit(one) for one in node.keywords]
        return ast.copy_location(ast.Call(function, arguments, keywords), node)

    def _own_function(self, node: ast.Call) -> ast.expr | None:
        if node.keywords:
            return None
        func, path = node.func, self._module_path(node.func)
        if path in _OWN_FUNCTIONS and len(node.args) == _OWN_FUNCTIONS[path]:
            name, arguments = path.rpartition(".")[2], node.args
        elif isinstance(func, ast.Attribute) and path is None and _OWN_METHODS.get(func.attr) == len(node.args):
            name, arguments = func.attr, [func.value, *node.args]
        else:
            return None
        return self._own_call(name, arguments, node)

    def _own_call(self, name: str, arguments: list[ast.expr], node: ast.expr) -> ast.expr:
        call = ast.Call(ast.Name(f"xcfast_{name}", ast.Load()), [self.visit(one) for one in arguments], [])
        return ast.copy_location(call, node)

    def _module_path(self, node: ast.expr) -> str | None:
        """Returns the full name of an expression such as np.linalg.norm; None for anything else."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in self.locals:
            return None
        value = self.outer.get(node.id)
        if isinstance(value, ModuleType):
            return ".".join((value.__name__, *names))
        module = getattr(value, "__module__", None)
        return f"{module}.{value.__name__}" if callable(value) and module in _MODULES and not names else None

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        if isinstance(node.op, ast.MatMult):
            return self._own_call("dot", [node.left, node.right], node)
        return self.generic_visit(node)

    # Assignments that numba has in another form.

    def visit_Assign(self, node: ast.Assign) -> Any:
        targets = [self._whole(target) for target in node.targets]
        node.targets = targets
        target = targets[0]
        if len(targets) > 1 or not isinstance(target, ast.Tuple | ast.List) or isinstance(node.value, ast.Tuple):
            return self.generic_visit(node)
        # An array cannot be unpacked; its elements can be named.
        name = f"_unpacked_{self.temporaries}"
        self.temporaries += 1
        first: ast.stmt = ast.Assign([ast.Name(name, ast.Store())], self.visit(node.value))
        rest = []
        for k, one in enumerate(target.elts):
            if isinstance(one, ast.Starred):
                self.refuse(node, "a starred name cannot be compiled")
            rest.append(ast.Assign([self.visit(self._whole(one))], parsed(f"{name}[{k}]", node)))
        return [ast.copy_location(one, node) for one in (first, *rest)]

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        node.target = self._whole(node.target)
        return self.generic_visit(node)

    def _whole(self, target: ast.expr) -> Any:
        """Rewrites memory.name = value as memory.name[:] = value where the field is an array."""
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "memory":
            fields = self.writer.memory.fields or {}
            if target.attr in fields and fields[target.attr][0].shape:
                return parsed(f"memory.{target.attr}[:]", target, ast.Store())
        return target


def reads_contact_forces(source: Source) -> bool:
    """Returns whether the functions read what only `mj_rnePostConstraint` computes."""
    return bool({"cacc", "cfrc_int", "cfrc_ext"} & set(source.fields))
