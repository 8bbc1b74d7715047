"""The configuration of an agent, and the player of an agent without environments."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

import gymnasium
import torch

from xcfast.config.schema import Config
from xcfast.normalize import ObservationNormalizer
from xcfast.policy.action_map import ActionMap
from xcfast.policy.build import build_policy
from xcfast.policy.networks import ActorCritic
from xcfast.resources import training_device
from xcfast.runs.player import Player
from xcfast.xuance.arguments import keys_of_class, set_device, to_config
from xcfast.xuance.networks import keys_describing


def agent_config(
    agent: str | None,
    config: Namespace | Any,
    num_envs: int | None,
    policy: ActorCritic | None,
    device: str | torch.device | None,
    quiet: bool,
) -> Config:
    """Makes the configuration of an agent.

    A policy or a device that was passed in takes precedence over the arguments that describe it.

    Args:
        agent: Algorithm that the agent's class stands for. None: the arguments decide.
        config: The script's arguments.
        num_envs: Number of environments of all processes, if there are any.
        policy: The policy that the agent was given.
        device: The device that the agent was given.
        quiet: Whether to print no notices.
    """
    changes = {} if agent is None else keys_of_class(config, agent)
    if num_envs is not None:
        changes["parallels"] = num_envs
    if policy is not None:
        changes |= keys_describing(policy)
    if device is not None:
        changes["device"] = str(set_device(device))
    made = to_config(config, **changes)
    for line in () if quiet else made.notices:
        print(line, file=sys.stderr)
    return made


def lone_player(
    config: Config,
    policy: ActorCritic | None,
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
) -> Player:
    """Makes the player of an agent without environments.

    Args:
        config: The agent's configuration.
        policy: The policy that the agent was given. None: one is built as the configuration says.
        observation_space: Space of one environment's observations.
        action_space: Space of one environment's actions.
    """
    policy = policy or build_policy(config, observation_space, action_space)
    normalizer = ObservationNormalizer(
        observation_space.shape or (), num_envs=1, clip=config.obsnorm_range, enabled=config.use_obsnorm
    )
    policy.to(training_device(config))
    return Player(policy, normalizer, ActionMap(action_space, config.activation_action))
