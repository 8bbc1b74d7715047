"""A saved policy with all that surrounds it."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from xcfast import __version__
from xcfast.config.loading import load_config
from xcfast.envs.construct import make_env_fn
from xcfast.errors import CheckpointError
from xcfast.normalize import ObservationNormalizer
from xcfast.output.checkpoint import load_checkpoint
from xcfast.policy.action_map import ActionMap
from xcfast.policy.build import build_policy
from xcfast.policy.networks import ActorCritic


class LoadedPolicy:
    """A saved policy with all that surrounds it, on the CPU, called as evaluation calls it."""

    def __init__(self, path: Path) -> None:
        saved = load_checkpoint(path)
        self.step = int(saved["step"])
        self.config = config = load_config(overrides=saved["config"])
        env = make_env_fn(config.env_id)()
        self.observation_space, self.action_space = env.observation_space, env.action_space
        env.close()
        shape = self.observation_space.shape or ()
        self.policy: ActorCritic = build_policy(config, self.observation_space, self.action_space)
        self.normalizer = ObservationNormalizer(
            shape, num_envs=1, clip=config.obsnorm_range, enabled=config.use_obsnorm
        )
        try:
            self.policy.load_state_dict(saved["policy"])
            self.normalizer.rms.load_state_dict(saved["obs_normalizer"]["rms"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: does not fit {config.env_id} as it is here: {reason}") from error
        self.action_map = ActionMap(self.action_space, config.activation_action, bool(saved.get("identity_actions")))

    @property
    def mask_size(self) -> int | None:
        """Number of actions in a mask, where the policy takes masks."""
        space = self.action_space
        return int(space.n) if self.config.use_actions_mask and isinstance(space, gym.spaces.Discrete) else None

    @torch.inference_mode()
    def __call__(self, obs: np.ndarray, *masks: np.ndarray) -> np.ndarray:
        """Env actions of raw observations [B, ...], and where the policy takes masks, of masks bool [B, n]."""
        output = self.policy.act(torch.from_numpy(self.normalizer.normalize(obs)), *map(torch.from_numpy, masks))
        return self.action_map(self.policy.actor.mode(output).numpy())

    def metadata(self) -> dict[str, str]:
        """What the file says about itself."""
        mask = {"name": "action_mask", "dtype": "bool", "shape": ["B", self.mask_size]}
        masked = {} if self.mask_size is None else {"mask_input": json.dumps(mask)}
        return {
            **masked,
            "producer": f"xcfast {__version__}",
            "env_id": self.config.env_id,
            "step": str(self.step),
            "observation_space": str(self.observation_space),
            "action_space": str(self.action_space),
            "input": json.dumps(
                {"name": "obs", "dtype": "float32", "shape": ["B", *(self.observation_space.shape or ())]}
            ),
            "output": json.dumps(
                {
                    "name": "action",
                    "dtype": str(self.action_space.dtype),
                    "shape": ["B", *(self.action_space.shape or ())],
                }
            ),
            "mode": "most likely action, mapped to the bounds",
        }
