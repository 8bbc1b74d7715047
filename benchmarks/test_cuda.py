"""The learner, advantage estimation and a whole run on a CUDA device; rows without numbers where there is none."""

import tempfile
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from interleave import SMOKE, Measured, interleave
from test_mujoco import physics_alone

from xcfast import RewardNormalizer, Rollout, compute_gae, load_config, run
from xcfast.envs import MujocoVecEnv, available_cpus
from xcfast.learners.cuda import CudaLearner
from xcfast.learners.torch import TorchLearner
from xcfast.policy import build_policy
from xcfast.resources import page_locked

DEVICE = torch.device("cuda", 0)
N_OBS, N_ACTIONS = 27, 8  # Ant
UPDATE, GAE, WHOLE = "CUDA: update of one rollout", "CUDA: advantage estimation", "CUDA: a whole run"


@pytest.fixture(autouse=True)
def device(compare: Any, request: pytest.FixtureRequest) -> None:
    if not torch.cuda.is_available():
        compare.not_measured(request.node.originalname, ["xcfast"], reason="needs a CUDA device")
        pytest.skip("needs a CUDA device")


class Update:
    """One call is one update on the same rollout, until its last kernel has finished."""

    def __init__(self, graphs: bool, **keys: Any) -> None:
        config = load_config(overrides={"device": "cuda", "running_steps": 10**8, **keys})
        box = gym.spaces.Box(-np.inf, np.inf, (N_OBS,), np.float32)
        policy = build_policy(config, box, gym.spaces.Box(-1, 1, (N_ACTIONS,), np.float32))
        self.rollout = Rollout(config.horizon_size, config.parallels, (N_OBS,), (N_ACTIONS,), allocate=page_locked)
        rng = np.random.default_rng(0)
        for array in (self.rollout.obs, self.rollout.rewards, self.rollout.last_obs):
            array[:] = rng.normal(size=array.shape)
        with torch.no_grad():
            mean = policy.act(torch.from_numpy(self.rollout.obs.reshape(-1, N_OBS))).numpy()
        noise = rng.normal(size=mean.shape) * np.exp(config.log_std_init)
        self.rollout.actions[:] = (mean + noise).reshape(self.rollout.actions.shape)
        self.rollout.terminated[:] = rng.random(self.rollout.terminated.shape) < 0.01
        rewards = RewardNormalizer(config.parallels)
        self.learner: CudaLearner | TorchLearner
        if graphs:
            self.learner = CudaLearner(policy, config, self.rollout, rewards, DEVICE)
            assert self.learner.compile == "graph", self.learner.fallbacks
        else:
            self.learner = TorchLearner(policy.to(DEVICE), config, self.rollout, rewards, 1)

    def __call__(self) -> None:
        self.learner.update(self.rollout, 0)
        torch.cuda.synchronize()


def allowed(seconds: float) -> Measured:
    """The target in absolute terms, as a row to compare with."""
    return Measured(lambda: seconds)


def test_update(compare: Any) -> None:
    shape = "XuanCe's tutorial configuration: 128 minibatches of 512"
    functions: dict[str, Any] = {"eager torch": Update(False), "CUDA graphs": Update(True)}
    functions |= {f"CUDA graphs, {precision}": Update(True, precision=precision) for precision in ("tf32", "bf16")}
    functions["15 ms"] = allowed(0.015)
    timings = interleave(functions, rounds=7, max_time=40.0)
    seconds = timings.seconds
    by_torch = {name: seconds[name] for name in functions if name != "15 ms"}
    against = {"baseline": "eager torch", "contender": "CUDA graphs", "target": 6.0}
    compare.record(UPDATE, by_torch, **against, shape=shape, unit="ms")
    absolute = {name: seconds[name] for name in ("15 ms", "CUDA graphs")}
    compare.record(UPDATE, absolute, baseline="15 ms", shape=shape, unit="ms", kind="at_most", target=1.0)


def on_device(function: Any, repeats: int = 50) -> Measured:
    """Time on the device alone: replays of one graph of many calls, between two events."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            function()

    def seconds() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    return Measured(seconds)


@pytest.mark.parametrize(("num_steps", "num_envs", "target"), [(64, 8192, 25e-6), (256, 16, None), (256, 4096, None)])
def test_gae(compare: Any, num_steps: int, num_envs: int, target: float | None) -> None:
    size = (num_steps, num_envs)
    rewards, values, final = torch.randn(3, *size, device=DEVICE)
    terminated, truncated = torch.rand(2, *size, device=DEVICE) < 0.01
    out = tuple(torch.empty(size, device=DEVICE) for _ in range(2))
    last = torch.randn(num_envs, device=DEVICE)
    keys = {"last_values": last, "final_values": final, "out": out}
    arguments = (rewards, values, terminated, truncated)
    functions = {"copy": on_device(lambda: [x.copy_(rewards) for x in out])}
    functions["Triton"] = on_device(lambda: compute_gae(*arguments, **keys))
    if target is not None:
        functions = {f"{target * 1e6:.0f} us": allowed(target), **functions}
    baseline = next(iter(functions))
    compare(
        GAE,
        functions,
        baseline=baseline,
        contender="Triton",
        kind="at_most",
        target=None if target is None else 1.0,
        shape=f"{num_envs} envs x {num_steps} steps",
    )


@pytest.mark.timeout(600)
def test_a_million_steps(compare: Any) -> None:
    steps = 8192 if SMOKE else 1_000_000
    threads = available_cpus()
    keys = {"env_id": "Ant-v4", "vectorize": "MujocoVecEnv", "device": "cuda", "running_steps": steps, "logger": "none"}
    with tempfile.TemporaryDirectory() as folder:
        summary = run(load_config(overrides={**keys, "log_dir": folder, "model_dir": folder}), "train", quiet=True)
    seconds = summary.collection_seconds + summary.update_seconds
    detail = f"{summary.collection_seconds:.1f} s collection + {summary.update_seconds:.1f} s update"
    shape = f"Ant-v4, XuanCe's tutorial configuration, {threads} CPUs"
    compare.record(
        WHOLE,
        {"25 s": [25.0], "xcfast": [seconds * 1_000_000 / summary.steps]},
        baseline="25 s",
        kind="at_most",
        target=1.0,
        unit="s",
        shape=f"{shape}, per million steps",
        detail={"xcfast": detail},
    )
    envs = MujocoVecEnv("Ant-v4", 16, threads, copy=False)
    actions = np.random.default_rng(0).uniform(-1, 1, (250, 16, 8)).astype(np.float32)
    envs.reset(seed=0)
    physics = physics_alone(envs, actions, threads)
    physics_seconds = interleave({"physics": physics}, rounds=9, items=250 * 16).of("physics").median
    envs.close()
    compare.record(
        WHOLE,
        {"mj_step alone": [physics_seconds], "xcfast": [seconds / summary.steps]},
        baseline="mj_step alone",
        kind="at_least",
        target=0.70,
        shape=f"{shape}: share of the physics limit",
        unit="us",
    )
