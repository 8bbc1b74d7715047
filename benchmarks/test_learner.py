"""The native learner against TorchLearner, and against the machine's floor.

The floor is the time of the update's matrix products alone at the single-precision rate of ``torch.mm`` (1024 x 1024),
measured in the same rounds on as many threads at the same time, each with matrices of its own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from interleave import Measured, interleave

from xcfast import RewardNormalizer, Rollout, _core, load_config
from xcfast.envs import available_cpus
from xcfast.learners.native import NativeLearner
from xcfast.learners.precision import EMULATE, how_computed
from xcfast.learners.torch import TorchLearner
from xcfast.policy import build_policy

SMOKE = os.environ.get("XCFAST_BENCH_SMOKE") == "1"
THREADS = 2
N_OBS, N_ACTIONS = 27, 8  # Ant
SHAPES: dict[str, dict[str, Any]] = {
    "XuanCe's tutorial configuration": {},
    "[64, 64] tanh, minibatch 64": {
        "representation_hidden_size": [64],
        "actor_hidden_size": [64],
        "critic_hidden_size": [64],
        "activation": "tanh",
        "n_minibatch": 64,
        "n_epochs": 4,
    },
    "[256, 256] separate, minibatch 2,048": {"shared_representation": False, "n_minibatch": 2},
    "[512, 256, 128], minibatch 16,384": {
        "representation_hidden_size": [512, 256, 128],
        "actor_hidden_size": [],
        "critic_hidden_size": [],
        "parallels": 64,
        "n_minibatch": 1,
        "n_epochs": 4,
    },
}


class Update:
    """One call is one update of a learner of its own on the same rollout."""

    def __init__(
        self, learner: type[NativeLearner] | type[TorchLearner], shape: str, threads: int, precision: str = "fp32"
    ) -> None:
        keys = {"device": "cpu", "precision": precision, **SHAPES[shape], **({"n_epochs": 1} if SMOKE else {})}
        config = load_config(overrides=keys)
        box = gym.spaces.Box(-np.inf, np.inf, (N_OBS,), np.float32)
        self.policy = build_policy(config, box, gym.spaces.Box(-1, 1, (N_ACTIONS,), np.float32))
        self.rollout = Rollout(config.horizon_size, config.parallels, (N_OBS,), (N_ACTIONS,))
        rng = np.random.default_rng(0)
        for array in (self.rollout.obs, self.rollout.rewards, self.rollout.last_obs):
            array[:] = rng.normal(size=array.shape)
        with torch.no_grad():
            mean = self.policy.act(torch.from_numpy(self.rollout.obs.reshape(-1, N_OBS))).numpy()
        noise = rng.normal(size=mean.shape) * np.exp(config.log_std_init)
        self.rollout.actions[:] = (mean + noise).reshape(self.rollout.actions.shape)
        self.rollout.terminated[:] = rng.random(self.rollout.terminated.shape) < 0.01
        normalizer = RewardNormalizer(config.parallels)
        self.learner = learner(self.policy, config, self.rollout, normalizer, threads)
        self.config = config

    def __call__(self) -> None:
        self.learner.update(self.rollout, 0)

    @property
    def flops(self) -> float:
        """Of the matrix products: the rollout's evaluation, and forward, input and weight gradients of all epochs."""
        weights = [p for p in self.policy.parameters() if p.ndim == 2]
        size = sum(w.numel() for w in weights)
        first = sum(w.numel() for w in weights if w.shape[1] == N_OBS)  # observations need no gradient
        return self.config.batch_size * (2 * size + self.config.n_epochs * (6 * size - 2 * first))


def floor(flops: float, threads: int) -> Measured:
    matrices = [torch.rand(3, 1024, 1024) for _ in range(threads)]
    barrier = Barrier(threads)

    def rate(three: torch.Tensor) -> float:
        a, b, c = three
        torch.set_num_threads(1)
        torch.mm(a, b, out=c)  # the first one of a thread makes buffers
        repeats = 10
        barrier.wait()
        start = perf_counter()
        for _ in range(repeats):
            torch.mm(a, b, out=c)
        return repeats * 2 * 1024**3 / (perf_counter() - start)

    def seconds() -> float:
        # Busy cores slow each other down: one alone is faster than each of several.
        with ThreadPoolExecutor(threads) as pool:
            return flops / sum(pool.map(rate, matrices))

    return Measured(seconds)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # TorchLearner.update sets its own
    yield
    torch.set_num_threads(threads)


