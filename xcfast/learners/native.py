"""The PPO update in C++ on all cores of the CPU, for policies of fully connected layers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xcfast.learners.adam import FlatAdam
from xcfast.learners.guard import UpdateGuard
from xcfast.learners.kl import KLControl
from xcfast.learners.loss import LOSSES
from xcfast.learners.metrics import epoch_means, joined_moments, update_metrics, value_metrics, value_moments
from xcfast.learners.minibatches import minibatch_sizes
from xcfast.learners.optimizer import check_optimizer, reason_not_flat_adam
from xcfast.learners.precision import resolve_precision, unit_of
from xcfast.normalize import RewardNormalizer
from xcfast.policy.flat import FlatParameters
from xcfast.policy.native_form import network_spec, reason_not_native
from xcfast.ranks.group import ALONE, Ranks

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config.schema import Config
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout

_APPROX_KL = LOSSES.index("approx_kl")
_ROLLOUT_ARRAYS = ("obs", "actions", "terminated", "truncated", "last_obs", "final_obs", "final_index")
_RESULT_ARRAYS = ("values", "log_probs", "advantages", "returns")


class NativeLearner:
    """The update of ``TorchLearner`` in C++, in float32, in one call per iteration that releases the GIL.

    The update works on a flat copy of the policy's parameters, which it reads before and writes back afterwards. The
    result does not depend on the number of threads.

    Args:
        policy: The policy that learns, on the CPU.
        config: The run's configuration.
        rollout: A rollout of the shape that will be learned from.
        reward_normalizer: Normalizer that scales its rewards.
        num_threads: Number of threads of an update.
        ranks: The ranks that learn together.
        optimizer: A script's plain Adam of all of the policy's parameters, whose state is kept as if it stepped.
        scheduler: Scheduler of the script's optimizer.

    Raises:
        ValueError: Native code cannot be used (see ``reason_not``), or optimizer, scheduler and policy do not belong
            together.
    """

    name = "native"
    overlaps = False
    device_policy = None
    behaviour = None

    def __init__(
        self,
        policy: ActorCritic,
        config: Config,
        rollout: Rollout,
        reward_normalizer: RewardNormalizer,
        num_threads: int,
        ranks: Ranks = ALONE,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
    ) -> None:
        if optimizer is not None:
            check_optimizer(optimizer, policy)
        reason = self.reason_not(config, policy, optimizer)
        if reason is not None:
            raise ValueError(f"the native learner cannot be used: {reason}")
        from xcfast import _core

        precision = resolve_precision(config, "cpu").precision
        self.policy = policy
        self.ranks = ranks
        self.device = policy.device
        self.num_threads = num_threads
        self._config = config
        self._reward_normalizer = reward_normalizer
        self._flat = FlatParameters(policy)
        exp_avg, exp_avg_sq = np.zeros_like(self._flat.array), np.zeros_like(self._flat.array)
        self._arrays = (self._flat.array, exp_avg, exp_avg_sq)
        moments = (torch.from_numpy(exp_avg), torch.from_numpy(exp_avg_sq))
        self._adam = FlatAdam(policy, config, self._flat, *moments, optimizer, scheduler)
        self._kl = KLControl(config)
        self._guard = UpdateGuard(reward_normalizer)
        self._scaled_rewards = np.empty(rollout.rewards.shape, np.float32)
        self._core = _core.Learner(
            **network_spec(policy, self._flat),
            parameters=self._flat.array,
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            loss=(config.ratio_range, config.vf_coef, config.ent_coef),
            adam=(*self._adam.betas, self._adam.eps),
            max_minibatch=config.minibatch_size,
            num_threads=num_threads,
            kl_penalty=self._kl.penalizes,
            precision=precision,
            variant=unit_of(precision),
            value_range=config.value_range,
        )

    @staticmethod
    def reason_not(config: Config, policy: ActorCritic, optimizer: torch.optim.Optimizer | None = None) -> str | None:
        """Returns why this learner cannot be used, as the end of a sentence; None if it can."""
        if policy.device.type != "cpu":
            return f"it computes on the CPU, and the weights are on {policy.device}"
        if (reason := reason_not_native(policy)) is not None:
            return reason
        if (reason := reason_not_flat_adam(policy, optimizer)) is not None:
            return reason
        try:
            from xcfast import _core  # noqa: F401
        except ImportError as error:
            return f"the compiled core is missing ({error})"
        return None

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Does one PPO iteration; see ``Learner.update``. Fills values, log_probs, advantages and returns."""
        update = partial(self._update, rollout, iteration)
        metrics = self._guard.run(update, iteration, self._snapshot, self._restore)
        self._adam.advance(self._updates_done)
        self._kl.adapt(metrics)
        self._adam.schedule.adapt(metrics)
        return metrics

    def _update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        config = self._config
        updates = config.n_epochs * config.n_minibatch
        done = rollout.terminated | rollout.truncated
        rewards = self._reward_normalizer(rollout.rewards, done, out=self._scaled_rewards)
        rates = self._adam.schedule.ahead(iteration * updates, updates)
        self._core.kl_coef = self._kl.coef
        masks = {} if rollout.action_masks is None else {"action_masks": rollout.action_masks}
        arguments: dict[str, Any] = {
            "rollout": {
                "rewards": rewards,
                **{name: getattr(rollout, name) for name in (*_ROLLOUT_ARRAYS, *_RESULT_ARRAYS)},
                **masks,
            },
            "gamma": config.gamma,
            "gae_lambda": config.trace_decay,
            "normalize_advantages": config.use_advnorm,
            "seed": config.seed,
            "iteration": iteration,
            "n_epochs": config.n_epochs,
            "n_minibatch": config.n_minibatch,
        }
        if self.ranks.world_size == 1:
            *means, norm, epochs = self._core.update(
                **arguments,
                max_norm=config.max_grad_norm,
                max_approx_kl=self._kl.limit,
                learning_rates=rates,
                steps_done=self._adam.steps_done,
            )
        else:
            *means, norm, epochs = self._update_with_others(arguments, rates)
        self._flat.write()
        self._updates_done = int(epochs) * config.n_minibatch
        values = value_metrics(value_moments(rollout.values, rollout.returns), self.ranks)
        return update_metrics(means, norm, values, float(rates[self._updates_done - 1]), self._kl, int(epochs))

    def _update_with_others(self, arguments: dict[str, Any], rates: np.ndarray) -> list[float]:
        """Does the update of several ranks, with each minibatch's gradient summed over them.

        Returns:
            What ``_core.update`` returns: means of the loss's parts, mean norm of the gradient, number of epochs.
        """
        config, ranks, core = self._config, self.ranks, self._core
        moments = core.begin_update(**arguments, env_offset=ranks.rows(config.parallels).start)
        moments = joined_moments(moments, ranks).tolist()
        sizes = minibatch_sizes(config)
        gradient, sums, norms = core.gradient, np.zeros((config.n_epochs, len(LOSSES))), 0.0
        for k, rate in enumerate(rates.tolist()):
            _, mean, square = moments[k]
            epoch, minibatch = divmod(k, len(sizes))
            sums[epoch] += core.minibatch_gradients(k, sizes[minibatch], mean, square)
            ranks.sum_(gradient)
            norms += core.apply(rate, config.max_grad_norm, self._adam.steps_done + k + 1)
            if minibatch + 1 == len(sizes) and self._kl.exceeded(sums[epoch, _APPROX_KL], config.batch_size, ranks):
                break
        means = epoch_means(ranks.sum_(sums), epoch + 1, config.batch_size)
        return [*means.tolist(), norms / (k + 1), float(epoch + 1)]

    def _snapshot(self) -> tuple[list[np.ndarray], Any]:
        self._flat.read()
        return [array.copy() for array in self._arrays], self._adam.schedule.snapshot()

    def _restore(self, snapshot: tuple[list[np.ndarray], Any]) -> None:
        arrays, position = snapshot
        for array, old in zip(self._arrays, arrays, strict=True):
            array[:] = old
        self._flat.write()
        self._adam.schedule.restore(position)

    def adopt(self) -> None:
        """Does nothing: each update begins with the policy's weights."""

    def publish(self) -> None:
        """Does nothing: each update ends with the new weights in the policy."""

    def set_behaviour(self, weights: Tensor) -> None:
        """Does nothing: the policy's own weights collect."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as ``Learner.state_dict`` describes it; its tensors are views of the live moments."""
        return {**self._adam.state_dict(), **self._kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` of any learner returned."""
        self._adam.load_state_dict(state)
        self._kl.load_state_dict(state)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer: a script's own, or one that only gives the saved state its form."""
        return self._adam.optimizer
