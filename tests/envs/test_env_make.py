"""Environments from ids and configurations: what works, and one sentence where it does not."""

import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from returning_envs import DoubledReward, FlatSpace, NeedsArgument, Returning

from xcfast.envs import (
    DummyVecEnv,
    EnvError,
    MujocoVecEnv,
    SubprocVecEnv,
    WorkerTimeoutError,
    available_cpus,
    make,
    make_env_fn,
    make_envs,
)
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


@pytest.fixture
def registered() -> Any:
    """Registers ids for one test: registered(id, entry_point, **more)."""
    ids = []

    def register(env_id: str, entry_point: Any = None, **more: Any) -> None:
        gymnasium.register(env_id, entry_point, **more)
        ids.append(env_id)

    yield register
    for env_id in ids:
        del gymnasium.registry[env_id]


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
def test_an_id_that_the_script_registers(registered: Any, vectorize: str) -> None:
    class Own(Returning):  # not to be found by its name, like a class of a script
        def step(self, action: Any) -> Any:
            ob, _, terminated, truncated, info = super().step(action)
            return ob, 5.0, terminated, truncated, info

    registered("Own-v0", Own, max_episode_steps=7)
    envs = make_envs(config("Own-v0", vectorize))
    envs.reset(seed=1)
    assert envs.step(np.zeros((3, 1)))[1].tolist() == [5.0] * 3
    assert (envs.spec.id, envs.spec.max_episode_steps) == ("Own-v0", 7)
    envs.close()


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
def test_an_id_that_the_script_registers_anew(registered: Any, vectorize: str) -> None:
    pendulum = gymnasium.registry["Pendulum-v1"]
    try:
        with pytest.warns(UserWarning, match="Overriding environment Pendulum-v1"):
            gymnasium.register("Pendulum-v1", Returning)
        envs = make_envs(config("Pendulum-v1", vectorize))
        assert envs.single_observation_space.shape == (2,)
        envs.close()
    finally:
        gymnasium.registry["Pendulum-v1"] = pendulum


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, r"^env_id 'Needs-v0' cannot be made: .*missing 1 required positional argument: 'track'$"),
        ({"tracks": 3}, r"^env_id 'Needs-v0' cannot be made with env_kwargs {'tracks': 3}: .* argument 'tracks'.*$"),
        ({"track": "broken"}, r"^env_id 'Needs-v0' cannot be made with env_kwargs {.*}: track is broken$"),
        ({"render_mode": "human"}, "^env_kwargs must not contain render_mode"),
        ([1], r"^env_kwargs must be a mapping .*; got \[1\]$"),
        ({3: 4}, r"^env_kwargs must be a mapping .*; got {3: 4}$"),
    ],
    ids=str,
)
def test_arguments_that_the_constructor_does_not_take(
    registered: Any, vectorize: str, kwargs: Any, message: str
) -> None:
    registered("Needs-v0", NeedsArgument)
    with pytest.raises(EnvError, match=message):
        make_envs(config("Needs-v0", vectorize, env_kwargs=kwargs))


@pytest.mark.parametrize(
    "env_id, message",
    [
        ("xcfast/Ant-v4", "'xcfast/Ant-v4' has only a vector entry point.*; env_id: Ant-v4 is the single environment$"),
        ("Vector-v0", "'Vector-v0' has only a vector entry point, and a single environment is needed$"),
        ("Gone-v0", "'Gone-v0' cannot be made: .*no attribute 'Gone'"),
        ("a:b:c", "must be a registered Gymnasium id or 'module:id'; got 'a:b:c'"),
        (":Ant-v4", "must be a registered Gymnasium id or 'module:id'; got ':Ant-v4'"),
        ("Ant-v4:", "must be a registered Gymnasium id or 'module:id'; got 'Ant-v4:'"),
        ("", "must be a registered Gymnasium id or 'module:id'; got ''"),
        ("../..", "'../..' cannot be made: Malformed environment ID"),
    ],
)
def test_ids_without_a_single_environment(registered: Any, env_id: str, message: str) -> None:
    registered("Vector-v0", vector_entry_point="returning_envs:Vector")
    registered("Gone-v0", "returning_envs:Gone")
    with pytest.raises(EnvError, match=message):
        make_envs(config(env_id))


@pytest.mark.parametrize(
    "shape, advice", [((), r" \(a single number has the shape \(1,\)\)"), ((0,), ""), ((2, 0), "")]
)
def test_spaces_without_a_number_or_a_dimension(registered: Any, shape: tuple[int, ...], advice: str) -> None:
    registered("Flat-v0", FlatSpace)
    with pytest.raises(
        EnvError, match=rf"^observation_space must have .*; its shape is {re.escape(str(shape))}{advice}$"
    ):
        make_envs(config("Flat-v0", env_kwargs={"shape": shape}))


