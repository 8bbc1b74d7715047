"""The KL divergence from the policy that collected: PPO_KL's penalty, its coefficient, epochs that stop early."""

import copy
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from native_core import make_policy
from test_learner_cuda import make
from test_learner_native import distribution, new_learner, weights

from xcfast.config.schema import MAX_KL_COEF, MIN_KL_COEF
from xcfast.errors import NonFiniteError
from xcfast.learners.kl import KLControl
from xcfast.learners.loss import LOSSES, ppo_loss
from xcfast.learners.native import NativeLearner
from xcfast.learners.schedule import learning_rate
from xcfast.learners.torch import TorchLearner
from xcfast.output.checkpoint import FINAL_MODEL, load_checkpoint
from xcfast.runs.run import run, train_to_the_end
from xcfast.runs.trainer import Trainer

EPS = float(np.finfo(np.float32).eps)
POLICIES = ["Gaussian_AC", "Categorical_AC"]
LEARNERS = {
    "torch": lambda config: new_learner(TorchLearner, config),
    "native": lambda config: new_learner(NativeLearner, config),
    "cuda": make,
}


def build(name, config):
    return LEARNERS[name](config)


@pytest.mark.parametrize("policy", POLICIES)
def test_kl_is_torchs(small, policy):
    old, new = (make_policy(small(policy=policy)).double() for _ in range(2))
    with torch.no_grad():
        for p in new.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype) * 0.1)
        obs = torch.randn(50, 7, dtype=torch.float64)
        before, after = old.act(obs), new.act(obs)
        kl = new.actor.kl(old.actor.frozen(before), after)
        logs = [getattr(one.actor, "logstd", None) for one in (old, new)]
        wanted = torch.distributions.kl_divergence(distribution(before, logs[0]), distribution(after, logs[1]))
        wanted = wanted if wanted.ndim == 1 else wanted.sum(-1)
        assert kl.shape == (50,) and float(kl.min()) > 0
        torch.testing.assert_close(kl, wanted, rtol=1e-9, atol=1e-12)
        assert float(old.actor.kl(old.actor.frozen(before), before).abs().max()) < 1e-15


def test_the_loss_is_the_papers():
    """arXiv 1707.06347, equation 8: no clip, the divergence times the coefficient."""
    new, entropy, values, old, advantages, returns, kl = np.random.default_rng(0).normal(size=(7, 33))
    tensors = [torch.tensor(x) for x in (new, entropy, values, old, advantages, returns)]
    settings = {"clip_range": float("inf"), "vf_coef": 0.25, "ent_coef": 0.01}
    loss = ppo_loss(*tensors, **settings, kl=torch.tensor(kl**2), kl_coef=0.7)
    surrogate = -np.mean(np.exp(new - old) * advantages)
    wanted = surrogate + 0.25 * np.mean((values - returns) ** 2) - 0.01 * entropy.mean() + 0.7 * np.mean(kl**2)
    assert float(loss.loss) == pytest.approx(wanted, rel=1e-12)
    assert float(loss.policy_loss) == pytest.approx(surrogate, rel=1e-12)
    assert float(loss.kl) == pytest.approx(np.mean(kl**2), rel=1e-12)
    assert float(loss.clipfrac) == 0.0
    assert len(loss) == 1 + len(LOSSES)


@pytest.mark.parametrize(
    ("kl", "coef"), [(0.151, 2.0), (0.149, 1.0), (0.1, 1.0), (0.067, 1.0), (0.066, 0.5), (0.0, 0.5), (1e9, 2.0)]
)
def test_coefficient(small, kl, coef):
    control = KLControl(small(agent="PPO_KL", target_kl=0.1))
    control.adapt(control.metrics(kl, 2))
    assert control.coef == coef


