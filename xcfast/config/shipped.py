"""The configuration files that come with the package."""

import contextlib
import importlib.resources
import os
import re
from pathlib import Path

from xcfast.config.rules import ENV_ID


def shipped_configs() -> dict[str, Path]:
    """Returns the configurations that come with the package: name (ant, half_cheetah, ...) -> file."""
    entries: list[Path] = []
    with contextlib.suppress(ModuleNotFoundError, OSError, ValueError):  # as in a checkout that is not installed
        entries = [Path(str(entry)) for entry in importlib.resources.files("xcfast.configs").iterdir()]
    found = [path for path in entries if path.suffix == ".yaml"]
    found = found or list((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
    return {path.stem: path for path in sorted(found)}


def shipped_config(env_id: str) -> Path | None:
    """Returns the shipped file for any version of a Gymnasium task (Ant-v5 finds ant.yaml), or None."""
    task = env_id.rpartition("-v")[0] or env_id
    folded = {name.replace("_", ""): path for name, path in shipped_configs().items()}
    return folded.get(task.lower())


def file_and_env_id(word: str) -> tuple[str | Path | None, str | None]:
    """Returns the file and the env id that a word of a command line stands for.

    Args:
        word: A path, the name of a shipped configuration (ant), an id of Gymnasium (Ant-v5), or module:id.

    Returns:
        A path and None; or, if the word is an id, the shipped file of the task (None if there is none) and the id. A
        word that is neither counts as the path of a missing file.
    """
    word = os.path.expanduser(word)
    if os.path.exists(word) or word.endswith((".yaml", ".yml", ".json")):
        return word, None
    if word in shipped_configs():
        return shipped_configs()[word], None
    file = shipped_config(word)
    is_id = file is not None or ":" in word or re.search(r"-v\d+$", word)
    return (file, word) if is_id and ENV_ID.fullmatch(word) else (word, None)
