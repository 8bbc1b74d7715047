"""Whole checkpoint files with wrong contents: refused in one line that names the entry, before anything is used."""

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xcfast import load_config, run
from xcfast.errors import CheckpointError, ConfigError
from xcfast.output.checkpoint import checkpoint_path, load_checkpoint, periodic_checkpoints, save_checkpoint
from xcfast.output.checkpoint_schema import check_checkpoint
from xcfast.output.folders import RunFolders


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A finished run of four iterations, and its checkpoint from the middle."""
    from small_config import SMALL

    folder = tmp_path_factory.mktemp("half")
    folders = {"log_dir": str(folder / "logs"), "model_dir": str(folder / "models")}
    config = load_config(overrides={**SMALL, **folders, "logger": "none", "checkpoint_interval": 128, "num_threads": 1})
    log_dir = Path(run(config, quiet=True).log_dir)
    path = checkpoint_path(RunFolders.find(log_dir).model_dir, 256)
    return config, path, load_checkpoint(path)


def places(value, place=()):
    """The paths of all entries below a value."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*place, key)
            yield from places(item, (*place, key))


def changed(state, place, value):
    """A copy of the contents with another value at a place; None removes the entry."""
    state = copy.deepcopy(state)
    inner = state
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        del inner[place[-1]]
    else:
        (inner[place[-1]],) = value
    return state


NAN = float("nan")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("progress.best", NAN, "progress.best: found nan; wanted: a dict"),
        ("progress.best", {}, "progress.best: found []; wanted: a dict with mean, std, step"),
        ("progress.best.std", None, "progress.best.std: found None; wanted: a number"),
        ("progress.best.step", "x", "progress.best.step: found 'x'; wanted: an integer >= 0"),
        ("progress.best.mean", NAN, "progress.best.mean: found nan; wanted: a finite number"),
        ("progress.iteration", 1, "progress.iteration: found 1; wanted: iteration = 2"),
        ("progress.evaluation_due", 1, "progress.evaluation_due: found 1; wanted: True or False"),
        ("progress.update_seconds", -1.0, "progress.update_seconds: found -1.0; wanted: a finite number >= 0"),
        ("versions", [], "versions: found []; wanted: a dict"),
        ("versions", {1: "2"}, "versions: found 1; wanted: keys of type str"),
        ("engines", None, "engines: found None; wanted: a dict"),
        ("step", 7, "step: found 7; wanted: iteration * parallels * horizon_size = 256"),
        ("iteration", True, "iteration: found True; wanted: an integer >= 0"),
        ("config", [], "config: found []; wanted: a dict"),
        ("config.gamma", "high", "config.gamma: found 'high'; wanted: "),
        ("config.parallels", 5, "step: found 256; wanted: iteration * parallels * horizon_size = 320"),
        ("policy", 3, "policy: found 3; wanted: a dict"),
        ("policy.w", "text", "policy.w: found 'text'; wanted: an array, finite"),
        ("policy.w", torch.tensor([0.0, NAN]), "policy.w: found float32 [2]; wanted: an array, finite"),
        ("policy.w", torch.eye(2).to_sparse(), "policy.w: found float32 [2, 2]; wanted: an array, finite"),
        (
            "obs_normalizer.rms.var",
            -np.ones(4),
            "obs_normalizer.rms.var: found float64 [4]; wanted: an array of float64, finite, >= 0",
        ),
        (
            "obs_normalizer.rms.var",
            np.ones(3),
            "obs_normalizer.rms.var: found float64 [3]; wanted: the shape [4]",
        ),
        (
            "obs_normalizer.means",
            np.ones((4, 3)),
            "obs_normalizer.means: found float64 [4, 3]; wanted: the shape [4, 4]",
        ),
        ("obs_normalizer.rms.count", -1, "obs_normalizer.rms.count: found -1; wanted: an integer >= 0"),
        (
            "reward_normalizer.rms.var",
            np.array(NAN),
            "reward_normalizer.rms.var: found float64 [], nan; wanted: an array of float64, finite, >= 0",
        ),
        (
            "collector.noise_counters",
            np.zeros(3, np.int64),
            "collector.noise_counters: found int64 [3]; wanted: the shape [4]",
        ),
        ("collector.envs.envs", [], "collector.envs.envs: found '0 environments'; wanted: parallels = 4"),
        ("collector.envs.obs", np.zeros((4, 1)), "collector.envs.obs: found float64 [4, 1]; wanted: the shape [4, 4]"),
        (
            "learner.optimizer.state.0.exp_avg",
            torch.zeros(2),
            "learner.optimizer.state.0.exp_avg_sq: found float32 [16, 4]; wanted: the shape [2]",
        ),
        ("learner.kl_coef", NAN, "learner.kl_coef: found nan; wanted: a finite number >= 0"),
        ("spaces", {"action": {}}, "spaces.action: found {}; wanted: a space: a dict whose type is Box or Discrete"),
    ],
)
def test_a_wrong_entry_is_named(half, tmp_path, place, value, message):
    _, _, state = half
    keys = [int(key) if key.isdigit() else key for key in place.split(".")]
    path = tmp_path / "c.pth"
    save_checkpoint(path, changed(state, keys, (value,)))
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_an_entry_of_a_list_is_named(half, tmp_path):
    state = changed(half[2], ("collector", "envs", "envs", 2, "np_random", "has_uint32"), (2,))
    place = re.escape("collector.envs.envs[2].np_random.has_uint32: found 2; wanted: an integer from 0 to 1")
    with pytest.raises(CheckpointError, match=place):
        check_checkpoint(tmp_path / "c.pth", state)


