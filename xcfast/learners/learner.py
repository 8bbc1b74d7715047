"""The interface of learners, whichever engine computes the update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout


class Learner(Protocol):
    """An engine that turns a full rollout into new weights of a policy."""

    @property
    def name(self) -> str:
        """Name of the engine: "torch", "native" or "cuda"."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer: a script's own, or one that only gives the saved state its form."""

    @property
    def overlaps(self) -> bool:
        """Whether the next rollout may be collected during ``update``, which then does not change the policy."""

    @property
    def device_policy(self) -> ActorCritic | None:
        """Copy of the policy on the learner's device, for inference there; None if there is no copy.

        Its weights change during ``update``.
        """

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Does one PPO iteration on a full rollout.

        Args:
            rollout: Full rollout, with ``last_obs``, of the shape that the learner was made for.
            iteration: Number of the iteration, from 0. It decides the minibatches, and the learning rates unless they
                follow the KL.

        Returns:
            Metrics: losses as means over all samples of the epochs that ran, ``losses/grad_norm`` as the mean over the
            gradient steps, ``losses/kl`` as the mean over the last epoch.

        Raises:
            NonFiniteError: A metric is NaN or infinite.
            RuntimeError: Another thread is in an update of this learner.

        Note:
            After any exception, weights, optimizer and schedule are those from before the call.
        """

    def adopt(self) -> None:
        """Takes over weights that other code has written into the policy, for example by loading a model."""

    def publish(self) -> None:
        """Brings the newest weights into the policy. ``update`` does so itself, unless rollouts overlap with it."""

    @property
    def behaviour(self) -> Tensor | None:
        """Flat float32 weights on the CPU that collect the next rollout; None if the policy's own weights do."""

    def set_behaviour(self, weights: Tensor) -> None:
        """Restores ``behaviour``, after ``adopt``. Does nothing if the policy's own weights collect."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the optimizer in ``torch.optim``'s form, of the schedule, and of the KL penalty."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` of any learner returned.

        Raises:
            ValueError: Only one of the two runs has a scheduler.
        """
