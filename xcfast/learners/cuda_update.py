"""The parts of an update on a CUDA device, compiled and in graphs: evaluation of the rollout, minibatch steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from xcfast.gae import compute_gae
from xcfast.learners.joined_heads import PolicyEvaluation
from xcfast.learners.loss import LOSSES, batch_mean, ppo_loss
from xcfast.learners.metrics import joined_moments
from xcfast.learners.minibatches import epoch_minibatches, minibatch_sizes
from xcfast.ranks.group import ALONE, Ranks

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.learners.kl import KLControl
    from xcfast.policy.flat import FlatParameters
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout

_EVALUATION_ROWS = 65536  # rows per forward pass over the rollout: bounds the memory that activations take
_GRAPH_STEPS = 64  # minibatches in one graph, at most: bounds the time that capture takes
_KL = LOSSES.index("kl")
MODES = ("graph", "default", "off")


class DeviceUpdate:
    """The evaluation of a rollout and the minibatch steps, as functions of buffers that are allocated once.

    The minibatch step is two functions without arguments or results, ``_gradients`` (gather, loss, flat gradient) and
    ``_apply`` (norm limit, Adam), which find their minibatch by a counter on the device. So the same two functions
    serve every step: eager, compiled, or as one sequence of nodes of a CUDA graph. Minibatches are padded to one size
    with entries of no weight, so uneven ones need no other shape.

    If there are several ranks, each one computes its part of every minibatch, weighted by the size of the whole one.
    Between the two functions, the flat gradient is summed over the ranks. Graphs are not used then.

    Args:
        policy: The policy on the CPU, which is copied.
        flat: The layout and the values of its parameters.
        config: The run's configuration.
        control: The KL control.
        rollout: A rollout of the shape that all buffers take.
        device: CUDA device; in tests also the CPU, without graphs.
        ranks: The ranks that learn together.

    Attributes:
        policy: The copy on the device. Its parameters are views of ``weights``.
        weights: Flat weights that learn.
        moments: Adam's two moments, laid out like ``weights``.
        behaviour: Flat weights that collected: ``weights`` itself, or with ``overlap`` a copy that is one update older.
        mode: The form in use: "graph", "default" (compiled, launched one by one) or "off" (eager).
        fallbacks: Why the forms before it in that order were not used, one sentence each.
        counts: int64 [n_minibatch], this rank's number of steps in each minibatch.
        padded: Whether these numbers differ.
        updates: Number K of gradient steps in an update.
        span: Number of gradient steps between two checks of the KL: one epoch with ``early_stop_kl``, else K.
        indices: int64 [K, largest minibatch], the minibatches; padding repeats row 0.
        rates: float32 [K, 2], for step t of Adam: learning rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t).
        loss_sums: Sums of the loss's parts over all samples; of the penalty's KL over those of the last epoch alone.
        norm_sum: Sum of the gradients' norms.
        drift: With ``overlap``, the mean of |ratio - 1| between ``weights`` and ``behaviour`` before the first step.
        obs, actions, masks, rewards, terminated, truncated, last_obs: The rollout's arrays; masks is a list of one
            tensor, or of none.
        values, log_probs, advantages, returns: What ``evaluate`` computes.
        final_values: Values of the final observations, where an episode was cut off.
        kl_coef: Weight of the KL penalty.
    """

    def __init__(
        self,
        policy: ActorCritic,
        flat: FlatParameters,
        config: Config,
        control: KLControl,
        rollout: Rollout,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.device, self.ranks = device, ranks
        self._config, self._kl = config, control
        self.policy = copy.deepcopy(policy).to(device)
        self.policy.requires_grad_(False)
        self._names = [f"policy.{name}" for name, _ in policy.named_parameters()]
        self._module = PolicyEvaluation(self.policy)
        self.weights = torch.from_numpy(flat.array).to(device).clone()
        self._parameters = flat.split(self.weights)
        for parameter, view in zip(self.policy.parameters(), self._parameters, strict=True):
            parameter.data = view
        self.behaviour, self._behaviour_policy = self.weights, self.policy
        if config.overlap:
            self.behaviour, self._behaviour_policy = self.weights.clone(), copy.deepcopy(self.policy)
            for parameter, view in zip(self._behaviour_policy.parameters(), flat.split(self.behaviour), strict=True):
                parameter.data = view
        self.moments = (torch.zeros_like(self.weights), torch.zeros_like(self.weights))
        self._allocate(rollout)
        self._graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None
        self.fallbacks: list[str] = []

    def _allocate(self, rollout: Rollout) -> None:
        """Makes every buffer that the steps read or write."""
        config, device = self._config, self.device
        steps, envs = rollout.rewards.shape
        self.updates = config.n_epochs * config.n_minibatch
        self.span = config.n_minibatch if self._kl.stops_early else self.updates

        def room(array: np.ndarray) -> Tensor:
            return torch.zeros(array.shape, dtype=torch.from_numpy(array).dtype, device=device)

        self.obs, self.actions = room(rollout.obs), room(rollout.actions)
        self.masks = [] if rollout.action_masks is None else [room(rollout.action_masks)]
        self.terminated, self.truncated = room(rollout.terminated), room(rollout.truncated)
        self.last_obs = room(rollout.last_obs)
        self.rewards, self.values, self.log_probs, self.advantages, self.returns, self.final_values = (
            torch.zeros((steps, envs), device=device) for _ in range(6)
        )
        _, offsets = epoch_minibatches(config, rollout, self.ranks, 0, 0)
        self.counts = np.diff(offsets)
        size = int(self.counts.max())
        self.padded = bool((self.counts != size).any())
        # Sizes of the whole minibatches; `counts` are the sizes of this rank's part of them.
        sizes = torch.tensor(minibatch_sizes(config), device=device).repeat(config.n_epochs)
        self._plain_mean = not self.padded and self.ranks.world_size == 1
        self.indices = torch.zeros((self.updates, size), dtype=torch.int64, device=device)
        counts = torch.from_numpy(self.counts).to(device).repeat(config.n_epochs)
        self._taken = torch.arange(size, device=device) < counts[:, None]
        self._shares = self._taken / sizes[:, None].float()  # 1 / n for each sample of a minibatch of n, 0 for padding
        # Weights that turn means into sums; the penalty's KL is summed over the last epoch only.
        self._loss_weights = sizes[:, None].float().repeat(1, len(LOSSES))
        self._loss_weights[: -config.n_minibatch, _KL] = 0.0
        self.kl_coef = torch.zeros((), device=device)
        if self._kl.penalizes:  # the distributions of the policy that collected
            with torch.no_grad():
                frozen = self.policy.actor.frozen(self.policy.act(self.last_obs[:1]))
            self._old = torch.zeros((steps * envs, frozen.shape[-1]), device=device)
        self.rates = torch.zeros((self.updates, 2), device=device)
        # Mean and 1 / standard deviation of each minibatch's advantages.
        self._advantage_moments = torch.zeros((self.updates, 2), device=device)
        self._k = torch.zeros(1, dtype=torch.int64, device=device)
        self._gradient = torch.zeros_like(self.weights)
        self.loss_sums, self.norm_sum = torch.zeros(len(LOSSES), device=device), torch.zeros(1, device=device)
        self.drift = torch.zeros(1, device=device)

    # The gradient step: it changes tensors in place, and leaves Python nothing to decide.

    def _gradients(self) -> None:
        """Computes the gradient of minibatch k, and adds the parts of its loss, times its size, to ``loss_sums``."""
        config, k, penalizes = self._config, self._k, self._kl.penalizes
        rows = self.indices.index_select(0, k)[0]
        share = self._shares.index_select(0, k)[0]
        obs, actions, old_log_probs, advantages, returns, *masks = (
            x.flatten(0, 1).index_select(0, rows)
            for x in (self.obs, self.actions, self.log_probs, self.advantages, self.returns, *self.masks)
        )
        old = self._old.index_select(0, rows) if penalizes else None
        clips_values = config.clip_value_range is not None
        old_values = self.values.flatten().index_select(0, rows) if clips_values else None
        if config.use_advnorm:
            moments = self._advantage_moments.index_select(0, k)[0]
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
                kl_coef=self.kl_coef,
                old_values=old_values,
                value_range=config.value_range,
                mean=batch_mean if self._plain_mean else weighted,
            )
            return loss.loss, torch.stack(loss[1:])

        gradients, (_, parts) = grad_and_value(loss_of, has_aux=True)(tuple(self._parameters))
        torch.cat([g.reshape(-1) for g in gradients], out=self._gradient)
        self.loss_sums += parts * self._loss_weights.index_select(0, k)[0]

    def _apply(self) -> None:
        """Limits the gradient's norm, takes one Adam step with it, and moves on to the next minibatch."""
        config, gradient = self._config, self._gradient
        beta1, beta2, eps = self._adam
        norm = torch.linalg.vector_norm(gradient)
        if config.use_grad_clip:
            gradient = gradient * (config.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0)
        rate = self.rates.index_select(0, self._k)[0]
        first, second = self.moments
        exp_avg = torch.lerp(first, gradient, 1 - beta1)
        exp_avg_sq = second * beta2 + gradient * gradient * (1 - beta2)
        self.weights -= rate[0] * exp_avg / (exp_avg_sq.sqrt() * rate[1] + eps)
        first.copy_(exp_avg)
        second.copy_(exp_avg_sq)
        self.norm_sum += norm
        self._k += 1

    def _step(self) -> None:
        self._run_gradients()
        self.ranks.sum_(self._gradient)
        self._run_apply()

    # The three forms in which the step runs.

    def prepare(self, wanted: str, betas: tuple[float, float], eps: float) -> None:
        """Compiles and captures the steps, as far as ``wanted`` says and as it works on this machine.

        Args:
            wanted: One of ``MODES``, to be tried first.
            betas: Adam's decay rates.
            eps: What Adam adds to the root of the second moment.
        """
        self._adam = (*betas, eps)
        forms: dict[str, Callable[[], None]] = {"graph": self._capture, "default": self._compile, "off": self._eager}
        before, ranks = self.snapshot(), self.ranks
        if ranks.world_size > 1 and wanted == "graph":
            wanted = "default"
            self.fallbacks.append("compile graph is for one rank: sums over several are not captured")
        self.ranks = ALONE  # a trial may fail on one rank and not on another
        for mode in MODES[MODES.index(wanted) :]:
            try:
                forms[mode]()
                self.mode = mode
                return
            except Exception as error:
                if mode == "off":
                    raise
                reason = (str(error).strip().splitlines() or [""])[0]
                self.fallbacks.append(f"compile {mode} does not work here ({type(error).__name__}: {reason})")
            finally:
                self.ranks = ranks
                self.restore(before)

    def _eager(self) -> None:
        self._run_gradients: Callable[[], None] = self._gradients
        self._run_apply: Callable[[], None] = self._apply
        self._try()

    def _compile(self) -> None:
        self._run_gradients = torch.compile(self._gradients, fullgraph=True, dynamic=False)
        self._run_apply = torch.compile(self._apply, fullgraph=True, dynamic=False)
        # Every learner of a process compiles its own step; the limit would count that as recompiling one step.
        unlimited = {"recompile_limit": 1 << 30, "accumulated_recompile_limit": 1 << 30}
        with warnings.catch_warnings(), torch._dynamo.config.patch(unlimited):
            warnings.simplefilter("ignore")  # Inductor's advice about TF32 and its own deprecations
            self._try()

    def _try(self) -> None:
        """Runs everything once, so that all lazy initialization and compilation is done."""
        self._graphs = None
        self._evaluate()
        self._step()

    def _capture(self) -> None:
        if self.device.type != "cuda":
            raise RuntimeError("CUDA graphs need a CUDA device")
        self._compile()
        self._graph_steps = max(n for n in range(1, _GRAPH_STEPS + 1) if self.span % n == 0)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # libraries initialize themselves for each stream
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

    # The methods that the learner calls.

    def evaluate(self) -> None:
        """Computes values, log-probabilities, advantages and returns with the weights that collected the rollout.

        Sets the counter of minibatches and all sums to 0.
        """
        if self._graphs is None:
            self._evaluate()
        else:
            self._graphs[0].replay()

    def run_span(self) -> None:
        """Takes the next ``span`` gradient steps."""
        if self._graphs is None:
            for _ in range(self.span):
                self._step()
            return
        for _ in range(self.span // self._graph_steps):
            self._graphs[1].replay()

    @torch.no_grad()
    def value(self, obs: Tensor) -> Tensor:
        """Returns values [B] of observations on the device, by the weights that collected."""
        return torch.cat([self._behaviour_policy.value(chunk) for chunk in obs.split(_EVALUATION_ROWS)])

    def snapshot(self) -> list[Tensor]:
        """Returns a copy of weights and moments, for ``restore``."""
        return [x.clone() for x in (self.weights, *self.moments)]

    def restore(self, snapshot: list[Tensor]) -> None:
        """Restores the weights and moments of ``snapshot``."""
        for x, old in zip((self.weights, *self.moments), snapshot, strict=True):
            x.copy_(old)

    # The evaluation of the rollout.

    @torch.no_grad()
    def _evaluate(self) -> None:
        policy, taken = self._behaviour_policy, [x.flatten(0, 1) for x in (self.obs, self.actions, *self.masks)]
        values, log_probs = self.values.flatten(), self.log_probs.flatten()
        for start in range(0, len(values), _EVALUATION_ROWS):
            rows = slice(start, start + _EVALUATION_ROWS)
            obs, actions, *masks = (x[rows] for x in taken)
            output, values[rows] = policy.heads(obs, *masks)
            log_probs[rows] = policy.actor.log_prob(output, actions)
            if self._kl.penalizes:
                self._old[rows] = policy.actor.frozen(output)
        compute_gae(
            self.rewards,
            self.values,
            self.terminated,
            self.truncated,
            last_values=self.value(self.last_obs),
            final_values=self.final_values,
            gamma=self._config.gamma,
            gae_lambda=self._config.trace_decay,
            out=(self.advantages, self.returns),
        )
        if self._config.use_advnorm:
            self._compute_advantage_moments()
        for counter in (self._k, self.loss_sums, self.norm_sum, self.drift):
            counter.zero_()
        if self._config.overlap:
            for start in range(0, len(values), _EVALUATION_ROWS):
                rows = slice(start, start + _EVALUATION_ROWS)
                now, _, _ = self.policy.evaluate(*(x[rows] for x in taken))
                self.drift += ((now - log_probs[rows]).exp() - 1.0).abs().sum() / len(values)

    def _compute_advantage_moments(self) -> None:
        """Computes mean and 1 / (standard deviation + 1e-8) of every minibatch's advantages in one pass over all."""
        # Deviations from the rollout's mean, so that the difference of the two sums below does not cancel.
        center = self.advantages.double().mean()
        advantages = (self.advantages.double() - center).flatten()[self.indices]
        if self.ranks.world_size > 1:
            self._advantage_moments.copy_(self._joined_advantage_moments(advantages, float(center)))
            return
        mean = (advantages * self._shares).sum(1)
        variance = (advantages.square() * self._shares).sum(1) - mean.square()
        self._advantage_moments[:, 0] = mean + center
        self._advantage_moments[:, 1] = 1.0 / (variance.clamp(min=0.0).sqrt() + 1e-8)

    def _joined_advantage_moments(self, advantages: Tensor, center: float) -> Tensor:
        """Returns the same of several ranks' parts of the minibatches.

        Args:
            advantages: float64 [K, largest minibatch], less ``center``.
            center: Mean of this rank's advantages.
        """
        count = self._taken.sum(1)
        mean = (advantages * self._taken).sum(1) / count.clamp(min=1)
        square = ((advantages - mean[:, None]).square() * self._taken).sum(1)
        parts = torch.stack([count, (mean + center) * (count > 0), square], 1).cpu().numpy()
        counts, means, squares = joined_moments(parts, self.ranks).T
        return torch.from_numpy(np.stack([means, 1.0 / (np.sqrt(squares / counts) + 1e-8)], 1))


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """While active, matrix products on the device use what the key ``precision`` allows."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
