"""The native learner's core by itself, one minibatch at a time, and small policies for it."""

import gymnasium as gym
import numpy as np
import torch

from xcfast import _core
from xcfast.policy import build_policy
from xcfast.policy.flat import FlatParameters
from xcfast.policy.native_form import network_spec


def spaces(n_obs, n_actions, discrete):
    """Observation and action space of one env."""
    box = gym.spaces.Box(-np.inf, np.inf, (n_obs,), np.float32)
    return box, gym.spaces.Discrete(n_actions) if discrete else gym.spaces.Box(-1, 1, (n_actions,), np.float32)


def make_policy(config, n_obs=7, n_actions=3):
    """A policy with biases away from 0 and an actor away from its tiny gain."""
    policy = build_policy(config, *spaces(n_obs, n_actions, config.policy == "Categorical_AC"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return policy


def make_core(policy, config, variant=None, threads=1, rows=64, precision="fp32"):
    """A ``_core.Learner`` on a flat copy of the policy's parameters: it, the copy, and Adam's moments."""
    flat = FlatParameters(policy)
    moments = np.zeros_like(flat.array), np.zeros_like(flat.array)
    core = _core.Learner(
        **network_spec(policy, flat),
        parameters=flat.array,
        exp_avg=moments[0],
        exp_avg_sq=moments[1],
        loss=(config.ratio_range, config.vf_coef, config.ent_coef),
        adam=(config.adam_beta1, config.adam_beta2, 1e-5),
        max_minibatch=rows,
        num_threads=threads,
        kl_penalty=config.agent == "PPO_KL",
        precision=precision,
        variant=variant,
        value_range=config.value_range,
    )
    core.kl_coef = config.kl_coef
    return core, flat, moments
