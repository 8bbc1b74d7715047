"""Log writers: what is read back, what a resumed run keeps, and what a full disk may cost."""

import contextlib
import resource
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xcfast.config import Config, load_config
from xcfast.output.files import write_json
from xcfast.output.log_files import RecordFile, truncate_csv, truncate_event_file
from xcfast.output.writers import CsvLog, NullWriter, TensorBoardWriter, make_writer


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def event_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@contextlib.contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes: a write is cut there, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# TensorBoard


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.scalars({"losses/actor_loss": 0.5, "charts/SPS": 1000.0}, step=4096)
    writer.scalars({"charts/SPS": 1250.0}, step=8192)
    writer.close()
    assert read_events(tmp_path) == {
        "losses/actor_loss": [(4096, 0.5)],
        "charts/SPS": [(4096, 1000.0), (8192, 1250.0)],
    }


def test_event_file_begins_with_its_version(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    TensorBoardWriter(tmp_path).close()
    first = next(iter(EventFileLoader(str(event_file(tmp_path))).Load()))
    assert first.file_version == "brain.Event:2"


def test_flush_makes_values_visible_to_readers(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.scalars({"a": 1.0}, step=1)
    writer.flush()
    assert read_events(tmp_path) == {"a": [(1, 1.0)]}
    writer.close()
    writer.close()


def test_many_events_without_a_flush_are_not_held_back(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in range(2500):
        writer.scalars({"a": 1.0}, step)
    assert len(read_events(tmp_path)["a"]) >= 1500
    writer.close()


def test_resume_continues_the_one_event_file(tmp_path: Path) -> None:
    config = Config()
    first = make_writer(config, tmp_path)
    for step in (0, 100, 200, 300):
        first.scalars({"a": float(step)}, step)
    first.close()
    path = event_file(tmp_path)

    second = make_writer(config, tmp_path, resume_step=200)
    second.scalars({"a": 42.0}, 300)
    second.close()
    assert event_file(tmp_path) == path
    assert read_events(tmp_path) == {"a": [(0, 0.0), (100, 100.0), (200, 200.0), (300, 42.0)]}


@pytest.mark.parametrize("lost", [1, 5, 15])
def test_a_half_written_last_event_is_dropped(tmp_path: Path, lost: int) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.scalars({"a": 1.0}, 1)
    writer.scalars({"a": 2.0}, 2)
    writer.close()
    path = event_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])

    writer = TensorBoardWriter(tmp_path)
    writer.scalars({"a": 3.0}, 3)
    writer.close()
    assert read_events(tmp_path) == {"a": [(1, 1.0), (3, 3.0)]}


def test_truncating_stops_at_a_damaged_event(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in (1, 2, 3):
        writer.scalars({"a": float(step)}, step)
    writer.close()
    path = event_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # inside the last event's value
    path.write_bytes(content)
    truncate_event_file(path, 10)
    assert read_events(tmp_path) == {"a": [(1, 1.0), (2, 2.0)]}


def test_a_huge_length_field_is_no_event(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.scalars({"a": 1.0}, 1)
    writer.close()
    path = event_file(tmp_path)
    path.write_bytes(path.read_bytes() + struct.pack("<Q", 2**63) + b"\0" * 8)
    truncate_event_file(path, 10)
    assert read_events(tmp_path) == {"a": [(1, 1.0)]}


def test_failed_truncation_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in range(100):
        writer.scalars({"a" * 1000: 1.0}, step)
    writer.close()
    path = event_file(tmp_path)
    before = path.read_bytes()
    with disk_full_at(50_000), pytest.raises(OSError):
        truncate_event_file(path, 90)
    assert event_file(tmp_path) == path
    assert path.read_bytes() == before


def test_full_disk_costs_no_event_and_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = TensorBoardWriter(tmp_path)
    with disk_full_at(10_000):
        for step in range(40):
            writer.scalars({f"{step:0500d}": 1.0}, step)
            writer.flush()
        stuck = event_file(tmp_path).stat().st_size
        complete = read_events(tmp_path)
    assert stuck < 10_000, "the half-written event was not cut off"
    assert 10 < len(complete) < 40
    writer.scalars({"after": 2.0}, 40)
    writer.close()
    events = read_events(tmp_path)
    assert events == {f"{step:0500d}": [(step, 1.0)] for step in range(40)} | {"after": [(40, 2.0)]}
    err = capsys.readouterr().err
    assert err.count("warning") == 1
    assert str(event_file(tmp_path)) in err


# CSV


def test_csv_has_a_header_and_its_rows(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "learning_curve.csv", ["step", "avg_return"])
    log.write([0, 1.5])
    log.write({"avg_return": -2.0, "step": 4096})
    assert (tmp_path / "learning_curve.csv").read_text() == "step,avg_return\n0,1.5\n4096,-2.0\n"
    log.close()
    log.close()


def test_csv_goes_on_after_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,a\n1,10\n2,2")
    log = CsvLog(path, ["step", "a"])
    log.write([2, 20])
    log.close()
    assert path.read_text() == "step,a\n1,10\n2,20\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [([1], "row must have 2 values; got 1"), ({"step": 1, "b": 2}, "row must have the columns step, a; got step, b")],
)
def test_csv_refuses_a_row_of_other_columns(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CsvLog(tmp_path / "log.csv", ["step", "a"]).write(row)


def test_csv_refuses_a_file_of_other_columns(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,b\n")
    with pytest.raises(ValueError, match=r"other columns: step,b; wanted: step,a"):
        CsvLog(tmp_path / "log.csv", ["step", "a"])


@pytest.mark.parametrize(
    ("content", "step", "kept"),
    [
        ("step,a\n1,10\n2,20\n3,30\n", 2, "step,a\n1,10\n2,20\n"),
        ("a,step\n10,1\n20,2\n", 1, "a,step\n10,1\n"),
        ("step,a\n1,10\n2,2", 5, "step,a\n1,10\n"),
        ("step,a\n1,10\n\0\0\0\n3,30\n", 5, "step,a\n1,10\n"),
        ("step,a\n", 0, "step,a\n"),
        ("step,a\n5,1\n", 0, "step,a\n"),
        ("", 3, ""),
    ],
)
def test_truncate_csv(tmp_path: Path, content: str, step: int, kept: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    truncate_csv(path, step)
    assert path.read_text() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_truncate_csv_names_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column step; it has: a, b"):
        truncate_csv(tmp_path / "log.csv", 1)


def test_full_disk_costs_no_row_and_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, ["step", "text"])
    rows = [(step, "x" * 300) for step in range(20)]
    with disk_full_at(2000):
        for row in rows:
            log.write(row)
        assert path.read_text().endswith("x\n"), "half a row was left behind"
        assert path.stat().st_size < 2000
    log.flush()
    log.close()
    assert path.read_text() == "step,text\n" + "".join(f"{step},{text}\n" for step, text in rows)
    assert capsys.readouterr().err.count("warning") == 1


def test_a_device_that_is_always_full(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    log = CsvLog("/dev/full", ["step"])
    for step in range(5):
        log.write([step])
    log.close()
    err = capsys.readouterr().err
    assert err.count("warning: cannot write /dev/full") == 1
    assert "No space left" in err


def test_the_warning_may_go_to_the_same_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``2> train.log`` beside the logs."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    errors = open("/dev/full", "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", errors)
    log = CsvLog("/dev/full", ["step"])
    log.write([1])
    log.close()
    write_json(Path("/dev/full/summary.json"), {})
    with contextlib.suppress(OSError):
        errors.close()


def test_a_folder_that_cannot_be_written_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RecordFile(tmp_path / "missing" / "log")
    file.append(b"one\n")
    assert file.flush() is False
    (tmp_path / "missing").mkdir()
    file.append(b"two\n")
    assert file.flush() is True
    assert (tmp_path / "missing" / "log").read_bytes() == b"one\ntwo\n"
    file.close()
    assert capsys.readouterr().err.count("warning") == 1


# make_writer


def test_logger_none_writes_nothing(tmp_path: Path) -> None:
    writer = make_writer(Config(logger="none"), tmp_path)
    writer.scalars({"a": 1.0}, 1)
    writer.flush()
    writer.close()
    assert isinstance(writer, NullWriter)
    assert list(tmp_path.iterdir()) == []


def test_wandb_gets_the_project_the_keys_and_one_call_per_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class FakeRun:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append(("log", (values, step)))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(**arguments: Any) -> FakeRun:
        calls.append(("init", arguments))
        return FakeRun()

    fake = types.ModuleType("wandb")
    monkeypatch.setattr(fake, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = load_config(None, {"logger": "wandb", "project_name": "ants", "env_id": "Ant-v4"})
    writer = make_writer(config, tmp_path / "seed_1_2026")
    writer.scalars({"a": 1.0, "b": 2.0}, 7)
    writer.close()
    writer.close()

    arguments = calls[0][1]
    assert (arguments["project"], arguments["entity"], arguments["name"]) == ("ants", None, "seed_1_2026")
    assert arguments["id"] == "Ant-v4-seed_1_2026"
    assert arguments["config"] == config.to_dict()
    assert calls[1:] == [("log", ({"a": 1.0, "b": 2.0}, 7)), ("finish", None)]
