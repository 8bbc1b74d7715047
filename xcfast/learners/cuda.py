"""The PPO update on a CUDA device: one upload per rollout, compiled steps, replayed from CUDA graphs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xcfast.learners.adam import FlatAdam
from xcfast.learners.cuda_update import DeviceUpdate, matmul_precision
from xcfast.learners.guard import UpdateGuard
from xcfast.learners.kl import KLControl
from xcfast.learners.loss import LOSSES
from xcfast.learners.metrics import update_metrics, value_metrics
from xcfast.learners.minibatches import epoch_minibatches
from xcfast.normalize import RewardNormalizer
from xcfast.policy.flat import FlatParameters
from xcfast.ranks.group import ALONE, Ranks
from xcfast.resources import page_locked

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config.schema import Config
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout

_APPROX_KL = LOSSES.index("approx_kl")


class CudaLearner:
    """The update of ``TorchLearner``, for any policy, with everything on the device.

    The policy that is passed in stays on the CPU, where collectors and evaluation read it. Its copy on the device
    learns, and ``update`` brings the new weights back. Rewards are scaled on the CPU, where they are; everything else
    happens on the device, in a ``DeviceUpdate``, and only the metrics return, once.

    With ``overlap`` the next rollout is collected during ``update``, with the weights that ``publish`` brought to the
    CPU before. Values and old log-probabilities are those of the weights that collected, one update older than those
    that learn; ``losses/ratio_drift`` is the mean of |ratio - 1| between the two before the first step.

    Args:
        policy: The policy that learns, on the CPU.
        config: The run's configuration; ``compile`` says which form of the steps to try first.
        rollout: A rollout of the shape that will be learned from; copies are fast if its arrays are page-locked
            (``page_locked``).
        reward_normalizer: Normalizer that scales its rewards.
        device: CUDA device; in tests also the CPU, without graphs.
        ranks: The ranks that learn together.
        optimizer: A script's plain Adam of all of the policy's parameters, whose state is kept as if it stepped.
        scheduler: Scheduler of the script's optimizer.

    Attributes:
        compile: The form of the steps in use: "graph", "default" (compiled, launched one by one) or "off" (eager).
        fallbacks: Why the forms before it in that order were not used, one sentence each.
        device_policy: The copy on the device, for inference there.

    Raises:
        ValueError: Optimizer, scheduler and policy do not belong together.
    """

    name = "cuda"
    overlaps = True

    def __init__(
        self,
        policy: ActorCritic,
        config: Config,
        rollout: Rollout,
        reward_normalizer: RewardNormalizer,
        device: torch.device,
        ranks: Ranks = ALONE,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
    ) -> None:
        self.policy, self.device, self.ranks = policy, device, ranks
        self._config, self._reward_normalizer = config, reward_normalizer
        host = page_locked if device.type == "cuda" else np.zeros
        self._host = FlatParameters(policy, allocate=host)
        self._kl = KLControl(config)
        self._on_device = DeviceUpdate(policy, self._host, config, self._kl, rollout, device, ranks)
        self._adam = FlatAdam(policy, config, self._host, *self._on_device.moments, optimizer, scheduler)
        self._scaled_rewards = host(rollout.rewards.shape, np.float32)
        size = self._on_device.indices.shape[1]
        self._host_indices = host((config.n_epochs, config.n_minibatch, size), np.int64)
        self._host_rates = host((self._on_device.updates, 2), np.float32)
        self._prepared = -1  # the iteration whose minibatches are in the page-locked table
        self._uploaded = torch.cuda.Event() if device.type == "cuda" else None  # the device has read the host's memory
        self._guard = UpdateGuard(reward_normalizer)
        with matmul_precision(config.precision):
            self._on_device.prepare(config.compile, self._adam.betas, self._adam.eps)
        self.compile, self.fallbacks = self._on_device.mode, self._on_device.fallbacks
        self.device_policy = self._on_device.policy

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Does one PPO iteration; see ``Learner.update``.

        The rollout's values, log_probs, advantages and returns stay on the device.
        """
        weights = self._on_device.weights.clone() if self._config.overlap else None
        update = partial(self._update, rollout, iteration)
        with matmul_precision(self._config.precision):
            metrics = self._guard.run(update, iteration, self._snapshot, self._restore)
        self._adam.advance(self._updates_done)
        self._kl.adapt(metrics)
        self._adam.schedule.adapt(metrics)
        if weights is None:
            self.publish()
        else:
            self._on_device.behaviour.copy_(weights)
        return metrics

    def _update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        on_device, batch = self._on_device, self._config.batch_size
        rates = self._upload(rollout, iteration)
        on_device.evaluate()
        done, divergence = 0, 0.0
        while done < on_device.updates:
            on_device.run_span()
            done += on_device.span
            if self._kl.stops_early:
                before, divergence = divergence, float(on_device.loss_sums[_APPROX_KL])  # the one wait for the device
                if self._kl.exceeded(divergence - before, batch, self.ranks):
                    break
        results = self._results()
        if self._uploaded is not None:
            self._uploaded.synchronize()
        self._fill_minibatches(rollout, iteration + 1)  # while the device works
        host = results.cpu().numpy()
        steps = rollout.rewards.size
        moments = np.column_stack([np.full(3, steps), host[:6].reshape(3, 2) * [1, steps]])
        values = value_metrics(moments, self.ranks)
        (*sums, kl), (norms, drift) = self.ranks.sum_(host[6:-2].copy()).tolist(), host[-2:].tolist()
        self._updates_done, epochs = done, done // self._config.n_minibatch
        means = [*(value / (epochs * batch) for value in sums), kl / batch]
        metrics = update_metrics(means, norms / done, values, float(rates[done - 1]), self._kl, epochs)
        return {**metrics, "losses/ratio_drift": drift} if self._config.overlap else metrics

    def _results(self) -> Tensor:
        """Returns the values that the metrics are computed from, in one float64 array on the device."""
        on_device = self._on_device
        values, returns = on_device.values.double(), on_device.returns.double()
        spread = (returns, returns - values, values)
        moments = torch.stack([moment for x in spread for moment in (x.mean(), x.var(correction=0))])
        sums = (on_device.loss_sums, on_device.norm_sum, on_device.drift)
        return torch.cat([moments, *(x.double() for x in sums)])

    def _fill_minibatches(self, rollout: Rollout, iteration: int) -> None:
        """Writes the minibatches of an iteration into the page-locked table; padding repeats row 0."""
        if self._prepared == iteration:
            return
        table = self._host_indices
        self._prepared = -1
        for epoch in range(self._config.n_epochs):
            indices, offsets = epoch_minibatches(self._config, rollout, self.ranks, iteration, epoch)
            if not self._on_device.padded:
                table[epoch] = indices.reshape(table.shape[1:])
                continue
            for minibatch, (start, count) in enumerate(zip(offsets[:-1], self._on_device.counts, strict=True)):
                table[epoch, minibatch, :count] = indices[start : start + count]
        self._prepared = iteration

    def _upload(self, rollout: Rollout, iteration: int) -> np.ndarray:
        """Copies everything that the device needs for this iteration, without waiting; returns the learning rates."""
        on_device = self._on_device
        done = rollout.terminated | rollout.truncated
        self._reward_normalizer(rollout.rewards, done, out=self._scaled_rewards)
        self._fill_minibatches(rollout, iteration)
        beta1, beta2 = self._adam.betas
        t = self._adam.steps_done + 1 + np.arange(on_device.updates)
        rates = self._adam.schedule.ahead(iteration * on_device.updates, on_device.updates)
        self._host_rates[:, 0] = rates / (1 - beta1**t)
        self._host_rates[:, 1] = 1 / np.sqrt(1 - beta2**t)
        on_device.kl_coef.fill_(self._kl.coef)
        pairs: list[tuple[Tensor, np.ndarray]] = [
            (on_device.obs, rollout.obs),
            (on_device.actions, rollout.actions),
            (on_device.rewards, self._scaled_rewards),
            (on_device.terminated, rollout.terminated),
            (on_device.truncated, rollout.truncated),
            (on_device.last_obs, rollout.last_obs),
            (on_device.indices, self._host_indices.reshape(on_device.indices.shape)),
            (on_device.rates, self._host_rates),
        ]
        if rollout.action_masks is not None:
            pairs.append((on_device.masks[0], rollout.action_masks))
        for target, array in pairs:
            target.copy_(torch.from_numpy(array), non_blocking=True)
        if self._uploaded is not None:
            self._uploaded.record()
        if len(rollout.final_index):  # their number varies, so no graph can hold them
            index = torch.from_numpy(rollout.final_index).to(self.device)
            final_obs = torch.from_numpy(rollout.final_obs).to(self.device)
            on_device.final_values.view(-1)[index] = on_device.value(final_obs)
        return rates

    def _snapshot(self) -> tuple[list[Tensor], Any]:
        return self._on_device.snapshot(), self._adam.schedule.snapshot()

    def _restore(self, snapshot: tuple[list[Tensor], Any]) -> None:
        state, position = snapshot
        self._on_device.restore(state)
        self._adam.schedule.restore(position)

    def adopt(self) -> None:
        """Takes over weights that other code wrote into the policy on the CPU. They also collect the next rollout."""
        self._host.read()
        self._on_device.weights.copy_(torch.from_numpy(self._host.array))
        self._on_device.behaviour.copy_(self._on_device.weights)

    def publish(self) -> None:
        """Brings the weights into the policy on the CPU. ``update`` does so itself, except with ``overlap``."""
        torch.from_numpy(self._host.array).copy_(self._on_device.weights)
        self._host.write()

    @property
    def behaviour(self) -> Tensor | None:
        """With ``overlap``, the flat weights that collect the next rollout, on the CPU; else None."""
        return self._on_device.behaviour.cpu() if self._config.overlap else None

    def set_behaviour(self, weights: Tensor) -> None:
        """Restores ``behaviour``, after ``adopt``; without ``overlap`` it does nothing."""
        if self._config.overlap:
            self._on_device.behaviour.copy_(weights)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as ``Learner.state_dict`` describes it, on the CPU."""
        return {**self._adam.state_dict(), **self._kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` of any learner returned, and takes over the policy's weights."""
        self._adam.load_state_dict(state)
        self._kl.load_state_dict(state)
        self.adopt()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer: a script's own, or one that only gives the saved state its form."""
        return self._adam.optimizer
