"""The key `precision`: what is refused where, what `auto` becomes, and that a run keeps it."""

import json
from pathlib import Path

import pytest
import torch

from xcfast import RewardNormalizer, Rollout, _core, load_config
from xcfast.envs import DummyVecEnv, make_env_fn
from xcfast.errors import ConfigError
from xcfast.learners.precision import EMULATE, how_computed, resolve_precision
from xcfast.output.checkpoint import FINAL_MODEL, load_checkpoint
from xcfast.policy import build_policy
from xcfast.runs.engines import make_learner
from xcfast.runs.run import run

REDUCED = ["bf16x3", "bf16"]


def resolved(precision, device):
    return resolve_precision(load_config(overrides={"precision": precision}), device).precision


def test_auto_is_float32_until_curves_decide():
    assert [resolved("auto", device) for device in ("cpu", "cuda")] == ["fp32", "fp32"]
    assert how_computed("fp32") is None


def test_each_device_has_its_own():
    assert [resolved(precision, "cuda") for precision in ("fp32", "tf32", "bf16")] == ["fp32", "tf32", "bf16"]
    with pytest.raises(ConfigError, match=r"precision: does not exist on cuda; .*bf16x3.*fp32, tf32, bf16, auto"):
        resolved("bf16x3", "cuda")
    with pytest.raises(ConfigError, match=r"precision: does not exist on cpu; .*tf32.*fp32, bf16x3, bf16, auto"):
        resolved("tf32", "cpu")


@pytest.mark.parametrize(("precision", "units"), [("bf16x3", "AMX tiles"), ("bf16", "AMX tiles or AVX512_BF16")])
def test_a_cpu_without_the_unit_is_one_sentence(monkeypatch, precision, units):
    monkeypatch.setattr(_core, "nn_hardware", lambda precision: None)
    monkeypatch.setattr(_core, "nn_variants", lambda precision: ["baseline", "avx2"])
    monkeypatch.delenv(EMULATE, raising=False)
    reason = f"needs {units}, which this process cannot use; XCFAST_EMULATE_PRECISION=1 computes it in software, slowly"
    with pytest.raises(ConfigError, match=f"precision: {reason}; .*fp32 or auto on this machine"):
        resolved(precision, "cpu")
    monkeypatch.setenv(EMULATE, "1")
    assert resolved(precision, "cpu") == precision
    assert how_computed(precision) == "emulated with avx2"


@pytest.mark.parametrize("precision", REDUCED)
def test_a_cpu_with_the_unit_uses_it_even_if_an_emulation_is_allowed(monkeypatch, precision):
    monkeypatch.setattr(_core, "nn_hardware", lambda precision: "amx")
    for allowed in ("0", "1"):
        monkeypatch.setenv(EMULATE, allowed)
        assert resolved(precision, "cpu") == precision
        assert how_computed(precision) == "computed by amx"


def test_other_learners_do_not_have_it(monkeypatch, small):
    monkeypatch.setenv(EMULATE, "1")
    with pytest.raises(ConfigError, match="only the native learner has it, which cannot be used: .*LayerNorm"):
        run(small(precision="bf16", normalize="LayerNorm"), quiet=True)
    for keys in ({"precision": "bf16"}, {"precision": "bf16x3", "device": "auto"}):
        with pytest.raises(
            ConfigError, match="only the native learner has it; .*fp32 or auto with learner_backend torch"
        ):
            small(learner_backend="torch", **keys)


def test_a_cuda_device_without_its_learner_does_not_have_it(small):
    """The torch learner serves a script's own optimizer there; it would ignore the precision."""
    config = small(precision="bf16", device="cuda")
    envs = DummyVecEnv([make_env_fn(config.env_id)] * config.parallels, copy=False)
    policy = build_policy(config, envs.single_observation_space, envs.single_action_space)
    rollout = Rollout(config.horizon_size, config.parallels, (4,), (1,))
    arguments = (config, policy, rollout, RewardNormalizer(config.parallels), 1)
    sgd = torch.optim.SGD(policy.parameters(), lr=1e-3)
    with pytest.raises(ConfigError, match="only the CUDA learner has it, which cannot be used: the optimizer is SGD"):
        make_learner(*arguments, device=torch.device("cuda"), optimizer=sgd)


@pytest.mark.parametrize("precision", REDUCED)
def test_a_run_keeps_its_precision(monkeypatch, small, capsys, precision):
    """It is in the start table, the run's files and the checkpoint, and a resumed run ends with the same bits."""
    monkeypatch.setenv(EMULATE, "1")
    summary = run(small(precision=precision, checkpoint_interval=256))
    row = f"{precision} in the matrix products of the update, {how_computed(precision)}"
    assert row in capsys.readouterr().out
    assert json.loads((Path(summary.log_dir) / "config.json").read_text())["precision"] == precision
    whole = load_checkpoint(Path(summary.model_dir) / FINAL_MODEL)
    assert whole["config"]["precision"] == precision
    (half,) = Path(summary.model_dir).glob("checkpoint_256*")
    for given in (precision, "auto"):
        again = load_checkpoint(Path(run(small(precision=given), resume=half, quiet=True).model_dir) / FINAL_MODEL)
        assert again["config"]["precision"] == precision
        assert all(torch.equal(value, again["policy"][name]) for name, value in whole["policy"].items())
    single = load_checkpoint(Path(run(small(), quiet=True).model_dir) / FINAL_MODEL)
    assert not torch.equal(single["policy"]["critic.model.0.weight"], whole["policy"]["critic.model.0.weight"])


def test_auto_is_saved_as_what_it_was(small):
    summary = run(small(precision="auto"), quiet=True)
    assert json.loads((Path(summary.log_dir) / "config.json").read_text())["precision"] == "fp32"
    assert load_checkpoint(Path(summary.model_dir) / FINAL_MODEL)["config"]["precision"] == "fp32"