def test_coefficient_stays_in_its_range(small):
    for kl, end in ((1.0, MAX_KL_COEF), (0.0, MIN_KL_COEF)):
        control = KLControl(small(agent="PPO_KL", target_kl=0.1))
        for _ in range(30):
            control.adapt(control.metrics(kl, 2))
        assert control.coef == end


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_iterations_adapt_and_log_the_coefficient(small, name, policy):
    """The coefficient in the log is the one that was used; the KL decides about the next."""
    config = small(agent="PPO_KL", policy=policy, target_kl=1e-4, kl_coef=8.0, learning_rate=3e-3, compile="off")
    learner, rollout = build(name, config)
    logged = [learner.update(rollout, iteration) for iteration in range(4)]
    assert logged[0]["losses/kl_coef"] == 8.0
    assert all(m["losses/kl"] == m["kl"] > 0 and "losses/epochs" not in m for m in logged)
    for m, following in pairwise(logged):
        factor = 2.0 if m["losses/kl"] > 1.5e-4 else 0.5 if m["losses/kl"] < 1e-4 / 1.5 else 1.0
        assert following["losses/kl_coef"] == factor * m["losses/kl_coef"]
    assert learner.state_dict()["kl_coef"] != 8.0
    others = [build(other, config) for other in LEARNERS if other != name]
    for other, its in others:
        for iteration, m in enumerate(logged):
            wanted = other.update(its, iteration)
            assert list(wanted) == list(m)
            assert m == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_kl_is_that_of_the_last_epoch(small, name):
    """With one gradient step per epoch, the last epoch's KL is that of the weights after all the others."""
    keys = {"agent": "PPO_KL", "n_minibatch": 1, "learning_rate": 3e-3, "compile": "off"}
    shorter, rollout = build(name, small(n_epochs=2, end_factor_lr_decay=1.0, **keys))
    with torch.no_grad():
        policy = copy.deepcopy(shorter.policy).cpu()
        obs = torch.from_numpy(rollout.obs.reshape(-1, 7).copy())
        frozen = policy.actor.frozen(policy.act(obs))
    shorter.update(rollout, 0)
    with torch.no_grad():
        wanted = float(shorter.policy.actor.kl(frozen, shorter.policy.act(obs)).mean())
    longer, rollout = build(name, small(n_epochs=3, end_factor_lr_decay=1.0, **keys))
    assert longer.update(rollout, 0)["losses/kl"] == pytest.approx(wanted, rel=1e-4)
    assert wanted > 1e-4


@pytest.mark.parametrize("name", LEARNERS)
def test_a_larger_coefficient_holds_the_policy_back(small, name):
    divergences = []
    for coef in (0.01, 1.0, 100.0):
        config = small(agent="PPO_KL", kl_coef=coef, n_epochs=10, learning_rate=1e-2, compile="off")
        learner, rollout = build(name, config)
        divergences.append(learner.update(rollout, 0)["losses/kl"])
    assert divergences[0] > 2 * divergences[1] > 4 * divergences[2] > 0


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("after", LEARNERS)
def test_the_state_carries_the_coefficient(small, name, after):
    config = small(agent="PPO_KL", target_kl=10.0, compile="off")
    learner, rollout = build(name, config)
    learner.update(rollout, 0)
    state = copy.deepcopy(learner.state_dict())
    assert state["kl_coef"] == 0.5
    other, rollout = build(after, config)
    other.load_state_dict(state)
    assert other.update(rollout, 1)["losses/kl_coef"] == 0.5
    assert "kl_coef" not in build(name, small(compile="off"))[0].state_dict()
    del state["kl_coef"]
    other.load_state_dict(state)  # of a model that was trained without: the coefficient stays
    assert other.state_dict()["kl_coef"] == 0.25


@pytest.mark.parametrize("name", LEARNERS)
def test_a_failed_update_does_not_adapt(small, name):
    config = small(agent="PPO_KL", target_kl=10.0, use_rewnorm=False, compile="off")
    learner, rollout = build(name, config)
    rollout.obs[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="losses/kl = nan"):
        learner.update(rollout, 0)
    assert learner.state_dict()["kl_coef"] == 1.0


