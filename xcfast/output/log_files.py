"""Log files that survive a full disk and a resumed run.

A file consists of whole records. The rest of a failed write is cut off before anything is appended, and the records
that did not fit are written again with the next ones. For a resumed run, a file is cut back to the checkpoint's
step.
"""

import contextlib
import csv
import io
import os
import struct
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

EVENT_PREFIX = "events.out.tfevents."
_FLUSH_EVERY = 1000  # records
_MAX_PENDING = 100_000  # records kept for a disk that may have room again


class RecordFile:
    """An append-only file that holds whole records, even after a write that failed.

    Args:
        path: The file. It is created when the first record is written.
        good_size: Length of the part to keep, in bytes. The rest is cut off.
    """

    def __init__(self, path: Path, good_size: int = 0) -> None:
        self.path = path
        self._good_size = good_size
        self._dirty = path.is_file() and path.stat().st_size != good_size  # there may be more than good_size
        self._unflushed = 0
        self._pending: deque[bytes] = deque(maxlen=_MAX_PENDING)
        self._file: io.FileIO | None = None
        self._warned = False

    def append(self, record: bytes) -> None:
        """Adds a record to those that the next flush writes. After many records it flushes at once."""
        self._pending.append(record)
        self._unflushed += 1
        if self._unflushed >= _FLUSH_EVERY:
            self.flush()

    def flush(self) -> bool:
        """Writes what is pending. Returns False where the disk refuses, and warns the first time."""
        self._unflushed = 0
        if not self._pending and not self._dirty:
            return True
        try:
            if self._file is None:
                self._file = open(self.path, "ab", buffering=0)
            if self._dirty:
                self._cut()
            batch = memoryview(b"".join(self._pending))
            self._dirty = True
            written = 0
            while written < len(batch):
                written += self._file.write(batch[written:]) or 0
            self._dirty = False
            self._good_size += len(batch)
            self._pending.clear()
        except OSError as error:
            with contextlib.suppress(OSError):  # cut off now, since others may read the file or need the space
                self._cut()
            if not self._warned:
                self._warned = True
                with contextlib.suppress(OSError):  # it may be a file on the same disk
                    print(f"xcfast: warning: cannot write {self.path}: {error}; the run goes on", file=sys.stderr)
            return False
        return True

    def _cut(self) -> None:
        if self._file is not None:
            self._file.truncate(self._good_size)
            self._dirty = False

    def close(self) -> None:
        """Flushes and closes. What still does not fit is lost."""
        self.flush()
        self._pending.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):  # where the system has put off writing until now
                self._file.close()
            self._file = None


def event_files(log_dir: str | os.PathLike[str]) -> list[Path]:
    """Returns the event files of a folder, the oldest first."""
    return sorted(path for path in Path(log_dir).glob(f"{EVENT_PREFIX}*") if not path.name.endswith(".tmp"))


def truncate_event_file(path: str | os.PathLike[str], step: int) -> None:
    """Drops the events after environment step `step`, and a damaged tail; the file is replaced at once or not at all.

    Events without a step (the file's version) stay.

    Raises:
        OSError: If the file cannot be read, or its replacement cannot be written. The file has not changed then.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    kept = []
    for record, payload in event_records(Path(path)):
        event = Event.FromString(payload)
        if not event.HasField("summary") or event.step <= step:
            kept.append(record)
    _replace(Path(path), b"".join(kept))


def truncate_csv(path: str | os.PathLike[str], step: int, column: str = "step") -> None:
    """Drops the rows whose `column` is beyond `step`, and a damaged tail; the file is replaced at once or not at all.

    Raises:
        OSError: If the file cannot be read, or its replacement cannot be written. The file has not changed then.
        ValueError: If there is no such column.
    """
    lines = csv_lines(Path(path))
    if not lines:
        return
    header = next(csv.reader([lines[0].decode()]))
    if column not in header:
        raise ValueError(f"{os.fspath(path)} has no column {column}; it has: {', '.join(header)}")
    index = header.index(column)
    kept = [lines[0]]
    for line in lines[1:]:
        try:
            row_step = float(next(csv.reader([line.decode()]))[index])
        except (ValueError, IndexError, csv.Error):  # damaged, as by a power cut; so is what follows
            break
        if row_step <= step:
            kept.append(line)
    _replace(Path(path), b"".join(kept))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def csv_line(values: Sequence[Any]) -> bytes:
    """Returns `values` as one line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def csv_lines(path: Path) -> list[bytes]:
    """Returns the complete lines of a file; an empty list if it does not exist."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def event_record(payload: bytes) -> bytes:
    """Returns a record of the TFRecord format: length, its checksum, payload, its checksum."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc32c(length)) + payload + struct.pack("<I", masked_crc32c(payload))


def event_records(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields the sound records of an event file with their payloads, up to the first damaged one."""
    content = path.read_bytes()
    start = 0
    while start + 12 <= len(content):
        end = start + 16 + int(struct.unpack_from("<Q", content, start)[0])
        payload = content[start + 12 : end - 4]
        if end > len(content) or event_record(payload) != content[start:end]:
            return
        yield content[start:end], payload
        start = end
