"""The form in which native code reads a policy: linear layers with activations, or the reason why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from xcfast.policy.flat import FlatParameters
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
# The settings that native code computes with; the module's inputs have two dimensions.
_SETTINGS: dict[type[nn.Module], tuple[str, tuple[float, ...]]] = {
    nn.LeakyReLU: ("negative_slope", (0.01,)),
    nn.ELU: ("alpha", (1.0,)),
    nn.Softmax: ("dim", (-1, 1)),
}
_PARAMETERS: dict[type[nn.Module], set[str]] = {GaussianActor: {"logstd"}, nn.Linear: {"weight", "bias"}}
_CHILDREN: dict[type[nn.Module], dict[str, tuple[type[nn.Module], ...]]] = {
    ActorCritic: {
        "representation": (BasicMLP,),
        "actor": (GaussianActor, CategoricalActor),
        "critic": (Critic,),
        "critic_representation": (BasicMLP, type(None)),  # type: ignore[dict-item]
    },
    BasicMLP: {"model": (nn.Sequential,)},
    GaussianActor: {"mu": (nn.Sequential,)},
    CategoricalActor: {"model": (nn.Sequential,)},
    Critic: {"model": (nn.Sequential,)},
}
_KNOWN = (*_CHILDREN, nn.Sequential, nn.Linear, *_ACTIVATIONS)
# The attributes of these classes now; a script may replace them later.
_DEFINED = {kind: {name: x for name, x in vars(kind).items() if not name.startswith("__")} for kind in _KNOWN}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OBS = -1


def network_spec(policy: ActorCritic, flat: FlatParameters) -> dict[str, Any]:
    """Returns the shape of a policy that ``reason_not_native`` accepts, as keyword arguments of ``_core.Learner``.

    ``layers`` are tuples (n_in, n_out, place of the weight, place of the bias, source, activation) in an order of
    evaluation; the source is the index of an earlier layer, or -1: the observations.
    """
    layers: list[tuple[int, int, int, int, int, int]] = []

    def append(modules: nn.Sequential, source: int) -> int:
        for linear, activation in _linear_layers(modules):
            places = (flat.place(linear.weight), flat.place(linear.bias))
            layers.append((linear.in_features, linear.out_features, *places, source, _ACTIVATIONS[type(activation)]))
            source = len(layers) - 1
        return source

    actor = policy.actor
    trunk = append(policy.representation.model, _OBS)
    actor_head = append(actor.layers, trunk)
    log_std = flat.place(actor.logstd) if isinstance(actor, GaussianActor) else -1
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
    """Returns why native code cannot compute this policy, as the end of a sentence; None if it can.

    Native code computes what ``ActorCritic`` and its parts compute, from their weights alone. So it supports exactly
    these classes, put together as ``build_policy`` does, with their own methods, without hooks, and with activations
    of torch's default settings. Anything else in the policy would have no effect there.
    """
    if _has_any_global_hook():
        return "torch has hooks for all modules"
    for module in policy.modules():
        if (reason := reason_changed(module) or _reason_unknown_parts(module)) is not None:
            return reason
    parameters = list(policy.parameters())
    if any(p.dtype != torch.float32 for p in parameters):
        return "the weights are not float32"
    if len(list(policy.named_parameters(remove_duplicate=False))) > len(parameters):
        return "layers of the policy share weights"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):
        return "the weights have hooks"
    return _reason_wrong_shape(policy)


def reason_changed(module: nn.Module) -> str | None:
    """Returns how a module differs from an instance of a known class, as the end of a sentence; None if it does not.

    Subclasses, methods that were replaced in the instance or in the class, hooks, and other settings of an activation
    are differences. The module's children are not examined.
    """
    kind, name = type(module), type(module).__name__
    if kind not in _KNOWN:
        return f"native code has no {name}"
    replaced = {own for own in vars(module) if callable(getattr(kind, own, None))}
    replaced |= {own for own, defined in _DEFINED[kind].items() if vars(kind).get(own) is not defined}
    if replaced:
        return f"the {name} has a {min(replaced)} of its own"
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return f"the {name} has hooks"
    setting, allowed = _SETTINGS.get(kind, ("", ()))
    if setting and getattr(module, setting) not in allowed:
        return f"native code computes {name} with {setting} {allowed[0]}; the policy has {getattr(module, setting)}"
    return None


def reason_not_copied(policy: ActorCritic) -> str | None:
    """Returns why a copy of this policy might compute something else, as the end of a sentence; None if it does not.

    A function that was put into a module in place of a method may refer to that very module, and not to its copy.
    """
    for module in policy.modules():
        for own, value in vars(module).items():
            if callable(getattr(type(module), own, None)) and getattr(value, "__self__", None) is not module:
                return f"the {type(module).__name__} has a {own} of its own, which a copy on the device may not follow"
    return None


def _reason_unknown_parts(module: nn.Module) -> str | None:
    """Returns which parameters or children of a known module are missing, or do not belong to its class."""
    kind, name = type(module), type(module).__name__
    parameters = {own for own, x in module._parameters.items() if x is not None}
    wanted = _PARAMETERS.get(kind, set())
    if wanted != parameters:
        extra = sorted(parameters - wanted)
        return f"the {name} has {f'another parameter, {extra[0]}' if extra else f'no {min(wanted - parameters)}'}"
    if kind is nn.Sequential:
        return _reason_wrong_order(list(module))  # type: ignore[call-overload]
    children = _CHILDREN.get(kind, {})
    extra = sorted(own for own, child in module._modules.items() if child is not None and own not in children)
    if extra:
        return f"the {name} has another module, {extra[0]}"
    for own, kinds in children.items():
        child = type(getattr(module, own, None))
        if child not in kinds:
            return f"the {own} is a {child.__name__}, not a {kinds[0].__name__}"
    return None


def _reason_wrong_order(modules: list[nn.Module]) -> str | None:
    """Returns why native code cannot evaluate these modules one after the other."""
    before: type[nn.Module] | None = None
    for kind in map(type, modules):
        if kind is nn.Identity:
            continue
        if kind is not nn.Linear and kind not in _ACTIVATIONS:
            return f"native code has no {kind.__name__} in a Sequential"
        if kind is not nn.Linear and before is not nn.Linear:
            return f"a {kind.__name__} does not follow a Linear"
        before = kind
    return None


def _reason_wrong_shape(policy: ActorCritic) -> str | None:
    """Returns which layer does not fit the one before it, or the head that it is."""
    actor, separate = policy.actor, policy.critic_representation
    heads = (actor.layers, policy.critic.model)
    trunks = (policy.representation.model, (policy.representation if separate is None else separate).model)
    inputs, outputs = [], []
    for trunk, head in zip(trunks, heads, strict=True):
        chain = [linear for part in (trunk, head) for linear, _ in _linear_layers(part)]
        if not any(True for _ in _linear_layers(head)):
            return "a head has no Linear"
        for linear in chain:
            n_in, n_out = linear.in_features, linear.out_features
            if linear.weight.shape != (n_out, n_in) or linear.bias.shape != (n_out,):
                return f"the weights of {linear} have other shapes"
        if any(one.out_features != following.in_features for one, following in pairwise(chain)):
            return "a Linear does not fit the one before it"
        inputs.append(chain[0].in_features)
        outputs.append(chain[-1].out_features)
    if inputs[0] != inputs[1]:
        return "actor and critic take different observations"
    if outputs[1] != 1:
        return f"the critic has {outputs[1]} outputs"
    if isinstance(actor, GaussianActor) and actor.logstd.shape != (outputs[0],):
        return f"logstd has the shape {list(actor.logstd.shape)}, while the mean has {outputs[0]} dimensions"
    return None


def _linear_layers(modules: nn.Sequential) -> Iterator[tuple[nn.Linear, nn.Module]]:
    """Yields each linear layer with the activation after it."""
    known = [module for module in modules if type(module) is not nn.Identity]
    for module, after in pairwise([*known, nn.Identity()]):
        if isinstance(module, nn.Linear):
            yield module, after if type(after) in _ACTIVATIONS else nn.Identity()
