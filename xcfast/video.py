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
        best: number of the best episode, from 0, and its return; None before the first has ended.

    Raises:
        ImportError: imageio, or the ffmpeg that comes with it, is not installed.
    """

    def __init__(self, path: Path, fps: int) -> None:
        import imageio.v2  # both at once: imageio alone would fail at the first picture
        import imageio_ffmpeg  # noqa: F401

        self._open = imageio.v2.get_writer
        self.path, self._fps = path, fps
        self._current = path.with_name(f".{path.stem}_{os.getpid()}{path.suffix}")
        self._writer: Any = None
        self._episodes = 0
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
            self.best = self._episodes, episode_return
            os.replace(self._current, self.path)
        self._episodes += 1

    def close(self) -> None:
        """Drops what is left of an episode that did not end; calling it again does nothing."""
        self._close_writer()
        self._current.unlink(missing_ok=True)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
