"""The choice between engines: which collector and which learner serve a run, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xcfast.collectors.native import NativeCollector, reason_not_native
from xcfast.collectors.torch import TorchCollector
from xcfast.errors import ConfigError
from xcfast.learners.native import NativeLearner
from xcfast.learners.optimizer import check_optimizer, reason_not_flat_adam
from xcfast.learners.torch import TorchLearner
from xcfast.policy.native_form import reason_not_copied
from xcfast.ranks.group import ALONE, Ranks

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config import Config
    from xcfast.envs import VecEnv
    from xcfast.learners.learner import Learner
    from xcfast.normalize import ObservationNormalizer, RewardNormalizer
    from xcfast.policy import ActionMap, ActorCritic
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
) -> tuple[TorchCollector | NativeCollector, str]:
    """The collector that ``config.collector_backend`` asks for, and the reason for the choice.

    Args:
        config: of the run.
        envs: this rank's share of the training envs.
        policy: on the CPU.
        normalizer: of the observations.
        action_map: of the envs' action space.
        ranks: those that collect together.
        device_policy: the same policy on a CUDA device, where the learner keeps one: inference of the torch collector
            runs there if that is faster in a short measurement.
        inference: the type of device that inference ran on before a resume; not measured again, as results differ in
            the last bits.

    Raises:
        ConfigError: ``native`` is asked for and cannot serve.
    """
    reason_not = "it knows no action masks" if config.use_actions_mask else reason_not_native(envs, policy)
    parts = (envs, policy, normalizer, action_map, config.seed, ranks.rows(config.parallels).start, ranks)
    if config.collector_backend == "torch":
        return _torch_collector(parts, device_policy, inference, "as asked for")
    if reason_not is None:
        reason = "policy and physics in C++, all threads"
        return NativeCollector(*parts), reason if config.collector_backend == "auto" else f"as asked for; {reason}"
    if config.collector_backend == "native":
        raise ConfigError(f"the native collector cannot serve: {reason_not}", key="collector_backend", given="native")
    return _torch_collector(parts, device_policy, inference, f"not native: {reason_not}")


def _torch_collector(
    parts: tuple[VecEnv, ActorCritic, ObservationNormalizer, ActionMap, int, int, Ranks],
    device_policy: ActorCritic | None,
    inference: str | None,
    reason: str,
) -> tuple[TorchCollector, str]:
    on_cpu = TorchCollector(*parts)
    if device_policy is None:
        return on_cpu, reason
    on_device = TorchCollector(parts[0], device_policy, *parts[2:])
    if inference is not None:
        return on_cpu if inference == "cpu" else on_device, f"{reason}; inference on the {inference} as before"
    cpu_seconds, device_seconds = on_cpu.inference_seconds(), on_device.inference_seconds()
    chosen = on_cpu if cpu_seconds <= device_seconds else on_device
    times = f"{cpu_seconds * 1e6:.0f} us a step on the CPU, {device_seconds * 1e6:.0f} us on {device_policy.device}"
    return chosen, f"{reason}; inference on {chosen.policy.device}: {times}"


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
    """The learner that ``config.learner_backend`` and the device ask for, and the reason for the choice.

    Args:
        config: the run's configuration.
        policy: to train.
        rollout: of the shape that will be learned from.
        reward_normalizer: scales its rewards.
        num_threads: of the update.
        ranks: those that learn together.
        device: where to train; default: the CPU.
        optimizer: the caller's, instead of Adam as the configuration has it.
        scheduler: of that optimiser: stepped once per update, it decides the learning rates.

    Raises:
        ConfigError: ``native``, or a precision, is asked for and cannot serve.
        ValueError: optimizer, scheduler and policy do not belong together.
    """
    if optimizer is not None:
        check_optimizer(optimizer, policy)
    parts = (policy, config, rollout, reward_normalizer, num_threads, ranks, optimizer, scheduler)
    if device is not None and device.type == "cuda":
        other = reason_not_flat_adam(policy, optimizer) or reason_not_copied(policy)
        if other is None:
            return _make_cuda_learner(config, policy, rollout, reward_normalizer, device, ranks, optimizer, scheduler)
        if config.learner_backend != "native":
            # A script may have made the policy on the GPU, and an optimizer of its parameters there: they stay.
            place = f"the CPU, not on {device}" if policy.device.type == "cpu" else str(policy.device)
            return TorchLearner(*parts), f"on {place}, where the policy's parameters are: {other}"
    if config.precision != "fp32":
        raise ConfigError("only on a CUDA device", key="precision", given=config.precision, allowed="fp32 on the CPU")
    if config.learner_backend == "torch":
        return TorchLearner(*parts), "as asked for"
    reason_not = NativeLearner.reason_not(config, policy, optimizer)
    if reason_not is None:
        reason = f"the update in C++, {num_threads} thread{'s' * (num_threads != 1)}"
        return NativeLearner(*parts), reason if config.learner_backend == "auto" else f"as asked for; {reason}"
    if config.learner_backend == "native":
        raise ConfigError(f"the native learner cannot serve: {reason_not}", key="learner_backend", given="native")
    return TorchLearner(*parts), f"not native: {reason_not}"


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
            f"the native learner cannot serve: it computes on the CPU, and device is {device}",
            key="learner_backend",
            given="native",
        )
    learner = CudaLearner(policy, config, rollout, reward_normalizer, device, ranks, optimizer, scheduler)
    forms = {"graph": "compiled, in CUDA graphs", "default": "compiled", "off": "eager"}
    return learner, "; ".join([f"on {device}, {forms[learner.compile]}", *learner.fallbacks])
