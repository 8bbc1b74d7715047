"""Loads a saved model into an agent. Everything is checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xcfast.config.schema import Config
from xcfast.errors import CheckpointError
from xcfast.runs.player import Player
from xcfast.xuance.models import SavedModel

if TYPE_CHECKING:
    from xcfast.runs.trainer import Trainer


# Keys that a model was trained with and cannot do without; its other keys may differ from the agent's.
_OF_THE_MODEL = ("activation", "activation_action", "normalize", "use_obsnorm", "obsnorm_range")


def check_fits(
    saved: SavedModel, policy: Mapping[str, Tensor], keys: Mapping[str, Any], obs_shape: tuple[int, ...]
) -> None:
    """Checks that a saved model can be loaded into a network.

    Args:
        saved: The model.
        policy: The network's own weights.
        keys: Keys of the configuration that the weights do not show.
        obs_shape: Shape of one observation.

    Raises:
        CheckpointError: The model belongs to another network, or has weights that are not finite. The message says
            what was found and what was expected.
    """
    found = {name: tuple(value.shape) for name, value in saved.policy.items()}
    expected = {name: tuple(value.shape) for name, value in policy.items()}
    if found != expected:
        described, wanted = describe_weights(saved.policy), describe_weights(policy)
        if described != wanted:
            raise CheckpointError(f"{saved.path}: another network: found {described}; expected {wanted}")
        raise CheckpointError(f"{saved.path}: {_difference(found, expected)}")
    for name, value in saved.policy.items():
        if not torch.isfinite(value.to(policy[name].dtype)).all():
            raise CheckpointError(f"{saved.path}: its {name} is not finite")
    for name, wanted in keys.items():
        if name in saved.keys and saved.keys[name] != wanted:
            raise CheckpointError(f"{saved.path}: trained with {name} {saved.keys[name]}; expected {wanted}")
    for rms, shape, what in ((saved.obs_rms, obs_shape, "observations"), (saved.reward_rms, (), "returns")):
        if rms is not None and rms["mean"].shape != shape:
            given = list(rms["mean"].shape)
            raise CheckpointError(f"{saved.path}: {what} of shape {given}; expected {list(shape)}")


def load_into(saved: SavedModel, player: Player, config: Config, obs_shape: tuple[int, ...]) -> None:
    """Copies weights and statistics of the observations into a player, all of them or none.

    Args:
        saved: The model.
        player: The policy and the normalizer to write into.
        config: The agent's configuration.
        obs_shape: Shape of one observation.

    Raises:
        CheckpointError: The model does not fit.
    """
    weights = player.policy.state_dict()
    check_fits(saved, weights, {key: getattr(config, key) for key in _OF_THE_MODEL}, obs_shape)
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(saved.policy[name])
    if saved.obs_rms is not None:
        player.obs_normalizer.rms.load_state_dict(saved.obs_rms)


def _moments_that_fit(saved: SavedModel, parameters: Sequence[Tensor]) -> dict[int, Any] | None:
    """Returns Adam's state by number of parameter, if it is complete, finite, and of these parameters."""
    state = None if saved.optimizer is None else saved.optimizer.get("state")
    if not isinstance(state, Mapping) or set(state) != set(range(len(parameters))):
        return None
    for index, parameter in enumerate(parameters):
        one = state[index] if isinstance(state[index], Mapping) else {}
        tensors = [one.get(name) for name in ("exp_avg", "exp_avg_sq")]
        if not all(isinstance(t, Tensor) and t.shape == parameter.shape and torch.isfinite(t).all() for t in tensors):
            return None
        if not isinstance(one.get("step"), int | float | Tensor) or np.shape(one["step"]) != ():
            return None
    return dict(state)


def load_training(trainer: Trainer, saved: SavedModel) -> None:
    """Gives a trainer the state that belongs to a newly loaded policy.

    Args:
        trainer: The trainer. Its learner's copies of the weights, its action map, reward statistics and episodes are
            renewed, and so are Adam's moments if they fit.
        saved: The model, which was checked.
    """
    parts, learner = trainer.components, trainer.components.learner
    learner.adopt()
    parts.use_identity_actions(saved.identity_actions)
    optimizer = learner.optimizer
    moments = _moments_that_fit(saved, list(parts.policy.parameters()))
    if moments is not None and isinstance(optimizer, torch.optim.Adam) and len(optimizer.param_groups) == 1:
        own, settings = learner.state_dict(), optimizer.state_dict()["param_groups"]
        # The settings, and the scheduler's place, stay those of the script.
        learner.load_state_dict({**own, "optimizer": {"state": moments, "param_groups": settings}})
    if saved.reward_rms is not None:
        parts.reward_normalizer.rms.load_state_dict(saved.reward_rms)
    if trainer.begun:  # data that other weights have collected must not be learned from
        parts.restart_episodes()


def describe_weights(policy: Mapping[str, Tensor]) -> str:
    """Returns the widths of the parts, as in ``representation 27-256, actor 256-256-8, critic 256-256-1``."""
    parts: dict[str, list[int]] = {}
    for name, value in policy.items():
        if name.endswith("weight") and value.ndim == 2:
            widths = parts.setdefault(name.partition(".")[0], [value.shape[1]])
            widths.append(value.shape[0])
    return ", ".join(f"{part} {'-'.join(map(str, widths))}" for part, widths in parts.items()) or "no linear layers"


def _difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Returns in which weights two networks of the same widths differ."""
    strange = [f"{name} {list(found[name])}" for name in found if name not in expected]
    missing = [f"{name} {list(expected[name])}" for name in expected if name not in found]
    reshaped = [
        f"{name} is {list(found[name])}, expected {list(expected[name])}"
        for name in found
        if name in expected and found[name] != expected[name]
    ]
    sentences = [f"it has {', '.join(strange)}, which is unknown"] if strange else []
    sentences += [f"it lacks {', '.join(missing)}"] if missing else []
    return "another network of the same widths: " + "; ".join([*sentences, *reshaped])
