"""PPO-Clip: the loss as a pure function, and the learner that turns a full rollout into new weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from xcfast.gae import compute_gae
from xcfast.normalize import NonFiniteError, RewardNormalizer
from xcfast.schedule import ADAM_EPS, Schedule, learning_rate

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config import Config
    from xcfast.policy import ActorCritic
    from xcfast.rollout import Rollout

__all__ = [
    "ADAM_EPS",
    "PPOLoss",
    "TorchLearner",
    "batch_mean",
    "explained_variance",
    "learning_rate",
    "normalized_advantages",
    "ppo_loss",
]

_EVALUATION_ROWS = 16384  # rows per forward pass over the rollout: bounds the memory that activations take


class PPOLoss(NamedTuple):
    """The loss to minimise and what is logged of it, all scalar tensors on the loss's device."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clipfrac: Tensor


def batch_mean(samples: Tensor) -> Tensor:
    """Average over the minibatch: [...] of [..., B]."""
    return samples.mean(-1)


def ppo_loss(
    log_probs: Tensor,
    entropy: Tensor,
    values: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    returns: Tensor,
    *,
    clip_range: float,
    vf_coef: float,
    ent_coef: float,
    mean: Callable[[Tensor], Tensor] = batch_mean,
) -> PPOLoss:
    """PPO-Clip objective with squared value error and entropy bonus; no side effects.

    Args:
        log_probs: float [B], log-probability of the actions under the current policy.
        entropy: float [B], entropy of the current policy.
        values: float [B], current value estimates.
        old_log_probs: float [B], log-probabilities under the policy that collected.
        advantages: float [B], already normalised if they are to be.
        returns: float [B], value targets.
        clip_range: the ratio is clipped to [1 - clip_range, 1 + clip_range].
        vf_coef: weight of the value loss (mean squared error, no factor 1/2).
        ent_coef: weight of the entropy bonus.
        mean: average of float [..., B] over the minibatch, [...]; for a B that is padded or only a part of it.

    Source:
        Schulman et al., arXiv 1707.06347, eq. 7 and 9; the KL estimate is (r - 1) - log r, http://joschu.net/blog/kl-approx.html
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    with torch.no_grad():
        kl = ratio - 1.0 - log_ratio
        outside = ((ratio - 1.0).abs() > clip_range).to(ratio.dtype)
    # One reduction instead of five: on a GPU each of them would be a kernel of its own.
    policy_loss, value_loss, mean_entropy, approx_kl, clipfrac = mean(
        torch.stack([-gain, (values - returns).square(), entropy, kl, outside])
    ).unbind()
    loss = policy_loss + vf_coef * value_loss - ent_coef * mean_entropy
    return PPOLoss(
        loss, policy_loss.detach(), value_loss.detach(), mean_entropy.detach(), approx_kl.detach(), clipfrac.detach()
    )


def normalized_advantages(advantages: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-8) with the population standard deviation of the minibatch."""
    centred = advantages - advantages.mean()
    return centred / (centred.square().mean().sqrt() + 1e-8)


