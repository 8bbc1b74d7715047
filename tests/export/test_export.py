"""Exported policies: the file alone does what the policy does."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from xcfast import run
from xcfast.export.check import ExportError, rounding_bound
from xcfast.export.command import main
from xcfast.export.export import PolicyFunction, export_policy
from xcfast.output import checkpoint as ckpt
from xcfast.policy import ActorCritic, BasicMLP, Critic, GaussianActor
from xcfast.runs.player import load_player


def call_onnx(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda obs: session.run(None, {"obs": obs})[0]


def call_torch(path):
    module = torch.export.load(path).module()
    return lambda obs: module(torch.from_numpy(obs)).numpy()


CALLS = {"onnx": call_onnx, "torch": call_torch}


def by_hand(saved, obs, low, high):
    """The policy of the small configuration, from the checkpoint's numbers alone, in float64."""
    state = {key: value.double().numpy() for key, value in saved["policy"].items()}
    rms = saved["obs_normalizer"]["rms"]
    var = np.asarray(rms["var"])
    deviation = np.sqrt(var) + 1e-8 if rms["epsilon_outside"] else np.sqrt(var + 1e-8)
    x = np.clip((obs - np.asarray(rms["mean"])) / deviation, -5, 5)
    for layer in ("representation.model.0", "actor.mu.0"):
        x = x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
        x = np.where(x > 0, x, 0.01 * x)
    x = np.tanh(x @ state["actor.mu.2.weight"].T + state["actor.mu.2.bias"])
    return np.clip(low + (x + 1) / 2 * (high - low), low, high)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_the_file_gives_the_action_of_a_raw_observation(tiny_runs, tmp_path, format):
    done = export_policy(tiny_runs[0].log_dir, tmp_path / "policy.bin", format)
    assert done.path == tmp_path / "policy.bin" and list(tmp_path.iterdir()) == [done.path]
    assert done.difference is not None and done.difference <= done.allowed < 1e-3
    call = CALLS[format](done.path)
    saved = ckpt.load_checkpoint(Path(tiny_runs[0].model_dir) / ckpt.BEST_MODEL)
    rng = np.random.default_rng(1)
    for rows in (1, 2, 7):  # any batch size
        obs = (rng.standard_normal((rows, 4)) * 3).astype(np.float32)
        actions = call(obs)
        assert actions.dtype == np.float32 and actions.shape == (rows, 1)
        # three layers of at most 16 products, values below 100: 16 * 100 * 2^-24 each, a few times that in all
        np.testing.assert_allclose(actions, by_hand(saved, obs.astype(np.float64), -3.0, 3.0), atol=1e-3)


def test_observations_are_normalised_in_float64(tiny_runs, tmp_path):
    """A mean of 1e6 with a deviation of 1e-2: float32 statistics would round it by 3 deviations."""
    path = tmp_path / "model.pth"
    saved = ckpt.load_checkpoint(Path(tiny_runs[0].model_dir) / ckpt.BEST_MODEL)
    rms = saved["obs_normalizer"]["rms"]
    rms["mean"], rms["var"] = (
        torch.full((4,), 1e6 + 0.03, dtype=torch.float64),
        torch.full((4,), 1e-4, dtype=torch.float64),
    )
    ckpt.save_checkpoint(path, saved)
    call = call_torch(export_policy(path, format="torch").path)
    obs = np.full((1, 4), 1e6, np.float32)  # three deviations below the mean
    np.testing.assert_allclose(call(obs), by_hand(saved, obs.astype(np.float64), -3.0, 3.0), atol=1e-3)


@pytest.mark.parametrize("outside", [False, True])
def test_small_deviations_keep_the_models_formula(tiny_runs, tmp_path, outside):
    """At a deviation of 1e-4, 1e-8 is as much as the variance or a ten-thousandth of the divisor."""
    path = tmp_path / "model.pth"
    saved = ckpt.load_checkpoint(Path(tiny_runs[0].model_dir) / ckpt.BEST_MODEL)
    saved["obs_normalizer"]["rms"] = {
        "mean": torch.zeros(4, dtype=torch.float64),
        "var": torch.full((4,), 1e-8, dtype=torch.float64),
        "count": 100,
        "epsilon_outside": outside,
    }
    ckpt.save_checkpoint(path, saved)
    call = call_torch(export_policy(path, format="torch").path)
    obs = np.array([[1e-4, -2e-4, 3e-4, 1e-4]], np.float32)
    wide = obs.astype(np.float64)
    wanted = by_hand(saved, wide, -3.0, 3.0)
    np.testing.assert_allclose(call(obs), wanted, atol=1e-4)
    saved["obs_normalizer"]["rms"]["epsilon_outside"] = not outside
    assert np.abs(by_hand(saved, wide, -3.0, 3.0) - wanted).max() > 1e-3


