"""Times a peer's own advantage estimation; run by the peer's interpreter: gae.py NAME.

Answers {"steps": T, "envs": N, "loops": L} with {"seconds": per call, "advantages": sum, "magnitude": of absolutes}.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

GAMMA, LAMBDA = 0.99, 0.95


def data(steps: int, envs: int) -> dict[str, np.ndarray]:
    """The batch that every implementation gets: episodes end by the task only, in which all of them agree."""
    rng = np.random.default_rng(7)
    return {
        "rewards": rng.standard_normal((steps, envs), dtype=np.float32),
        "values": rng.standard_normal((steps, envs), dtype=np.float32),
        "last_values": rng.standard_normal(envs, dtype=np.float32),
        "terminated": rng.random((steps, envs)) < 0.01,
    }


def stable_baselines3(batch: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """RolloutBuffer.compute_returns_and_advantage."""
    import torch
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer

    steps, envs = batch["rewards"].shape
    box = spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(steps, box, box, gae_lambda=LAMBDA, gamma=GAMMA, n_envs=envs)
    buffer.rewards[:], buffer.values[:] = batch["rewards"], batch["values"]
    buffer.episode_starts[1:] = batch["terminated"][:-1]
    last_values = torch.from_numpy(batch["last_values"])

    def call() -> np.ndarray:
        buffer.compute_returns_and_advantage(last_values, batch["terminated"][-1])
        return buffer.advantages

    return call


def tianshou(batch: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """The jitted loop behind compute_episodic_return, on its own flat layout (one env after the other)."""
    gae_return = _tianshou_function()
    next_values = np.concatenate([batch["values"][1:], batch["last_values"][None]])
    next_values[batch["terminated"]] = 0.0
    end = batch["terminated"].copy()
    end[-1] = True
    flat = [np.ascontiguousarray(x.T).reshape(-1) for x in (batch["values"], next_values, batch["rewards"], end)]
    return lambda: gae_return(*flat, GAMMA, LAMBDA)


def _tianshou_function() -> Callable[..., np.ndarray]:
    try:
        from tianshou.algorithm.algorithm_base import _gae  # 2.x
    except ImportError:
        from tianshou.policy.base import _gae_return as _gae  # 1.x and before
    return _gae


def xuance(batch: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """DummyOnPolicyBuffer.finish_path, once per env."""
    from gymnasium import spaces
    from xuance.common import DummyOnPolicyBuffer

    steps, envs = batch["rewards"].shape
    box = spaces.Box(-1, 1, (1,))
    buffer = DummyOnPolicyBuffer(box, box, None, envs, steps, gamma=GAMMA, gae_lam=LAMBDA)
    buffer.rewards[:], buffer.values[:] = batch["rewards"].T, batch["values"].T
    buffer.terminals[:] = batch["terminated"].T
    buffer.size = steps
    last = np.where(batch["terminated"][-1], 0.0, batch["last_values"])

    def call() -> np.ndarray:
        buffer.start_ids[:] = 0
        for env in range(envs):
            buffer.finish_path(last[env], env)
        return buffer.advantages

    return call


PEERS = {"stable-baselines3": stable_baselines3, "tianshou": tianshou, "xuance": xuance}


def main() -> None:
    """Answer requests until standard input ends."""
    prepared: dict[tuple[int, int], Callable[[], np.ndarray]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        shape = request["steps"], request["envs"]
        if shape not in prepared:
            prepared[shape] = PEERS[sys.argv[1]](data(*shape))
            prepared[shape]()
        call = prepared[shape]
        start = time.perf_counter()
        for _ in range(request["loops"]):
            advantages = call()
        seconds = (time.perf_counter() - start) / request["loops"]
        answer = {
            "seconds": seconds,
            "advantages": float(np.sum(advantages, dtype=np.float64)),
            "magnitude": float(np.sum(np.abs(advantages), dtype=np.float64)),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
