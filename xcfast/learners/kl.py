"""What a run does with the KL divergence from the policy that collected: PPO_KL's penalty, epochs that stop early."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xcfast.config.schema import MAX_KL_COEF, MIN_KL_COEF

if TYPE_CHECKING:
    from xcfast.config import Config
    from xcfast.ranks.group import Ranks


class KLControl:
    """The penalty's coefficient from iteration to iteration, and the limit on an epoch's KL.

    PPO_KL adds ``coef`` times KL(old || new) to the loss. After an update the coefficient is doubled where the KL was
    above 1.5 ``target_kl``, halved where it was below ``target_kl`` / 1.5, within [MIN_KL_COEF, MAX_KL_COEF]. The KL is
    the mean over the samples of the last epoch, each with the weights of its minibatch: as near as the update itself
    comes to the divergence of its result. Where there is but one gradient step it is 0, and so is the penalty's
    gradient.

    With ``early_stop_kl`` an epoch of PPO whose mean approximate KL, over all its samples, is above ``target_kl`` is
    the last one of its iteration.

    Attributes:
        penalizes: whether the loss has the penalty.
        coef: its weight in the next update; 0 without it.
        limit: of an epoch's mean approximate KL; infinite where epochs do not stop early.

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
        """Whether epochs have a limit."""
        return math.isfinite(self.limit)

    def exceeded(self, approx_kl: float, samples: int, ranks: Ranks) -> bool:
        """Whether an epoch is the last one; the same on all ranks, which must all ask.

        Args:
            approx_kl: the sum over this rank's samples.
            samples: of the epoch, on all ranks.
            ranks: whose sums are added.
        """
        if not self.stops_early:
            return False
        return float(ranks.sum_(np.array([float(approx_kl)]))[0]) > self.limit * samples

    def metrics(self, kl: float, epochs: int) -> dict[str, float]:
        """What is logged of an update: the last epoch's KL and the coefficient in use, or the epochs that ran."""
        if self.penalizes:
            return {"losses/kl": kl, "losses/kl_coef": self.coef, "kl": kl}
        return {"losses/epochs": float(epochs)} if self.stops_early else {}

    def adapt(self, metrics: dict[str, float]) -> None:
        """Prepare the next update, after one that ended with these metrics, the same on all ranks."""
        if not self.penalizes:
            return
        if metrics["losses/kl"] > 1.5 * self._target:
            self.coef = min(2.0 * self.coef, MAX_KL_COEF)
        elif metrics["losses/kl"] < self._target / 1.5:
            self.coef = max(0.5 * self.coef, MIN_KL_COEF)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient, where there is a penalty."""
        return {"kl_coef": self.coef} if self.penalizes else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; without it the coefficient stays."""
        if self.penalizes and "kl_coef" in state:
            self.coef = float(state["kl_coef"])