@pytest.mark.parametrize("learner_backend", ["native", "torch"])
def test_a_resumed_run_ends_as_one_in_one_go(small, learner_backend):
    config = small(
        agent="PPO_KL", target_kl=0.01, learner_backend=learner_backend, checkpoint_interval=256, learning_rate=3e-3
    )
    summary = run(config, quiet=True)
    (half,) = Path(summary.model_dir).glob("checkpoint_256*")
    whole = load_checkpoint(Path(summary.model_dir) / FINAL_MODEL)
    assert load_checkpoint(half)["learner"]["kl_coef"] != config.kl_coef
    again = load_checkpoint(Path(run(config, resume=half, quiet=True).model_dir) / FINAL_MODEL)
    assert again["learner"]["kl_coef"] == whole["learner"]["kl_coef"]
    for part, value in whole["policy"].items():
        assert torch.equal(value, again["policy"][part]), part


def test_a_checkpoint_from_before_these_keys_resumes(small):
    config = small(running_steps=256, checkpoint_interval=128)
    summary = run(config, quiet=True)
    path = next(Path(summary.model_dir).glob("checkpoint_128*"))
    saved = torch.load(path, weights_only=True)
    for key in (
        "target_kl",
        "kl_coef",
        "adam_beta1",
        "adam_beta2",
        "lr_schedule",
        "lr_decay_start",
        "desired_kl",
        "clip_value_range",
    ):
        del saved["config"][key]
    torch.save(saved, path)
    assert run(config, resume=path, quiet=True).steps == 256


# ---- Epochs that stop early


def epochs_kl(small, keys, n_epochs):
    """Mean approximate KL of each epoch of one iteration, from runs with one epoch more each."""
    totals = []
    for epochs in range(1, n_epochs + 1):
        learner, rollout = new_learner(TorchLearner, small(**keys, n_epochs=epochs, end_factor_lr_decay=1.0))
        totals.append(epochs * learner.update(rollout, 0)["losses/approx_kl"])
    return np.diff([0.0, *totals])


EARLY = {"learning_rate": 3e-3, "n_minibatch": 3, "compile": "off"}


@pytest.mark.parametrize("policy", POLICIES)
def test_all_learners_stop_after_the_same_epoch(small, policy):
    """The first epoch whose mean is above the limit is the last; the result is that of as many epochs without limit."""
    keys = {**EARLY, "policy": policy}
    divergences = epochs_kl(small, keys, 6)
    assert (np.diff(divergences) > 0).all()  # so that a limit between two of them is one between two epochs
    for last in (1, 3):
        target = float(divergences[last - 1 : last + 1].mean())
        for name in LEARNERS:
            stopping, rollout = build(
                name, small(**keys, n_epochs=6, early_stop_kl=True, target_kl=target, end_factor_lr_decay=1.0)
            )
            metrics = stopping.update(rollout, 0)
            assert metrics["losses/epochs"] == last + 1
            plain, rollout = build(name, small(**keys, n_epochs=last + 1, end_factor_lr_decay=1.0))
            wanted = plain.update(rollout, 0)
            assert {**wanted, "losses/epochs": last + 1.0} == pytest.approx(metrics, rel=1e-5, abs=1e-9)
            np.testing.assert_array_equal(weights(stopping), weights(plain))
            steps = {float(s["step"]) for s in stopping.state_dict()["optimizer"]["state"].values()}
            assert steps == {3.0 * (last + 1)}


@pytest.mark.parametrize("name", LEARNERS)
def test_without_cause_all_epochs_run(small, name):
    for target, epochs in ((1e3, 5.0), (1e-12, 1.0)):
        learner, rollout = build(name, small(**EARLY, n_epochs=5, early_stop_kl=True, target_kl=target))
        assert learner.update(rollout, 0)["losses/epochs"] == epochs


