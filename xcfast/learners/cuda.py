"""The PPO update on a CUDA device: one upload per rollout, compiled steps, replayed from CUDA graphs."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from xcfast.errors import NonFiniteError
from xcfast.gae import compute_gae
from xcfast.learners.adam import FlatAdam
from xcfast.learners.kl import KLControl
from xcfast.learners.loss import LOSSES, batch_mean, ppo_loss
from xcfast.learners.metrics import joined_moments
from xcfast.learners.minibatches import minibatch_sizes
from xcfast.normalize import RewardNormalizer
from xcfast.policy import CategoricalActor, masked
from xcfast.policy.flat import FlatParameters
from xcfast.ranks.group import ALONE, Ranks
from xcfast.resources import page_locked

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config import Config
    from xcfast.policy import ActorCritic
    from xcfast.rollout import Rollout

_EVALUATION_ROWS = 65536  # rows per forward pass over the rollout: bounds the memory that activations take
_GRAPH_STEPS = 64  # minibatches in one graph, at most: bounds the time that capture takes
_APPROX_KL, _KL = LOSSES.index("approx_kl"), LOSSES.index("kl")
MODES = ("graph", "default", "off")


class CudaLearner:
    """The update of ``TorchLearner`` with everything on the device, whatever the policy.

    The policy that is passed in stays on the CPU, where collectors and evaluation read it; its copy on the device is
    what learns, and ``update`` brings the new weights back. Rewards are scaled on the CPU, where they arise; all the
    rest happens on the device, and only the metrics return, once.

    The minibatch step is two pure functions of preallocated buffers, ``_gradients`` (gather, loss, flat gradient) and
    ``_apply`` (norm limit, Adam), which find their minibatch by a counter on the device. So the same step serves all
    updates: eager, compiled, or as one node sequence of a CUDA graph. Minibatches are padded to one size with entries
    of no weight, so uneven ones need no other shape.

    With ``overlap`` the next rollout is collected during ``update``, with the weights that ``publish`` brought to the
    CPU before. Values and old log-probabilities are those of the weights that collected, one update older than those
    that learn; ``losses/ratio_drift`` is the mean of |ratio - 1| between the two before the first step.

    Of several ranks, each computes its part of every minibatch, weighted by the size of the whole one; the flat
    gradient is summed over the ranks between the two functions. Graphs are not used then.

    Args:
        policy: on the CPU. Its parameters become views of one flat page-locked array.
        config: the run's configuration; ``compile`` says which of the three forms to try first.
        rollout: whose sizes all buffers take; fast where its arrays are page-locked (``page_locked``).
        reward_normalizer: scales the rewards.
        device: CUDA; a CPU serves for tests, without graphs.
        ranks: those that learn together.
        optimizer: the caller's plain Adam, if any; its state is kept as if it stepped.
        scheduler: of the caller's optimiser.

    Attributes:
        compile: the form in use: "graph", "default" (compiled, launched one by one) or "off" (eager).
        fallbacks: why forms before it in that order were not used, one sentence each.
        device_policy: the copy on the device, for inference there.
    """

    name = "torch"

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
        self._host = FlatParameters(policy, allocate=page_locked if device.type == "cuda" else np.empty)
        self.device_policy = copy.deepcopy(policy).to(device)
        self.device_policy.requires_grad_(False)
        self._names = [f"policy.{name}" for name, _ in policy.named_parameters()]
        self._module = _Evaluate(self.device_policy)
        self._weights = torch.from_numpy(self._host.array).to(device).clone()
        self._parameters = self._host.split(self._weights)
        for parameter, view in zip(self.device_policy.parameters(), self._parameters, strict=True):
            parameter.data = view
        # The weights that collected: those that learn, or with overlap a copy of what they were.
        self._behaviour, self._behaviour_policy = self._weights, self.device_policy
        if config.overlap:
            self._behaviour, self._behaviour_policy = self._weights.clone(), copy.deepcopy(self.device_policy)
            views = self._host.split(self._behaviour)
            for parameter, view in zip(self._behaviour_policy.parameters(), views, strict=True):
                parameter.data = view
        self._exp_avg, self._exp_avg_sq = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        moments = (self._exp_avg, self._exp_avg_sq)
        self._adam = FlatAdam(policy, config, self._host, *moments, optimizer, scheduler)
        self._kl = KLControl(config)
        self._allocate(rollout)
        self._prepared = -1  # the iteration whose minibatches are in the page-locked table
        self._uploaded = torch.cuda.Event() if device.type == "cuda" else None  # the device has read the host's memory
        self._graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None
        self.fallbacks: list[str] = []
        with _precision(config.precision):
            self.compile = self._prepare(config.compile)

    def _allocate(self, rollout: Rollout) -> None:
        """Every buffer that the steps read or write, once."""
        config, device = self._config, self.device
        steps, envs = rollout.rewards.shape
        self._updates = config.n_epochs * config.n_minibatch
        # Updates between two looks at the KL: those of an epoch where it may be the last one.
        self._span = config.n_minibatch if self._kl.stops_early else self._updates

        def room(array: np.ndarray) -> Tensor:
            return torch.zeros(array.shape, dtype=torch.from_numpy(array).dtype, device=device)

        self._obs, self._actions = room(rollout.obs), room(rollout.actions)
        self._masks = [] if rollout.action_masks is None else [room(rollout.action_masks)]  # none, or one
        self._terminated, self._truncated = room(rollout.terminated), room(rollout.truncated)
        self._last_obs = room(rollout.last_obs)
        self._rewards, self._values, self._log_probs, self._advantages, self._returns, self._final_values = (
            torch.zeros((steps, envs), device=device) for _ in range(6)
        )
        host = page_locked if device.type == "cuda" else np.zeros
        self._scaled_rewards = host((steps, envs), np.float32)
        _, offsets = self._epoch(rollout, 0, 0)
        self._counts = np.diff(offsets)
        size = int(self._counts.max())
        self._padded = bool((self._counts != size).any())
        # Of the whole minibatches; the counts are those of this rank's part of them.
        sizes = torch.tensor(minibatch_sizes(config), device=device).repeat(config.n_epochs)
        self._plain_mean = not self._padded and self.ranks.world_size == 1
        self._host_indices = host((config.n_epochs, config.n_minibatch, size), np.int64)
        self._indices = torch.zeros((self._updates, size), dtype=torch.int64, device=device)
        counts = torch.from_numpy(self._counts).to(device).repeat(config.n_epochs)
        self._taken = torch.arange(size, device=device) < counts[:, None]
        self._shares = self._taken / sizes[:, None].float()  # 1 / n for each sample of a minibatch of n, 0 for padding
        # What a sum of each part of the loss is made with: means times n; of the penalty's KL the last epoch's alone.
        self._loss_weights = sizes[:, None].float().repeat(1, len(LOSSES))
        self._loss_weights[: -config.n_minibatch, _KL] = 0.0
        self._kl_coef = torch.zeros((), device=device)
        if self._kl.penalizes:  # the distributions of the policy that collected
            with torch.no_grad():
                frozen = self.device_policy.actor.frozen(self.device_policy.act(self._last_obs[:1]))
            self._old = torch.zeros((steps * envs, frozen.shape[-1]), device=device)
        # What update k needs: learning rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t), mean and 1 / std of its advantages.
        self._host_rates = host((self._updates, 2), np.float32)
        self._rates = torch.zeros((self._updates, 2), device=device)
        self._moments = torch.zeros((self._updates, 2), device=device)
        self._k = torch.zeros(1, dtype=torch.int64, device=device)
        self._gradient = torch.zeros_like(self._weights)
        self._loss_sums, self._norm_sum = torch.zeros(len(LOSSES), device=device), torch.zeros(1, device=device)
        self._drift = torch.zeros(1, device=device)

    # The minibatch step: tensors in, tensors changed in place, nothing for Python to decide.

    def _gradients(self) -> None:
        """Gradient of minibatch k into ``_gradient``; the parts of its loss, times its size, onto ``_loss_sums``."""
        config, k, penalizes = self._config, self._k, self._kl.penalizes
        rows = self._indices.index_select(0, k)[0]
        share = self._shares.index_select(0, k)[0]
        obs, actions, old_log_probs, advantages, returns, *masks = (
            x.flatten(0, 1).index_select(0, rows)
            for x in (self._obs, self._actions, self._log_probs, self._advantages, self._returns, *self._masks)
        )
        old = self._old.index_select(0, rows) if penalizes else None
        if config.use_advnorm:
            moments = self._moments.index_select(0, k)[0]
            advantages = (advantages - moments[0]) * moments[1]

        def weighted(samples: Tensor) -> Tensor:
            return (samples * share).sum(-1)

        def loss_of(parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                named = dict(zip(self._names, parameters, strict=True))
                log_probs, entropy, values, kl = functional_call(self._module, named, (obs, actions, old, *masks))
            loss = ppo_loss(
                log_probs.float(),
                entropy.float(),
                values.float(),
                old_log_probs,
                advantages,
                returns,
                clip_range=config.ratio_range,
                vf_coef=config.vf_coef,
                ent_coef=config.ent_coef,
                kl=None if kl is None else kl.float(),
                kl_coef=self._kl_coef,
                mean=batch_mean if self._plain_mean else weighted,
            )
            return loss.loss, torch.stack(loss[1:])

        gradients, (_, parts) = grad_and_value(loss_of, has_aux=True)(tuple(self._parameters))
        torch.cat([g.reshape(-1) for g in gradients], out=self._gradient)
        self._loss_sums += parts * self._loss_weights.index_select(0, k)[0]

    def _apply(self) -> None:
        """Limit the gradient's norm, take one Adam step with it, and move on to the next minibatch."""
        config, gradient = self._config, self._gradient
        (beta1, beta2), eps = self._adam.betas, self._adam.eps
        norm = torch.linalg.vector_norm(gradient)
        if config.use_grad_clip:
            gradient = gradient * (config.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0)
        rate = self._rates.index_select(0, self._k)[0]
        exp_avg = torch.lerp(self._exp_avg, gradient, 1 - beta1)
        exp_avg_sq = self._exp_avg_sq * beta2 + gradient * gradient * (1 - beta2)
        self._weights -= rate[0] * exp_avg / (exp_avg_sq.sqrt() * rate[1] + eps)
        self._exp_avg.copy_(exp_avg)
        self._exp_avg_sq.copy_(exp_avg_sq)
        self._norm_sum += norm
        self._k += 1

    def _step(self) -> None:
        self._run_gradients()
        self.ranks.sum_(self._gradient)
        self._run_apply()

    # How the step is run.

    def _prepare(self, wanted: str) -> str:
        """Compile and capture what is asked for, as far as that works here; returns what does."""
        forms: dict[str, Callable[[], None]] = {"graph": self._capture, "default": self._compile, "off": self._eager}
        before, ranks = self._snapshot(), self.ranks
        if ranks.world_size > 1 and wanted == "graph":
            wanted = "default"
            self.fallbacks.append("compile graph is for one rank: sums over several are not captured")
        self.ranks = ALONE  # a trial may fail on one rank and not on another
        for mode in MODES[MODES.index(wanted) :]:
            try:
                forms[mode]()
                return mode
            except Exception as error:
                if mode == "off":
                    raise
                reason = (str(error).strip().splitlines() or [""])[0]
                self.fallbacks.append(f"compile {mode} does not work here ({type(error).__name__}: {reason})")
            finally:
                self.ranks = ranks
                self._restore(before)
        raise AssertionError("unreachable: the eager form raises its own error")

    def _eager(self) -> None:
        self._run_gradients: Callable[[], None] = self._gradients
        self._run_apply: Callable[[], None] = self._apply
        self._try()

    def _compile(self) -> None:
        self._run_gradients = torch.compile(self._gradients, fullgraph=True, dynamic=False)
        self._run_apply = torch.compile(self._apply, fullgraph=True, dynamic=False)
        # Every learner of a process compiles its own step, which the limit would count as one step compiled again.
        unlimited = {"recompile_limit": 1 << 30, "accumulated_recompile_limit": 1 << 30}
        with warnings.catch_warnings(), torch._dynamo.config.patch(unlimited):
            warnings.simplefilter("ignore")  # Inductor's advice about TF32 and its own deprecations
            self._try()

    def _try(self) -> None:
        """Run everything once, so that what is initialised or compiled lazily is."""
        self._graphs = None
        self._evaluate()
        self._step()

    def _capture(self) -> None:
        if self.device.type != "cuda":
            raise RuntimeError("CUDA graphs need a CUDA device")
        self._compile()
        self._graph_steps = max(n for n in range(1, _GRAPH_STEPS + 1) if self._span % n == 0)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # libraries initialise themselves for each stream
            self._try()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        evaluation, steps = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Threads of the environments may allocate meanwhile.
        with torch.cuda.graph(evaluation, capture_error_mode="thread_local"):
            self._evaluate()
        with torch.cuda.graph(steps, capture_error_mode="thread_local"):
            for _ in range(self._graph_steps):
                self._step()
        self._graphs = evaluation, steps

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """One PPO iteration on a full rollout: arguments and metrics as ``TorchLearner.update``.

        The rollout's values, log_probs, advantages and returns stay on the device.

        Raises:
            NonFiniteError: a metric is NaN or infinite; weights and optimiser state are those from before the call.
        """
        before, position = self._snapshot(), self._adam.schedule.snapshot()
        try:
            with _precision(self._config.precision):
                metrics = self._update(rollout, iteration)
            bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                raise NonFiniteError(f"update of iteration {iteration}: {', '.join(bad)}")
        except BaseException:
            self._restore(before)
            self._adam.schedule.restore(position)
            raise
        self._adam.advance(self._done)
        self._kl.adapt(metrics)
        if self._config.overlap:
            self._behaviour.copy_(before[0])
        else:
            self.publish()
        return metrics

    def _update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        self._upload(rollout, iteration)
        if self._graphs is not None:
            self._graphs[0].replay()
        else:
            self._evaluate()
        self._done, divergence = 0, 0.0
        while self._done < self._updates:
            self._run_span()
            self._done += self._span
            if self._kl.stops_early:
                before, divergence = divergence, float(self._loss_sums[_APPROX_KL])  # the one wait for the device
                if self._kl.exceeded(divergence - before, self._config.batch_size, self.ranks):
                    break
        epochs = self._done // self._config.n_minibatch
        values, returns = self._values.double(), self._returns.double()
        spread = (returns, returns - values, values)
        moments = torch.stack([moment for x in spread for moment in (x.mean(), x.var(correction=0))])
        results = torch.cat([moments, *(x.double() for x in (self._loss_sums, self._norm_sum, self._drift))])
        if self._uploaded is not None:
            self._uploaded.synchronize()
        self._minibatches(rollout, iteration + 1)  # while the device works
        host = results.cpu().numpy()
        parts = np.column_stack([np.full(3, values.numel()), host[:6].reshape(3, 2) * [1, values.numel()]])
        (_, _, variance), (_, _, unexplained), (_, mean_value, _) = joined_moments(parts, self.ranks).tolist()
        (*sums, kl), (norms, drift) = self.ranks.sum_(host[6:-2].copy()).tolist(), host[-2:].tolist()
        batch = self._config.batch_size
        metrics = {f"losses/{name}": value / (epochs * batch) for name, value in zip(LOSSES[:_KL], sums, strict=True)}
        metrics["losses/grad_norm"] = norms / self._done
        metrics |= self._kl.metrics(kl / batch, epochs)
        metrics["losses/explained_variance"] = 0.0 if variance == 0.0 else 1.0 - unexplained / variance
        metrics["predict_value"] = mean_value
        metrics["learning_rate"] = float(self._learning_rates[self._done - 1])
        if self._config.overlap:
            metrics["losses/ratio_drift"] = drift
        return metrics

    def _run_span(self) -> None:
        """The next ``_span`` updates."""
        if self._graphs is None:
            for _ in range(self._span):
                self._step()
            return
        for _ in range(self._span // self._graph_steps):
            self._graphs[1].replay()

    def _minibatches(self, rollout: Rollout, iteration: int) -> None:
        """The minibatches of an iteration into the page-locked table; padding repeats row 0."""
        if self._prepared == iteration:
            return
        config, table = self._config, self._host_indices
        self._prepared = -1
        for epoch in range(config.n_epochs):
            indices, offsets = self._epoch(rollout, iteration, epoch)
            if not self._padded:
                table[epoch] = indices.reshape(table.shape[1:])
                continue
            for minibatch, (start, count) in enumerate(zip(offsets[:-1], self._counts, strict=True)):
                table[epoch, minibatch, :count] = indices[start : start + count]
        self._prepared = iteration

    def _epoch(self, rollout: Rollout, iteration: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and offsets of this rank's part of an epoch's minibatches."""
        config, env_offset = self._config, self.ranks.rows(self._config.parallels).start
        return rollout.minibatch_indices(
            config.seed, iteration, epoch, config.n_minibatch, env_offset=env_offset, total_envs=config.parallels
        )

    def _upload(self, rollout: Rollout, iteration: int) -> None:
        """All that the device needs of this iteration, in copies that do not wait."""
        done = rollout.terminated | rollout.truncated
        self._reward_normalizer(rollout.rewards, done, out=self._scaled_rewards)
        self._minibatches(rollout, iteration)
        beta1, beta2 = self._adam.betas
        t = self._adam.steps_done + 1 + np.arange(self._updates)
        self._learning_rates = self._adam.schedule.ahead(iteration * self._updates, self._updates)
        self._host_rates[:, 0] = self._learning_rates / (1 - beta1**t)
        self._host_rates[:, 1] = 1 / np.sqrt(1 - beta2**t)
        self._kl_coef.fill_(self._kl.coef)
        pairs: list[tuple[Tensor, np.ndarray]] = [
            (self._obs, rollout.obs),
            (self._actions, rollout.actions),
            (self._rewards, self._scaled_rewards),
            (self._terminated, rollout.terminated),
            (self._truncated, rollout.truncated),
            (self._last_obs, rollout.last_obs),
            (self._indices, self._host_indices.reshape(self._indices.shape)),
            (self._rates, self._host_rates),
        ]
        if rollout.action_masks is not None:
            pairs.append((self._masks[0], rollout.action_masks))
        for on_device, array in pairs:
            on_device.copy_(torch.from_numpy(array), non_blocking=True)
        if self._uploaded is not None:
            self._uploaded.record()
        if len(rollout.final_index):  # their number varies, so no graph can hold them
            index = torch.from_numpy(rollout.final_index).to(self.device)
            self._final_values.view(-1)[index] = self._value(torch.from_numpy(rollout.final_obs).to(self.device))

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Values, old log-probabilities, advantages and returns of the rollout, with the weights that collected it."""
        policy, taken = self._behaviour_policy, [x.flatten(0, 1) for x in (self._obs, self._actions, *self._masks)]
        values, log_probs = self._values.flatten(), self._log_probs.flatten()
        for start in range(0, len(values), _EVALUATION_ROWS):
            rows = slice(start, start + _EVALUATION_ROWS)
            obs, actions, *masks = (x[rows] for x in taken)
            output, values[rows] = policy.heads(obs, *masks)
            log_probs[rows] = policy.actor.log_prob(output, actions)
            if self._kl.penalizes:
                self._old[rows] = policy.actor.frozen(output)
        compute_gae(
            self._rewards,
            self._values,
            self._terminated,
            self._truncated,
            last_values=self._value(self._last_obs),
            final_values=self._final_values,
            gamma=self._config.gamma,
            gae_lambda=self._config.trace_decay,
            out=(self._advantages, self._returns),
        )
        if self._config.use_advnorm:
            self._advantage_moments()
        for counter in (self._k, self._loss_sums, self._norm_sum, self._drift):
            counter.zero_()
        if self._config.overlap:
            for start in range(0, len(values), _EVALUATION_ROWS):
                rows = slice(start, start + _EVALUATION_ROWS)
                now, _, _ = self.device_policy.evaluate(*(x[rows] for x in taken))
                self._drift += ((now - log_probs[rows]).exp() - 1.0).abs().sum() / len(values)

    def _advantage_moments(self) -> None:
        """Mean and 1 / (standard deviation + 1e-8) of every minibatch's advantages, in one pass over all of them."""
        # Deviations from the rollout's mean, so that the difference of the two sums below does not cancel.
        centre = self._advantages.double().mean()
        advantages = (self._advantages.double() - centre).flatten()[self._indices]
        if self.ranks.world_size > 1:
            self._moments.copy_(self._joined_moments(advantages, float(centre)))
            return
        mean = (advantages * self._shares).sum(1)
        variance = (advantages.square() * self._shares).sum(1) - mean.square()
        self._moments[:, 0] = mean + centre
        self._moments[:, 1] = 1.0 / (variance.clamp(min=0.0).sqrt() + 1e-8)

    def _joined_moments(self, advantages: Tensor, centre: float) -> Tensor:
        """The same of several ranks' parts of the minibatches; advantages: float64, less this rank's ``centre``."""
        count = self._taken.sum(1)
        mean = (advantages * self._taken).sum(1) / count.clamp(min=1)
        square = ((advantages - mean[:, None]).square() * self._taken).sum(1)
        parts = torch.stack([count, (mean + centre) * (count > 0), square], 1).cpu().numpy()
        counts, means, squares = joined_moments(parts, self.ranks).T
        return torch.from_numpy(np.stack([means, 1.0 / (np.sqrt(squares / counts) + 1e-8)], 1))

    @torch.no_grad()
    def _value(self, obs: Tensor) -> Tensor:
        return torch.cat([self._behaviour_policy.value(chunk) for chunk in obs.split(_EVALUATION_ROWS)])

    def publish(self) -> None:
        """Bring the weights to the CPU, into the policy that was passed in; ``update`` does, except with overlap."""
        self._host.adopt()
        torch.from_numpy(self._host.array).copy_(self._weights)

    def _snapshot(self) -> list[Tensor]:
        return [x.clone() for x in (self._weights, self._exp_avg, self._exp_avg_sq)]

    def _restore(self, snapshot: list[Tensor]) -> None:
        for x, old in zip((self._weights, self._exp_avg, self._exp_avg_sq), snapshot, strict=True):
            x.copy_(old)

    def state_dict(self) -> dict[str, Any]:
        """As ``TorchLearner.state_dict``, on the CPU."""
        return {**self._adam.state_dict(), **self._kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` of any learner returned, and take in the policy's weights."""
        self._adam.load_state_dict(state)
        self._kl.load_state_dict(state)
        self.adopt()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser in torch: the caller's, or one that gives the saved state its form."""
        return self._adam.optimizer

    def adopt(self) -> None:
        """Take in weights that were written into the policy on the CPU, as ``load_state_dict`` does."""
        self._host.adopt()
        self._weights.copy_(torch.from_numpy(self._host.array))
        self._behaviour.copy_(self._weights)

    @property
    def behaviour(self) -> Tensor:
        """The weights that collect the next rollout, flat, on the CPU; with overlap one update behind the policy."""
        return self._behaviour.cpu()

    @behaviour.setter
    def behaviour(self, weights: Tensor) -> None:
        self._behaviour.copy_(weights)


class _Evaluate(nn.Module):
    """``ActorCritic.evaluate``, with the KL from distributions that were frozen, as a module's forward.

    ``functional_call`` can call it with other weights.
    """

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, obs: Tensor, actions: Tensor, old: Tensor | None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        output, value = self._heads(obs)
        output = masked(output, masks)
        actor = self.policy.actor
        kl = None if old is None else actor.kl(old, output)
        return actor.log_prob(output, actions), actor.entropy(output), value, kl

    def _heads(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        policy = self.policy
        actor = policy.actor.model if isinstance(policy.actor, CategoricalActor) else policy.actor.mu
        critic = policy.critic.model
        shared = policy.critic_representation is None and min(len(actor), len(critic)) >= 3
        if not shared or isinstance(actor[1], nn.Softmax):  # which is not elementwise
            return policy.heads(obs)
        # The first layers of both heads see the same features: one matrix product, forward and backward.
        features = policy.representation(obs)
        heads: list[Any] = [actor[0], critic[0]]
        weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
        hidden = actor[1](nn.functional.linear(features, weight, bias))
        for_actor, for_critic = hidden.split([head.out_features for head in heads], -1)
        return actor[2:](for_actor), critic[2:](for_critic).squeeze(-1)


class _precision:
    """While active, matrix products on the device use what ``precision`` allows."""

    def __init__(self, precision: str) -> None:
        self._tf32 = precision == "tf32"

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self._tf32

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self._before
