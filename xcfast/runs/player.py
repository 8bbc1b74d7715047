"""A policy with its observation normalizer and its action map, and the function that loads one from a model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
import torch

from xcfast.config import load_config
from xcfast.envs.construct import make_env_fn
from xcfast.errors import CheckpointError
from xcfast.normalize import ObservationNormalizer
from xcfast.output.checkpoint import load_checkpoint
from xcfast.output.spaces import space_from_data
from xcfast.policy import ActionMap, ActorCritic, build_policy

if TYPE_CHECKING:
    from xcfast.config.schema import Config


class Player(NamedTuple):
    """A policy with everything that it needs to act.

    Attributes:
        policy: The networks, on any device.
        obs_normalizer: Normalizer of the raw observations; its statistics do not change.
        action_map: Map from the policy's samples to the environment's actions.
    """

    policy: ActorCritic
    obs_normalizer: ObservationNormalizer
    action_map: ActionMap

    @torch.inference_mode()
    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Returns the most likely environment actions [B, *action_shape].

        Args:
            observations: float [B, *obs_shape], as the environment delivers them.
            masks: bool [B, number of actions], the allowed actions; None allows all.
        """
        device = self.policy.device
        allowed = None if masks is None else torch.from_numpy(masks).to(device)
        output = self.policy.act(torch.from_numpy(self.obs_normalizer.normalize(observations)).to(device), allowed)
        return self.action_map(self.policy.actor.mode(output).cpu().numpy())


@dataclass(frozen=True)
class SavedPlayer:
    """A player from a model file, and what the file says about it.

    Attributes:
        path: The model file.
        player: The policy, on the CPU, with statistics and action map.
        config: Configuration of the run that trained it.
        step: Environment steps that it was trained for.
        observation_space: Space of one environment's observations.
        action_space: Space of one environment's actions.
    """

    path: Path
    player: Player
    config: Config
    step: int
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    @property
    def mask_size(self) -> int | None:
        """The number of actions in a mask if the policy takes masks, else None."""
        space = self.action_space
        return int(space.n) if self.config.use_actions_mask and isinstance(space, gymnasium.spaces.Discrete) else None


def load_player(path: Path) -> SavedPlayer:
    """Loads the policy of a model file.

    Nothing that the file names is imported: spaces are stored in the file. For a file without them, the environment is
    made once to find them out, if Gymnasium itself knows its id.

    Raises:
        CheckpointError: The file is missing or damaged, or does not fit the environment of this installation.
    """
    saved = load_checkpoint(path)
    config = load_config(overrides=saved["config"])
    observation_space, action_space = _spaces(path, saved, config)
    try:
        policy = build_policy(config, observation_space, action_space)
        normalizer = ObservationNormalizer(
            observation_space.shape or (), num_envs=1, clip=config.obsnorm_range, enabled=config.use_obsnorm
        )
        policy.load_state_dict(saved["policy"])
        normalizer.rms.load_state_dict(saved["obs_normalizer"]["rms"])
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: does not fit {config.env_id} of this installation: {reason}") from error
    action_map = ActionMap(action_space, config.activation_action, bool(saved.get("identity_actions")))
    player = Player(policy, normalizer, action_map)
    return SavedPlayer(path, player, config, int(saved["step"]), observation_space, action_space)


def _spaces(path: Path, saved: dict[str, Any], config: Config) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    stored = saved.get("spaces")
    if stored is not None:
        return space_from_data(stored["observation"]), space_from_data(stored["action"])
    if ":" in config.env_id:
        raise CheckpointError(
            f"{path}: holds no spaces, and to learn them from {config.env_id} its module would have to be imported; "
            "resume the run for a moment, which writes them"
        )
    env = make_env_fn(config.env_id)()
    spaces = env.observation_space, env.action_space
    env.close()
    return spaces
