"""Representations and policies by XuanCe's names: they make the networks of ``xcfast.policy``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from xcfast.config import ConfigError
from xcfast.policy import ACTIVATIONS, ActorCritic, BasicMLP, CategoricalActor, Critic, GaussianActor
from xcfast.xuance.arguments import set_device

#: Name -> what makes the activation.
ActivationFunctions: dict[str, Callable[[], nn.Module]] = ACTIVATIONS
#: Name -> class.
NormalizeFunctions: dict[str, type[nn.Module]] = {"LayerNorm": nn.LayerNorm}

Initialize = Callable[..., Any]
Activation = Callable[[], nn.Module]
_NAME_OF = {type(make()): name for name, make in ACTIVATIONS.items()}


def Basic_MLP(
    input_shape: Sequence[int],
    hidden_sizes: Sequence[int],
    normalize: type[nn.Module] | None = None,
    initialize: Initialize | None = None,
    activation: Activation | None = None,
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> BasicMLP:
    """The shared trunk: fully connected layers, an activation after each.

    Args:
        input_shape: of an observation.
        hidden_sizes: width of each layer.
        normalize: ``nn.LayerNorm`` after each activation, or None.
        initialize: called with each weight matrix, as ``torch.nn.init.orthogonal_`` can be; biases are 0 then. None:
            orthogonal with xcfast's gains. Either way torch's global generator decides.
        activation: of ``ActivationFunctions``.
        device: of the weights; the CPU where it is not there.
        **kwargs: arguments of XuanCe's other representations, not read.

    Raises:
        ConfigError: an activation or a normalisation that is not supported.
    """
    layers = BasicMLP(math.prod(input_shape), hidden_sizes, _activation(activation), _normalize(normalize))
    return _initialized(layers, initialize).to(set_device(device))


def Basic_Identical(input_shape: Sequence[int], device: str | torch.device | None = None, **kwargs: Any) -> BasicMLP:
    """No trunk: actor and critic see the observation.

    Args:
        input_shape: of an observation.
        device: not read: there are no weights.
        **kwargs: arguments of XuanCe's other representations, not read.
    """
    return BasicMLP(math.prod(input_shape), (), "relu")


def Gaussian_AC_Policy(
    action_space: Box,
    representation: BasicMLP,
    actor_hidden_size: Sequence[int] | None = None,
    critic_hidden_size: Sequence[int] | None = None,
    normalize: type[nn.Module] | None = None,
    initialize: Initialize | None = None,
    activation: Activation | None = None,
    activation_action: Activation | None = None,
    device: str | torch.device | None = None,
    use_distributed_training: bool = False,
    log_std_init: float = -1.0,
) -> ActorCritic:
    """Actor and critic for continuous actions, on a representation that they share.

    Args:
        action_space: of one env.
        representation: what ``Basic_MLP`` or ``Basic_Identical`` returned.
        actor_hidden_size: widths of the actor's own layers.
        critic_hidden_size: likewise of the critic's.
        normalize: see ``Basic_MLP``.
        initialize: see ``Basic_MLP``.
        activation: see ``Basic_MLP``.
        activation_action: on the mean; None leaves it unbounded, and then actions are clipped to the bounds and not
            mapped to them.
        device: of the weights.
        use_distributed_training: not read: the configuration's distributed_training decides.
        log_std_init: initial logarithm of the standard deviation.

    Raises:
        ConfigError: the action space is no Box, or a part is not supported.
    """
    if not isinstance(action_space, Box):
        raise ConfigError(
            f"does not fit {action_space}", key="policy", given="Gaussian_AC", allowed="Categorical_AC with Discrete"
        )
    shape = (_activation(activation), _normalize(normalize))
    n_features = _features(representation)
    bound = None if activation_action is None else _activation(activation_action)
    actor = GaussianActor(
        n_features,
        actor_hidden_size or (),
        math.prod(action_space.shape),
        shape[0],
        bound,
        log_std_init,
        shape[1],
    )
    return _policy(representation, actor, critic_hidden_size, shape, initialize, device)


def Categorical_AC_Policy(
    action_space: Discrete,
    representation: BasicMLP,
    actor_hidden_size: Sequence[int] | None = None,
    critic_hidden_size: Sequence[int] | None = None,
    normalize: type[nn.Module] | None = None,
    initialize: Initialize | None = None,
    activation: Activation | None = None,
    device: str | torch.device | None = None,
    use_distributed_training: bool = False,
) -> ActorCritic:
    """Actor and critic for discrete actions; the arguments are those of ``Gaussian_AC_Policy``.

    Raises:
        ConfigError: the action space is not Discrete, or a part is not supported.
    """
    if not isinstance(action_space, Discrete):
        raise ConfigError(
            f"does not fit {action_space}", key="policy", given="Categorical_AC", allowed="Gaussian_AC with Box"
        )
    shape = (_activation(activation), _normalize(normalize))
    actor = CategoricalActor(_features(representation), actor_hidden_size or (), int(action_space.n), *shape)
    return _policy(representation, actor, critic_hidden_size, shape, initialize, device)


def _policy(
    representation: BasicMLP,
    actor: GaussianActor | CategoricalActor,
    critic_hidden_size: Sequence[int] | None,
    shape: tuple[str, str | None],
    initialize: Initialize | None,
    device: str | torch.device | None,
) -> ActorCritic:
    critic = Critic(representation.output_size, critic_hidden_size or (), *shape)
    policy = ActorCritic(representation, _initialized(actor, initialize), _initialized(critic, initialize))
    policy.to(set_device(device))
    keys_describing(policy)  # raises where the configuration has no words for it
    return policy


def keys_describing(policy: ActorCritic) -> dict[str, Any]:
    """The configuration's keys that describe a policy, so that a checkpoint can be read without its script.

    Raises:
        ConfigError: they cannot: it has more than one kind of activation, or LayerNorm in one part only.
    """
    parts = {
        "representation_hidden_size": policy.representation.model,
        "actor_hidden_size": policy.actor.mu if isinstance(policy.actor, GaussianActor) else policy.actor.model,
        "critic_hidden_size": policy.critic.model,
    }
    keys: dict[str, Any] = {}
    activations, normalized = set(), set()
    for name, layers in parts.items():
        modules = list(layers)
        linear = [i for i, module in enumerate(modules) if isinstance(module, nn.Linear)]
        if name != "representation_hidden_size":
            head = linear.pop()
            if name == "actor_hidden_size" and isinstance(policy.actor, GaussianActor):
                keys["activation_action"] = _NAME_OF[type(modules[-1])] if len(modules) > head + 1 else None
        keys[name] = [modules[i].out_features for i in linear]
        activations |= {_NAME_OF[type(modules[i + 1])] for i in linear}
        normalized |= {i + 2 < len(modules) and isinstance(modules[i + 2], nn.LayerNorm) for i in linear}
    for key, found in (("activation", activations), ("normalize", normalized)):
        if len(found) > 1:
            raise ConfigError("must be the same in representation and policy", key=key, given=sorted(map(str, found)))
    if activations:
        keys["activation"] = activations.pop()
    keys["normalize"] = "LayerNorm" if True in normalized else None
    keys["representation"] = "Basic_MLP" if keys["representation_hidden_size"] else "Basic_Identical"
    keys["policy"] = "Gaussian_AC" if isinstance(policy.actor, GaussianActor) else "Categorical_AC"
    keys["shared_representation"] = policy.critic_representation is None
    return keys


def check_spaces(
    policy: ActorCritic, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]
) -> None:
    """Whether a policy fits an environment's spaces.

    Raises:
        ValueError: it does not; the message says what either has.
    """
    layers = [layer for layer in policy.modules() if isinstance(layer, torch.nn.Linear)]
    wanted = math.prod(observation_space.shape or ())
    if layers[0].in_features != wanted:
        raise ValueError(f"policy takes observations of {layers[0].in_features} values; the environment has {wanted}")
    found = policy.act(torch.zeros(1, wanted, device=policy.device)).shape[-1]
    size = getattr(action_space, "n", None) or math.prod(action_space.shape or ())
    if found != size:
        raise ValueError(f"policy makes actions of {found} values; the environment has {size}")


def check_optimizer(optimizer: torch.optim.Optimizer, policy: ActorCritic | None) -> None:
    """Whether an optimizer was made for a policy.

    Raises:
        ValueError: it was made for another one.
    """
    mine = set() if policy is None else {id(p) for p in policy.parameters()}
    if not all(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer's parameters are not the policy's; pass the policy that it was made for too")


def _features(representation: Any) -> int:
    if not isinstance(representation, BasicMLP):
        raise TypeError(
            f"representation must be what Basic_MLP or Basic_Identical returns; got {type(representation).__name__}"
        )
    return representation.output_size


def _activation(make: Activation | None) -> str:
    name = None if make is None else _NAME_OF.get(type(make()) if not isinstance(make, type) else make)
    if name is None:
        given = getattr(make, "__name__", str(make))
        raise ConfigError("not supported", key="activation", given=given, allowed=", ".join(ACTIVATIONS))
    return name


def _normalize(kind: type[nn.Module] | None) -> str | None:
    if kind is None:
        return None
    if kind is not nn.LayerNorm:
        raise ConfigError("not supported", key="normalize", given=kind.__name__, allowed="LayerNorm, None")
    return "LayerNorm"


def _initialized(module: Any, initialize: Initialize | None) -> Any:
    if initialize is not None:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                initialize(layer.weight)
                nn.init.zeros_(layer.bias)
    return module
