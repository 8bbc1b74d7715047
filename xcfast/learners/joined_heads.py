"""The evaluation of a minibatch with one matrix product for the first layers of both heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xcfast.policy.native_form import reason_changed
from xcfast.policy.networks import ActorCritic, masked


class PolicyEvaluation(nn.Module):
    """``ActorCritic.evaluate`` with the KL from stored distributions, as a module for ``functional_call``.

    Args:
        policy: The policy on the device. If its heads begin alike, one matrix product computes both beginnings.
    """

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy
        self._joins = _heads_can_be_joined(policy)

    def forward(
        self, obs: Tensor, actions: Tensor, old: Tensor | None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns log-probabilities, entropy, values and KL, each [B].

        Args:
            obs: float32 [B, *obs_shape].
            actions: float32 [B, A], or int64 [B].
            old: What ``frozen`` of the actor returned for the policy that collected; None gives None for the KL.
            masks: bool [B, number of actions], the actions that are allowed; default: all.
        """
        output, value = self._heads(obs)
        output = masked(output, masks)
        actor = self.policy.actor
        kl = None if old is None else actor.kl(old, output)
        return actor.log_prob(output, actions), actor.entropy(output), value, kl

    def _heads(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        policy = self.policy
        if not self._joins:
            return policy.heads(obs)
        # The first layers of both heads see the same features: one matrix product, forward and backward.
        actor, critic = policy.actor.layers, policy.critic.model
        features = policy.representation(obs)
        heads: list[Any] = [actor[0], critic[0]]
        weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
        hidden = actor[1](nn.functional.linear(features, weight, bias))
        for_actor, for_critic = hidden.split([head.out_features for head in heads], -1)
        return actor[2:](for_actor), critic[2:](for_critic).squeeze(-1)


def _heads_can_be_joined(policy: ActorCritic) -> bool:
    """Whether both heads begin with a linear layer on the same features and the same elementwise activation."""
    if policy.critic_representation is not None or any(map(reason_changed, (policy, policy.actor, policy.critic))):
        return False
    actor, critic = policy.actor.layers, policy.critic.model
    if any(map(reason_changed, (actor, critic))) or min(len(actor), len(critic)) < 3:
        return False
    first = (actor[0], critic[0], actor[1], critic[1])
    if any(map(reason_changed, first)) or any(head.bias is None for head in first[:2]):
        return False
    return type(actor[0]) is type(critic[0]) is nn.Linear and type(actor[1]) is type(critic[1]) is not nn.Softmax