class TorchLearner:
    """The update in torch, eager, on CPU or CUDA: any policy. Also the reference for the other learners.

    ``update`` reads a full rollout, evaluates it in bulk with the weights that collected it, computes advantages, and
    runs n_epochs x n_minibatch Adam steps. Nothing in the minibatch loop waits for the device; metrics are read once.
    """

    name = "torch"

    def __init__(
        self,
        policy: ActorCritic,
        config: Config,
        rollout: Rollout,
        reward_normalizer: RewardNormalizer,
        num_threads: int,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
    ) -> None:
        self.policy = policy
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

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """One PPO iteration on a full rollout; fills its values, log_probs, advantages and returns.

        Args:
            rollout: full, with ``last_obs``.
            iteration: number of the iteration, from 0; it keys the minibatch permutations and the learning rate.

        Returns:
            Metrics, averaged over all samples of all epochs; ``losses/grad_norm`` over the updates.

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
        return metrics

    @torch.no_grad()
    def _evaluate(self, rollout: Rollout) -> None:
        """Values, old log-probabilities, advantages and returns of the rollout, with the weights that collected it."""
        taken = [_flat(x) for x in (rollout.obs, rollout.actions, rollout.action_masks) if x is not None]
        values, log_probs = rollout.values.reshape(-1), rollout.log_probs.reshape(-1)
        for start in range(0, len(values), _EVALUATION_ROWS):
            rows = slice(start, start + _EVALUATION_ROWS)
            log_p, _, value = self.policy.evaluate(*(self._to_device(array[rows]) for array in taken))
            values[rows], log_probs[rows] = value.cpu().numpy(), log_p.cpu().numpy()
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
            gae_lambda=config.gae_lambda if config.use_gae else 1.0,
            out=(rollout.advantages, rollout.returns),
        )

    def _values(self, obs: np.ndarray) -> np.ndarray:
        chunks = [obs[start : start + _EVALUATION_ROWS] for start in range(0, len(obs), _EVALUATION_ROWS)]
        return np.concatenate([self.policy.value(self._to_device(chunk)).cpu().numpy() for chunk in chunks])

    def _optimize(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        config = self._config
        max_norm = config.grad_clip_norm if config.use_grad_clip else float("inf")
        on_device = None if self.device.type == "cpu" else self._copy_to_device(rollout)
        sums = torch.zeros(5, device=self.device)
        norms = torch.zeros((), device=self.device)
        update = iteration * config.n_epochs * config.n_minibatch
        rate = 0.0
        for epoch in range(config.n_epochs):
            indices, offsets = rollout.minibatch_indices(config.seed, iteration, epoch, config.n_minibatch)
            rows = indices if on_device is None else self._to_device(indices)
            for start, stop in pairwise(offsets.tolist()):
                rate = self._schedule.begin(update)
                batch = self._gather(rollout, rows[start:stop], on_device)
                loss = self._loss(*batch)
                self.optimizer.zero_grad(set_to_none=True)
                loss.loss.backward()
                norms += nn.utils.clip_grad_norm_(self._parameters, max_norm)
                self.optimizer.step()
                self._schedule.end()
                sums += torch.stack(loss[1:]) * float(stop - start)
                update += 1
        total = config.n_epochs * config.batch_size
        updates = config.n_epochs * config.n_minibatch
        means = [float(value) for value in torch.cat([sums / total, norms[None] / updates]).tolist()]
        names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "grad_norm")
        metrics = {f"losses/{name}": value for name, value in zip(names, means, strict=True)}
        metrics["losses/explained_variance"] = explained_variance(rollout.values, rollout.returns)
        metrics["predict_value"] = float(rollout.values.mean(dtype=np.float64))
        metrics["learning_rate"] = rate
        return metrics

    def _loss(
        self, obs: Tensor, actions: Tensor, old_log_probs: Tensor, advantages: Tensor, returns: Tensor, *masks: Tensor
    ) -> PPOLoss:
        config = self._config
        if config.use_advnorm:
            advantages = normalized_advantages(advantages)
        log_probs, entropy, values = self.policy.evaluate(obs, actions, *masks)
        return ppo_loss(
            log_probs,
            entropy,
            values,
            old_log_probs,
            advantages,
            returns,
            clip_range=config.clip_range,
            vf_coef=config.vf_coef,
            ent_coef=config.ent_coef,
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

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, in ``torch.optim``'s form, and the scheduler's where there is one."""
        return {"optimizer": self.optimizer.state_dict(), **self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._schedule.load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])

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


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var[returns - values] / Var[returns]; 0 where the returns do not vary."""
    variance = float(np.var(returns, dtype=np.float64))
    if variance == 0.0:
        return 0.0
    return 1.0 - float(np.var(returns.astype(np.float64) - values)) / variance


def _flat(array: np.ndarray) -> np.ndarray:
    """[T, N, ...] as [T*N, ...] without a copy."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
