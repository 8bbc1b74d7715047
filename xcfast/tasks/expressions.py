"""Expressions: what the rewriting of a task's functions asks about them, and makes of values."""

import ast
import difflib
import math
from types import ModuleType
from typing import Any

import numpy as np


class RefusedError(Exception):
    """A statement that cannot be compiled. The message says where it is, what it is, and what to write instead."""


def listed(node: Any) -> list[Any]:
    """Returns one node, or a list of nodes, as a list."""
    return node if isinstance(node, list) else [node]


def root(node: ast.AST) -> str | None:
    """Returns the name that a chain of attributes and calls begins with."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else None


def named(name: str, node: ast.AST) -> ast.Name:
    """Returns a name, at the place of a node."""
    return ast.copy_location(ast.Name(name, ast.Load()), node)


def parsed(text: str, node: ast.AST, context: ast.expr_context | None = None) -> Any:
    """Returns the expression that the text is, at the place of a node."""
    expression = ast.parse(text, mode="eval").body
    for one in ast.walk(expression):
        ast.copy_location(one, node)
    if context is not None:
        expression.ctx = context  # type: ignore[attr-defined]
    return expression


def literal(value: Any) -> ast.expr | None:
    """Returns an expression for a number, a text, None, or a tuple of numbers."""
    if value is None or isinstance(value, str | bool):
        return ast.Constant(value)
    if isinstance(value, np.bool_):
        return ast.Constant(bool(value))
    if isinstance(value, int | float | np.integer | np.floating):
        number = value.item() if isinstance(value, np.generic) else value
        if number != number or number in (math.inf, -math.inf):
            return ast.parse(_NOT_FINITE[str(number)], mode="eval").body
        return ast.Constant(number) if number >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-number))
    if isinstance(value, tuple | list) and value:
        parts = [literal(one) for one in value]
        if all(part is not None for part in parts) and not any(isinstance(one, str) for one in value):
            return ast.Tuple(parts, ast.Load())  # type: ignore[arg-type]
    return None


_NOT_FINITE = {"nan": "math.nan", "inf": "math.inf", "-inf": "(-math.inf)"}


def kind(value: Any) -> str:
    """Returns what a value is, for a sentence."""
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    name = type(value).__name__
    return f"an object of {name}" if not isinstance(value, type) else f"the class {value.__name__}"


def same(one: Any, other: Any) -> bool:
    """Returns whether two constants are of one type and equal."""
    return type(one) is type(other) and bool(np.array_equal(one, other))


def nearest(name: str, names: list[str]) -> str:
    """Returns a question after the name that is most like this one; "" if none is like it."""
    found = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def place_of(data: Any, view: np.ndarray) -> tuple[str, str] | None:
    """Returns the field of mjData that a view is a part of, and which part, as the text of an index."""
    address = view.__array_interface__["data"][0]
    for name in dir(data):
        array = None if name.startswith("_") else getattr(data, name, None)
        if not isinstance(array, np.ndarray) or array.ndim == 0 or array.dtype != view.dtype or not array.size:
            continue
        offset = (address - array.__array_interface__["data"][0]) // array.itemsize
        if not 0 <= offset < array.size:
            continue
        width = array.size // len(array)
        if array.ndim == 1:
            return name, f"{offset}:{offset + view.size}"
        return (name, f"{offset // width}") if view.size == width else None
    return None


def line_map(tree: ast.AST, text: str, file: str) -> list[tuple[str, int]]:
    """Returns the user's line of each line of a function's new text."""
    lines = [(file, getattr(tree, "lineno", 0))] * (text.count("\n") + 1)
    for old, new in zip(ast.walk(tree), ast.walk(ast.parse(text).body[0]), strict=False):
        if isinstance(old, ast.stmt) and isinstance(new, ast.stmt) and type(old) is type(new):
            for line in range(new.lineno, (new.end_lineno or new.lineno) + 1):
                lines[line - 1] = file, old.lineno
    return lines
