"""Runs a user's script, without a main guard, in a process of its own."""

import os
import subprocess
import sys
import textwrap


def start_script(body: str) -> "subprocess.Popen[str]":
    script = textwrap.dedent(
        """
        import os, signal, sys, time
        sys.path[:0] = PATH
        from functools import partial
        import numpy as np
        from toy_envs import Simulator, Toy
        from xcfast.envs import SubprocVecEnv
        actions = np.zeros((4, 1), np.float32)
        def show(*words): print(*words, flush=True)
        """
    ).replace("PATH", repr(sys.path)) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )


def read_pids(process: "subprocess.Popen[str]") -> list[int]:
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(set(pids)) == 2, process.communicate(timeout=10)
    return pids
