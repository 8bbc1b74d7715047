"""The PPO update in C++ on all cores of the CPU, for policies of fully connected layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.errors import NonFiniteError
from xcfast.learners.adam import FlatAdam
from xcfast.learners.kl import KLControl
from xcfast.learners.loss import LOSSES
from xcfast.learners.metrics import epoch_means, joined_moments, value_metrics
from xcfast.learners.minibatches import minibatch_sizes
from xcfast.learners.schedule import reason_not_plain_adam
from xcfast.normalize import RewardNormalizer
from xcfast.policy.flat import FlatParameters
from xcfast.policy.native_form import network_spec, reason_not_native
from xcfast.ranks.group import ALONE, Ranks

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config import Config
    from xcfast.policy import ActorCritic
    from xcfast.rollout import Rollout

_APPROX_KL = LOSSES.index("approx_kl")
_ROLLOUT_ARRAYS = ("obs", "actions", "terminated", "truncated", "last_obs", "final_obs", "final_index")
_RESULT_ARRAYS = ("values", "log_probs", "advantages", "returns")


class NativeLearner:
    """The update of ``TorchLearner`` in C++, in float32, in one call per iteration that releases the GIL.

    The policy's parameters become views of one flat array that the update works on in place, so torch reads the new
    weights. The result does not depend on the number of threads. The optimiser's state is interchangeable with
    ``TorchLearner``'s.
    """

    name = "native"

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
        reason = self.reason_not(config, policy, optimizer)
        if reason is not None:
            raise ValueError(f"the native learner cannot serve: {reason}")
        from xcfast import _core

        self.policy = policy
        self.ranks = ranks
        self.device = policy.device
        self.num_threads = num_threads
        self._config = config
        self._reward_normalizer = reward_normalizer
        self._flat = FlatParameters(policy)
        self._exp_avg, self._exp_avg_sq = np.zeros_like(self._flat.array), np.zeros_like(self._flat.array)
        moments = (torch.from_numpy(self._exp_avg), torch.from_numpy(self._exp_avg_sq))
        self._adam = FlatAdam(policy, config, self._flat, *moments, optimizer, scheduler)
        self._kl = KLControl(config)
        self._scaled_rewards = np.empty(rollout.rewards.shape, np.float32)
        self._core = _core.Learner(
            **network_spec(policy, self._flat),
            parameters=self._flat.array,
            exp_avg=self._exp_avg,
            exp_avg_sq=self._exp_avg_sq,
            loss=(config.ratio_range, config.vf_coef, config.ent_coef),
            adam=(*self._adam.betas, self._adam.eps),
            max_minibatch=config.minibatch_size,
            num_threads=num_threads,
            kl_penalty=self._kl.penalizes,
        )

    @staticmethod
    def reason_not(config: Config, policy: ActorCritic, optimizer: torch.optim.Optimizer | None = None) -> str | None:
        """Why this learner cannot serve, as a phrase; None if it can."""
        if policy.device.type != "cpu":
            return f"the weights are on {policy.device}; it computes on the CPU"
        if (reason := reason_not_native(policy)) is not None:
            return reason
        if optimizer is not None and (reason := reason_not_plain_adam(optimizer, list(policy.parameters()))):
            return reason
        try:
            from xcfast import _core  # noqa: F401
        except ImportError as error:
            return f"the compiled core is missing ({error})"
        return None

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """One PPO iteration on a full rollout: arguments, results and errors as ``TorchLearner.update``.

        Raises:
            NonFiniteError: a metric is NaN or infinite; weights and optimiser state are those from before the call.
            RuntimeError: another thread is in a call of this learner.
        """
        config = self._config
        self._flat.adopt()
        flat = (self._flat.array, self._exp_avg, self._exp_avg_sq)
        before = [array.copy() for array in flat]
        updates = config.n_epochs * config.n_minibatch
        done = rollout.terminated | rollout.truncated
        rewards = self._reward_normalizer(rollout.rewards, done, out=self._scaled_rewards)
        position = self._adam.schedule.snapshot()
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
        try:
            if self.ranks.world_size == 1:
                steps: dict[str, Any] = {"learning_rates": rates, "steps_done": self._adam.steps_done}
                means = self._core.update(**arguments, max_norm=self._max_norm, max_approx_kl=self._kl.limit, **steps)
            else:
                means = self._update_with_others(arguments, rates)
            *losses, kl, norm, epochs = means
            done_updates = int(epochs) * config.n_minibatch
            metrics = {f"losses/{name}": value for name, value in zip(LOSSES[:-1], losses, strict=True)}
            metrics["losses/grad_norm"] = norm
            metrics |= self._kl.metrics(kl, int(epochs))
            metrics |= value_metrics(rollout, self.ranks)
            metrics["learning_rate"] = float(rates[done_updates - 1])
            bad = [f"{name} = {value}" for name, value in metrics.items() if not np.isfinite(value)]
            if bad:
                raise NonFiniteError(f"update of iteration {iteration}: {', '.join(bad)}")
        except BaseException:
            for array, old in zip(flat, before, strict=True):
                array[:] = old
            self._adam.schedule.restore(position)
            raise
        self._adam.advance(done_updates)
        self._kl.adapt(metrics)
        return metrics

    @property
    def _max_norm(self) -> float:
        return self._config.grad_clip_norm if self._config.use_grad_clip else float("inf")

    def _update_with_others(self, arguments: dict[str, Any], rates: np.ndarray) -> list[float]:
        """The update of several ranks: each minibatch's gradient is summed over them. Means as of ``_core.update``."""
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
            norms += core.apply(rate, self._max_norm, self._adam.steps_done + k + 1)
            if minibatch + 1 == len(sizes) and self._kl.exceeded(sums[epoch, _APPROX_KL], config.batch_size, ranks):
                break
        means = epoch_means(ranks.sum_(sums), epoch + 1, config.batch_size)
        return [*means.tolist(), norms / (k + 1), float(epoch + 1)]

    def compute_gradients(
        self,
        obs: np.ndarray,
        actions: np.ndarray,
        log_probs: np.ndarray,
        advantages: np.ndarray,
        returns: np.ndarray,
        indices: np.ndarray | None = None,
        old_outputs: np.ndarray | None = None,
        old_log_std: np.ndarray | None = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """The gradient of one minibatch, before its norm is limited.

        Args:
            obs: float32 [B, ...].
            actions: float32 [B, A], or int64 [B].
            log_probs: float32 [B], under the policy that collected.
            advantages: float32 [B], raw; normalised here if the configuration says so.
            returns: float32 [B].
            indices: int64, the rows to take; default: all.
            old_outputs: float32 [B, A], with PPO_KL: means or logits of the policy that collected.
            old_log_std: float32 [A], with PPO_KL: log standard deviations of a Gaussian one.
            action_masks: bool [B, number of actions], the actions that were allowed; default: all.

        Returns:
            The flat gradient, float32 [parameters], in the memory that ``apply`` reads; the means of the loss's parts.
        """
        self._flat.adopt()
        self._core.kl_coef = self._kl.coef
        old = (old_outputs, old_log_std)
        means = self._core.compute_gradients(
            obs, actions, log_probs, advantages, returns, self._config.use_advnorm, indices, *old, action_masks
        )
        parts = dict(zip(LOSSES, means, strict=True))
        return self._core.gradient, parts if self._kl.penalizes else {name: parts[name] for name in LOSSES[:-1]}

    def apply(self, learning_rate: float) -> float:
        """Limit the norm of the flat gradient and make one Adam step with it.

        Args:
            learning_rate: of this step.

        Returns:
            The norm before it was limited.
        """
        norm = self._core.apply(learning_rate, self._max_norm, self._adam.steps_done + 1)
        self._adam.advance(1)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """As ``TorchLearner.state_dict``; the tensors of the optimiser's state are views of the live one."""
        return {**self._adam.state_dict(), **self._kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` of any learner returned."""
        self._adam.load_state_dict(state)
        self._kl.load_state_dict(state)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser in torch: the caller's, or one that gives the saved state its form."""
        return self._adam.optimizer
