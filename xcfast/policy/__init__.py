"""Policies: the networks, how a configuration builds them, and how their samples become actions."""

from xcfast.policy.action_map import ActionMap
from xcfast.policy.build import build_policy, resolve_policy
from xcfast.policy.networks import (
    ACTIVATIONS,
    ActorCritic,
    BasicMLP,
    CategoricalActor,
    Critic,
    GaussianActor,
    masked,
)

__all__ = [
    "ACTIVATIONS",
    "ActionMap",
    "ActorCritic",
    "BasicMLP",
    "CategoricalActor",
    "Critic",
    "GaussianActor",
    "build_policy",
    "masked",
    "resolve_policy",
]
