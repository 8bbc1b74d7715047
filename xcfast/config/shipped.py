"""The configuration files that come with the package."""

import contextlib
import importlib.resources
from pathlib import Path


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package: name (ant, half_cheetah, ...) -> file."""
    entries: list[Path] = []
    with contextlib.suppress(ModuleNotFoundError, OSError, ValueError):  # as in a checkout that is not installed
        entries = [Path(str(entry)) for entry in importlib.resources.files("xcfast.configs").iterdir()]
    found = [path for path in entries if path.suffix == ".yaml"]
    found = found or list((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
    return {path.stem: path for path in sorted(found)}


def shipped_config(env_id: str) -> Path | None:
    """The shipped file for any version of a Gymnasium task (Ant-v5 finds ant.yaml), or None."""
    task = env_id.rpartition("-v")[0] or env_id
    folded = {name.replace("_", ""): path for name, path in shipped_configs().items()}
    return folded.get(task.lower())
