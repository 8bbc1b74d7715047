"""Actor-critic networks: representation, Gaussian and Categorical heads, critic.

Module names follow XuanCe's checkpoints: ``representation.model.*``, ``actor.mu.*``, ``actor.logstd``,
``critic.model.*``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "softmax": lambda: nn.Softmax(dim=-1),
}

HIDDEN_GAIN = math.sqrt(2.0)
ACTOR_GAIN = 0.01  # a first policy that hardly depends on the observation: Andrychowicz et al., arXiv 2006.05990
CRITIC_GAIN = 1.0
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@contextmanager
def one_thread() -> Iterator[None]:
    """While active, torch computes on one thread, so that orthogonal weights depend on their generator alone.

    The QR decomposition behind them rounds differently on several threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _linear(n_in: int, n_out: int, gain: float, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    with one_thread():
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _hidden_layers(
    n_in: int, widths: Sequence[int], activation: str, normalize: str | None, generator: torch.Generator | None
) -> tuple[list[nn.Module], int]:
    """Returns Linear + activation (+ LayerNorm) per width, and the width of the last one."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [_linear(n_in, width, HIDDEN_GAIN, generator), ACTIVATIONS[activation]()]
        if normalize == "LayerNorm":
            layers.append(nn.LayerNorm(width))
        n_in = width
    return layers, n_in


class BasicMLP(nn.Module):
    """The trunk below the heads: Linear + activation per width, also after the last; the identity without widths.

    Args:
        n_in: Number of inputs.
        widths: Number of outputs of each layer.
        activation: Name in ``ACTIVATIONS``.
        normalize: "LayerNorm" after each activation, or None.
        generator: Generator of the initial weights; default: torch's global generator.
    """

    def __init__(
        self,
        n_in: int,
        widths: Sequence[int],
        activation: str,
        normalize: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers, self.output_size = _hidden_layers(n_in, widths, activation, normalize, generator)
        self.model = nn.Sequential(*layers)

    def forward(self, obs: Tensor) -> Tensor:
        """Returns features float32 [B, output_size] of observations [B, ...]."""
        return self.model(obs.flatten(1))


class GaussianActor(nn.Module):
    """Diagonal Gaussian with a state-independent log standard deviation; the head's output is the mean [B, A].

    Args:
        n_in: Number of features.
        widths: Number of outputs of each hidden layer.
        action_size: Number A of dimensions of an action.
        activation: Name in ``ACTIVATIONS`` of the function after each hidden layer.
        activation_action: Name of the function on the mean; None leaves the mean unbounded.
        log_std_init: Initial log standard deviation.
        normalize: "LayerNorm" after each hidden activation, or None.
        generator: Generator of the initial weights; default: torch's global generator.
    """

    def __init__(
        self,
        n_in: int,
        widths: Sequence[int],
        action_size: int,
        activation: str,
        activation_action: str | None,
        log_std_init: float,
        normalize: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers, width = _hidden_layers(n_in, widths, activation, normalize, generator)
        layers.append(_linear(width, action_size, ACTOR_GAIN, generator))
        if activation_action is not None:
            layers.append(ACTIVATIONS[activation_action]())
        self.mu = nn.Sequential(*layers)
        self.logstd = nn.Parameter(torch.full((action_size,), float(log_std_init)))

    @property
    def layers(self) -> nn.Sequential:
        """The layers from the features to the mean."""
        return self.mu

    def forward(self, features: Tensor) -> Tensor:
        """Returns the mean [B, A] of features [B, n_in]."""
        return self.mu(features)

    def sample(self, mean: Tensor, noise: Tensor) -> Tensor:
        """Returns actions [B, A] from standard normal noise [B, A]."""
        return torch.addcmul(mean, self.logstd.exp(), noise)

    def mode(self, mean: Tensor) -> Tensor:
        """Returns the most likely action [B, A]."""
        return mean

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Returns the log-density [B] of raw actions [B, A], summed over dimensions."""
        z = (actions - mean) * torch.exp(-self.logstd)
        return -0.5 * z.square().sum(-1) - (self.logstd + _LOG_SQRT_2PI).sum()

    def entropy(self, mean: Tensor) -> Tensor:
        """Returns the entropy [B], summed over dimensions."""
        return (self.logstd + (0.5 + _LOG_SQRT_2PI)).sum().expand(mean.shape[0])

    def frozen(self, mean: Tensor) -> Tensor:
        """Returns means and log deviations [B, 2 A], which ``kl`` takes once the weights have changed."""
        return torch.cat([mean, self.logstd.expand_as(mean)], -1)

    def kl(self, old: Tensor, mean: Tensor) -> Tensor:
        """Returns KL(old || these) [B], summed over dimensions; ``old`` is what ``frozen`` returned."""
        old_mean, old_logstd = old.chunk(2, -1)
        shrunk = old_logstd - self.logstd
        z = (mean - old_mean) * torch.exp(-self.logstd)
        return (0.5 * (torch.expm1(2.0 * shrunk) + z.square()) - shrunk).sum(-1)


class CategoricalActor(nn.Module):
    """Categorical distribution over n actions; the head's output is the logits [B, n].

    A logit of -inf belongs to an action that is not allowed (``masked``). Such an action is never taken, and adds
    nothing to the entropy or the divergence. Each row has a finite logit.

    Args:
        n_in: Number of features.
        widths: Number of outputs of each hidden layer.
        num_actions: Number n of actions.
        activation: Name in ``ACTIVATIONS`` of the function after each hidden layer.
        normalize: "LayerNorm" after each hidden activation, or None.
        generator: Generator of the initial weights; default: torch's global generator.
    """

    def __init__(
        self,
        n_in: int,
        widths: Sequence[int],
        num_actions: int,
        activation: str,
        normalize: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers, width = _hidden_layers(n_in, widths, activation, normalize, generator)
        layers.append(_linear(width, num_actions, ACTOR_GAIN, generator))
        self.model = nn.Sequential(*layers)

    @property
    def layers(self) -> nn.Sequential:
        """The layers from the features to the logits."""
        return self.model

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits [B, n] of features [B, n_in]."""
        return self.model(features)

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Returns actions int64 [B]: the cumulative distribution inverted at uniform noise float64 [B] in (0, 1)."""
        cumulative = logits.double().softmax(-1).cumsum(-1)
        reached = (cumulative < noise.unsqueeze(-1)).sum(-1)
        # Rounding may leave the whole sum below the noise: then take the last allowed action.
        last = (logits > -math.inf).cumsum(-1).argmax(-1)
        return torch.minimum(reached, last)

    def mode(self, logits: Tensor) -> Tensor:
        """Returns the most likely action int64 [B]."""
        return logits.argmax(-1)

    def log_prob(self, logits: Tensor, actions: Tensor) -> Tensor:
        """Returns the log-probability [B] of actions int64 [B]."""
        return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, logits: Tensor) -> Tensor:
        """Returns the entropy [B]."""
        log_p = logits.log_softmax(-1)
        log_p = torch.where(log_p > -math.inf, log_p, 0.0)  # where p is 0, p log p is 0 and not NaN
        return -(log_p.exp() * log_p).sum(-1)

    def frozen(self, logits: Tensor) -> Tensor:
        """Returns log-probabilities [B, n], which ``kl`` takes once the weights have changed."""
        return logits.log_softmax(-1)

    def kl(self, old: Tensor, logits: Tensor) -> Tensor:
        """Returns KL(old || these) [B]; ``old`` is what ``frozen`` returned."""
        log_p = logits.log_softmax(-1)
        return (old.exp() * torch.where(old > -math.inf, old - log_p, 0.0)).sum(-1)


def masked(logits: Tensor, masks: Tensor | None) -> Tensor:
    """Returns logits [B, n] that are -inf where masks bool [B, n] are False; None allows all."""
    return logits if masks is None else logits.masked_fill(~masks, -math.inf)


class Critic(nn.Module):
    """The value of a state.

    Args:
        n_in: Number of features.
        widths: Number of outputs of each hidden layer.
        activation: Name in ``ACTIVATIONS`` of the function after each hidden layer.
        normalize: "LayerNorm" after each hidden activation, or None.
        generator: Generator of the initial weights; default: torch's global generator.
    """

    def __init__(
        self,
        n_in: int,
        widths: Sequence[int],
        activation: str,
        normalize: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers, width = _hidden_layers(n_in, widths, activation, normalize, generator)
        layers.append(_linear(width, 1, CRITIC_GAIN, generator))
        self.model = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Returns values [B] of features [B, n_in]."""
        return self.model(features).squeeze(-1)


class ActorCritic(nn.Module):
    """Policy and value function on a shared trunk, or on one trunk each (``shared_representation: False``).

    Args:
        representation: Trunk of the actor, and of the critic unless it has its own.
        actor: Head of the policy.
        critic: Head of the value function.
        critic_representation: Trunk of the critic alone; None if it shares the actor's.
    """

    def __init__(
        self,
        representation: BasicMLP,
        actor: GaussianActor | CategoricalActor,
        critic: Critic,
        critic_representation: BasicMLP | None = None,
    ) -> None:
        super().__init__()
        self.representation = representation
        self.actor = actor
        self.critic = critic
        self.critic_representation = critic_representation

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def act(self, obs: Tensor, masks: Tensor | None = None) -> Tensor:
        """Returns the actor head's output, mean [B, A] or ``masked`` logits [B, n], without running the critic."""
        return masked(self.actor(self.representation(obs)), masks)

    def value(self, obs: Tensor) -> Tensor:
        """Returns values [B] of observations [B, ...], without running the actor."""
        return self.critic((self.critic_representation or self.representation)(obs))

    def heads(self, obs: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the actor head's output, as ``act`` does, and values [B]."""
        features = self.representation(obs)
        output = masked(self.actor(features), masks)
        if self.critic_representation is not None:
            features = self.critic_representation(obs)
        return output, self.critic(features)

    def evaluate(self, obs: Tensor, actions: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns log-probabilities [B] of the actions, entropy [B] and values [B]."""
        output, values = self.heads(obs, masks)
        return self.actor.log_prob(output, actions), self.actor.entropy(output), values
