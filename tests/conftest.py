"""Shared helpers: a small configuration that trains in a second or two."""

import os
import signal

import pytest
import torch
from small_config import SMALL

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run in its interpreter; it decides when they are imported


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script's shell ignores SIGINT in its background jobs, and their children inherit that. Tests send SIGINT to
    # themselves and to their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def small(tmp_path):
    """``small(**keys)``: the small configuration, with its output under the test's own folder."""
    from xcfast import load_config

    def make(**keys):
        folders = {"log_dir": str(tmp_path / "logs"), "model_dir": str(tmp_path / "models")}
        return load_config(overrides={**SMALL, **folders, **keys})

    return make


@pytest.fixture(autouse=True)
def _one_torch_thread():
    """Tests compare bits: torch on the CPU is reproducible at a fixed number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory):
    """Two seeds of the small configuration, trained once for the tests of the tools: their summaries."""
    from xcfast import load_config, run

    folder = tmp_path_factory.mktemp("tiny")
    folders = {"log_dir": str(folder / "logs"), "model_dir": str(folder / "models")}
    return [
        run(load_config(overrides={**SMALL, **folders, "seed": seed, "env_seed": seed}), quiet=True) for seed in (1, 2)
    ]
