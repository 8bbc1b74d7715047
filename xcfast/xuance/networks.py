"""XuanCe's names of representations and policies, which make the networks of ``xcfast.policy``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from xcfast.config.keys import keys_of
from xcfast.config.schema import Config
from xcfast.errors import ConfigError
from xcfast.policy.networks import ACTIVATIONS, ActorCritic, BasicMLP, CategoricalActor, Critic, GaussianActor
from xcfast.xuance.arguments import set_device
from xcfast.xuance.checks import sizes
from xcfast.xuance.names import Names

#: Name -> function that makes the activation. Capitalized names are known too.
ActivationFunctions: Names[Callable[[], nn.Module]] = Names(ACTIVATIONS, keys_of(Config)["activation"].aliases)
#: Name -> class of the normalization.
NormalizeFunctions: Names[type[nn.Module]] = Names({"LayerNorm": nn.LayerNorm})

Initialize = Callable[..., Any]
Activation = Callable[[], nn.Module]
_NAME_OF = {type(make()): name for name, make in ACTIVATIONS.items()}


def Basic_MLP(
    input_shape: Sequence[int],
    hidden_sizes: Sequence[int],
    normalize: type[nn.Module] | str | None = None,
    initialize: Initialize | None = None,
    activation: Activation | str | None = None,
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> BasicMLP:
    """Makes the shared trunk: fully connected layers with an activation after each.

    Args:
        input_shape: Shape of an observation.
        hidden_sizes: Width of each layer.
        normalize: ``nn.LayerNorm`` for one after each activation, or None.
        initialize: Function that is called with each weight matrix, such as ``torch.nn.init.orthogonal_``; biases then
            become 0. None means orthogonal with xcfast's gains. Both draw from torch's global generator.
        activation: An entry of ``ActivationFunctions``, or its name.
        device: Device of the weights. The CPU replaces a device that is not available.
        **kwargs: Arguments of XuanCe's other representations, which have no effect.

    Raises:
        ConfigError: The activation or the normalization is not supported.
    """
    widths = sizes("hidden_sizes", hidden_sizes)
    layers = BasicMLP(
        math.prod(sizes("input_shape", input_shape)), widths, _activation(activation), _normalize(normalize)
    )
    return _initialized(layers, initialize).to(set_device(device))


def Basic_Identical(input_shape: Sequence[int], device: str | torch.device | None = None, **kwargs: Any) -> BasicMLP:
    """Makes an empty trunk, so that actor and critic see the observation itself.

    Args:
        input_shape: Shape of an observation.
        device: No effect, since there are no weights.
        **kwargs: Arguments of XuanCe's other representations, which have no effect.
    """
    return BasicMLP(math.prod(sizes("input_shape", input_shape)), (), "relu")


def Gaussian_AC_Policy(
    action_space: Box,
    representation: BasicMLP,
    actor_hidden_size: Sequence[int] | None = None,
    critic_hidden_size: Sequence[int] | None = None,
    normalize: type[nn.Module] | str | None = None,
    initialize: Initialize | None = None,
    activation: Activation | str | None = None,
    activation_action: Activation | str | None = None,
    device: str | torch.device | None = None,
    use_distributed_training: bool = False,
    log_std_init: float = -1.0,
) -> ActorCritic:
    """Makes actor and critic for continuous actions on a shared representation.

    Args:
        action_space: Action space of one env.
        representation: A trunk from ``Basic_MLP`` or ``Basic_Identical``.
        actor_hidden_size: Widths of the actor's own hidden layers.
        critic_hidden_size: Widths of the critic's own hidden layers.
        normalize: Normalization, as in ``Basic_MLP``.
        initialize: Initialization, as in ``Basic_MLP``.
        activation: Activation of the hidden layers, as in ``Basic_MLP``.
        activation_action: Activation of the mean. None leaves the mean unbounded; actions are then clipped to the
            bounds, but not mapped to them.
        device: Device of the weights.
        use_distributed_training: No effect; the configuration's ``distributed_training`` decides.
        log_std_init: Initial logarithm of the standard deviation.

    Raises:
        ConfigError: The action space is not a Box, or a part is not supported.
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
        sizes("actor_hidden_size", actor_hidden_size),
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
    normalize: type[nn.Module] | str | None = None,
    initialize: Initialize | None = None,
    activation: Activation | str | None = None,
    device: str | torch.device | None = None,
    use_distributed_training: bool = False,
) -> ActorCritic:
    """Makes actor and critic for discrete actions; the arguments are those of ``Gaussian_AC_Policy``.

    Raises:
        ConfigError: The action space is not Discrete, or a part is not supported.
    """
    if not isinstance(action_space, Discrete):
        raise ConfigError(
            f"does not fit {action_space}", key="policy", given="Categorical_AC", allowed="Gaussian_AC with Box"
        )
    shape = (_activation(activation), _normalize(normalize))
    widths = sizes("actor_hidden_size", actor_hidden_size)
    actor = CategoricalActor(_features(representation), widths, int(action_space.n), *shape)
    return _policy(representation, actor, critic_hidden_size, shape, initialize, device)


def _policy(
    representation: BasicMLP,
    actor: GaussianActor | CategoricalActor,
    critic_hidden_size: Sequence[int] | None,
    shape: tuple[str, str | None],
    initialize: Initialize | None,
    device: str | torch.device | None,
) -> ActorCritic:
    critic = Critic(representation.output_size, sizes("critic_hidden_size", critic_hidden_size), *shape)
    policy = ActorCritic(representation, _initialized(actor, initialize), _initialized(critic, initialize))
    policy.to(set_device(device))
    keys_describing(policy)  # raises if no configuration can describe it
    return policy


def keys_describing(policy: ActorCritic) -> dict[str, Any]:
    """Returns the keys that describe a policy, so that a checkpoint can be read without the script that made it.

    Raises:
        ConfigError: The keys cannot describe it: it has more than one kind of activation, or LayerNorm in some parts
            only.
    """
    parts = {
        "representation_hidden_size": policy.representation.model,
        "actor_hidden_size": policy.actor.layers,
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


def _features(representation: Any) -> int:
    if not isinstance(representation, BasicMLP):
        raise TypeError(
            f"representation must be what Basic_MLP or Basic_Identical returns; got {type(representation).__name__}"
        )
    return representation.output_size


def _activation(make: Activation | str | None) -> str:
    if isinstance(make, str):
        if make not in ActivationFunctions:
            raise ConfigError("not supported", key="activation", given=make, allowed=", ".join(ACTIVATIONS))
        make = ActivationFunctions[make]
    kind = make if isinstance(make, type) or not callable(make) or isinstance(make, nn.Module) else type(make())
    name = _NAME_OF.get(kind) if isinstance(kind, type) else None
    if name is None:
        given = getattr(make, "__name__", str(make))
        raise ConfigError("not supported", key="activation", given=given, allowed=", ".join(ACTIVATIONS))
    return name


def _normalize(kind: type[nn.Module] | str | None) -> str | None:
    if kind is None or kind == "LayerNorm" or kind is nn.LayerNorm:
        return None if kind is None else "LayerNorm"
    given = getattr(kind, "__name__", str(kind))
    raise ConfigError("not supported", key="normalize", given=given, allowed="LayerNorm, None")


def _initialized(module: Any, initialize: Initialize | None) -> Any:
    if initialize is not None:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                initialize(layer.weight)
                nn.init.zeros_(layer.bias)
    return module