def test_env_kwargs(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "_announced", set())
    kwargs = {"reset_noise_scale": 0.05, "max_episode_steps": 3}
    wanted = make_envs(config("Hopper-v4", env_kwargs=kwargs))
    default = make_envs(config("Hopper-v4"))
    native = make_envs(config("Hopper-v4", env_kwargs=kwargs, native_envs="auto"))
    subproc = make_envs(config("Hopper-v4", "SubprocVecEnv", env_kwargs=kwargs, num_workers=1))
    assert isinstance(wanted, DummyVecEnv) and isinstance(native, MujocoVecEnv)
    first = wanted.reset(seed=1)[0].copy()
    for envs in (native, subproc):
        np.testing.assert_array_equal(envs.reset(seed=1)[0], first)
    assert np.abs(first - default.reset(seed=1)[0]).max() > 0.02
    for _ in range(3):
        truncated = wanted.step(np.zeros((3, 3), np.float32))[3]
    assert truncated.all()
    for envs in (wanted, default, native, subproc):
        envs.close()
    for kwargs, message in (
        ({"noise": 1}, "'Hopper-v4' cannot be made with env_kwargs {'noise': 1}: .*'noise'"),
        ({"copy": 1}, "copy"),
    ):
        with pytest.raises(EnvError, match=message):
            make_envs(config("Hopper-v4", env_kwargs=kwargs, native_envs="auto"))


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv", "MujocoVecEnv"])
def test_env_wrappers(vectorize: str, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "_announced", set())
    wrappers = ["returning_envs:DoubledReward", {"gymnasium.wrappers:TimeLimit": {"max_episode_steps": 2}}]
    envs = make_envs(config(vectorize=vectorize, native_envs="auto", env_wrappers=wrappers, num_workers=2))
    kind = DummyVecEnv if vectorize == "DummyVecEnv" else SubprocVecEnv
    assert type(envs) is kind
    assert capfd.readouterr().err == (
        f"xcfast: InvertedPendulum-v4 is stepped by {kind.__name__}, not by the native engine: env_wrappers wraps it\n"
    )
    envs.reset(seed=1)
    assert envs.step(np.zeros((3, 1)))[1].tolist() == [2.0] * 3
    assert envs.step(np.zeros((3, 1)))[3].all()
    envs.close()


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize(
    "entries, message",
    [
        (
            ["no_such_module:W"],
            "^env_wrappers: 'no_such_module:W' cannot be imported: No module named 'no_such_.*'$",
        ),
        (["returning_envs:Nope"], "^env_wrappers: 'returning_envs:Nope': the module returning_envs has no Nope$"),
        (
            [{"returning_envs:DoubledReward": {"by": 3}}],
            "^env_wrappers: 'returning_envs:DoubledReward' cannot be applied with {'by': 3}: .*'by'",
        ),
        (
            ["returning_envs:no_wrapper"],
            "^env_wrappers: 'returning_envs:no_wrapper' must make .*Env; got int$",
        ),
    ],
    ids=str,
)
def test_wrappers_that_cannot_be_applied(vectorize: str, entries: Any, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_envs(config(vectorize=vectorize, env_wrappers=entries))


@pytest.mark.parametrize(
    "entries",
    [
        "a:B",
        ["returning_envs"],
        [3],
        [{"a:B": {}, "c:D": {}}],
        [{"a:B": 3}],
        [{"a:B": {3: 4}}],
        [":B"],
        ["a b:C"],
        [None],
    ],
    ids=str,
)
def test_entries_of_env_wrappers_in_another_form(entries: Any) -> None:
    with pytest.raises(EnvError, match=r"env_wrappers must be .*; got"):
        make_envs(config(env_wrappers=entries))


def test_wrappers_are_applied_from_the_inside_out() -> None:
    wrappers = [{"returning_envs:DoubledReward": {"factor": 3.0}}, "returning_envs:DoubledReward"]
    envs = make_envs(config(env_wrappers=wrappers))
    outer = envs._slice.envs[0]  # type: ignore[attr-defined]
    assert isinstance(outer, DoubledReward) and (outer.factor, outer.env.factor) == (2.0, 3.0)
    envs.close()


def test_env_timeout_reaches_the_workers(registered: Any) -> None:
    registered("Slow-v0", "toy_envs:Toy", kwargs={"trouble": "sleep"})
    envs = make_envs(config("Slow-v0", "SubprocVecEnv", env_timeout=0.5))
    envs.reset(seed=1)
    with pytest.raises(WorkerTimeoutError, match=r"0\.5 s"):
        envs.step(np.zeros((3, 1)))
    envs.close()


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
