"""Actor-critic networks: representation, Gaussian and Categorical heads, critic.

Module names follow XuanCe's checkpoints: ``representation.model.*``, ``actor.mu.*``, ``actor.logstd``,
``critic.model.*``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


def _linear(n_in: int, n_out: int, gain: float, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _hidden_layers(
    n_in: int, widths: Sequence[int], activation: str, normalize: str | None, generator: torch.Generator | None
) -> tuple[list[nn.Module], int]:
    """Linear + activation (+ LayerNorm) per width; returns the modules and the width of the last one."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [_linear(n_in, width, HIDDEN_GAIN, generator), ACTIVATIONS[activation]()]
        if normalize == "LayerNorm":
            layers.append(nn.LayerNorm(width))
        n_in = width
    return layers, n_in


class BasicMLP(nn.Module):
    """Shared trunk: Linear + activation per width, also after the last; no widths make it the identity."""

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
        """Features float32 [B, output_size] of observations [B, ...]."""
        return self.model(obs.flatten(1))


class GaussianActor(nn.Module):
    """Diagonal Gaussian with a state-independent log standard deviation; the head's output is the mean [B, A]."""

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

    def forward(self, features: Tensor) -> Tensor:
        """Mean [B, A]."""
        return self.mu(features)

    def sample(self, mean: Tensor, noise: Tensor) -> Tensor:
        """Actions [B, A] from standard normal noise [B, A]."""
        return torch.addcmul(mean, self.logstd.exp(), noise)

    def mode(self, mean: Tensor) -> Tensor:
        """The most likely action [B, A]."""
        return mean

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Log-density [B] of raw actions [B, A], summed over dimensions."""
        z = (actions - mean) * torch.exp(-self.logstd)
        return -0.5 * z.square().sum(-1) - (self.logstd + _LOG_SQRT_2PI).sum()

    def entropy(self, mean: Tensor) -> Tensor:
        """Entropy [B], summed over dimensions."""
        return (self.logstd + (0.5 + _LOG_SQRT_2PI)).sum().expand(mean.shape[0])

    def frozen(self, mean: Tensor) -> Tensor:
        """What ``kl`` wants of these distributions when the weights are others: means and log deviations [B, 2 A]."""
        return torch.cat([mean, self.logstd.expand_as(mean)], -1)

    def kl(self, old: Tensor, mean: Tensor) -> Tensor:
        """KL(old || these) [B], summed over dimensions, of what ``frozen`` returned."""
        old_mean, old_logstd = old.chunk(2, -1)
        shrunk = old_logstd - self.logstd
        z = (mean - old_mean) * torch.exp(-self.logstd)
        return (0.5 * (torch.expm1(2.0 * shrunk) + z.square()) - shrunk).sum(-1)


class CategoricalActor(nn.Module):
    """Categorical distribution over n actions; the head's output are the logits [B, n].

    A logit of -inf is that of an action that is not allowed (``masked``): it is never taken and adds nothing to the
    entropy or the divergence. Each row has a finite one.
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

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, n]."""
        return self.model(features)

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Actions int64 [B] by inversion of the cumulative distribution at uniform noise float64 [B] in (0, 1)."""
        cumulative = logits.double().softmax(-1).cumsum(-1)
        reached = (cumulative < noise.unsqueeze(-1)).sum(-1)
        # Rounding may leave the whole sum below the noise: then it is the last action that is allowed.
        last = (logits > -math.inf).cumsum(-1).argmax(-1)
        return torch.minimum(reached, last)

    def mode(self, logits: Tensor) -> Tensor:
        """The most likely action int64 [B]."""
        return logits.argmax(-1)

    def log_prob(self, logits: Tensor, actions: Tensor) -> Tensor:
        """Log-probability [B] of actions int64 [B]."""
        return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropy [B]."""
        log_p = logits.log_softmax(-1)
        log_p = torch.where(log_p > -math.inf, log_p, 0.0)  # where p is 0, p log p is 0 and not NaN
        return -(log_p.exp() * log_p).sum(-1)

    def frozen(self, logits: Tensor) -> Tensor:
        """What ``kl`` wants of these distributions when the weights are others: log-probabilities [B, n]."""
        return logits.log_softmax(-1)

    def kl(self, old: Tensor, logits: Tensor) -> Tensor:
        """KL(old || these) [B], of what ``frozen`` returned."""
        log_p = logits.log_softmax(-1)
        return (old.exp() * torch.where(old > -math.inf, old - log_p, 0.0)).sum(-1)


def masked(logits: Tensor, masks: Tensor | None) -> Tensor:
    """Logits [B, n], -inf where masks bool [B, n] are False; None allows all."""
    return logits if masks is None else logits.masked_fill(~masks, -math.inf)


class Critic(nn.Module):
    """State value."""

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
        """Values [B]."""
        return self.model(features).squeeze(-1)


class ActorCritic(nn.Module):
    """Policy and value function on a shared trunk, or on one trunk each (``shared_representation: False``)."""

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
        """Where the weights are."""
        return next(self.parameters()).device

    def act(self, obs: Tensor, masks: Tensor | None = None) -> Tensor:
        """The actor head's output: mean [B, A] or ``masked`` logits [B, n]. The critic does not run."""
        return masked(self.actor(self.representation(obs)), masks)

    def value(self, obs: Tensor) -> Tensor:
        """Values [B]. The actor does not run."""
        return self.critic((self.critic_representation or self.representation)(obs))

    def heads(self, obs: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The actor head's output (``act``) and values [B]."""
        features = self.representation(obs)
        output = masked(self.actor(features), masks)
        if self.critic_representation is not None:
            features = self.critic_representation(obs)
        return output, self.critic(features)

    def evaluate(self, obs: Tensor, actions: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities [B] of the actions, entropy [B] and values [B]."""
        output, values = self.heads(obs, masks)
        return self.actor.log_prob(output, actions), self.actor.entropy(output), values
