"""compute_gae against the time of copying the bytes that it reads and writes."""

from typing import Any

import numpy as np
import pytest

from xcfast import compute_gae
from xcfast.kernels import reference


@pytest.mark.parametrize("limits", [False, True], ids=["terminated", "time limits"])
@pytest.mark.parametrize(("num_steps", "num_envs"), [(256, 16), (2048, 64), (128, 4096)], ids=str)
def test_gae(compare: Any, num_steps: int, num_envs: int, limits: bool) -> None:
    rng = np.random.default_rng(0)
    rewards, values, final_values = rng.normal(size=(3, num_steps, num_envs)).astype(np.float32)
    last_values = rng.normal(size=num_envs).astype(np.float32)
    terminated, truncated = rng.random((2, num_steps, num_envs)) < 0.01
    optional = {"truncated": truncated, "final_values": final_values} if limits else {}
    out = (np.empty_like(rewards), np.empty_like(rewards))

    def ours() -> None:
        compute_gae(rewards, values, terminated, **optional, last_values=last_values, out=out)

    ours()
    few = [x[:, :4].astype(np.float64) for x in (rewards, values, final_values)]
    ends = terminated[:, :4], (truncated if limits else np.zeros_like(truncated))[:, :4]
    wanted, _ = reference.gae(
        few[0],
        few[1],
        *ends,
        last_values=last_values[:4].astype(float),
        final_values=few[2],
        gamma=0.99,
        gae_lambda=0.95,
    )
    scale = np.abs(wanted).max() + 10
    np.testing.assert_allclose(out[0][:, :4], wanted, rtol=0, atol=4 * num_steps * np.finfo(np.float32).eps * scale)

    # One copy of as many bytes as are touched: a copy reads one half and writes the other.
    touched = sum(x.nbytes for x in (rewards, values, terminated, last_values, *out, *optional.values()))
    source, target = np.ones((2, touched // 2), np.uint8)

    def copy() -> None:
        np.copyto(target, source)

    shape = f"{num_steps}x{num_envs}" + (", time limits" if limits else "")
    # The target names the plain case; time limits are context.
    compare(
        "advantages", {"copy": copy, "compute_gae": ours}, baseline="copy", kind="at_most", shape=shape,
        target=None if limits else 2.0, allowance=2e-6,
    )  # fmt: skip