@pytest.mark.parametrize("name", LEARNERS)
def test_the_schedule_does_not_shift(small, name):
    """An iteration that stops early takes as much of the schedule as one that does not, with a scheduler too."""
    config = small(**EARLY, n_epochs=5, early_stop_kl=True, target_kl=1e-12)
    learner, rollout = build(name, config)
    for iteration in range(2):
        metrics = learner.update(rollout, iteration)
        last = iteration * 15 + 2  # of the iteration's 5 * 3 updates, the third
        assert metrics["learning_rate"] == pytest.approx(learning_rate(config, last), rel=1e-12)


@pytest.mark.parametrize("cls", [TorchLearner, NativeLearner])
def test_a_scheduler_does_not_shift(small, cls):
    config = small(**EARLY, n_epochs=5, early_stop_kl=True, target_kl=1e-12)
    learner, rollout = new_learner(cls, config)
    policy = learner.policy
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2, eps=1e-5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 15, 0.5)
    learner = cls(policy, config, rollout, learner._reward_normalizer, 1, optimizer=optimizer, scheduler=scheduler)
    rates = [learner.update(rollout, iteration)["learning_rate"] for iteration in range(3)]
    assert rates == pytest.approx([1e-2, 5e-3, 2.5e-3])
    assert scheduler.last_epoch == 45


@pytest.mark.timeout(600)  # Inductor's C++ compiler
def test_compiled(small):
    config = small(compile="default", agent="PPO_KL", target_kl=1e-3, learning_rate=3e-3)
    learner, rollout = make(config)
    assert learner.compile == "default" and len(learner.fallbacks) == 0
    torchs, its = new_learner(TorchLearner, config)
    start = weights(torchs)
    for iteration in range(2):
        metrics, wanted = learner.update(rollout, iteration), torchs.update(its, iteration)
        assert metrics == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert np.linalg.norm(weights(learner) - weights(torchs)) <= 1e-4 * np.linalg.norm(weights(torchs) - start)
    assert metrics["losses/kl_coef"] != config.kl_coef


@pytest.mark.cuda
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("keys", [{"agent": "PPO_KL", "target_kl": 1e-3}, {"early_stop_kl": True, "target_kl": 1e-5}])
def test_in_graphs(small, policy, keys):
    config = small(compile="graph", policy=policy, learning_rate=3e-3, n_epochs=3, **keys)
    learner, rollout = make(config, "cuda")
    assert learner.compile == "graph"
    torchs, its = new_learner(TorchLearner, config)
    for iteration in range(3):
        metrics, wanted = learner.update(rollout, iteration), torchs.update(its, iteration)
        assert metrics == pytest.approx(wanted, rel=1e-2, abs=1e-5)


# ---- Whole runs


@pytest.mark.parametrize(
    ("env_id", "policy"), [("toys:toy/Target-v0", "Gaussian_AC"), ("toys:toy/Choice-v0", "Categorical_AC")]
)
def test_learns(small, env_id, policy):
    config = small(
        agent="PPO_KL",
        target_kl=0.02,
        env_id=env_id,
        policy=policy,
        running_steps=128 * 100,
        n_epochs=8,
        learning_rate=3e-3,
        test_episode=64,
        logger="none",
    )
    assert run(config, quiet=True).final_mean > 0.95


@pytest.mark.parametrize("keys", [{"agent": "PPO_KL"}, {"early_stop_kl": True, "target_kl": 1e-6}], ids=["KL", "stop"])
def test_a_run_logs_them(small, keys):
    config = small(logger="tensorboard", **keys)
    trainer = Trainer(config, "train", quiet=True)
    logged = {}
    try:
        trainer.start()
        log = trainer.log.iteration
        trainer.log.iteration = lambda *given, **more: logged.update(log(*given, **more)) or logged
        train_to_the_end(trainer)
    finally:
        trainer.close()
    names = {name for name in logged if re.search("kl|epochs", name)} - {"losses/approx_kl"}
    assert names == ({"losses/kl", "losses/kl_coef", "kl"} if "agent" in keys else {"losses/epochs"})
