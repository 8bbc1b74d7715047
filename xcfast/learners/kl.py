"""How an update limits the KL divergence from the policy that collected: by a penalty, or by ending epochs early."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xcfast.config.schema import MAX_KL_COEF, MIN_KL_COEF

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.ranks.group import Ranks


class KLControl:
    """The penalty's coefficient from iteration to iteration, and the limit on the KL of an epoch.

    PPO_KL adds ``coef`` times KL(old || new) to the loss. After each update, it doubles the coefficient if the KL was
    above 1.5 ``target_kl``, and halves it if the KL was below ``target_kl`` / 1.5, within [MIN_KL_COEF, MAX_KL_COEF].
    The KL is the mean over the samples of the last epoch, each with the weights at the start of its minibatch. Nothing
    else that the update computes is nearer to the divergence of the final policy. In an update of a single gradient
    step, the KL and the gradient of the penalty are 0.

    With ``early_stop_kl``, PPO ends an iteration after the first epoch whose mean approximate KL is above
    ``target_kl``.

    Args:
        config: The run's configuration.

    Attributes:
        penalizes: Whether the loss has the penalty.
        coef: Weight of the penalty in the next update; 0 without it.
        limit: Limit on an epoch's mean approximate KL; infinite where epochs do not stop early.

    Source:
        Schulman et al., arXiv 1707.06347, section 4.
    """

    def __init__(self, config: Config) -> None:
        self.penalizes = config.agent == "PPO_KL"
        self.coef = config.kl_coef if self.penalizes else 0.0
        self.limit = config.target_kl if config.early_stop_kl else math.inf
        self._target = config.target_kl

    @property
    def stops_early(self) -> bool:
        """Whether an iteration may end before its last epoch."""
        return math.isfinite(self.limit)

    def exceeded(self, approx_kl: float, samples: int, ranks: Ranks) -> bool:
        """Returns whether an epoch was above the limit, the same on all ranks, each of which must call this.

        Args:
            approx_kl: Sum of the approximate KL over this rank's samples of the epoch.
            samples: Number of samples of the epoch on all ranks.
            ranks: The ranks that learn together.
        """
        if not self.stops_early:
            return False
        return float(ranks.sum_(np.array([float(approx_kl)]))[0]) > self.limit * samples

    def metrics(self, kl: float, epochs: int) -> dict[str, float]:
        """Returns the metrics of the KL: with the penalty its KL and coefficient, with a limit the number of epochs.

        Args:
            kl: Mean KL over the last epoch.
            epochs: Number of epochs that ran.
        """
        if self.penalizes:
            return {"losses/kl": kl, "losses/kl_coef": self.coef, "kl": kl}
        return {"losses/epochs": float(epochs)} if self.stops_early else {}

    def adapt(self, metrics: dict[str, float]) -> None:
        """Chooses the coefficient of the next update from the metrics of the last one, the same on all ranks."""
        if not self.penalizes:
            return
        if metrics["losses/kl"] > 1.5 * self._target:
            self.coef = min(2.0 * self.coef, MAX_KL_COEF)
        elif metrics["losses/kl"] < self._target / 1.5:
            self.coef = max(0.5 * self.coef, MIN_KL_COEF)

    def state_dict(self) -> dict[str, Any]:
        """Returns the coefficient, if there is a penalty."""
        return {"kl_coef": self.coef} if self.penalizes else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned. A state without a coefficient (of a PPO run) changes nothing."""
        if self.penalizes and "kl_coef" in state:
            self.coef = float(state["kl_coef"])
