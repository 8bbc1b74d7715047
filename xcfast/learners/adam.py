"""Adam's state in two flat arrays, for learners that take the steps themselves, in the form torch's optimiser has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xcfast.learners.schedule import ADAM_EPS, Schedule

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config import Config
    from xcfast.policy import ActorCritic
    from xcfast.policy.flat import FlatParameters


class FlatAdam:
    """What a learner that works on flat arrays has of ``torch.optim.Adam``: settings, learning rates, saved state.

    The torch optimiser never steps. It gives the state its form, so that learners can be exchanged at a resume.

    Args:
        policy: whose parameters are trained.
        config: the run's configuration.
        flat: the policy's parameters.
        exp_avg: float32, laid out like ``flat``; on any device.
        exp_avg_sq: likewise.
        optimizer: the caller's Adam, if any.
        scheduler: of the caller's optimiser.

    Attributes:
        optimizer: of torch.
        schedule: of the learning rate.
        steps_done: updates so far.
        betas: the decay rates of the two moments.
        eps: added to the root of the second.
    """

    def __init__(
        self,
        policy: ActorCritic,
        config: Config,
        flat: FlatParameters,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
    ) -> None:
        self._parameters = list(policy.parameters())
        self._flat = flat
        self._moments = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        self._own = optimizer is None
        self.optimizer = optimizer or torch.optim.Adam(
            self._parameters, lr=config.learning_rate, eps=ADAM_EPS, fused=True
        )
        self.schedule = Schedule(config, self.optimizer, scheduler, self._own)
        if scheduler is not None:  # which wants to see a step of the optimiser before its own; without gradients
            self.optimizer.zero_grad()  # it does nothing
            self.optimizer.step()
        group = self.optimizer.param_groups[0]
        self.betas, self.eps = group["betas"], group["eps"]
        self.steps_done = 0
        self._adopt()

    def advance(self, updates: int) -> None:
        """Count updates as done."""
        self.steps_done += updates
        if not self._own:  # whoever brought the optimiser finds in it what it would hold had it stepped
            self._show()

    def state_dict(self) -> dict[str, Any]:
        """The state in ``torch.optim.Adam``'s form; on the CPU its tensors are views of the live state."""
        self._show()
        return {"optimizer": self.optimizer.state_dict(), **self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` of any learner returned."""
        self.schedule.load_state_dict(state)
        # The settings stay those that the steps are taken with; the rate is where the schedule had got to.
        groups = self.optimizer.state_dict()["param_groups"]
        for group, saved in zip(groups, state["optimizer"]["param_groups"], strict=True):
            group |= {name: saved[name] for name in ("lr", "initial_lr") if name in saved}
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self._adopt()

    def _show(self) -> None:
        """Give the optimiser the live state."""
        moments = {name: self._flat.split(x.cpu()) for name, x in self._moments.items()}
        for index, parameter in enumerate(self._parameters):
            step = torch.tensor(float(self.steps_done))
            own = {name: parts[index] for name, parts in moments.items()}
            self.optimizer.state[parameter] = {"step": step, **own}

    def _adopt(self) -> None:
        """Take over the optimiser's state."""
        saved = [dict(self.optimizer.state.get(parameter, {})) for parameter in self._parameters]
        for name, flat in self._moments.items():
            found = [one[name].clone() if one else None for one in saved]  # perhaps a view of what is zeroed here
            flat.zero_()
            for view, moment in zip(self._flat.split(flat), found, strict=True):
                if moment is not None:
                    view.copy_(moment)
        self.steps_done = max((int(one["step"]) for one in saved if one), default=0)
