"""PPO's loss as a pure function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Names of the loss's parts, in the order of ``PPOLoss``; the last one is logged only if there is a penalty.
LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "kl")


class PPOLoss(NamedTuple):
    """The loss to minimize and its parts, all scalar tensors on one device."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clipfrac: Tensor
    kl: Tensor


def batch_mean(samples: Tensor) -> Tensor:
    """Returns the mean [...] over the minibatch of [..., B]."""
    return samples.mean(-1)


def ppo_loss(
    log_probs: Tensor,
    entropy: Tensor,
    values: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    returns: Tensor,
    *,
    clip_range: float,
    vf_coef: float,
    ent_coef: float,
    kl: Tensor | None = None,
    kl_coef: float | Tensor = 0.0,
    old_values: Tensor | None = None,
    value_range: float = math.inf,
    mean: Callable[[Tensor], Tensor] = batch_mean,
) -> PPOLoss:
    """Returns PPO's objective, clipped or with a KL penalty, with squared value error and entropy bonus.

    Args:
        log_probs: float [B], log-probability of the actions under the current policy.
        entropy: float [B], entropy of the current policy.
        values: float [B], current value estimates.
        old_log_probs: float [B], log-probabilities under the policy that collected.
        advantages: float [B], normalized before the call if the configuration says so.
        returns: float [B], value targets.
        clip_range: Half-width of [1 - clip_range, 1 + clip_range], which the ratio is clipped to; may be infinite.
        vf_coef: Weight of the value loss (mean squared error, no factor 1/2).
        ent_coef: Weight of the entropy bonus.
        kl: float [B], KL divergence from the policy that collected; None: no penalty.
        kl_coef: Weight of the penalty, which is not part of ``policy_loss``.
        old_values: float [B], values by the weights that collected; None: the value loss is not clipped.
        value_range: Half-width c of the range around them. The error of a value is then the larger one of two squares:
            that of the value, and that of the value clipped to old_values +- c.
        mean: Function that returns the mean [...] over the whole minibatch of float [..., B]; B may be padded, or only
            a part of the minibatch.

    Source:
        Schulman et al., arXiv 1707.06347, eq. 7, 8 and 9; the clipped value loss is that of
        https://github.com/openai/baselines, ppo2/model.py; the KL estimate is (r - 1) - log r, http://joschu.net/blog/kl-approx.html
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    with torch.no_grad():
        approximate = ratio - 1.0 - log_ratio
        outside = ((ratio - 1.0).abs() > clip_range).to(ratio.dtype)
    penalty = torch.zeros_like(ratio) if kl is None else kl
    errors = (values - returns).square()
    if old_values is not None:
        near = old_values + (values - old_values).clamp(-value_range, value_range)
        errors = torch.maximum(errors, (near - returns).square())
    # One reduction instead of six: on a GPU each of them would be a kernel of its own.
    parts = mean(torch.stack([-gain, errors, entropy, approximate, outside, penalty]))
    policy_loss, value_loss, mean_entropy, _, _, mean_kl = parts.unbind()
    loss = policy_loss + vf_coef * value_loss - ent_coef * mean_entropy
    if kl is not None:
        loss = loss + kl_coef * mean_kl
    return PPOLoss(loss, *parts.detach().unbind())


def normalized_advantages(advantages: Tensor) -> Tensor:
    """Returns (A - mean) / (std + 1e-8), with the population standard deviation of the minibatch."""
    centered = advantages - advantages.mean()
    return centered / (centered.square().mean().sqrt() + 1e-8)
