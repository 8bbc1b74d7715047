"""Adam's state in two flat arrays, in the form of torch's optimizer, for learners that take the steps themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xcfast.learners.optimizer import make_optimizer
from xcfast.learners.schedule import Schedule

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config.schema import Config
    from xcfast.policy.flat import FlatParameters
    from xcfast.policy.networks import ActorCritic


class FlatAdam:
    """The settings, learning rates and saved state of ``torch.optim.Adam``, for a learner that works on flat arrays.

    The torch optimizer never steps. It gives the state its form, so that a resumed run may use another learner.

    Args:
        policy: The policy that learns.
        config: The run's configuration.
        flat: The layout of the policy's parameters.
        exp_avg: float32, laid out like ``flat.array``, on any device: first moment, which the learner updates.
        exp_avg_sq: float32, of the same form: second moment.
        optimizer: A script's plain Adam; default: Adam with the configuration's learning rates.
        scheduler: Scheduler of the script's optimizer.

    Attributes:
        optimizer: The torch optimizer.
        schedule: The learning rates.
        steps_done: Number of gradient steps so far.
        betas: Decay rates of the two moments.
        eps: Number that is added to the root of the second moment.

    Raises:
        ValueError: Optimizer, scheduler and policy do not belong together.
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
        self.optimizer = make_optimizer(policy, config, optimizer)
        self.schedule = Schedule(config, self.optimizer, scheduler, self._own)
        if scheduler is not None:  # it expects the optimizer to step first; without gradients, a step does nothing
            self.optimizer.zero_grad()
            self.optimizer.step()
        group = self.optimizer.param_groups[0]
        self.betas, self.eps = group["betas"], group["eps"]
        self.steps_done = 0
        self._read()

    def advance(self, steps: int) -> None:
        """Counts gradient steps as taken."""
        self.steps_done += steps
        if not self._own:  # the script finds the same state in its optimizer as if the optimizer had stepped
            self._write()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state in ``torch.optim.Adam``'s form. On the CPU its tensors are views of the live state."""
        self._write()
        return {"optimizer": self.optimizer.state_dict(), **self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` of any learner returned."""
        self.schedule.load_state_dict(state)
        # The settings of this run stay; the learning rate is the one that the schedule had reached.
        groups = self.optimizer.state_dict()["param_groups"]
        for group, saved in zip(groups, state["optimizer"]["param_groups"], strict=True):
            group |= {name: saved[name] for name in ("lr", "initial_lr") if name in saved}
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self._read()

    def _write(self) -> None:
        """Writes moments and steps into the optimizer's state."""
        moments = {name: self._flat.split(x.cpu()) for name, x in self._moments.items()}
        for index, parameter in enumerate(self._parameters):
            step = torch.tensor(float(self.steps_done))
            own = {name: parts[index] for name, parts in moments.items()}
            self.optimizer.state[parameter] = {"step": step, **own}

    def _read(self) -> None:
        """Reads moments and steps from the optimizer's state."""
        saved = [dict(self.optimizer.state.get(parameter, {})) for parameter in self._parameters]
        for name, flat in self._moments.items():
            found = [one[name].clone() if one else None for one in saved]  # perhaps a view of what is zeroed here
            flat.zero_()
            for view, moment in zip(self._flat.split(flat), found, strict=True):
                if moment is not None:
                    view.copy_(moment)
        self.steps_done = max((int(one["step"]) for one in saved if one), default=0)
