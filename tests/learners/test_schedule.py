"""The learning rate: its schedules by hand, and the rate that follows the KL divergence in every learner."""

import copy
from pathlib import Path

import pytest
import torch
from test_kl import LEARNERS, build
from test_learner import CLASSES, make

from xcfast import RewardNormalizer
from xcfast.learners.schedule import Schedule, learning_rate
from xcfast.learners.torch import TorchLearner
from xcfast.output.checkpoint import FINAL_MODEL, load_checkpoint
from xcfast.runs.run import run

KL = {"lr_schedule": "kl", "learning_rate": 1e-3, "compile": "off"}


def rates(config, *steps):
    return [learning_rate(config, step) for step in steps]


def test_late_falls_in_the_last_part_of_the_run(small):
    config = small(lr_schedule="late", learning_rate=1e-3, end_factor_lr_decay=0.2)
    assert config.num_updates == 32
    assert rates(config, 0, 23, 24) == [1e-3] * 3
    assert rates(config, 26, 28, 32, 40) == pytest.approx([0.8e-3, 0.6e-3, 0.2e-3, 0.2e-3])
    earlier = small(lr_schedule="late", learning_rate=1e-3, lr_decay_start=0.25)
    assert rates(earlier, 8, 20, 32) == pytest.approx([1e-3, 0.5e-3, 0.0])


def test_constant_and_the_limits_of_late(small):
    config = small(lr_schedule="constant", learning_rate=1e-3)
    assert rates(config, 0, 31, 32, 100) == [1e-3] * 4
    late, linear = small(lr_schedule="late", lr_decay_start=0), small()
    assert rates(late, *range(34)) == rates(linear, *range(34))


def optimizer_at(rate):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)


@pytest.mark.parametrize(
    ("rate", "kl", "following"),
    [
        (3e-4, 0.0201, 2e-4),
        (3e-4, 0.0199, 3e-4),
        (3e-4, 0.0051, 3e-4),
        (2e-4, 0.0049, 3e-4),
        (2e-4, 0.0, 3e-4),
        (1.4e-6, 1.0, 1e-6),
        (1e-6, 1.0, 1e-6),
        (8e-3, 0.0, 1e-2),
        (1e-2, 0.0, 1e-2),
    ],
)
def test_the_rate_follows_the_kl(small, rate, kl, following):
    schedule = Schedule(small(lr_schedule="kl"), optimizer_at(rate), None, own=True)
    assert list(schedule.ahead(0, 3)) == [rate] * 3
    schedule.adapt({"losses/approx_kl": kl})
    assert list(schedule.ahead(3, 3)) == pytest.approx([following] * 3)


def test_other_rates_do_not_follow_it(small):
    for config, own in ((small(lr_schedule="kl"), False), (small(lr_schedule="constant", learning_rate=3e-4), True)):
        schedule = Schedule(config, optimizer_at(3e-4), None, own)
        schedule.begin(0)
        schedule.adapt({"losses/approx_kl": 1.0})
        assert schedule.begin(1) == 3e-4


SCALES = {"constant": lambda k: 1.0, "late": lambda k: 1 - max(k - 9, 0) / 7}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("schedule", SCALES)
def test_every_learner_has_the_schedule(small, cls, schedule):
    """Against torch's Adam as a script's optimizer, with the rates of two iterations by a scheduler."""
    config = small(compile="off", running_steps=256, lr_schedule=schedule, lr_decay_start=9 / 16)
    assert config.num_updates == 16
    learner, rollout = make(cls, config)
    reference, same = make(TorchLearner, config)
    start = vector(learner)
    optimizer = torch.optim.Adam(reference.policy.parameters(), config.learning_rate, eps=1e-5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, SCALES[schedule])
    rewards = RewardNormalizer(config.parallels, gamma=config.gamma)
    reference = TorchLearner(reference.policy, config, same, rewards, 1, optimizer=optimizer, scheduler=scheduler)
    for iteration in range(2):
        metrics, wanted = learner.update(rollout, iteration), reference.update(same, iteration)
        assert metrics["learning_rate"] == pytest.approx(wanted["learning_rate"], rel=1e-12)
    assert (vector(learner) - vector(reference)).norm() <= 1e-4 * (vector(reference) - start).norm()


def vector(learner):
    return torch.nn.utils.parameters_to_vector(learner.policy.parameters()).detach().clone()


@pytest.mark.parametrize("desired_kl", [1e-6, 1e3], ids=["falls", "rises"])
def test_learners_agree_on_the_rate(small, desired_kl):
    """The rate in the log is the one that was used; the KL decides about the next."""
    config = small(**KL, desired_kl=desired_kl)
    logged = {}
    for name in LEARNERS:
        learner, rollout = build(name, config)
        logged[name] = [learner.update(rollout, iteration) for iteration in range(3)]
        factor = 1.5 if desired_kl > 1 else 1 / 1.5
        assert [m["learning_rate"] for m in logged[name]] == pytest.approx([1e-3 * factor**n for n in range(3)])
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * factor**3)
    for name in ("native", "cuda"):
        for m, wanted in zip(logged[name], logged["torch"], strict=True):
            assert m == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_logged_kl_is_the_one_that_decides(small, name):
    """The KL of the first update is in the middle of the range where the rate stays, or at its edges."""
    learner, rollout = build(name, small(**KL))
    kl = learner.update(rollout, 0)["losses/approx_kl"]
    assert kl > 1e-5
    for desired, factor in ((kl, 1.0), (kl / 1.9, 1.0), (kl / 2.1, 1 / 1.5), (1.9 * kl, 1.0), (2.1 * kl, 1.5)):
        learner, rollout = build(name, small(**KL, desired_kl=desired))
        used = [learner.update(rollout, iteration)["learning_rate"] for iteration in range(2)]
        assert used == pytest.approx([1e-3, 1e-3 * factor])


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("after", LEARNERS)
def test_the_state_carries_the_rate(small, name, after):
    config = small(**KL, desired_kl=1e-6)
    learner, rollout = build(name, config)
    learner.update(rollout, 0)
    other, rollout = build(after, config)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert other.update(rollout, 1)["learning_rate"] == 1e-3 / 1.5


@pytest.mark.parametrize("learner_backend", ["native", "torch"])
@pytest.mark.parametrize("schedule", ["kl", "late"])
def test_a_resumed_run_ends_as_one_in_one_go(small, learner_backend, schedule):
    config = small(
        lr_schedule=schedule,
        learner_backend=learner_backend,
        checkpoint_interval=256,
        learning_rate=1e-3,
        logger="none",
    )
    summary = run(config, "train", quiet=True)
    (half,) = Path(summary.model_dir).glob("checkpoint_256*")
    whole = load_checkpoint(Path(summary.model_dir) / FINAL_MODEL)
    saved = [
        load_checkpoint(half),
        whole,
        load_checkpoint(Path(run(config, resume=half, quiet=True).model_dir) / FINAL_MODEL),
    ]
    reached = [one["learner"]["optimizer"]["param_groups"][0]["lr"] for one in saved]
    assert reached[1] == reached[2] != reached[0]
    for part, value in whole["policy"].items():
        assert torch.equal(value, saved[2]["policy"][part]), part
