"""A run that is continued from a script imports only the modules that the script names."""

import json
import sys
from pathlib import Path

import pytest

from xcfast import load_config, run
from xcfast.errors import ConfigError
from xcfast.runs.trainer import Trainer

MODULE = """
import pathlib
pathlib.Path({imported!r}).touch()
import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv
gymnasium.registry.pop("Foreign-v0", None)
gymnasium.register("Foreign-v0", PendulumEnv, max_episode_steps=20)
Wrapper = gymnasium.wrappers.FlattenObservation
"""


@pytest.fixture
def foreign(small, tmp_path, monkeypatch):
    """A finished run whose environment's module has not been imported in this process, and the module's trace."""
    trace, name = tmp_path / "imported", f"foreign_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(imported=str(trace)))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = small(env_id=f"{name}:Foreign-v0", env_wrappers=[f"{name}:Wrapper"], test_episode=1)
    done = run(config, quiet=True)
    trace.unlink()
    del sys.modules[name]
    return name, Path(done.log_dir), trace


def trainer(config, *, mode=None, resume=None, **more):
    Trainer(config, mode, Path(resume), True, **more).close()


@pytest.mark.parametrize("mode", ["benchmark", "test", "trainer"])
def test_a_module_that_only_the_file_names_must_be_allowed(foreign, mode):
    name, folder, trace = foreign
    config = load_config(folder / "config.json")
    call = trainer if mode == "trainer" else run
    mode = None if mode == "trainer" else mode
    for allowed in ([], ["json", f"{name}.more"]):
        with pytest.raises(ConfigError) as error:
            call(config, mode=mode, resume=folder, allow_modules=allowed)
        assert str(error.value) == (
            f"{folder / 'config.json'}: its environment runs code of {name}; "
            f"if you trust that code, add allow_modules=['{name}']"
        )
    with pytest.raises(ConfigError, match="allow_modules: no list of module names"):
        call(config, mode=mode, resume=folder, allow_modules=name)
    assert not trace.exists()
    call(config, mode=mode, resume=folder, allow_modules=[name])
    assert trace.exists()


def test_a_module_that_the_script_names_is_allowed(foreign):
    name, folder, _ = foreign
    keys = json.loads((folder / "config.json").read_text())
    assert load_config(overrides=keys).file_modules == ()
    assert load_config(folder / "config.json", gamma=0.5).file_modules == (name,)
    given = load_config(folder / "config.json", env_id=keys["env_id"], env_wrappers=keys["env_wrappers"])
    assert given.file_modules == ()
    run(given, resume=folder, quiet=True)
    # the wrapper's name comes from the same module
    run(load_config(folder / "config.json", env_id=keys["env_id"]), resume=folder, quiet=True)
