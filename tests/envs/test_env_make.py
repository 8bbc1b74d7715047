"""Environments from ids and configurations: what works, and one sentence where it does not."""

import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xcfast.envs import DummyVecEnv, EnvError, SubprocVecEnv, available_cpus, make_env_fn, make_envs
from xcfast.resources import cgroup_quota


def config(env_id: str = "InvertedPendulum-v4", vectorize: str = "DummyVecEnv", **more: Any) -> Any:
    return SimpleNamespace(
        env_id=env_id, vectorize=vectorize, **{"parallels": 3, "num_workers": 0, "native_envs": "off", **more}
    )


def test_make_envs() -> None:
    dummy = make_envs(config())
    subproc = make_envs(config(vectorize="SubprocVecEnv", num_workers=2), num_envs=5)
    assert isinstance(dummy, DummyVecEnv) and dummy.num_envs == 3
    assert isinstance(subproc, SubprocVecEnv) and (subproc.num_envs, subproc.num_workers) == (5, 2)
    for envs in (dummy, subproc):
        assert envs.render_mode is None and envs.spec.id == "InvertedPendulum-v4"
        obs, _ = envs.reset(seed=1)
        assert envs.step(np.zeros((envs.num_envs, 1), np.float32))[0] is obs, "made for the trainer: no copies"
        envs.close()


@pytest.mark.parametrize(
    "env_id, message",
    [
        ("Ant-v44", "env_id 'Ant-v44' is not a registered Gymnasium id; the nearest is 'Ant-v4'"),
        ("halfcheetah-v4", "the nearest is 'HalfCheetah-v4'"),
        ("ALE/Pong-v5", "Namespace ALE not found"),
        ("no_such_module:Env-v0", "cannot be made: No module named 'no_such_module'"),
        ("LunarLander-v2", "is not a registered Gymnasium id; the nearest is 'LunarLander-v3'"),
        ("Ant-v3", "cannot be made: .*gymnasium-robotics"),
        ("FrozenLake-v1", "FrozenLake-v1 has Discrete observations"),
        ("Blackjack-v1", "observation_space must be Box"),
    ],
)
def test_ids_that_do_not_work(env_id: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_envs(config(env_id))


def test_the_same_sentence_from_a_worker() -> None:
    with pytest.raises(EnvError, match=r"^env_id 'Ant-v44' is not a registered .* nearest is 'Ant-v4'$"):
        make_envs(config("Ant-v44", "SubprocVecEnv"))


def test_box2d_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(EnvError, match=r"'LunarLander-v3' needs Box2D: pip install \"gymnasium\[box2d\]\""):
        make_envs(config("LunarLander-v3"))


@pytest.mark.parametrize(
    "changes, message",
    [({"parallels": 0}, "num_envs must be at least 1; got 0"), ({"vectorize": "Threads"}, "must be one of.*'Threads'")],
)
def test_configs_that_do_not_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_envs(config(**changes))


def test_constructor_is_plain_and_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    env_fn = pickle.loads(pickle.dumps(make_env_fn("HalfCheetah-v4", max_episode_steps=7)))
    env = env_fn()
    assert env.spec.max_episode_steps == 7
    env.close()
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


def test_available_cpus() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    "membership, files, quota",
    [
        ("0::/", {}, None),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b", {"cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000"}, 2.0),
        ("0::/not/visible/here", {"cpu.max": "300000 100000"}, 3.0),
        (
            "3:cpu,cpuacct:/a\n2:memory:/a",
            {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cgroup_quota(tmp_path: Path, membership: str, files: dict[str, str], quota: float | None) -> None:
    (tmp_path / "membership").write_text(membership + "\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cgroup_quota(tmp_path, tmp_path / "membership") == quota
