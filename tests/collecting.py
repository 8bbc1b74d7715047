"""A collector with all that belongs to it, for the tests of the native ones."""

from dataclasses import replace

import numpy as np
import torch

from xcfast import ObservationNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.rollout import Rollout
from xcfast.runs.engines import make_collector


class Collecting:
    """A collector of one engine on these envs, in its initial state."""

    def __init__(self, config, envs, backend):
        self.envs, num_envs = envs, envs.num_envs
        obs_space, action_space = envs.single_observation_space, envs.single_action_space
        self.policy = build_policy(config, obs_space, action_space)
        self.normalizer = ObservationNormalizer(
            obs_space.shape, num_envs=num_envs, clip=config.obsnorm_range, enabled=config.use_obsnorm
        )
        self.action_map = ActionMap(action_space, config.activation_action)
        config = replace(config, collector_backend=backend)
        self.collector, _ = make_collector(config, envs, self.policy, self.normalizer, self.action_map)
        self.rollout = Rollout(config.horizon_size, num_envs, obs_space.shape, action_space.shape, action_space.dtype)

    def weigh(self, scale, spread, seed):
        """Weights of that scale, so that actions depend on the observations; statistics that are not 0 and 1."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        rng = np.random.default_rng(seed)
        self.normalizer.rms.update(rng.normal(0.1, spread, (50, *self.normalizer.rms.shape)))