@pytest.mark.parametrize(
    "keys",
    [
        {"env_id": "toys:toy/Choice-v0", "policy": "Categorical_AC"},
        {"env_id": "toys:toy/Target-v0", "use_obsnorm": False, "activation_action": None, "normalize": "LayerNorm"},
        {"env_id": "Ant-v5", "representation": "Basic_Identical", "activation": "elu", "shared_representation": False},
        {"env_id": "Reacher-v5", "activation": "softmax", "activation_action": "sigmoid"},
    ],
    ids=lambda keys: keys["env_id"],
)
def test_every_kind_of_policy_goes_round(small, keys):
    summary = run(small(running_steps=128, logger="none", **keys), mode="train", quiet=True)
    for format in ("onnx", "torch"):
        done = export_policy(summary.log_dir, format=format)
        assert done.path.parent.samefile(summary.model_dir) and done.path.stem == "final_train_model"
        policy = load_player(done.path.with_suffix(".pth"))
        obs = np.random.default_rng(2).standard_normal((5, *policy.observation_space.shape)).astype(np.float32)
        actions, expected = CALLS[format](done.path)(obs), policy.player.act(obs)
        assert actions.dtype == expected.dtype and actions.shape == expected.shape
        np.testing.assert_allclose(actions, expected, atol=done.allowed)
        assert all(policy.action_space.contains(action) for action in actions)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_masks_are_a_second_input(small, format):
    keys = {"env_id": "toys:toy/Masked-v0", "policy": "Categorical_AC", "use_actions_mask": True}
    summary = run(small(running_steps=128, logger="none", **keys), mode="train", quiet=True)
    done = export_policy(summary.log_dir, format=format)
    assert done.difference == 0
    rng = np.random.default_rng(2)
    obs, masks = rng.normal(size=(64, 3)).astype(np.float32), np.eye(5, dtype=bool)[rng.integers(5, size=64)]
    masks[::2, 1] = True
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
        actions = session.run(None, {"obs": obs, "action_mask": masks})[0]
        said = session.get_modelmeta().custom_metadata_map
    else:
        files = {"metadata.json": ""}
        program = torch.export.load(done.path, extra_files=files)
        actions = program.module()(torch.from_numpy(obs), torch.from_numpy(masks)).numpy()
        said = json.loads(files["metadata.json"])
    assert json.loads(said["mask_input"]) == {"name": "action_mask", "dtype": "bool", "shape": ["B", 5]}
    assert masks[np.arange(64), actions].all()
    np.testing.assert_array_equal(actions, load_player(done.path.with_suffix(".pth")).player.act(obs, masks))


def test_the_round_trip_finds_masks_that_are_ignored(small, monkeypatch):
    keys = {"env_id": "toys:toy/Masked-v0", "policy": "Categorical_AC", "use_actions_mask": True}
    summary = run(small(running_steps=128, logger="none", **keys), mode="train", quiet=True)
    forward = PolicyFunction.forward

    def unmasked(self, obs, action_mask=None):
        return forward(self, obs, action_mask | True)

    monkeypatch.setattr(PolicyFunction, "forward", unmasked)
    with pytest.raises(ExportError, match="is not the policy's"):
        export_policy(summary.log_dir, format="torch")


def test_a_discrete_space_may_start_anywhere(small, monkeypatch):
    import toys
    from gymnasium.spaces import Discrete

    monkeypatch.setattr(toys.Choice, "action_space", Discrete(3, start=-1))
    summary = run(
        small(env_id="toys:toy/Choice-v0", policy="Categorical_AC", running_steps=128), mode="train", quiet=True
    )
    done = export_policy(summary.log_dir, format="torch")
    actions = call_torch(done.path)(np.linspace(-2, 2, 50, dtype=np.float32)[:, None])
    assert actions.dtype == np.int64 and set(actions.tolist()) <= {-1, 0, 1}
    assert done.difference == 0


def test_the_file_says_what_it_is(tiny_runs, tmp_path):
    done = export_policy(tiny_runs[0].model_dir, tmp_path / "a.onnx", check=False)
    assert done.difference is None
    model = onnx.load(done.path)
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["env_id"] == "InvertedPendulum-v4" and said["step"] == str(tiny_runs[0].best_step)
    assert json.loads(said["input"]) == {"name": "obs", "dtype": "float32", "shape": ["B", 4]}
    assert json.loads(said["output"]) == {"name": "action", "dtype": "float32", "shape": ["B", 1]}
    assert "critic" not in str([weights.name for weights in model.graph.initializer])
    files = {"metadata.json": ""}
    torch.export.load(export_policy(tiny_runs[0].model_dir, tmp_path / "a.pt2", "torch").path, extra_files=files)
    assert json.loads(files["metadata.json"]) == said


