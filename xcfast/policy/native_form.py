"""The form in which native code reads a policy: a list of linear layers with activations, or why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xcfast.policy.networks import ActorCritic, BasicMLP, CategoricalActor, Critic, GaussianActor

# csrc/nn/types.hpp has the same numbers; nn.Identity stands for none.
_ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.Identity: 0,
    nn.ReLU: 1,
    nn.LeakyReLU: 2,
    nn.Tanh: 3,
    nn.Sigmoid: 4,
    nn.ELU: 5,
    nn.Softmax: 6,
}
_KNOWN = {ActorCritic, BasicMLP, GaussianActor, CategoricalActor, Critic, nn.Sequential, nn.Linear, *_ACTIVATIONS}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OBS = -1


class ParameterPlaces(Protocol):
    """A flat array of a module's parameters."""

    def place(self, parameter: Tensor) -> int:
        """Where in the array a parameter begins."""


def network_spec(policy: ActorCritic, flat: ParameterPlaces) -> dict[str, Any]:
    """The policy's shape, as keyword arguments of ``_core.Learner``.

    ``layers`` are tuples (n_in, n_out, place of the weight, place of the bias, source, activation) in an order of
    evaluation; the source is the index of an earlier layer, or -1: the observations.
    """
    layers: list[tuple[int, int, int, int, int, int]] = []

    def append(modules: nn.Module, source: int) -> int:
        for linear, activation in _pairs(modules):
            places = (flat.place(linear.weight), flat.place(linear.bias))
            layers.append((linear.in_features, linear.out_features, *places, source, _ACTIVATIONS[type(activation)]))
            source = len(layers) - 1
        return source

    actor = policy.actor
    trunk = append(policy.representation.model, _OBS)
    log_std = -1
    if isinstance(actor, CategoricalActor):
        actor_head = append(actor.model, trunk)
    else:
        actor_head = append(actor.mu, trunk)
        log_std = flat.place(actor.logstd)
    separate = policy.critic_representation
    critic_trunk = trunk if separate is None else append(separate.model, _OBS)
    critic_head = append(policy.critic.model, critic_trunk)
    return {
        "layers": layers,
        "actor_head": actor_head,
        "critic_head": critic_head,
        "log_std": log_std,
        "n_obs": next(n_in for n_in, *_, source, _ in layers if source == _OBS),
    }


def reason_not_native(policy: ActorCritic) -> str | None:
    """Why native code cannot compute this policy, as a phrase; None if it can.

    Native code computes what ``ActorCritic`` and its parts compute, from their weights. So it serves these very classes
    with their own methods, and no subclass, replaced method or hook, of which it would know nothing.
    """
    if any(p.dtype != torch.float32 for p in policy.parameters()):
        return "the weights are not float32"
    for module in policy.modules():
        kind = type(module).__name__
        if type(module) not in _KNOWN:
            return f"it has no {kind}"
        replaced = sorted(name for name in vars(module) if callable(getattr(type(module), name, None)))
        if replaced:
            return f"the {kind} has a {replaced[0]} of its own"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"the {kind} has hooks"
    return None


def _pairs(modules: nn.Module) -> Iterator[tuple[nn.Linear, nn.Module]]:
    """Each linear layer with the activation behind it."""
    for module, after in pairwise([*modules.children(), nn.Identity()]):
        if isinstance(module, nn.Linear):
            yield module, after if type(after) in _ACTIVATIONS else nn.Identity()
