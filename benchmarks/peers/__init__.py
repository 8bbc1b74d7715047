"""Other trainers, each in a virtual environment of its own, since their pins conflict.

`make peers` prepares them under .peers/. XCFAST_PEERS names others, "xuance=/path/to/python,tianshou=/path/to/python",
and none where it is empty. A runner in this folder is a script for the peer's interpreter: it reads requests, one JSON
object a line, and answers each with one line of JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
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

    def __init__(self, interpreter: str, script: str, *args: str) -> None:
        env = {**os.environ, "PYTHONWARNINGS": "ignore"}
        if interpreter != sys.executable:
            env.pop("PYTHONPATH", None)
        self._name = " ".join([script, *args[:2]])
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [interpreter, str(HERE / script), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; why, is said below
        for line in self._process.stdout:
            if line.startswith("{"):  # what the peer prints of its own accord is passed over
                return json.loads(line)
        self._log.seek(0)
        output = self._log.read().decode(errors="replace")[-4000:]
        raise RuntimeError(f"{self._name} ended with status {self._process.wait()}:\n{output}")

    def close(self) -> None:
        """Let the script end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
