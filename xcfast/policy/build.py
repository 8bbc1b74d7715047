"""The network that a configuration describes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch

from xcfast.errors import ConfigError
from xcfast.policy.networks import ActorCritic, BasicMLP, CategoricalActor, Critic, GaussianActor

if TYPE_CHECKING:
    from xcfast.config.schema import Config


def build_policy(config: Config, observation_space: gym.Space, action_space: gym.Space) -> ActorCritic:
    """Returns the configuration's network on the CPU. Its weights depend on ``config.seed`` and the spaces alone.

    Args:
        config: The run's configuration.
        observation_space: Box of one env.
        action_space: Box or Discrete of one env.

    Raises:
        ConfigError: The configuration's policy does not fit the action space.
    """
    config = resolve_policy(config, action_space)
    n_in = math.prod(observation_space.shape or ())
    generator = torch.Generator().manual_seed(config.seed)
    widths = config.representation_hidden_size if config.representation == "Basic_MLP" else ()
    shape = (config.activation, config.normalize, generator)
    representation = BasicMLP(n_in, widths, *shape)
    n_features = representation.output_size
    actor: GaussianActor | CategoricalActor
    if isinstance(action_space, gym.spaces.Box):
        actor = GaussianActor(
            n_features,
            config.actor_hidden_size,
            math.prod(action_space.shape),
            config.activation,
            config.activation_action,
            config.log_std_init,
            config.normalize,
            generator,
        )
    else:
        assert isinstance(action_space, gym.spaces.Discrete)  # resolve_policy made sure
        actor = CategoricalActor(n_features, config.actor_hidden_size, int(action_space.n), *shape)
    critic = Critic(n_features, config.critic_hidden_size, *shape)
    separate = None if config.shared_representation else BasicMLP(n_in, widths, *shape)
    return ActorCritic(representation, actor, critic, separate)


def resolve_policy(config: Config, action_space: Any) -> Config:
    """Returns the configuration with the policy that fits a Gymnasium action space instead of ``policy: auto``.

    Args:
        config: The run's configuration.
        action_space: Action space of one env: Gaussian_AC is for Box, Categorical_AC for Discrete.

    Raises:
        ConfigError: No policy fits the action space, or the configuration names the other one.
    """
    given: str = config.policy
    if isinstance(action_space, gym.spaces.Box):
        wanted = "Gaussian_AC"
    elif isinstance(action_space, gym.spaces.Discrete):
        wanted = "Categorical_AC"
    else:
        raise ConfigError(
            f"there is no policy for the action space {action_space} of {config.env_id}",
            key="policy",
            given=given,
            allowed="Gaussian_AC with Box, Categorical_AC with Discrete actions",
            where=config.source or None,
        )
    if given == "auto":
        return replace(config, policy=wanted)  # type: ignore[arg-type]
    if given != wanted:
        raise ConfigError(
            f"does not fit the {type(action_space).__name__} actions of {config.env_id}",
            key="policy",
            given=given,
            allowed=wanted,
            where=config.source or None,
        )
    return config
