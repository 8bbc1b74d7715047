"""Other trainers, each in a virtual environment of its own, since their pins conflict.

`make peers` prepares them under .peers/. XCFAST_PEERS names others, "xuance=/path/to/python,tianshou=/path/to/python",
and none where it is empty. A runner in this folder is a script for the peer's interpreter: it reads requests, one JSON
object a line, and answers each with one line of JSON.
"""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = ("xuance", "stable-baselines3", "tianshou", "envpool")


def interpreters() -> dict[str, str]:
    """Peer to its interpreter, of those that are there."""
    named = os.environ.get("XCFAST_PEERS")
    if named is None:
        found = {name: ROOT / ".peers" / name / "bin" / "python" for name in NAMES}
        return {name: str(path) for name, path in found.items() if (path.parents[1] / "installed").exists()}
    result = {}
    for entry in filter(None, named.split(",")):
        name, _, path = entry.partition("=")
        if name not in NAMES or not Path(path).exists():
            raise ValueError(f"XCFAST_PEERS: wanted NAME=INTERPRETER with NAME of {NAMES}; got {entry!r}")
        result[name] = path
    return result


class Runner:
    """A peer's script, kept running, so that its rounds can be interleaved with ours."""

    def __init__(self, interpreter: str, script: str, *args: str, threads: int | None = None) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OMP_", "MKL_"))}
        if threads is not None:
            env["OMP_NUM_THREADS"] = str(threads)
        env["PYTHONWARNINGS"] = "ignore"
        self._name = f"{script} {' '.join(args)}".strip()
        self._process = subprocess.Popen(
            [interpreter, str(HERE / script), *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self._process.stdout:
            if line.startswith("{"):  # what the peer prints of its own accord is passed over
                return json.loads(line)
        raise RuntimeError(f"{self._name} ended with status {self._process.wait()}; its output is above")

    def close(self) -> None:
        """Let the script end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
