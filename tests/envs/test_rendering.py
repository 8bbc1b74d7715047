"""Rendering where it cannot be had: one sentence, and the test of the model goes on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xcfast.runs.run import run

BROKEN_LIBRARY = "raise AttributeError(\"'NoneType' object has no attribute 'glGetError'\")\n"


@pytest.fixture
def test_the_model(small, tmp_path: Path):
    """Trains a little; then tests the model by the command line, in a process with the given environment."""
    summary = run(small(running_steps=128, logger="none"), mode="train", quiet=True)
    (tmp_path / "OpenGL").mkdir()  # PyOpenGL on a machine without the C library that it loads
    (tmp_path / "OpenGL" / "__init__.py").write_text(BROKEN_LIBRARY)

    def test(*keys: str, **environ: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
        inherited.pop("MUJOCO_GL", None)
        path = os.pathsep.join([str(tmp_path), *sys.path])
        command = [sys.executable, "-m", "xcfast.train", "--resume", summary.log_dir, "--benchmark", "0", "--test", "1"]
        return subprocess.run(
            [*command, "render=True", *keys],
            env={**inherited, "PYTHONPATH": path, **environ},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return test


@pytest.mark.parametrize(
    ("key", "environ", "words"),
    [
        ("render_mode=human", {}, "no window: there is no display"),
        ("render_mode=rgb_array", {"MUJOCO_GL": "osmesa"}, "no video: .*apt-get install libosmesa6"),
        ("render_mode=rgb_array", {"MUJOCO_GL": "nonsense"}, "no video: .*unset MUJOCO_GL=nonsense"),
        ("render_mode=rgb_array", {}, "no video: .*apt-get install libegl1"),
    ],
)
def test_a_test_goes_on_without_rendering(test_the_model, key: str, environ: dict[str, str], words: str) -> None:
    result = test_the_model(key, **environ)
    assert result.returncode == 0, result.stderr
    assert "Mean Score" in result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("no ")]
    assert len(lines) == 1 and re.match(words, lines[0]), result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr


def test_training_with_a_broken_library_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "OpenGL").mkdir()
    (tmp_path / "OpenGL" / "__init__.py").write_text(BROKEN_LIBRARY)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "MUJOCO_GL": "osmesa"}
    code = "from xcfast.envs import make_env_fn; make_env_fn('InvertedPendulum-v4')()"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    last = result.stderr.splitlines()[-1]
    assert last.startswith("xcfast.errors.EnvError: env_id 'InvertedPendulum-v4' cannot be made: MuJoCo cannot be")
    assert "apt-get install libosmesa6" in last
