"""Finds out which of an environment's discrete actions are allowed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from xcfast.errors import EnvError

METHODS = ("action_masks", "valid_action_mask")
INFO_KEYS = ("action_mask", "avail_actions")

MaskSource = Callable[[dict[str, Any]], NDArray[np.bool_]]
"""Returns an environment's current mask, bool [n_actions], given the info that came with its observation."""


def find_mask_source(env: gymnasium.Env[Any, Any]) -> MaskSource:
    """Finds where the masks of `env` come from: a method or property of `METHODS`, or else a key in `INFO_KEYS`.

    An environment without such a method is reset once, to look at its info.

    Returns:
        A function that returns the current mask.

    Raises:
        EnvError: The environment has neither, or its actions are not Discrete.
    """
    space = env.action_space
    if not isinstance(space, Discrete):
        raise EnvError(f"action masks are for Discrete actions; the action space is {space}")
    n_actions = int(space.n)
    for name in METHODS:
        if env.has_wrapper_attr(name):
            return partial(_from_method, env, name, n_actions)
    _, first = env.reset()
    for key in INFO_KEYS:
        if key in first:
            return partial(_from_info, key, n_actions)
    name = type(env.unwrapped).__name__ if env.spec is None else env.spec.id
    raise EnvError(
        f"{name} has no action masks: it has neither a method "
        f"{' nor '.join(METHODS)}, nor {' nor '.join(map(repr, INFO_KEYS))} in the info of reset and step; "
        "set use_actions_mask: False to train without masks"
    )


def check_masks(masks: NDArray[np.bool_], episode_lengths: NDArray[np.int64]) -> None:
    """Checks that every environment allows an action.

    Args:
        masks: bool [N, n_actions], whether an action is allowed.
        episode_lengths: int64 [N], the steps since each environment's reset.

    Raises:
        EnvError: One allows none; the message names it and the step.
    """
    some = masks.any(axis=1)
    if some.all():
        return
    index = int(np.argmin(some))
    steps = int(episode_lengths[index])
    when = f"after step {steps} of its episode" if steps else "at the start of its episode"
    raise EnvError(f"the action mask of env {index} allows no action {when}")


def _from_method(env: gymnasium.Env[Any, Any], name: str, n_actions: int, info: dict[str, Any]) -> NDArray[np.bool_]:
    value = env.get_wrapper_attr(name)
    return _checked(value() if callable(value) else value, n_actions, name)


def _from_info(key: str, n_actions: int, info: dict[str, Any]) -> NDArray[np.bool_]:
    if key not in info:
        raise EnvError(f"info has no {key!r}, although the first reset's info had it; its keys are {sorted(info)}")
    return _checked(info[key], n_actions, f"info[{key!r}]")


def _checked(value: Any, n_actions: int, name: str) -> NDArray[np.bool_]:
    mask = np.asarray(value)
    if mask.shape == (n_actions,):
        if mask.dtype == np.bool_:
            return mask
        if mask.dtype.kind in "iu" and ((mask == 0) | (mask == 1)).all():
            return mask.astype(np.bool_)
    given = f"{mask.dtype} {list(mask.shape)}"
    if mask.dtype.kind in "iu" and mask.shape == (n_actions,):
        given += f" with {mask.tolist()}"
    raise EnvError(f"{name} must be bool [{n_actions}], or 0 and 1 as integers; got {given}")
