"""Videos: one episode in a file, and test mode with ``render``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest

from xcfast import run
from xcfast.envs import make_env_fn
from xcfast.errors import EnvError
from xcfast.output.video import (
    Episode,
    Stopped,
    frames_per_second,
    play_episode,
    record_episode,
)


def pictures_of(video: Path, width: int, height: int) -> np.ndarray:
    """The pictures of a video, uint8 [n, height, width, 3]."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video)]
    raw = subprocess.run([*ffmpeg, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@pytest.fixture
def test_the_model(small, tmp_path):
    """Trains a little; then tests the model by the command line and returns what it printed, and the run's folder."""

    def test(
        *keys: str, env_id: str = "toys:toy/Shown-v0", **environ: str
    ) -> tuple[subprocess.CompletedProcess[str], Path]:
        summary = run(small(env_id=env_id, running_steps=128, logger="none"), mode="train", quiet=True)
        inherited = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
        command = [sys.executable, "-m", "xcfast.train", "--resume", summary.log_dir]
        command += ["--benchmark", "0", "--test", "1", "--allow-module", "toys"]
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
    """Color and return follow from the seed, of which an evaluation has another one for each episode."""
    done, folder = test_the_model(env_id="toys:toy/Colored-v0")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    scores = [float(score) for score in re.search(r"scores \[(.*)\]", done.stdout).group(1).split()]
    best = int(np.argmax(scores))
    (video,) = [path for path in folder.iterdir() if path.suffix == ".mp4"]
    line = f"(the best of 3 episodes: number {best + 1}, return {scores[best]:.2f}; 10 frames per second)"
    assert f"video {video} {line}" in done.stdout
    pictures = pictures_of(video, 48, 34)
    assert len(pictures) == 11  # the first observation, and one after each step
    color = (5.0, 15.0, 10.0).index(scores[best])
    assert len(set(scores)) > 1 and (pictures.mean((1, 2)).argmax(-1) == color).all()


def test_a_replay_that_differs_is_told(test_the_model):
    """The second and best episode of an environment that goes by its number of episodes, whatever the seed."""
    done, folder = test_the_model()
    assert "number 2, return 5.00" in done.stdout
    assert "warning: the video shows a return of 5.00, the episode that was played had 15.00" in done.stderr
    assert len(list(folder.glob("*.mp4"))) == 1


def test_a_renderer_that_breaks_costs_the_video_but_not_the_scores(test_the_model):
    done, folder = test_the_model(env_id="toys:toy/BreaksWhenRendered-v0")
    assert done.returncode == 0 and "Mean Score: 10.00" in done.stdout
    assert done.stderr == "no video: the sprites are missing\n"
    assert not list(folder.glob("*.mp4")) and not list(folder.glob(".*"))


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


def test_what_a_killed_recording_left_is_removed_by_the_next(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".test_2026_0714_101500_{ended.pid}.mp4"
    of_the_living = tmp_path / f".test_2026_0714_101500_{os.getppid()}.mp4"
    others = [tmp_path / f".notes_{ended.pid}.mp4", tmp_path / f"test_{ended.pid}.mp4"]
    for path in (left, of_the_living, *others):
        path.write_bytes(b"")
    video = tmp_path / "test_2026_0715_101500.mp4"
    record_episode(shown(), no_force, video, 10)
    assert sorted(tmp_path.iterdir()) == sorted([of_the_living, video, *others])


def shown(**kwargs):
    """Frames of 33 x 48 and returns of 5, 15 and 10 in turn, in episodes of 10 steps."""
    return make_env_fn("toys:toy/Shown-v0", render_mode="rgb_array", **kwargs)()


def no_force(obs, info):
    return np.zeros(1, np.float32)


@pytest.mark.filterwarnings("error")
def test_a_recording_has_a_frame_of_every_observation(tmp_path, capfd):
    env = shown()
    assert play_episode(env, no_force, seed=3) == Episode(3, 5.0, 10)
    video = tmp_path / "test.mp4"
    assert record_episode(env, no_force, video, 10, seed=4, length=10) == Episode(4, 15.0, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["test.mp4"]
    pictures = pictures_of(video, 48, 34)  # an odd height: the last row twice
    assert len(pictures) == 11
    assert (pictures.mean((1, 2)).argmax(-1) == 1).all()  # green, as all of that row
    assert abs(pictures[0, -1].astype(int) - pictures[0, -2]).max() <= 2
    assert "".join(capfd.readouterr()) == ""


def test_the_replay_of_a_seed_is_the_episode_that_was_played(tmp_path):
    """A pendulum, where each reset and each action decides what comes next; frames of 500 x 500 by pygame."""

    def push(obs, info):
        return np.clip(3.0 * obs[1:2] - obs[2:3], -2.0, 2.0).astype(np.float32)

    plain = gymnasium.make("Pendulum-v1", max_episode_steps=25)
    played = [play_episode(plain, push, seed=seed) for seed in (5, 6, 7)]
    best = max(played, key=lambda episode: episode.episode_return)
    renders = gymnasium.make("Pendulum-v1", max_episode_steps=25, render_mode="rgb_array")
    assert record_episode(renders, push, tmp_path / "test.mp4", 30, seed=best.seed) == best
    assert len(pictures_of(tmp_path / "test.mp4", 500, 500)) == 26


def test_the_frame_rate_is_the_environments_own_unless_one_was_chosen():
    env = shown()
    assert frames_per_second(env) == 10
    assert frames_per_second(env, 50) == 50
    assert frames_per_second(make_env_fn("toys:toy/RewardOne-v0")()) == 30


def test_the_video_has_the_frame_rate(tmp_path):
    record_episode(shown(), no_force, tmp_path / "test.mp4", 4, seed=0)
    reader = imageio_ffmpeg.read_frames(tmp_path / "test.mp4")
    about = next(reader)
    reader.close()
    assert about["fps"] == 4 and about["duration"] == pytest.approx(11 / 4, abs=0.1)


class Frames(gymnasium.Wrapper):
    """Renders what it was given, one after the other."""

    def __init__(self, *frames):
        super().__init__(shown())
        self.frames = iter(frames)

    def render(self):
        return next(self.frames)


@pytest.mark.parametrize(
    ("frames", "given"),
    [
        ([None], "got NoneType"),
        ([[np.zeros((8, 8, 3), np.uint8)]], "got list"),
        ([np.ones((64, 64, 64))], r"got float64 \[64, 64, 64\]"),
        ([np.zeros((8, 8), np.uint8)], r"got uint8 \[8, 8\]"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], r"frames of one size; got \(8, 8, 3\) first"),
    ],
)
def test_frames_that_are_no_pictures_are_refused(frames, given, tmp_path):
    with pytest.raises(EnvError, match=given):
        record_episode(Frames(*frames), no_force, tmp_path / "test.mp4", 10, seed=0)
    assert not list(tmp_path.iterdir())


def test_a_recording_that_is_stopped_or_fails_leaves_no_file(tmp_path):
    answers = iter([False] * 5)
    with pytest.raises(Stopped):
        record_episode(shown(), no_force, tmp_path / "a.mp4", 10, should_stop=lambda: next(answers, True))

    def fails(obs, info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_episode(shown(), fails, tmp_path / "b.mp4", 10)
    assert not list(tmp_path.iterdir())


def test_a_file_that_lacks_frames_is_no_video(tmp_path, monkeypatch):
    """As on a disk that is full before the encoder has written the end of the file."""
    write_frames = imageio_ffmpeg.write_frames

    def cut_at_the_end(path, *args, **kwargs):
        try:
            yield from write_frames(path, *args, **kwargs)
        finally:
            os.truncate(path, os.path.getsize(path) // 2)

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", cut_at_the_end)
    with pytest.raises(OSError, match=r"test.mp4 cannot be written: 0 of 11 frames have reached the disk"):
        record_episode(shown(), no_force, tmp_path / "test.mp4", 10, seed=0)
    assert not list(tmp_path.iterdir())


def test_a_terminal_shows_how_far_a_recording_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    record_episode(shown(), no_force, tmp_path / "a.mp4", 10, length=10)
    assert "10.0/10.0" in capsys.readouterr().out
    record_episode(shown(), no_force, tmp_path / "b.mp4", 10, length=10, progress=False)
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing/\.test_\d+\.mp4"):
        record_episode(shown(), no_force, tmp_path / "missing" / "test.mp4", 10)


KILLED = """
import sys, time
from pathlib import Path
from xcfast.envs import make_env_fn
from xcfast.output.video import record_episode

steps = 0
def act(obs, info):
    global steps
    steps += 1
    if steps == 5:
        while not sum(path.stat().st_size for path in Path(sys.argv[1]).parent.iterdir()):
            time.sleep(0.01)
        print("recording", flush=True)
        time.sleep(60)
    return [0.0]

record_episode(make_env_fn("toys:toy/Shown-v0", render_mode="rgb_array")(), act, Path(sys.argv[1]), 10)
"""


def test_the_next_recording_removes_what_a_killed_one_left(tmp_path):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    first = tmp_path / "test_2026_0714_101500.mp4"
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(first)], stdout=subprocess.PIPE, env=environ)
    assert killed.stdout.readline() == b"recording\n"
    killed.kill()
    killed.wait(timeout=20)
    killed.stdout.close()
    assert not first.exists()
    second = tmp_path / "test_2026_0714_101600.mp4"
    record_episode(shown(), no_force, second, 10)
    assert list(tmp_path.iterdir()) == [second]