def check(shape: str, precision: str = "fp32") -> None:
    """The first update ends where torch's does, up to what rounding grows to."""
    updates = [Update(TorchLearner, shape, THREADS), Update(NativeLearner, shape, THREADS, precision)]
    start = torch.cat([p.detach().flatten() for p in updates[0].policy.parameters()]).clone()
    for update in updates:
        update()
    torchs, native = (torch.cat([p.detach().flatten() for p in update.policy.parameters()]) for update in updates)
    most = 0.1 if precision == "fp32" else 0.25
    assert torch.linalg.norm(native - torchs) < most * torch.linalg.norm(torchs - start)


def enough_cpus(compare: Any, group: str, shape: str) -> bool:
    if available_cpus() >= THREADS:
        return True
    compare.not_measured(group, ["native"], shape=shape, reason=f"needs {THREADS} CPUs")
    return False


@pytest.mark.parametrize(
    ("shape", "speed_up", "of_floor"),
    [
        ("XuanCe's tutorial configuration", 2.2, 0.88),
        ("[64, 64] tanh, minibatch 64", 4.0, None),
        ("[256, 256] separate, minibatch 2,048", None, 0.90),
        ("[512, 256, 128], minibatch 16,384", None, 0.90),
    ],
)
def test_update(compare: Any, shape: str, speed_up: float | None, of_floor: float | None) -> None:
    groups = "update: against TorchLearner", "update: against the floor"
    if not enough_cpus(compare, groups[0], shape):
        return
    check(shape)
    native = Update(NativeLearner, shape, THREADS)
    functions: dict[str, Callable[[], object] | Measured] = {
        "floor": floor(native.flops, THREADS),
        "native": native,
        "torch, 1 thread": Update(TorchLearner, shape, 1),
        f"torch, {THREADS} threads": Update(TorchLearner, shape, THREADS),
    }
    timings = interleave(functions, rounds=9, max_time=60.0)
    names = [name for name in functions if name.startswith("torch")]
    best = min(names, key=lambda name: timings.of(name).median)
    by_torch = {name: timings.seconds[name] for name in (best, "native", *names)}
    compare.record(groups[0], by_torch, baseline=best, contender="native", shape=shape, unit="ms", target=speed_up)
    by_floor = {name: timings.seconds[name] for name in ("floor", "native")}
    compare.record(groups[1], by_floor, baseline="floor", shape=shape, unit="ms", target=of_floor)


def test_precision(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float32. Where the CPU does not have the unit, the table has the cost of the emulation instead."""
    shape, group = "XuanCe's tutorial configuration", "update: other precisions"
    targets = {"bf16x3": 1.6, "bf16": 3.0}
    if not enough_cpus(compare, group, shape):
        return
    monkeypatch.setenv(EMULATE, "1")
    updates = {"fp32": Update(NativeLearner, shape, THREADS)}
    for precision in targets:
        check(shape, precision)
        updates[precision] = Update(NativeLearner, shape, THREADS, precision)
    timings = interleave(updates, rounds=9, max_time=60.0)
    for precision, target in targets.items():
        emulated = _core.nn_hardware(precision) is None
        compare.record(
            group,
            {name: timings.seconds[name] for name in ("fp32", precision)},
            baseline="fp32",
            kind="at_most" if emulated else "at_least",
            target=None if emulated else target,
            shape=shape,
            unit="ms",
            detail={precision: how_computed(precision)},
        )


@pytest.mark.parametrize("shape", ["XuanCe's tutorial configuration", "[64, 64] tanh, minibatch 64"])
def test_scaling(compare: Any, shape: str) -> None:
    group = "update: from one thread to two"
    if not enough_cpus(compare, group, shape):
        return
    functions = {f"native, {n} thread{'s' * (n > 1)}": Update(NativeLearner, shape, n) for n in (1, THREADS)}
    target = 1.88 if shape == "XuanCe's tutorial configuration" else None
    compare(group, functions, baseline="native, 1 thread", shape=shape, unit="ms", target=target)


def test_with_another_busy_process(compare: Any) -> None:
    shape = "XuanCe's tutorial configuration"
    group = "update: with another busy process on as many CPUs"
    if not enough_cpus(compare, group, shape):
        return
    alone = Update(NativeLearner, shape, available_cpus())

    def beside() -> float:
        busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            start = perf_counter()
            alone()
            return perf_counter() - start
        finally:
            busy.kill()
            busy.wait()
            busy.stdout.close()

    functions = {"alone": alone, "beside a busy process": Measured(beside)}
    compare(group, functions, baseline="alone", shape=shape, unit="ms", kind="at_most", target=2.2)
