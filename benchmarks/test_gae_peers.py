"""compute_gae against other trainers' own functions, on the same batch. Context: no gates."""

import math
from typing import Any

import numpy as np
import pytest
from interleave import Measured
from peers import Runner
from peers.gae import GAMMA, LAMBDA, PEERS, data

from xcfast import compute_gae


@pytest.mark.parametrize(("steps", "envs"), [(256, 16), (2048, 64), (128, 4096)], ids=lambda size: str(size))
def test_gae_peers(compare: Any, peer_interpreters: dict[str, str], steps: int, envs: int) -> None:
    group, shape = "advantages: other trainers", f"{steps}x{envs}"
    batch = data(steps, envs)
    out = (np.empty((steps, envs), np.float32), np.empty((steps, envs), np.float32))

    def ours() -> None:
        compute_gae(
            batch["rewards"],
            batch["values"],
            batch["terminated"],
            last_values=batch["last_values"],
            gamma=GAMMA,
            gae_lambda=LAMBDA,
            out=out,
        )

    ours()
    total, magnitude = np.sum(out[0], dtype=np.float64), np.sum(np.abs(out[0]), dtype=np.float64)
    runners = {name: Runner(peer_interpreters[name], "gae.py", name) for name in PEERS if name in peer_interpreters}
    try:
        functions: dict[str, Any] = {"xcfast": ours}
        for name, runner in runners.items():
            answer = runner.ask(steps=steps, envs=envs, loops=1)
            assert math.isclose(answer["magnitude"], magnitude, rel_tol=1e-4), name
            assert math.isclose(answer["advantages"], total, abs_tol=1e-5 * magnitude), name
            loops = math.ceil(0.02 / answer["seconds"])
            ask = runner.ask
            functions[name] = Measured(lambda ask=ask, n=loops: ask(steps=steps, envs=envs, loops=n)["seconds"])
        compare(group, functions, baseline="xcfast", kind="at_most", shape=shape, rounds=7)
    finally:
        for runner in runners.values():
            runner.close()
    compare.not_measured(group, [name for name in PEERS if name not in runners], shape=shape)
