"""The PPO update in torch: turns a full rollout into new weights. The reference of the other learners."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from xcfast.errors import NonFiniteError
from xcfast.gae import compute_gae
from xcfast.learners.kl import KLControl
from xcfast.learners.loss import LOSSES, PPOLoss, normalized_advantages, ppo_loss
from xcfast.learners.metrics import epoch_means, joined_moments, moments_of, value_metrics
from xcfast.learners.minibatches import minibatch_sizes
from xcfast.learners.schedule import ADAM_EPS, Schedule
from xcfast.normalize import RewardNormalizer
from xcfast.ranks.group import ALONE, Ranks

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config import Config
    from xcfast.policy import ActorCritic
    from xcfast.rollout import Rollout

_EVALUATION_ROWS = 16384  # rows per forward pass over the rollout: bounds the memory that activations take


class TorchLearner:
    """The update in torch, eager, where the policy is: any policy. Also the reference for the other learners.

    On a GPU it serves scripts that bring a policy there with an optimiser other than plain Adam, and as the baseline
    of ``benchmarks/test_cuda.py``.

    ``update`` reads a full rollout, evaluates it in bulk with the weights that collected it, computes advantages, and
    runs n_epochs x n_minibatch Adam steps. Nothing in the minibatch loop waits for the device; metrics are read once.

    Of several ranks, each computes its part of every minibatch: the sum over its own samples, divided by the size of
    the whole minibatch. One flat gradient is summed over the ranks; then all make the same step.
    """

    name = "torch"

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
        own = optimizer is None
        self.optimizer = optimizer or torch.optim.Adam(
            self._parameters, lr=config.learning_rate, eps=ADAM_EPS, fused=True
        )
        self._schedule = Schedule(config, self.optimizer, scheduler, own)
        steps, envs = rollout.rewards.shape
        self._scaled_rewards = np.empty((steps, envs), np.float32)
        self._final_values = np.zeros((steps, envs), np.float32)
        self._minibatch = rollout.minibatch(-(-steps * envs // config.n_minibatch))
        self._gradient = None if ranks.world_size == 1 else self._flat_gradient()
        self._kl = KLControl(config)
        self._old: Tensor | None = None  # with a penalty: the collecting policy's distributions [T*N, ...]

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """One PPO iteration on a full rollout; fills its values, log_probs, advantages and returns.

        Args:
            rollout: full, with ``last_obs``.
            iteration: number of the iteration, from 0; it keys the minibatch permutations and the learning rate.

        Returns:
            Metrics, averaged over all samples of the epochs that ran; ``losses/grad_norm`` over the updates,
            ``losses/kl`` over the last epoch.

        Raises:
            NonFiniteError: a metric is NaN or infinite; weights and optimiser state are those from before the call.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        before = self._snapshot()
        try:
            self._evaluate(rollout)
            metrics = self._optimize(rollout, iteration)
            bad = [f"{name} = {value}" for name, value in metrics.items() if not np.isfinite(value)]
            if bad:
                raise NonFiniteError(f"update of iteration {iteration}: {', '.join(bad)}")
        except BaseException:
            self._restore(before)
            raise
        finally:
            torch.set_num_threads(threads)
        self._kl.adapt(metrics)
        return metrics

    @torch.no_grad()
    def _evaluate(self, rollout: Rollout) -> None:
        """Values, old log-probabilities, advantages and returns of the rollout, with the weights that collected it."""
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
        max_norm = config.grad_clip_norm if config.use_grad_clip else float("inf")
        on_device = None if self.device.type == "cpu" else self._copy_to_device(rollout)
        minibatches: Iterable[tuple[np.ndarray, np.ndarray]] = self._minibatches(rollout, iteration)
        moments = None
        if self.ranks.world_size > 1:
            minibatches = list(minibatches)
            moments = self._advantage_moments(rollout, minibatches)
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
                    old = None if self._old is None else self._old[rows[start:stop]]
                    loss = self._loss(self._gather(rollout, rows[start:stop], on_device), old, moment)
                    (loss.loss if stop - start == size else loss.loss * ((stop - start) / size)).backward()
                    sums[epoch] += torch.stack(loss[1:]) * float(stop - start)
                if self._gradient is not None:
                    self.ranks.sum_(self._gradient)
                norms += nn.utils.clip_grad_norm_(self._parameters, max_norm)
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
        *losses, kl, norm = torch.cat([means, norms[None] / (epochs * config.n_minibatch)]).tolist()
        metrics = {f"losses/{name}": value for name, value in zip(LOSSES[:-1], losses, strict=True)}
        metrics["losses/grad_norm"] = norm
        metrics |= self._kl.metrics(kl, epochs)
        metrics |= value_metrics(rollout, self.ranks)
        metrics["learning_rate"] = rate
        return metrics

    def _minibatches(self, rollout: Rollout, iteration: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices and offsets of this rank's part of each epoch's minibatches."""
        config = self._config
        env_offset = self.ranks.rows(config.parallels).start
        for epoch in range(config.n_epochs):
            yield rollout.minibatch_indices(
                config.seed, iteration, epoch, config.n_minibatch, env_offset=env_offset, total_envs=config.parallels
            )

    def _advantage_moments(self, rollout: Rollout, minibatches: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """float64 [n_epochs * n_minibatch, 3]: number, mean, sum of squares of each minibatch, of all ranks."""
        advantages = rollout.advantages.reshape(-1).astype(np.float64)
        parts = [advantages[rows[a:b]] for rows, offsets in minibatches for a, b in pairwise(offsets.tolist())]
        return joined_moments(np.array([moments_of(part) for part in parts]), self.ranks)

    def _loss(self, batch: list[Tensor], old: Tensor | None, moments: np.ndarray | None = None) -> PPOLoss:
        """The loss of a minibatch, or of this rank's part of it.

        Args:
            batch: what ``_gather`` returned.
            old: with a penalty, the distributions of the policy that collected.
            moments: of the whole minibatch's advantages, where this is a part of it.
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

    def _flat_gradient(self) -> Tensor:
        """The memory of all gradients in one array, so that they are summed over the ranks in one operation."""
        sizes = [p.numel() for p in self._parameters]
        flat = torch.zeros(sum(sizes), device=self.device)
        for parameter, part in zip(self._parameters, flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        return flat

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state in ``torch.optim``'s form; the scheduler's and the KL penalty's where there are any."""
        return {"optimizer": self.optimizer.state_dict(), **self._schedule.state_dict(), **self._kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._schedule.load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self._kl.load_state_dict(state)

    def _snapshot(self) -> tuple[list[Tensor], list[dict[str, Any]], Any]:
        state = [copy.deepcopy(self.optimizer.state.get(p, {})) for p in self._parameters]
        return [p.detach().clone() for p in self._parameters], state, self._schedule.snapshot()

    @torch.no_grad()
    def _restore(self, snapshot: tuple[list[Tensor], list[dict[str, Any]], Any]) -> None:
        values, states, schedule = snapshot
        for parameter, value, state in zip(self._parameters, values, states, strict=True):
            parameter.copy_(value)
            self.optimizer.state[parameter] = state
        self._schedule.restore(schedule)


def _flat(array: np.ndarray) -> np.ndarray:
    """[T, N, ...] as [T*N, ...] without a copy."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
