import errno
import os
import pickle

import numpy as np
import pytest
import torch

from xcfast import load_config
from xcfast.errors import CheckpointError
from xcfast.output import checkpoint as ckpt
from xcfast.output.checkpoint import load_checkpoint, save_checkpoint
from xcfast.output.folders import RunFolders

NEEDED = {
    "config": {},
    "step": 4096,  # one iteration of the default configuration: 16 environments, 256 steps
    "iteration": 1,
    "policy": {},
    "obs_normalizer": {"rms": {"mean": np.zeros(3), "var": np.ones(3), "count": 0}},
}
STATE = {
    **NEEDED,
    "numbers": [1, 2.5, True, None, "text", 2**127 + 1],
    "arrays": {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False]), "scalar": np.float64(3.5)},
    "tensor": torch.arange(4, dtype=torch.float32),
}


def test_round_trip(tmp_path):
    path = tmp_path / "checkpoint_1.pth"
    save_checkpoint(path, STATE)
    state = load_checkpoint(path)
    assert state["numbers"] == STATE["numbers"]
    np.testing.assert_array_equal(np.asarray(state["arrays"]["a"]), STATE["arrays"]["a"])
    assert np.asarray(state["arrays"]["b"]).tolist() == [True, False]
    assert state["arrays"]["scalar"] == 3.5
    assert torch.equal(state["tensor"], STATE["tensor"])
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_1.pth"]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "c.pth"
    save_checkpoint(path, STATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"c\.pth: truncated"):
        load_checkpoint(path)


def test_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "c.pth"
    save_checkpoint(path, {"weights": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    at = bytes(data).index(torch.arange(1000.0).numpy().tobytes()[400:440])
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"c\.pth: damaged"):
        load_checkpoint(path)


def test_foreign_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pth")
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pth: not a checkpoint of xcfast"):
        load_checkpoint(path)
    save_checkpoint(path, {"step": 1})
    with pytest.raises(CheckpointError, match=r"weights\.pth: incomplete, without config, iteration"):
        load_checkpoint(path)
    torch.save({"format": ckpt.FORMAT, "version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99.*upgrade"):
        load_checkpoint(path)
    torch.save({"format": ckpt.FORMAT, "version": "one"}, path)
    with pytest.raises(CheckpointError, match="version: found 'one'; wanted: an integer"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("legacy", [False, True])
def test_loading_never_executes_code(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bomb.pth"
    if legacy:
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"format": ckpt.FORMAT, "version": 1, "bomb": Bomb()}, path)
    with pytest.raises(CheckpointError, match=r"bomb\.pth"):
        load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


class FullDisk:
    """Stands in for ``os.fsync`` on a full disk."""

    def __call__(self, descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pth"
    save_checkpoint(path, {"x": 1})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", FullDisk())
    with pytest.raises(CheckpointError, match=r"c\.pth: not saved.*No space left"):
        save_checkpoint(path, {"x": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


def test_really_full_file_system(tmp_path, monkeypatch):
    """/dev/full fails on the write itself, inside torch's serializer."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this platform")
    real_open = open
    monkeypatch.setattr(ckpt, "open", lambda path, mode: real_open("/dev/full", mode), raising=False)
    with pytest.raises(CheckpointError, match=r"c\.pth: not saved"):
        save_checkpoint(tmp_path / "c.pth", {"x": torch.zeros(100_000)})
    assert list(tmp_path.iterdir()) == []


def test_prune_keeps_the_latest_by_step(tmp_path):
    for step in (5, 40, 300, 2000, 10_000):
        save_checkpoint(ckpt.checkpoint_path(tmp_path, step), {})
    save_checkpoint(tmp_path / ckpt.BEST_MODEL, {})
    ckpt.prune_checkpoints(tmp_path, 3)
    names = [path.name for path in ckpt.periodic_checkpoints(tmp_path)]
    assert names == ["checkpoint_300.pth", "checkpoint_2000.pth", "checkpoint_10000.pth"]
    assert (tmp_path / ckpt.BEST_MODEL).exists()


def test_folders_do_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = RunFolders.create(load_config(overrides={"log_dir": "logs", "model_dir": "models"}), "train")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ckpt.save_checkpoint(folders.model_dir / "model.pth", {})
    assert (tmp_path / "models" / "Ant-v4" / folders.model_dir.name / "model.pth").is_file()
    assert RunFolders.find(folders.log_dir) == folders
