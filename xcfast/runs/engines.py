"""The choice between engines: which collector and which learner serve a run, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xcfast.collectors.native import NativeCollector, reason_not_native
from xcfast.collectors.torch import TorchCollector
from xcfast.errors import ConfigError
from xcfast.learners.native import NativeLearner
from xcfast.learners.optimizer import check_optimizer, reason_not_flat_adam
from xcfast.learners.precision import resolve_precision
from xcfast.learners.torch import TorchLearner
from xcfast.policy.native_form import reason_not_copied
from xcfast.ranks.group import ALONE, Ranks

_PARAMETERS_TIMES_ENVS = 4_000_000  # above it, `inference_device: auto` computes actions on the GPU

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.collectors.collector import Collector
    from xcfast.config.schema import Config
    from xcfast.envs.vec_env import VecEnv
    from xcfast.learners.learner import Learner
    from xcfast.normalize import ObservationNormalizer, RewardNormalizer
    from xcfast.policy.action_map import ActionMap
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout


def make_collector(
    config: Config,
    envs: VecEnv,
    policy: ActorCritic,
    normalizer: ObservationNormalizer,
    action_map: ActionMap,
    ranks: Ranks = ALONE,
    device_policy: ActorCritic | None = None,
    inference: str | None = None,
) -> tuple[Collector, str]:
    """Makes the collector of a run.

    Args:
        config: The run's configuration; `collector_backend` and `inference_device` decide.
        envs: This rank's share of the training environments.
        policy: The policy, on the CPU.
        normalizer: The normalizer of the observations.
        action_map: The map from the policy's samples to the environments' actions.
        ranks: The ranks that collect together.
        device_policy: The same policy on a CUDA device, if the learner keeps one there.
        inference: The type of device that computed actions before a resume. `inference_device: auto` stays on it, since
            results on another one differ in the last bits.

    Returns:
        The collector, and the reason for the choice.

    Raises:
        ConfigError: `collector_backend: native` or `inference_device: cuda` cannot be used.
    """
    reason_not = "it does not support action masks" if config.use_actions_mask else reason_not_native(envs, policy)
    first_env = ranks.rows(config.parallels).start
    parts = (envs, policy, normalizer, action_map, config.seed, first_env, ranks, config.noise_beta)
    if config.collector_backend == "torch":
        return _torch_collector(parts, config, device_policy, inference, "as configured")
    if reason_not is None:
        reason = "policy and physics in C++, all threads"
        return NativeCollector(*parts), reason if config.collector_backend == "auto" else f"as configured; {reason}"
    if config.collector_backend == "native":
        raise ConfigError(f"the native collector cannot be used: {reason_not}", key="collector_backend", given="native")
    return _torch_collector(parts, config, device_policy, inference, f"not native: {reason_not}")


def _torch_collector(
    parts: tuple[VecEnv, ActorCritic, ObservationNormalizer, ActionMap, int, int, Ranks, float],
    config: Config,
    device_policy: ActorCritic | None,
    before: str | None,
    reason: str,
) -> tuple[TorchCollector, str]:
    wanted = config.inference_device
    if device_policy is None:
        if wanted == "cuda":
            raise ConfigError(
                "only where the update runs on CUDA and does not overlap with the collection",
                key="inference_device",
                given=wanted,
                allowed="auto, cpu",
            )
        return TorchCollector(*parts), reason
    size = sum(parameter.numel() for parameter in device_policy.parameters()) * parts[0].num_envs
    chosen = inference_device(wanted, size, before)
    how = f"inference on the {'CPU' if chosen == 'cpu' else 'GPU'}"
    if wanted == "auto":
        how += " as before" if before is not None else f", parameters times environments being {size:,}"
    policy = parts[1] if chosen == "cpu" else device_policy
    return TorchCollector(parts[0], policy, *parts[2:]), f"{reason}; {how}"


def inference_device(wanted: str, size: int, before: str | None = None) -> str:
    """Returns the type of device that computes actions where the update runs on CUDA.

    Args:
        wanted: The key `inference_device`.
        size: The number of the policy's parameters times the number of environments.
        before: The type of device before a resume, if any.

    Returns:
        "cpu" or "cuda". A rule decides, not a measurement, so that equal runs give equal results.
    """
    if wanted != "auto":
        return wanted
    if before is not None:
        return before
    return "cuda" if size > _PARAMETERS_TIMES_ENVS else "cpu"


def make_learner(
    config: Config,
    policy: ActorCritic,
    rollout: Rollout,
    reward_normalizer: RewardNormalizer,
    num_threads: int,
    ranks: Ranks = ALONE,
    device: torch.device | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> tuple[Learner, str]:
    """Makes the learner of a run.

    Args:
        config: The run's configuration; `learner_backend` and `precision` decide.
        policy: The policy to train.
        rollout: A rollout of the shape that will be learned from.
        reward_normalizer: Scales the rewards of a rollout.
        num_threads: Number of threads of the update.
        ranks: The ranks that learn together.
        device: The device to train on. Default: the CPU.
        optimizer: An optimizer of the policy's parameters, instead of Adam with the configuration's settings.
        scheduler: A scheduler of that optimizer, stepped once per gradient step. It sets the learning rates.

    Returns:
        The learner, and the reason for the choice.

    Raises:
        ConfigError: A forced backend or precision cannot be used.
        ValueError: Optimizer, scheduler and policy do not belong together.
    """
    if optimizer is not None:
        check_optimizer(optimizer, policy)
    config = resolve_precision(config, "cpu" if device is None else device.type)
    parts = (policy, config, rollout, reward_normalizer, num_threads, ranks, optimizer, scheduler)
    if device is not None and device.type == "cuda":
        other = reason_not_flat_adam(policy, optimizer) or reason_not_copied(policy)
        if other is None:
            return _make_cuda_learner(config, policy, rollout, reward_normalizer, device, ranks, optimizer, scheduler)
        if config.learner_backend != "native":
            _check_float32(config, f"only the CUDA learner has it, which cannot be used: {other}")
            # A script may have made the policy on the GPU, and an optimizer of its parameters there: they stay.
            place = f"the CPU, not on {device}" if policy.device.type == "cpu" else str(policy.device)
            return TorchLearner(*parts), f"on {place}, where the policy's parameters are: {other}"
    reason_not = NativeLearner.reason_not(config, policy, optimizer)
    if reason_not is not None:
        _check_float32(config, f"only the native learner has it, which cannot be used: {reason_not}")
    if config.learner_backend == "torch":
        return TorchLearner(*parts), "as configured"
    if reason_not is None:
        reason = f"the update in C++, {num_threads} thread{'s' * (num_threads != 1)}"
        return NativeLearner(*parts), reason if config.learner_backend == "auto" else f"as configured; {reason}"
    if config.learner_backend == "native":
        raise ConfigError(f"the native learner cannot be used: {reason_not}", key="learner_backend", given="native")
    return TorchLearner(*parts), f"not native: {reason_not}"


def _check_float32(config: Config, reason: str) -> None:
    """Checks that a configuration suits the torch learner, which multiplies in float32.

    Raises:
        ConfigError: It names another precision; the message gives the reason.
    """
    if config.precision != "fp32":
        raise ConfigError(
            reason, key="precision", given=config.precision, allowed="fp32 or auto with the torch learner"
        )


def _make_cuda_learner(
    config: Config,
    policy: ActorCritic,
    rollout: Rollout,
    reward_normalizer: RewardNormalizer,
    device: torch.device,
    ranks: Ranks,
    optimizer: torch.optim.Optimizer | None,
    scheduler: LRScheduler | None,
) -> tuple[Learner, str]:
    from xcfast.learners.cuda import CudaLearner

    if config.learner_backend == "native":
        raise ConfigError(
            f"the native learner cannot be used: it computes on the CPU, and device is {device}",
            key="learner_backend",
            given="native",
        )
    learner = CudaLearner(policy, config, rollout, reward_normalizer, device, ranks, optimizer, scheduler)
    forms = {"graph": "compiled, in CUDA graphs", "default": "compiled", "off": "eager"}
    return learner, "; ".join([f"on {device}, {forms[learner.compile]}", *learner.fallbacks])
