"""Functions that several output files share: atomic JSON, package versions."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("xcfast", "torch", "numpy", "gymnasium", "mujoco")


def user_path(path: str | os.PathLike[str]) -> Path:
    """Returns a path that a user gave, with a leading ``~`` expanded, which a shell leaves alone in some places."""
    return Path(os.path.expanduser(path))


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide results."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically. On a full disk, the file is missing, with a warning, but the run goes on."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the warning may go to a file on the same disk
            print(f"warning: {path} not written: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
