"""What a run says where memory or threads run out."""

import errno
import resource
import subprocess
import sys

import pytest

from xcfast.errors import ConfigError
from xcfast.resources import enough_of_all, shortage

ADDRESS_SPACE = 6 << 30  # bytes: enough to import all that is needed


def limited(*command):
    """Runs a command with little address space, as containers and clusters do."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))

    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, preexec_fn=limit
    )
    return done.returncode, done.stdout, done.stderr


class OutOfMemoryError(RuntimeError):
    """Stands for torch's, which only CUDA raises."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("std::bad_alloc"), "this machine has not the memory for it; "),
        (MemoryError("Unable to allocate 27.0 GiB for an array"), ": 27.0 GiB more were asked for; "),
        (RuntimeError("not enough memory: you tried to allocate 4000000000 bytes."), ": 4000000000 bytes more"),
        (RuntimeError("Could not allocate memory"), "has not the memory"),
        (OutOfMemoryError("CUDA"), "has not the memory"),
        (RuntimeError("can't start new thread"), "allows no more threads; a smaller num_threads"),
        (RuntimeError("Resource temporarily unavailable"), "allows no more threads"),
    ],
)
def test_every_word_for_a_shortage_becomes_one_sentence(error, words):
    sentence = shortage(error)
    assert words in sentence
    with pytest.raises(ConfigError) as refused, enough_of_all():
        raise error
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "error", [ValueError("wrong"), OSError(errno.EAGAIN, "Resource temporarily unavailable"), KeyError("memory")]
)
def test_other_errors_pass(error):
    """A simulator's socket may raise the second one."""
    assert shortage(error) is None
    with pytest.raises(type(error)), enough_of_all():
        raise error


@pytest.mark.parametrize(
    "keys",
    [
        ("Ant-v4", "horizon_size=16777216", "parallels=16", "running_steps=300000000"),
        ("Humanoid-v4", "parallels=65536", "horizon_size=8", "collector_backend=torch"),
    ],
    ids=lambda keys: keys[0],
)
def test_too_large_a_run_is_refused_in_one_sentence(keys, tmp_path):
    folders = f"log_dir={tmp_path}", f"model_dir={tmp_path}"
    status, _, err = limited("-m", "xcfast.train", *keys, *folders, "device=cpu", "logger=none")
    line = err.splitlines()[-1]
    assert (status, line.startswith("xcfast: this machine has not the memory for it")) == (2, True), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_fewer_threads_than_wanted_do_the_same_work():
    """Each thread reserves megabytes of address space for its stack."""
    code = """
import resource, sys
import numpy as np
from xcfast.envs import ClassicControlVecEnv
envs = ClassicControlVecEnv("CartPole-v1", 2048, num_threads=int(sys.argv[1]))
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 28), held + (1 << 28)))
obs, _ = envs.reset(seed=0)
for _ in range(30):
    obs, *_ = envs.step(np.arange(2048) % 2)
print(obs.tobytes().hex())
"""
    outcomes = [limited("-c", code, threads) for threads in ("1", "1024")]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == 0 and len(outcomes[0][1]) > 2048, outcomes[0][2]
