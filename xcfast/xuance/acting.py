"""Computes actions, with XuanCe's arguments and results."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.distributions import Categorical, Independent, Normal

from xcfast.policy import CategoricalActor
from xcfast.runs.player import Player


@torch.no_grad()
def actions_of(
    player: Player,
    observations: np.ndarray,
    deterministic: bool,
    return_dists: bool,
    return_logpi: bool,
    action_masks: np.ndarray | None,
) -> dict[str, Any]:
    """Computes actions; see ``PPO_Agent.get_actions``."""
    policy, normalizer, action_map = player
    obs = torch.from_numpy(normalizer.normalize(observations)).to(policy.device)
    masks = None
    if action_masks is not None:
        if not isinstance(policy.actor, CategoricalActor):
            raise ValueError("action_masks are for a Categorical policy; this one is Gaussian")
        masks = torch.from_numpy(np.asarray(action_masks, np.bool_)).to(policy.device)
    output = policy.act(obs, masks)
    dists: Any
    if isinstance(policy.actor, CategoricalActor):
        dists = Categorical(logits=output)
    else:
        dists = Independent(Normal(output, policy.actor.logstd.exp().expand_as(output)), 1)
    raw = policy.actor.mode(output) if deterministic else dists.sample()
    return {
        "actions": action_map(raw.cpu().numpy()),
        "values": policy.value(obs).cpu().numpy(),
        "dists": dists if return_dists else None,
        "log_pi": policy.actor.log_prob(output, raw).cpu().numpy() if return_logpi else None,
    }
