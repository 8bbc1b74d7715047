"""Compares an exported file with its policy: they may differ only by rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from xcfast.policy import ActorCritic

if TYPE_CHECKING:
    from xcfast.runs.player import SavedPlayer

Call = Callable[..., np.ndarray]
"""Env actions [B, ...] for raw observations float32 [B, ...], and for masks bool [B, n] if the policy takes them."""

_ROWS = 256
_EPS = 2.0**-24  # largest relative error of one float32 operation


class ExportError(RuntimeError):
    """The exported file does not do what the policy does."""


def round_trip(saved: SavedPlayer, call: Call) -> tuple[float, float]:
    """Compares the actions of file and policy for likely observations, for extreme ones, and for a single one.

    Returns:
        The largest difference, and the largest one that rounding allows.

    Raises:
        ExportError: They differ by more than rounding can explain.
    """
    policy, normalizer, action_map = saved.player
    rms = normalizer.rms
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((_ROWS, *rms.shape))
    noise[::4] *= 10.0
    obs = (rms.mean + np.sqrt(rms.var) * noise).astype(np.float32)
    inputs: list[np.ndarray] = [obs]
    n_actions = saved.mask_size
    if n_actions is not None:
        masks = rng.random((_ROWS, n_actions)) < 0.5
        masks[np.arange(_ROWS), rng.integers(n_actions, size=_ROWS)] = True
        inputs.append(masks)
    expected = saved.player.act(*inputs)
    actual = np.concatenate([call(*(x[rows] for x in inputs)) for rows in (slice(1), slice(1, None))])
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ExportError(
            f"the file gives {actual.dtype} {list(actual.shape)}, the policy {expected.dtype} {list(expected.shape)}"
        )
    output, bound = rounding_bound(policy, torch.from_numpy(normalizer.normalize(obs)))
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    if n_actions is not None:
        output = np.where(masks, output, -np.inf)
    if action_map.discrete:  # a tie within rounding may be broken either way
        two = np.sort(output, -1)[:, -2:] if output.shape[-1] > 1 else np.stack([output[:, 0] - 1, output[:, 0]], -1)
        allowed = np.where(two[:, 1] - two[:, 0] > 2 * bound.max(-1), 0.0, np.inf)
    else:
        bound = bound.reshape(expected.shape)
        scale = action_map.scale if action_map.rescales else 1.0
        allowed = bound * scale + 4 * _EPS * (np.abs(expected) + scale)
    if (difference > allowed).any() or not np.isfinite(difference).all():
        worst = np.unravel_index(
            np.argmax(np.where(np.isfinite(difference), difference - allowed, np.inf)), allowed.shape
        )
        raise ExportError(
            f"the file's action {actual[worst]} is not the policy's {expected[worst]} "
            f"(observation {worst[0]} of the round trip, rounding allows {allowed[worst]:.2g}); nothing was written"
        )
    return float(difference.max()), float(allowed[np.isfinite(allowed)].max(initial=0.0))


@torch.inference_mode()
def rounding_bound(policy: ActorCritic, obs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Bounds how far two float32 evaluations of the actor head can be apart, by error analysis in float64.

    Rounding errors are taken as independent, with mean zero: a sum of n products, in any order, then has a deviation of
    at most sqrt(n) eps sum |w x|, and earlier errors pass through a layer in quadrature. No activation stretches a
    difference. The bound is 8 deviations.

    Args:
        policy: The network.
        obs: float32 [B, ...], normalized.

    Returns:
        The head's output and the bound, both float64 [B, A].

    Source: Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41 (2019).
    """
    x = obs.flatten(1).double()
    variance = (2 * _EPS * x).square()
    for layer in (*policy.representation.model, *policy.actor.layers):
        y = copy.deepcopy(layer).double()(x)
        if isinstance(layer, nn.Linear):
            weight = layer.weight.double().T
            size = x.abs() @ weight.abs() + layer.bias.double().abs()
            variance = variance @ weight.square() + 2 * (layer.in_features + 1) * (_EPS * size).square()
        elif isinstance(layer, nn.LayerNorm):
            n = x.shape[-1]
            deviation = (x.var(-1, unbiased=False, keepdim=True) + layer.eps).sqrt()
            scaled = (x - x.mean(-1, keepdim=True)) / deviation
            common = variance.mean(-1, keepdim=True) + scaled.square() * (scaled.square() * variance).mean(
                -1, keepdim=True
            )
            own = n**0.5 * _EPS * x.abs().mean(-1, keepdim=True) * (1 + scaled.abs())
            gain = layer.weight.double() / deviation
            variance = gain.square() * (variance + common / n + 2 * own.square()) + (4 * _EPS * y).square()
        else:
            if isinstance(layer, nn.Softmax):
                variance = variance.amax(-1, keepdim=True).expand_as(y)
            variance = variance + (4 * _EPS * (1 + y.abs())).square()
        x = y
    return x.numpy(), 8 * variance.sqrt().numpy()
