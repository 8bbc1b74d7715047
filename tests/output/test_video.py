"""Test mode with ``render``: a video of the best episode, or a window."""

import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from xcfast import run
from xcfast.output.video import BestEpisodeVideo


def pictures_of(video: Path, width: int, height: int) -> np.ndarray:
    """The pictures of a video, uint8 [n, height, width, 3]."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video)]
    raw = subprocess.run([*ffmpeg, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@pytest.fixture
def test_the_model(small, tmp_path):
    """Trains a little; then tests the model by the command line and returns what it printed, and the run's folder."""
    summary = run(small(env_id="toys:toy/Shown-v0", running_steps=128, logger="none"), mode="train", quiet=True)

    def test(*keys: str, **environ: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        inherited = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
        command = [sys.executable, "-m", "xcfast.train", "--resume", summary.log_dir, "--benchmark", "0", "--test", "1"]
        done = subprocess.run(
            [*command, "render=True", "test_episode=3", *keys],
            env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return done, Path(summary.log_dir)

    return test


def test_the_video_is_of_the_best_episode_only(test_the_model):
    done, folder = test_the_model()
    assert done.returncode == 0, done.stderr
    (video,) = [path for path in folder.iterdir() if path.suffix == ".mp4"]
    assert f"recording 3 episodes, one after the other, into {video}" in done.stdout
    assert f"video {video} (the best of 3 episodes: number 2, return 15.00)" in done.stdout
    pictures = pictures_of(video, 48, 34)
    assert len(pictures) == 10  # one for each step of that episode
    assert (pictures.mean((1, 2)).argmax(-1) == 1).all()  # green


def test_a_window_shows_every_step(test_the_model, tmp_path):
    window = tmp_path / "window.txt"
    done, folder = test_the_model("render_mode=human", DISPLAY=":nowhere", TOY_WINDOW=str(window))
    assert done.returncode == 0, done.stderr
    assert "Mean Score: 10.00" in done.stdout and "video" not in done.stdout + done.stderr
    episodes = window.read_text().split()
    assert [episodes.count(number) for number in ("0", "1", "2")] == [11, 10, 10]  # one frame to see whether it can
    assert not list(folder.glob("*.mp4"))


def test_without_ffmpeg_it_says_what_to_install(small, monkeypatch, capsys):
    monkeypatch.setattr("xcfast.runs.testing.find_backend", lambda *_: (None, None))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    config = small(env_id="toys:toy/Shown-v0", running_steps=128, logger="none", render=True)
    summary = run(config, mode="train", quiet=True)
    assert run(config, mode="test", quiet=True).final_mean == 5.0  # each episode in an env of its own
    assert capsys.readouterr().err == 'no video: imageio_ffmpeg is missing; pip install "xcfast[video]"\n'
    assert not list(Path(summary.log_dir).glob("*.mp4"))


def test_an_episode_that_did_not_end_leaves_nothing(tmp_path):
    video = BestEpisodeVideo(tmp_path / "test.mp4", fps=10)
    video.add(np.zeros((32, 32, 3), np.uint8))
    video.close()
    video.close()
    assert video.best is None and not list(tmp_path.iterdir())


def test_the_first_of_equal_episodes_is_kept(tmp_path):
    video = BestEpisodeVideo(tmp_path / "test.mp4", fps=10)
    for length, episode_return in ((2, -5.0), (3, -1.0), (4, -1.0), (5, -2.0)):
        for _ in range(length):
            video.add(np.zeros((32, 32, 3), np.uint8))
        video.end_episode(episode_return)
    video.close()
    assert video.best == (1, -1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["test.mp4"]
    assert len(pictures_of(tmp_path / "test.mp4", 32, 32)) == 3


def test_what_a_killed_recording_left_is_removed_by_the_next(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".test_2026_0714_101500_{ended.pid}.mp4"
    of_the_living = tmp_path / f".test_2026_0714_101500_{os.getppid()}.mp4"
    others = [tmp_path / f".notes_{ended.pid}.mp4", tmp_path / f"test_{ended.pid}.mp4"]
    for path in (left, of_the_living, *others):
        path.write_bytes(b"")
    BestEpisodeVideo(tmp_path / "test_2026_0715_101500.mp4", fps=10).close()
    assert sorted(tmp_path.iterdir()) == sorted([of_the_living, *others])
