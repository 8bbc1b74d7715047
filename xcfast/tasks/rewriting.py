"""Rewrites one function of a task: numba compiles what it becomes, and its numbers stay the same."""

import ast
import builtins
import inspect
import math
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

import numpy as np

from xcfast.tasks.expressions import RefusedError, kind, literal, named, nearest, parsed, place_of, root

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
_OWN_FUNCTIONS = {"numpy.sum": 1, "numpy.mean": 1, "numpy.dot": 2, "numpy.linalg.norm": 1, "numpy.clip": 3}
_OWN_METHODS = {"sum": 0, "mean": 0, "dot": 1}
_TAKE_TUPLES = frozenset(("numpy.concatenate", "numpy.hstack", "numpy.vstack", "numpy.stack", "numpy.column_stack"))
_ACCESSORS = frozenset(
    ("actuator", "body", "cam", "camera", "geom", "jnt", "joint", "light", "sensor", "site", "tendon")
)


class Rewriter(ast.NodeTransformer):
    """Rewrites one function.

    Args:
        writer: The `source.Writer` of the module, which gets the functions, constants and fields that it needs.
        function: The function.
        file: Its file.
        lines: Its lines.
        first: The number of the first.
    """

    def __init__(self, writer: Any, function: FunctionType, file: str, lines: list[str], first: int) -> None:
        self.writer, self.function, self.file, self.lines, self.first = writer, function, file, lines, first
        self.locals = {name for code in _codes(function.__code__) for name in (*code.co_varnames, *code.co_cellvars)}
        self.outer = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
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
        if isinstance(value, FunctionType) and value.__name__ == "<lambda>":
            self.refuse(node, f"{name} is a lambda; only functions made with def can be compiled")
        if isinstance(value, FunctionType) and not value.__module__.startswith("numpy"):
            return self._function_name(node, value)
        for module in (math, np, np.linalg):
            if getattr(module, getattr(value, "__name__", ""), None) is value and callable(value):
                return parsed(f"{module.__name__}.{value.__name__}", node)
        value = _as_array(value)
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
        of_module = self._of_module(node)
        return self.generic_visit(node) if of_module is None else of_module

    def _of_module(self, node: ast.Attribute) -> ast.expr | None:
        """Returns the expression for module.name; None where the node is no such name."""
        if self._module_path(node) is None:
            return None
        value: Any = self.outer[str(root(node))]
        for name in ast.unparse(node).split(".")[1:]:
            if not hasattr(value, name):
                self.refuse(node, f"{getattr(value, '__name__', 'it')} has no {name}")
            value = getattr(value, name)
        return self.global_value(node, ast.unparse(node), value)

    def _constant(self, node: ast.Attribute) -> ast.expr:
        if not isinstance(node.ctx, ast.Load):
            self.refuse(node, "self is constant after build; memory keeps what changes")
        try:
            value = self._evaluate(node)
        except AttributeError:
            self.refuse(node, f"self has no {ast.unparse(node).removeprefix('self.')} after build")
        return self._constant_value(node, value)

    def _constant_value(self, node: Any, value: Any) -> ast.expr:
        value = _as_array(value)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
            return self._read_constant(node, value)
        if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
            return self._read_constant(node, value)
        if (
            callable(value) and isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute)
        ):  # such as self.weights.copy
            node.value = self.visit(node.value)
            return node
        if isinstance(value, tuple) and all(isinstance(one, bool | int | float | np.number) for one in value):
            parts = [self._read_constant(node, one, f"_{k}") for k, one in enumerate(value)]
            return ast.copy_location(ast.Tuple(parts, ast.Load()), node)
        expression = literal(value)
        if expression is None:
            self.refuse(node, f"{ast.unparse(node)} is {kind(value)}; numbers, arrays and methods can be compiled")
        return ast.copy_location(expression, node)

    def _read_constant(self, node: ast.expr, value: Any, suffix: str = "") -> ast.expr:
        name = "".join(c if c.isalnum() else "_" for c in ast.unparse(node).removeprefix("self."))
        name = self.writer.constant(f"c_{name}{suffix}", value)
        return ast.copy_location(ast.Attribute(ast.Name("self", ast.Load()), name, ast.Load()), node)

    def _evaluate(self, node: ast.expr) -> Any:
        """Returns the value of an expression of self, its attributes, and calls with literals, such as of its model."""
        if isinstance(node, ast.Name) and node.id == "self":
            return self.writer.task
        if isinstance(node, ast.Attribute):
            return getattr(self._evaluate(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return self._evaluate(node.value)[self._literal_argument(node.slice)]
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
            hint = nearest(node.attr, dir(self.writer.data)) or "; in every function, data is the simulation's mjData"
            self.refuse(node, f"data has no {node.attr}{hint}")
        if node.attr in _ACCESSORS:
            self.refuse(node, f"data.{node.attr}(name) must be followed by one of its fields")
        if not isinstance(node.ctx, ast.Load):
            how = f"; write into it, as in data.{node.attr}[:] = ..." if isinstance(value, np.ndarray) else ""
            self.refuse(node, f"data.{node.attr} cannot be replaced{how}")
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

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        base = node.value
        while isinstance(base, ast.Subscript | ast.Attribute):
            base = base.value
        if isinstance(base, ast.Name) and base.id == "self" and "self" in self.locals:
            if not isinstance(node.ctx, ast.Load):
                self.refuse(node, "self is constant after build; memory keeps what changes")
            if root(node.value) == "self" and isinstance(self._value_or_none(node.value), dict):
                return self._constant_value(node, self._evaluate(node))
        return self.generic_visit(node)

    def _value_or_none(self, node: ast.expr) -> Any:
        try:
            return self._evaluate(node)
        except (AttributeError, RefusedError):
            return None

    # Calls, and operators with an order of additions.

    def visit_Call(self, node: ast.Call) -> Any:
        func = node.func
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "self":
            method = inspect.getattr_static(type(self.writer.task), func.attr, None)
            if isinstance(method, FunctionType | staticmethod):
                return self._method_call(node, func, method)
            if method is not None and not isinstance(method, property):
                self.refuse(node, f"self.{func.attr} is {kind(method)}, not a method")
        if isinstance(func, ast.Attribute) and ast.unparse(func.value) == "super()":
            method = self.writer.super_method(self.function, func.attr)
            if not isinstance(method, FunctionType | staticmethod):
                self.refuse(node, f"super() has no method {func.attr}")
            return self._method_call(node, func, method)
        function = self._method_of_a_class(func)
        if function is not None:
            return self._called(node, self._function_name(func, function), [])
        own = self._own_function(node)
        if own is not None:
            return own
        path = self._module_path(func)
        if path is not None and path.startswith("numpy.random"):
            self.refuse(node, "random numbers are drawn in reset, from its rng; memory keeps them")
        if path in _TAKE_TUPLES and node.args and isinstance(node.args[0], ast.List):
            node.args[0] = ast.copy_location(ast.Tuple(node.args[0].elts, ast.Load()), node.args[0])
        return self.generic_visit(node)

    def _method_call(self, node: ast.Call, func: ast.Attribute, method: FunctionType | staticmethod) -> ast.Call:
        if isinstance(method, staticmethod):
            return self._called(node, self.global_value(func, func.attr, method.__func__), [])
        return self._called(node, self._function_name(func, method), [ast.Name("self", ast.Load())])

    def _called(self, node: ast.Call, function: ast.expr, first: list[ast.expr]) -> ast.Call:
        arguments = [*first, *(self.visit(one) for one in node.args)]
        return ast.copy_location(ast.Call(function, arguments, [self.visit(one) for one in node.keywords]), node)

    def _method_of_a_class(self, func: ast.expr) -> FunctionType | None:
        """Returns the function that Base.step is; None for anything else."""
        if not isinstance(func, ast.Attribute):
            return None
        name = func.value.id if isinstance(func.value, ast.Name) and func.value.id not in self.locals else ""
        owner = self.outer.get(name)
        found = getattr(owner, func.attr, None) if isinstance(owner, type) else None
        return found if isinstance(found, FunctionType) else None

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
        target, value = targets[0], node.value
        if len(targets) > 1 or not isinstance(target, ast.Tuple | ast.List):
            return self.generic_visit(node)
        if any(isinstance(one, ast.Starred) for one in target.elts):
            self.refuse(node, "a starred name cannot be compiled")
        # An array cannot be unpacked, and an array of memory is no target; the elements can be named one by one.
        statements: list[ast.stmt] = []
        if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
            parts = [self._temporary(self.visit(one), statements) for one in value.elts]
        else:
            name = self._temporary(self.visit(value), statements)
            statements.append(_parsed_statement(f"xcfast_unpacked({name}, {len(target.elts)})"))
            parts = [f"{name}[{k}]" for k in range(len(target.elts))]
        for one, part in zip(target.elts, parts, strict=True):
            statements.append(ast.Assign([self.visit(self._whole(one))], parsed(part, node)))
        return [ast.copy_location(one, node) for one in statements]

    def _temporary(self, value: ast.expr, statements: list[ast.stmt]) -> str:
        self.temporaries += 1
        name = f"_part_{self.temporaries}"
        statements.append(ast.Assign([ast.Name(name, ast.Store())], value))
        return name

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return self.visit(ast.copy_location(ast.Assign([node.target], node.value), node))

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


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yields the code of a function and of what is nested in it, such as comprehensions."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _as_array(value: Any) -> Any:
    """Returns a list of numbers as an array, which is how numpy reads it; anything else as it is."""
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return value
    return array if array.dtype.kind in "biuf" else value


def _parsed_statement(text: str) -> ast.stmt:
    return ast.parse(text).body[0]
