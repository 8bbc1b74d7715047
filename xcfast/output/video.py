"""A video of the best episode: one picture in memory, at most two files on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class BestEpisodeVideo:
    """Writes every episode to a file, and keeps it only if no earlier one had a higher return.

    Args:
        path: where the best episode's video is, from the end of the first episode on.
        fps: pictures per second.

    Attributes:
        episodes: how many have ended.
        best: number of the best one, from 0, and its return; None before the first has ended.

    Raises:
        ImportError: imageio, or the ffmpeg that comes with it, is not installed.
    """

    def __init__(self, path: Path, fps: int) -> None:
        import imageio.v2  # both at once: imageio alone would fail at the first picture
        import imageio_ffmpeg  # noqa: F401

        self._open = imageio.v2.get_writer
        self.path, self._fps = path, fps
        _remove_left_overs(path)
        self._current = path.with_name(f".{path.stem}_{os.getpid()}{path.suffix}")
        self._writer: Any = None
        self.episodes = 0
        self.best: tuple[int, float] | None = None

    def add(self, picture: Any) -> None:
        """Appends a picture, uint8 [height, width, 3], to the episode."""
        if self._writer is None:
            self._writer = self._open(self._current, fps=self._fps, macro_block_size=2)  # h264: even sizes
        self._writer.append_data(picture)

    def end_episode(self, episode_return: float) -> None:
        """Ends the episode."""
        self._close_writer()
        if self.best is None or episode_return > self.best[1]:
            self.best = self.episodes, episode_return
            os.replace(self._current, self.path)
        self.episodes += 1

    def close(self) -> None:
        """Drops what is left of an episode that did not end; calling it again does nothing."""
        self._close_writer()
        self._current.unlink(missing_ok=True)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _remove_left_overs(path: Path) -> None:
    """Delete what processes that were killed while they recorded have left in the folder."""
    if os.name != "posix":  # elsewhere os.kill cannot merely ask
        return
    for left in path.parent.glob(f".{path.stem.partition('_')[0]}*_*{path.suffix}"):
        process = left.stem.rpartition("_")[2]
        if process.isdecimal() and not _lives(int(process)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
