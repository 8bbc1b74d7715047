"""Log writers: TensorBoard event files, wandb, CSV. On a full disk, lines of the log are lost, but the run goes on."""

import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xcfast.output.log_files import (
    EVENT_PREFIX,
    RecordFile,
    csv_line,
    csv_lines,
    event_files,
    event_record,
    event_records,
    truncate_csv,
    truncate_event_file,
)

if TYPE_CHECKING:
    from xcfast.config import Config

__all__ = [
    "CsvLog",
    "NullWriter",
    "TensorBoardWriter",
    "WandbWriter",
    "Writer",
    "make_writer",
    "truncate_csv",
    "truncate_event_file",
]


class Writer(Protocol):
    """The interface of a log writer, which takes scalars."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs `values` (tag -> number) at environment step `step`."""

    def flush(self) -> None:
        """Hands everything to the operating system."""

    def close(self) -> None:
        """Flushes and ends; calling it again does nothing."""


class TensorBoardWriter:
    """Writes TensorBoard's event format, without TensorFlow, torch or a thread.

    Args:
        log_dir: Folder of the run, created if missing. An existing event file is continued, so that a resumed run has
            one.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        files = event_files(folder)
        sound = 0
        if files:
            self.path = files[-1]
            sound = sum(len(record) for record, _ in event_records(self.path))
        else:
            host = re.sub(r"[^\w.-]", "_", socket.gethostname()) or "localhost"
            self.path = folder / f"{EVENT_PREFIX}{int(time.time()):010d}.{host}.{os.getpid()}.0"
        self._file = RecordFile(self.path, sound)
        if sound == 0:
            self._file.append(event_record(_event(time.time(), 0, file_version="brain.Event:2")))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs `values` (tag -> number) at environment step `step`, as one event."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()])
        self._file.append(event_record(_event(time.time(), step, summary=summary)))

    def flush(self) -> None:
        """Hands everything to the operating system. On a full disk, the next flush tries again."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and ends; calling it again does nothing."""
        self._file.close()


class WandbWriter:
    """Sends scalars to Weights & Biases, in one call for each step's values.

    Args:
        config: `project_name` and `wandb_user_name` choose the project; all keys are stored with the run.
        log_dir: Folder of the run; its name and parent identify the run, so that a resumed run continues it.
    """

    def __init__(self, config: "Config", log_dir: str | os.PathLike[str]) -> None:
        import wandb

        folder = Path(log_dir).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        entity = None if config.wandb_user_name == "your_user_name" else config.wandb_user_name
        self._run: Any = wandb.init(
            project=config.project_name,
            entity=entity,
            dir=str(folder),
            name=folder.name,
            id=re.sub(r"[^\w-]", "_", f"{config.env_id}-{folder.name}"),
            resume="allow",
            config=config.to_dict(),
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs `values` (tag -> number) at environment step `step`."""
        if self._run is not None:
            self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Does nothing: wandb sends by itself."""

    def close(self) -> None:
        """Ends the run in wandb; calling it again does nothing."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()


class NullWriter:
    """The writer of `logger: none`, which writes nothing."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class CsvLog:
    """A CSV file to which rows are appended, each written at once.

    Args:
        path: The file. An existing one is continued, without a last line that was cut short.
        columns: Names of the columns, the header of a new file.

    Raises:
        ValueError: If the file exists with other columns.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = tuple(columns)
        header = csv_line(self.columns)
        lines = csv_lines(self.path)
        if lines and lines[0].rstrip(b"\r\n") != header.rstrip(b"\r\n"):
            raise ValueError(
                f"{self.path} has other columns: {lines[0].decode().strip()}; wanted: {header.decode().strip()}"
            )
        self._file = RecordFile(self.path, sum(map(len, lines)))
        if not lines:
            self._file.append(header)

    def write(self, row: Sequence[Any] | Mapping[str, Any]) -> None:
        """Appends a row, in the order of the columns or by name.

        Raises:
            ValueError: If it does not have exactly these columns.
        """
        if isinstance(row, Mapping):
            if set(row) != set(self.columns):
                raise ValueError(f"row must have the columns {', '.join(self.columns)}; got {', '.join(row)}")
            row = [row[name] for name in self.columns]
        if len(row) != len(self.columns):
            raise ValueError(f"row must have {len(self.columns)} values; got {len(row)}")
        self._file.append(csv_line(row))
        self._file.flush()

    def flush(self) -> None:
        """Writes again what did not fit on a full disk."""
        self._file.flush()

    def close(self) -> None:
        """Ends; calling it again does nothing."""
        self._file.close()


def make_writer(config: "Config", log_dir: str | os.PathLike[str], resume_step: int | None = None) -> Writer:
    """Makes the writer that the key `logger` names.

    Args:
        config: The run's configuration.
        log_dir: Folder of the run.
        resume_step: Step of the checkpoint of a resumed run. Later events are removed.
    """
    if config.logger == "none":
        return NullWriter()
    if config.logger == "wandb":
        return WandbWriter(config, log_dir)
    if resume_step is not None:
        for path in event_files(log_dir):
            truncate_event_file(path, resume_step)
    return TensorBoardWriter(log_dir)


def _event(wall_time: float, step: int, **content: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=wall_time, step=step, **content).SerializeToString()
