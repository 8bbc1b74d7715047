"""The PPO update in torch, for any policy; it is the reference in the tests of the other learners."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from xcfast.gae import compute_gae
from xcfast.learners.guard import UpdateGuard
from xcfast.learners.kl import KLControl
from xcfast.learners.loss import LOSSES, PPOLoss, normalized_advantages, ppo_loss
from xcfast.learners.metrics import (
    epoch_means,
    joined_moments,
    moments_of,
    update_metrics,
    value_metrics,
    value_moments,
)
from xcfast.learners.minibatches import epoch_minibatches, minibatch_sizes
from xcfast.learners.optimizer import make_optimizer
from xcfast.learners.schedule import Schedule
from xcfast.normalize import RewardNormalizer
from xcfast.ranks.group import ALONE, Ranks

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config.schema import Config
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout

_EVALUATION_ROWS = 16384  # rows per forward pass over the rollout: bounds the memory that activations take


class TorchLearner:
    """The update in eager torch, for any policy, on the policy's device.

    On a GPU it is for scripts that bring a policy there with an optimizer other than plain Adam. It is also the
    baseline of ``benchmarks/test_cuda.py``.

    ``update`` reads a full rollout, evaluates it in bulk with the weights that collected it, computes advantages, and
    runs n_epochs x n_minibatch optimizer steps. Nothing in the minibatch loop waits for the device; metrics are read
    once.

    If there are several ranks, each one computes its part of every minibatch: the sum over its own samples, divided by
    the size of the whole minibatch. One flat gradient is summed over the ranks; then all take the same step.

    Args:
        policy: The policy that learns, on the device where it is to learn.
        config: The run's configuration.
        rollout: A rollout of the shape that will be learned from.
        reward_normalizer: Normalizer that scales its rewards.
        num_threads: Number of torch's threads during an update.
        ranks: The ranks that learn together.
        optimizer: A script's optimizer of some or all of the policy's parameters; default: Adam.
        scheduler: Scheduler of the script's optimizer.

    Raises:
        ValueError: Optimizer, scheduler and policy do not belong together.
    """

    name = "torch"
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
        self.policy = policy
        self.ranks = ranks
        self.device = policy.device
        self.num_threads = num_threads
        self._config = config
        self._reward_normalizer = reward_normalizer
        self._parameters = list(policy.parameters())
        self.optimizer = make_optimizer(policy, config, optimizer)
        self._schedule = Schedule(config, self.optimizer, scheduler, own=optimizer is None)
        steps, envs = rollout.rewards.shape
        self._scaled_rewards = np.empty((steps, envs), np.float32)
        self._final_values = np.zeros((steps, envs), np.float32)
        self._minibatch = rollout.minibatch(-(-steps * envs // config.n_minibatch))
        # One array for all gradients, so that one operation sums them over the ranks.
        size = sum(p.numel() for p in self._parameters)
        self._gradient = None if ranks.world_size == 1 else torch.zeros(size, device=self.device)
        self._kl = KLControl(config)
        self._old: Tensor | None = None  # with a penalty: the collecting policy's distributions [T*N, ...]
        self._old_values: Tensor | None = None  # with a clipped value loss: its values [T*N]
        self._guard = UpdateGuard(reward_normalizer)

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Does one PPO iteration; see ``Learner.update``. Fills values, log_probs, advantages and returns."""
        update = partial(self._update, rollout, iteration)
        metrics = self._guard.run(update, iteration, self._snapshot, self._restore)
        self._kl.adapt(metrics)
        self._schedule.adapt(metrics)
        return metrics

    def _update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        threads = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        try:
            self._evaluate(rollout)
            return self._optimize(rollout, iteration)
        finally:
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _evaluate(self, rollout: Rollout) -> None:
        """Computes values, log-probabilities, advantages and returns with the weights that collected the rollout."""
        taken = [_flat(x) for x in (rollout.obs, rollout.actions, rollout.action_masks) if x is not None]
        values, log_probs = rollout.values.reshape(-1), rollout.log_probs.reshape(-1)
        actor, old = self.policy.actor, []
        for start in range(0, len(values), _EVALUATION_ROWS):
            rows = slice(start, start + _EVALUATION_ROWS)
            obs, actions, *masks = (self._to_device(array[rows]) for array in taken)
            output, value = self.policy.heads(obs, *masks)
            log_p = actor.log_prob(output, actions)
            values[rows], log_probs[rows] = value.cpu().numpy(), log_p.cpu().numpy()
            if self._kl.penalizes:
                old.append(actor.frozen(output))
        self._old = torch.cat(old) if old else None
        last_values = self._values(rollout.last_obs)
        final_values = None
        if len(rollout.final_index):
            final_values = self._final_values
            final_values.reshape(-1)[rollout.final_index] = self._values(rollout.final_obs)
        config = self._config
        rewards = self._reward_normalizer(
            rollout.rewards, rollout.terminated | rollout.truncated, out=self._scaled_rewards
        )
        compute_gae(
            rewards,
            rollout.values,
            rollout.terminated,
            # A step that is both counts as terminated, so it needs no final value.
            rollout.truncated & ~rollout.terminated if final_values is None else rollout.truncated,
            last_values=last_values,
            final_values=final_values,
            gamma=config.gamma,
            gae_lambda=config.trace_decay,
            out=(rollout.advantages, rollout.returns),
        )

    def _values(self, obs: np.ndarray) -> np.ndarray:
        chunks = [obs[start : start + _EVALUATION_ROWS] for start in range(0, len(obs), _EVALUATION_ROWS)]
        return np.concatenate([self.policy.value(self._to_device(chunk)).cpu().numpy() for chunk in chunks])

    def _optimize(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        config = self._config
        self._join_gradients()
        on_device = None if self.device.type == "cpu" else self._copy_to_device(rollout)
        minibatches: Iterable[tuple[np.ndarray, np.ndarray]] = (
            epoch_minibatches(config, rollout, self.ranks, iteration, epoch) for epoch in range(config.n_epochs)
        )
        moments = None
        if self.ranks.world_size > 1:
            minibatches = list(minibatches)
            moments = self._advantage_moments(rollout, minibatches)
        if config.clip_value_range is not None:
            self._old_values = self._to_device(_flat(rollout.values))
        sizes = minibatch_sizes(config)
        sums = torch.zeros((config.n_epochs, len(LOSSES)), device=self.device)
        norms = torch.zeros((), device=self.device)
        update = iteration * config.n_epochs * config.n_minibatch
        end = update + config.n_epochs * config.n_minibatch
        rate = 0.0
        for epoch, (indices, offsets) in enumerate(minibatches):
            rows = indices if on_device is None else self._to_device(indices)
            for size, (start, stop) in zip(sizes, pairwise(offsets.tolist()), strict=True):
                rate = self._schedule.begin(update)
                if self._gradient is None:
                    self.optimizer.zero_grad(set_to_none=True)
                else:
                    self._gradient.zero_()
                if start < stop:
                    moment = None if moments is None else moments[update % len(moments)]
                    some = rows[start:stop]
                    old, old_values = (None if x is None else x[some] for x in (self._old, self._old_values))
                    loss = self._loss(self._gather(rollout, some, on_device), old, old_values, moment)
                    (loss.loss if stop - start == size else loss.loss * ((stop - start) / size)).backward()
                    sums[epoch] += torch.stack(loss[1:]) * float(stop - start)
                if self._gradient is not None:
                    self.ranks.sum_(self._gradient)
                norms += nn.utils.clip_grad_norm_(self._parameters, config.max_grad_norm)
                self.optimizer.step()
                self._schedule.end()
                update += 1
            epochs = epoch + 1
            if self._kl.stops_early and self._kl.exceeded(
                float(sums[epoch, LOSSES.index("approx_kl")]), config.batch_size, self.ranks
            ):
                break
        self._schedule.ahead(update, end - update)  # as if the other epochs had run
        means = epoch_means(self.ranks.sum_(sums), epochs, config.batch_size)
        *losses, norm = torch.cat([means, norms[None] / (epochs * config.n_minibatch)]).tolist()
        values = value_metrics(value_moments(rollout.values, rollout.returns), self.ranks)
        return update_metrics(losses, norm, values, rate, self._kl, epochs)

    def _advantage_moments(self, rollout: Rollout, minibatches: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Returns float64 [n_epochs * n_minibatch, 3]: ``moments_of`` each minibatch's advantages on all ranks."""
        advantages = rollout.advantages.reshape(-1).astype(np.float64)
        parts = [advantages[rows[a:b]] for rows, offsets in minibatches for a, b in pairwise(offsets.tolist())]
        return joined_moments(np.array([moments_of(part) for part in parts]), self.ranks)

    def _loss(
        self,
        batch: list[Tensor],
        old: Tensor | None,
        old_values: Tensor | None,
        moments: np.ndarray | None = None,
    ) -> PPOLoss:
        """Returns the loss of a minibatch, or of this rank's part of it.

        Args:
            batch: What ``_gather`` returned.
            old: With a penalty, the distributions of the policy that collected.
            old_values: With a clipped value loss, the values by the weights that collected.
            moments: Moments of the whole minibatch's advantages, where ``batch`` is a part of it.
        """
        config = self._config
        obs, actions, old_log_probs, advantages, returns, *masks = batch
        if config.use_advnorm and moments is None:
            advantages = normalized_advantages(advantages)
        elif config.use_advnorm and moments is not None:
            count, mean, square = moments.tolist()
            advantages = (advantages - mean) / (math.sqrt(square / count) + 1e-8)
        actor = self.policy.actor
        output, values = self.policy.heads(obs, *masks)
        return ppo_loss(
            actor.log_prob(output, actions),
            actor.entropy(output),
            values,
            old_log_probs,
            advantages,
            returns,
            clip_range=config.ratio_range,
            vf_coef=config.vf_coef,
            ent_coef=config.ent_coef,
            kl=None if old is None else actor.kl(old, output),
            kl_coef=self._kl.coef,
            old_values=old_values,
            value_range=config.value_range,
        )

    def _gather(self, rollout: Rollout, indices: Any, on_device: list[Tensor] | None) -> list[Tensor]:
        if on_device is None:
            batch = rollout.gather(indices, self._minibatch)
            return [torch.from_numpy(array) for array in batch if array is not None]
        return [array.index_select(0, indices) for array in on_device]

    def _copy_to_device(self, rollout: Rollout) -> list[Tensor]:
        arrays = (rollout.obs, rollout.actions, rollout.log_probs, rollout.advantages, rollout.returns)
        masks = () if rollout.action_masks is None else (rollout.action_masks,)
        return [self._to_device(_flat(array)) for array in (*arrays, *masks)]

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _join_gradients(self) -> None:
        """Makes the gradients views of one array. A script may have replaced them, as ``zero_grad`` does."""
        if self._gradient is not None:
            parts = self._gradient.split([p.numel() for p in self._parameters])
            for parameter, part in zip(self._parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def adopt(self) -> None:
        """Does nothing: this learner trains the policy's own weights, so it uses the new ones in any case."""

    def publish(self) -> None:
        """Does nothing: the policy's own weights are trained."""

    def set_behaviour(self, weights: Tensor) -> None:
        """Does nothing: the policy's own weights collect."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as ``Learner.state_dict`` describes it."""
        return {"optimizer": self.optimizer.state_dict(), **self._schedule.state_dict(), **self._kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` of any learner returned."""
        self._schedule.load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self._kl.load_state_dict(state)

    def _snapshot(self) -> tuple[list[Tensor], list[dict[str, Any] | None], Any]:
        states = self.optimizer.state
        state = [copy.deepcopy(states[p]) if p in states else None for p in self._parameters]
        return [p.detach().clone() for p in self._parameters], state, self._schedule.snapshot()

    @torch.no_grad()
    def _restore(self, snapshot: tuple[list[Tensor], list[dict[str, Any] | None], Any]) -> None:
        values, states, schedule = snapshot
        for parameter, value, state in zip(self._parameters, values, states, strict=True):
            parameter.copy_(value)
            if state is None:
                self.optimizer.state.pop(parameter, None)
            else:
                self.optimizer.state[parameter] = state
        self._schedule.restore(schedule)


def _flat(array: np.ndarray) -> np.ndarray:
    """Returns [T, N, ...] as [T*N, ...] without a copy."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