@pytest.mark.parametrize("wrong", ["mean", "std", "scale", "high"])
def test_the_round_trip_finds_a_wrong_file(tiny_runs, tmp_path, monkeypatch, wrong, capsys):
    build = PolicyFunction.__init__

    def build_wrong(self, loaded):
        build(self, loaded)
        self.register_buffer(wrong, getattr(self, wrong) * 0.99 + 1e-3 * (wrong == "mean"))

    monkeypatch.setattr(PolicyFunction, "__init__", build_wrong)
    if wrong == "high":  # an action beyond the bound is what shows it
        monkeypatch.setattr("xcfast.policy.ActionMap.rescales", True, raising=False)
        monkeypatch.setattr(BasicMLP, "forward", lambda self, obs: self.model(obs.flatten(1)) * 1e4)
    assert main([tiny_runs[0].log_dir, "--format", "torch", "-o", str(tmp_path / "policy.pt2")]) == 1
    assert "is not the policy's" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError):
        export_policy(tiny_runs[0].log_dir, tmp_path / "policy.pt2", "torch")


@pytest.mark.parametrize("width", [8, 256])
def test_rounding_stays_below_its_bound(width):
    torch.manual_seed(0)
    trunk = BasicMLP(32, [width, width], "leaky_relu", "LayerNorm")
    policy = ActorCritic(trunk, GaussianActor(width, [width], 8, "elu", "tanh", 0.0), Critic(width, [], "tanh"))
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.mul_(3.0)  # at the start the last layer's weights are nearly zero
    obs = torch.randn(512, 32)
    exact, bound = rounding_bound(policy, obs)
    with torch.no_grad():
        error = np.abs(policy.act(obs).double().numpy() - exact)
    assert (error <= bound).all() and error.max() > 0
    assert np.median(bound) < 1e3 * error.max()  # a fault of a thousandth would not hide


def test_the_command_writes_beside_the_model(tiny_runs, capsys):
    assert main([tiny_runs[1].log_dir]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert Path(lines[0]) == Path(tiny_runs[1].model_dir).resolve() / "best_model.onnx" and Path(lines[0]).is_file()
    assert lines[1].startswith("round trip: largest difference ") and len(lines) == 2


def test_bad_runs_are_one_sentence(tiny_runs, tmp_path, capsys):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes((Path(tiny_runs[0].model_dir) / ckpt.BEST_MODEL).read_bytes()[:1000])
    other = tmp_path / "other.pth"
    saved = ckpt.load_checkpoint(Path(tiny_runs[0].model_dir) / ckpt.BEST_MODEL)
    saved["config"]["actor_hidden_size"] = [17]
    ckpt.save_checkpoint(other, saved)
    (tmp_path / "empty").mkdir()
    for path, words in [
        (tmp_path / "nowhere", "no such run folder"),
        (tmp_path / "nowhere.pth", "no such file"),
        (tmp_path / "empty", "not a run folder"),
        (damaged, "truncated"),
        (other, "does not fit InvertedPendulum-v4"),
    ]:
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert words in error and str(path) in error and error.count("\n") == 1


def test_without_onnx_it_says_what_to_install(tiny_runs, tmp_path, monkeypatch, capsys):
    for name in ("onnxruntime", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert main([tiny_runs[0].log_dir, "-o", str(tmp_path / "a.onnx")]) == 2
            assert capsys.readouterr().err == f'xcfast.export: {name} is missing; pip install "xcfast[export]"\n'
            assert main([tiny_runs[0].log_dir, "--format", "torch", "-o", str(tmp_path / "a.pt2")]) == 0
            capsys.readouterr()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


def test_a_module_that_a_model_file_names_is_not_imported(tiny_runs, tmp_path, monkeypatch, capsys):
    """Spaces are stored in the file; of a file without them the module would have to be imported, which is refused."""
    saved = ckpt.load_checkpoint(Path(tiny_runs[0].model_dir) / ckpt.BEST_MODEL)
    saved["config"]["env_id"] = "evil_module:Env-v0"
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ckpt.save_checkpoint(tmp_path / "model.pth", saved)
    assert main([str(tmp_path / "model.pth"), "--format", "torch"]) == 0
    del saved["spaces"]
    ckpt.save_checkpoint(tmp_path / "older.pth", saved)
    capsys.readouterr()
    assert main([str(tmp_path / "older.pth"), "--format", "torch"]) == 2
    assert "evil_module:Env-v0" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists() and "evil_module" not in sys.modules


def test_a_tilde_is_the_home_folder(tiny_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").symlink_to(tiny_runs[0].model_dir)
    assert main(["~/run/" + ckpt.BEST_MODEL, "--format", "torch", "-o", "~/policy.pt2"]) == 0
    assert (tmp_path / "policy.pt2").is_file()
