"""The structure that docs/design.md promises: packages import downward only, modules form no circle."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import xcfast

PACKAGE = Path(xcfast.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported_by(path):
    """The modules of the package that a file imports, anywhere in it; ``TYPE_CHECKING`` imports count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "xcfast")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module is not None and node.module.split(".")[0] == "xcfast":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in MODULES else node.module


# The facade imports what users want by name; nothing inside may rest on it but for the version and the extension.
IMPORTS = {name: {one for one in imported_by(path) if one in MODULES} for name, path in MODULES.items()}
WITHOUT_FACADE = {name: found - {"xcfast"} for name, found in IMPORTS.items() if name != "xcfast"}


def top(module):
    return module.split(".")[1]


def arrows():
    """Entry of the top level -> the entries that it imports."""
    found = defaultdict(set)
    for name, imports in WITHOUT_FACADE.items():
        found[top(name)] |= {top(one) for one in imports} - {top(name)}
    return found


def circles(graph):
    """Groups of nodes that reach each other, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_modules_import_each_other_in_a_circle():
    assert circles(WITHOUT_FACADE) == []


def test_only_the_version_comes_from_the_facade():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "xcfast":
                for alias in node.names:
                    assert alias.name in ("__version__", "_core", "kernels"), f"{name} imports {alias.name}"


def test_packages_import_as_the_design_allows():
    """The table in docs/design.md: one row for each entry, and what it may import."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", DESIGN.read_text(encoding="utf-8"), re.MULTILINE)
    allowed = {entry: set(re.findall(r"`(\w+)`", may)) for entry, may in rows}
    found = arrows()
    assert set(allowed) == {top(name) for name in WITHOUT_FACADE}, "the table must have a row for each entry"
    assert {entry: sorted(found[entry]) for entry in allowed} == {entry: sorted(may) for entry, may in allowed.items()}


def test_the_top_level_stays_small():
    entries = {path.name for path in PACKAGE.iterdir() if path.suffix in (".py", ".pyi", ".typed") or path.is_dir()}
    entries -= {"__pycache__", "configs"}
    assert len(entries) <= 25
    found = arrows()
    assert sum(map(len, found.values())) < 100
    depth = {}

    def chain(entry):
        if entry not in depth:
            depth[entry] = 1 + max((chain(other) for other in found[entry]), default=0)
        return depth[entry]

    assert max(map(chain, list(found))) <= 8


def test_no_source_file_is_long():
    long = {name: count for name, path in MODULES.items() if (count := len(path.read_text().splitlines())) > 450}
    assert not long


def test_the_wheel_has_every_package():
    """pyproject.toml lists them, since a folder that is not listed is missing from an installation only."""
    block = re.search(r"\npackages = \[(.*?)\]", PYPROJECT.read_text(encoding="utf-8"), re.DOTALL)
    listed = set(re.findall(r'"(xcfast[.\w]*)"', block.group(1)))
    folders = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert listed | {"xcfast.configs"} == folders | {"xcfast.configs"}  # which holds YAML files
