"""Checks the arguments that a script passes in. Errors name the argument, what was given and what is allowed."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from numbers import Real
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import OneCycleLR

if TYPE_CHECKING:
    from xcfast.policy.networks import ActorCritic


def whole(name: str, value: Any, low: int = 1) -> int:
    """Returns a number without a fraction as an integer. A float such as 3.0, the result of a division, is accepted.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.
        low: Smallest value allowed.

    Raises:
        TypeError: It is not a number, or has a fraction.
        ValueError: It is below ``low``.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not number.is_integer():
        raise TypeError(f"{name} must be an integer >= {low}; got {value!r}")
    if number < low:
        raise ValueError(f"{name} must be an integer >= {low}; got {value}")
    return int(number)


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Returns the widths of layers, or a shape, as a tuple; None becomes an empty one.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.

    Raises:
        TypeError: It is not a list.
        ValueError: An entry is not a positive integer.
    """
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | torch.Size):
        raise TypeError(f"{name} must be a list of positive integers; got {short_repr(value)}")
    try:
        return tuple(whole(name, one) for one in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a list of positive integers; got {short_repr(value)}") from None


def values_of(name: str, args: Any) -> dict[str, Any]:
    """Returns the values of a Namespace, a mapping or any object with attributes as a dict.

    Args:
        name: Name of the argument, for the message.
        args: The object.

    Raises:
        TypeError: It is not an object of these kinds.
    """
    if isinstance(args, Mapping):
        return dict(args)
    if isinstance(args, type) or not hasattr(args, "__dict__"):
        raise TypeError(f"{name} must be a {Namespace.__name__}, a dict or a Config; got {short_repr(args)}")
    return dict(vars(args))


def observations_for(space: gymnasium.Space[Any], observations: Any) -> NDArray[Any]:
    """Returns a batch of observations as an array [B, *obs_shape].

    Args:
        space: Observation space of one environment.
        observations: The observations to check.

    Raises:
        ValueError: They have another shape or are not finite.
    """
    shape = tuple(space.shape or ())
    batch = np.asarray(observations)
    wanted = f"observations must be [{', '.join(map(str, ('B', *shape)))}]"
    if batch.dtype.kind not in "fiub" or batch.ndim != len(shape) + 1 or batch.shape[1:] != shape or not len(batch):
        raise ValueError(f"{wanted}; got {batch.dtype} {list(batch.shape)}")
    if not np.isfinite(batch).all():
        raise ValueError(
            f"{wanted} of finite numbers; got NaN or infinity in row {np.argwhere(~np.isfinite(batch))[0, 0]}"
        )
    return batch


def known_arguments(call: str, given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Checks that a call was given only keyword arguments that it accepts.

    Args:
        call: The call, for the message.
        given: The keyword arguments that were given.
        allowed: The names of the keyword arguments that the call accepts.

    Raises:
        TypeError: A keyword argument is not in ``allowed``.
    """
    for name in given:
        if name not in allowed:
            raise TypeError(f"{call} has no argument {name}; allowed: {', '.join(allowed)}")


def check_spaces(
    policy: ActorCritic, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]
) -> None:
    """Checks that a policy fits an environment's spaces.

    Args:
        policy: The policy.
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.

    Raises:
        ValueError: It does not fit. The message has the sizes of both.
    """
    layers = [layer for layer in policy.modules() if isinstance(layer, torch.nn.Linear)]
    wanted = math.prod(observation_space.shape or ())
    if layers[0].in_features != wanted:
        raise ValueError(f"policy takes observations of {layers[0].in_features} values; the environment has {wanted}")
    found = policy.act(torch.zeros(1, wanted, device=policy.device)).shape[-1]
    size = getattr(action_space, "n", None) or math.prod(action_space.shape or ())
    if found != size:
        raise ValueError(f"policy makes actions of {found} values; the environment has {size}")


def check_optimizer(optimizer: Any, policy: ActorCritic | None) -> None:
    """Checks that an optimizer was made for a policy and can be stepped without a closure.

    Args:
        optimizer: The optimizer.
        policy: The policy, or None if the script passed none.

    Raises:
        TypeError: It is not an optimizer.
        ValueError: It was made for another policy, or needs a closure.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be one of torch.optim's, made for the policy; got {short_repr(optimizer)}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS computes the loss several times a step; allowed: optimizers that use one gradient"
        )
    mine = set() if policy is None else {id(p) for p in policy.parameters()}
    if not all(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer's parameters are not the policy's; pass the policy that it was made for too")


def check_scheduler(scheduler: Any, num_updates: int) -> None:
    """Checks that a scheduler can be stepped after each gradient step of a run.

    Args:
        scheduler: A scheduler of torch, or an object with the same methods.
        num_updates: Number of gradient steps in the run.

    Raises:
        TypeError: It is not a scheduler.
        ValueError: It ends before the run does.
    """
    methods = ("step", "state_dict", "load_state_dict")
    if isinstance(scheduler, type) or not all(callable(getattr(scheduler, name, None)) for name in methods):
        raise TypeError(f"scheduler must be one of torch.optim.lr_scheduler's; got {short_repr(scheduler)}")
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps - scheduler.last_epoch < num_updates:
        left = scheduler.total_steps - scheduler.last_epoch
        raise ValueError(
            f"scheduler: OneCycleLR has {left} of its {scheduler.total_steps} steps left, but the run has "
            f"{num_updates} gradient steps; allowed: total_steps=get_total_iters(agent_name, config), or more"
        )