def test_an_integer_too_long_to_print_is_named(half, tmp_path):
    with pytest.raises(CheckpointError, match="iteration: found a value of type int; wanted: an integer >= 0"):
        check_checkpoint(tmp_path / "c.pth", changed(half[2], ("iteration",), (10**5000,)))


def test_entries_that_are_optional_may_be_absent(half, tmp_path):
    state = {key: half[2][key] for key in ("config", "step", "iteration", "policy", "obs_normalizer")}
    state["config"] = {key: value for key, value in state["config"].items() if key != "test_seed"}
    state["config"]["key_of_another_version"] = 3
    state["entry_of_another_version"] = {"a": [1]}
    check_checkpoint(tmp_path / "c.pth", state)


def test_scores_may_be_infinite(half, tmp_path):
    """A run that fails still saves: what only describes it must not make its checkpoint unreadable."""
    state = changed(half[2], ("progress", "last_scores"), ([float("inf"), NAN],))
    state["progress"]["recent_returns"] = [float("-inf")]
    state["episodes"]["returns"][0] = NAN
    check_checkpoint(tmp_path / "c.pth", state)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2, 4, 256, 10**30])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64]).flatmap(
        lambda dtype: st.sampled_from([(), (0,), (1,), (4,), (4, 4)]).map(lambda shape: torch.ones(shape, dtype=dtype))
    )
    | st.sampled_from([torch.tensor(NAN), -torch.ones(4, dtype=torch.float64)]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.data())
def test_any_entry_may_have_any_value(half, drawn):
    place = drawn.draw(st.sampled_from(list(places(half[2]))))
    state = changed(half[2], place, drawn.draw(st.none() | st.tuples(PLAIN)))
    try:
        check_checkpoint(Path("c.pth"), state)
    except CheckpointError as error:
        assert str(error).startswith("c.pth: ") and "\n" not in str(error)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=st.data())
def test_a_run_goes_on_from_any_checkpoint_or_says_why_not(half, tmp_path_factory, drawn):
    config, path, state = half
    place = drawn.draw(st.sampled_from([place for place in places(state) if place[0] != "config"]))
    state = changed(state, place, drawn.draw(st.none() | st.tuples(PLAIN)))
    folder = tmp_path_factory.mktemp("run")
    for name in ("logs", "models"):
        shutil.copytree(Path(config.log_dir).parent / name, folder / name)
    copied = folder / "models" / path.relative_to(Path(config.model_dir).resolve())
    save_checkpoint(copied, state)
    try:
        run(config, resume=copied, quiet=True)
    except (CheckpointError, ConfigError) as error:
        assert "\n" not in str(error)
    else:
        assert periodic_checkpoints(copied.parent)[-1].name == "checkpoint_512.pth"
