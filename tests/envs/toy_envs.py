"""Small environments that misbehave on demand; the workers import this module by its name."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Toy(gymnasium.Env):
    """Counts its steps; `trouble` happens in method `where` once `at` calls of it were made."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(
        self, trouble: str = "", where: str = "step", at: int = 1, length: int = 1000, render_mode: str | None = None
    ) -> None:
        self.render_mode = render_mode
        self.trouble, self.where, self.at, self.length = trouble, where, at, length
        self.calls = {"init": 0, "reset": 0, "step": 0, "close": 0}
        self.count = 0
        self.pid = os.getpid()
        self.kept_action = None
        self._visit("init")

    def _visit(self, where: str) -> None:
        self.calls[where] += 1
        if where != self.where or self.calls[where] != self.at:
            return
        if self.trouble == "raise":
            raise ValueError(f"toy trouble in {where}")
        if self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "exit":
            os._exit(3)
        if self.trouble == "sleep":
            time.sleep(1000)
        if self.trouble == "slow":
            time.sleep(0.5)
        if self.trouble == "hold_gil":  # one call into C that does not come back and lets no other thread run
            sum(range(10**13))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._visit("reset")
        self.count = 0
        return np.array([0.0, self.np_random.random()]), {"start": True}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._visit("step")
        previous = 0.0 if self.kept_action is None else float(self.kept_action[0])
        self.kept_action = action
        self.count += 1
        return (
            np.array([self.count, previous]),
            float(action[0]),
            False,
            self.count >= self.length,
            {"count": self.count},
        )

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.count, np.uint8)

    def close(self) -> None:
        self._visit("close")

    def loaded_modules(self) -> list[str]:
        return sorted(sys.modules)

    def unpicklable(self) -> Any:
        return lambda: None

    def unpicklable_in_the_parent(self) -> Any:
        return BreaksWhenUnpickled(os.getpid())

    def environ(self) -> dict[str, str]:
        return dict(os.environ)


class BreaksWhenUnpickled:
    """Can be sent from the process where it was made and cannot be received."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise RuntimeError("broken by unpickling")


class LambdaInInfo(Toy):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info | {"callback": lambda: None}


class DictObservation(Toy):
    observation_space = spaces.Dict({"x": spaces.Box(0.0, 1.0, (1,))})


class TupleAction(Toy):
    action_space = spaces.Tuple([spaces.Discrete(2)])


class Wider(Toy):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)


class OneHotRoom(gymnasium.Env):
    """Discrete observations and actions that do not start at 0."""

    observation_space = spaces.Discrete(5, start=2)
    action_space = spaces.Discrete(3, start=-1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 2 + int(self.np_random.integers(5))
        return self.place, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = 2 + (self.place - 2 + int(action)) % 5
        return self.place, float(action), self.place == 4, False, {}


def alive(pid: int) -> bool:
    """Whether the process exists and is not only waiting to be collected."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not os.path.isdir("/proc/self")


def wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    """The processes that still live after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


class Slow(Toy):
    """Takes `seconds` for each call of one method; writes a file into `folder`, if there is one, when it has closed."""

    def __init__(self, where: str, seconds: float, folder: str = "", **trouble: Any) -> None:
        self.slow_in, self.seconds, self.folder = where, seconds, folder
        super().__init__(**trouble)

    def _visit(self, where: str) -> None:
        super()._visit(where)
        if where == self.slow_in:
            time.sleep(self.seconds)
        if where == "close" and self.folder:
            Path(self.folder, f"{self.pid}-{id(self)}").touch()


class Simulator(Toy):
    """Starts a process of its own, by exec or by fork, and may terminate it when it closes.

    It leaves a file with the number of that process as its name in `folder`, if there is one.
    """

    def __init__(self, terminates: bool, forks: bool = False, folder: str = "", **trouble: Any) -> None:
        self.terminates, self.forks = terminates, forks
        self.child: Any = None
        if forks:
            self.child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
            self.child.start()
        else:
            self.child = subprocess.Popen(["sleep", "1000"])
        self.child_pid = self.child.pid
        if folder:
            Path(folder, str(self.child_pid)).touch()
        super().__init__(**trouble)

    def _visit(self, where: str) -> None:
        super()._visit(where)
        if where == "close" and self.terminates:
            self.child.terminate()
            self.child.join() if self.forks else self.child.wait()
