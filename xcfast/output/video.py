"""Plays one episode, and records it to an mp4 file: with one frame in memory, and one temporary file on the disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from xcfast.errors import EnvError
from xcfast.output.console import ProgressBar

Act = Callable[[Any, dict[str, Any]], Any]
"""A deterministic policy: takes an observation and its info, and returns an action, in the environment's own form."""

DEFAULT_FPS = 30.0  #: for an environment without `render_fps`


@dataclass(frozen=True)
class Episode:
    """One episode that was played.

    Attributes:
        seed: The seed of the reset that began it, or None.
        episode_return: Sum of its raw rewards.
        length: Number of its steps.
    """

    seed: int | None
    episode_return: float
    length: int


class Stopped(Exception):
    """`should_stop` returned True before the episode ended."""


def play_episode(
    env: gymnasium.Env[Any, Any],
    act: Act,
    *,
    seed: int | None = None,
    max_steps: int | None = None,
    on_frame: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Episode:
    """Plays one episode in one environment.

    Args:
        env: The environment.
        act: The policy.
        seed: Seed of the reset.
        max_steps: Number of steps after which the episode is cut; None never cuts it.
        on_frame: Called with the number of steps made: 0 after the reset, then after each step.
        should_stop: Called before each step; True ends the episode.

    Raises:
        Stopped: `should_stop` returned True.
    """
    obs, info = env.reset(seed=seed)
    episode_return, length, done = 0.0, 0, False
    if on_frame is not None:
        on_frame(0)
    while not done:
        if should_stop():
            raise Stopped
        obs, reward, terminated, truncated, info = env.step(act(obs, info))
        episode_return += float(reward)
        length += 1
        done = bool(terminated or truncated or length == max_steps)
        if on_frame is not None:
            on_frame(length)
    return Episode(seed, episode_return, length)


def record_episode(
    env: gymnasium.Env[Any, Any],
    act: Act,
    path: Path,
    fps: float,
    *,
    seed: int | None = None,
    max_steps: int | None = None,
    length: int | None = None,
    progress: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Episode:
    """Plays one episode and writes it to an mp4 file, which appears at `path` only when it is complete.

    The file has a frame of the first observation and one after each step. Temporary files of earlier recordings that
    were killed are removed from the folder.

    Args:
        env: An environment that was made with `render_mode="rgb_array"`.
        act: The policy.
        path: The file to write; its folder exists.
        fps: Frames per second.
        seed: Seed of the reset.
        max_steps: Number of steps after which the episode is cut; None never cuts it.
        length: Expected number of steps, for the progress bar.
        progress: Whether to show a progress bar, where stdout is a terminal.
        should_stop: Called before each step; True ends the recording and leaves no file.

    Returns:
        The episode, whose return differs from an earlier one with the same seed if the environment or the policy is
        not deterministic.

    Raises:
        ImportError: The package imageio-ffmpeg is not installed.
        EnvError: The environment does not render frames of one size, uint8 [height, width, 3].
        OSError: The file cannot be written.
        Stopped: `should_stop` returned True.
    """
    with ProgressBar(length or 0, 0, progress) as bar, _video_file(path, fps) as write:

        def on_frame(step: int) -> None:
            write(env.render())
            bar.update(step, ())

        return play_episode(env, act, seed=seed, max_steps=max_steps, on_frame=on_frame, should_stop=should_stop)


def frames_per_second(env: gymnasium.Env[Any, Any], fps: float | None = None) -> float:
    """Returns `fps` if it is a number, else the environment's own `render_fps`, else `DEFAULT_FPS`.

    Args:
        env: The environment.
        fps: Frames per second that the user has chosen, or None.
    """
    if fps is not None:
        return float(fps)
    own = env.metadata.get("render_fps")
    return float(own) if isinstance(own, int | float) and 0 < own < float("inf") else DEFAULT_FPS


@contextlib.contextmanager
def _video_file(path: Path, fps: float) -> Iterator[Callable[[Any], None]]:
    """Yields a function that appends one frame; the file is moved to `path` at the end, or removed on an error."""
    import imageio_ffmpeg

    _remove_left_overs(path)
    temporary = path.with_name(f".{path.stem}_{os.getpid()}{path.suffix}")
    temporary.touch()  # an error here is clearer than the encoder's
    encoder: Any = None
    shape: tuple[int, ...] | None = None
    written = 0

    def write(frame: Any) -> None:
        nonlocal encoder, shape, written
        even = _even(frame)
        if encoder is None:
            shape = even.shape
            size = (shape[1], shape[0])
            encoder = imageio_ffmpeg.write_frames(
                temporary, size, fps=fps, macro_block_size=2, ffmpeg_log_level="error"
            )
            encoder.send(None)
        elif even.shape != shape:
            raise EnvError(f"render() must return frames of one size; got {shape} first, then {even.shape}")
        try:
            encoder.send(even)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise OSError(f"{path} cannot be written: the encoder has ended ({reason})") from None
        written += 1

    try:
        yield write
        if encoder is not None:
            encoder.close()
            _check_complete(temporary, path, written)
            os.replace(temporary, path)
    finally:
        if encoder is not None:
            encoder.close()
        temporary.unlink(missing_ok=True)


def _check_complete(temporary: Path, path: Path, written: int) -> None:
    """Counts the frames in a file, since the encoder does not tell whether it could write them all.

    Raises:
        OSError: Some frames are missing, as on a full disk.
    """
    import imageio_ffmpeg

    try:
        found = imageio_ffmpeg.count_frames_and_secs(temporary)[0]
    except RuntimeError:
        found = 0
    if found != written:
        raise OSError(f"{path} cannot be written: {found} of {written} frames have reached the disk")


def _even(frame: Any) -> NDArray[np.uint8]:
    """Returns a frame with even height and width, which the codec needs: an odd edge is repeated once.

    Raises:
        EnvError: It is not a picture.
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        given = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise EnvError(f"render() must return a picture, uint8 [height, width, 3]; got {given}")
    height, width, _ = frame.shape
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)


def _remove_left_overs(path: Path) -> None:
    """Removes the temporary files of recordings whose process was killed."""
    if os.name != "posix":  # elsewhere os.kill(process, 0) would end the process
        return
    for left in path.parent.glob(f".{path.stem.partition('_')[0]}*_*{path.suffix}"):
        process = left.stem.rpartition("_")[2]
        if process.isdecimal() and not _lives(int(process)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Returns whether a process with this id exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user
        return True
    return True
