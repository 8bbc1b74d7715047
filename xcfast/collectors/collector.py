"""The interface of collectors, the env loops that fill rollouts, whichever engine runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from gymnasium.vector import AutoresetMode

if TYPE_CHECKING:
    from xcfast.envs.vec_env import VecEnv
    from xcfast.policy.networks import ActorCritic
    from xcfast.rollout import Rollout


class Collector(Protocol):
    """Steps environments with a policy and records the steps in rollouts.

    Attributes:
        name: The name of the engine, "torch" or "native".
        policy: The policy that chooses the actions.
    """

    name: str
    policy: ActorCritic

    @property
    def envs(self) -> VecEnv:
        """The vector environment that the collector steps."""

    def reset(self, seed: int | list[int] | None) -> None:
        """Starts new episodes in every environment.

        Args:
            seed: As `VecEnv.reset` takes it.
        """

    def collect(self, rollout: Rollout, num_steps: int | None = None) -> None:
        """Fills the next rows of a rollout.

        When the rollout becomes full, `rollout.last_obs` is written and the observation statistics are merged.

        Args:
            rollout: The rollout to fill.
            num_steps: The number of rows; None for all that are left.

        Raises:
            NonFiniteError: An environment returned NaN or infinity as an observation.
            RankError: There are several ranks, and something failed on one.
            EnvError, SimulationError, WorkerError: An environment failed.
            RuntimeError: No `reset` came before.
        """

    def state_dict(self, with_envs: bool = True) -> dict[str, Any]:
        """Returns the state, which any collector can load.

        Args:
            with_envs: Whether to include the state of the environments, if they have an exact one.
        """

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores what `state_dict` returned.

        Returns:
            Whether the environments were restored too; else they need a `reset`.
        """


def warm_up(collector: Collector, rollout: Rollout) -> None:
    """Starts the observation statistics: collects one rollout with the current policy, and discards it.

    Args:
        collector: The collector, after its `reset`.
        rollout: An empty rollout; it is empty again afterwards.
    """
    collector.collect(rollout)
    rollout.clear()


def check_autoreset(envs: VecEnv) -> None:
    """Checks that the environments reset in the step that ends an episode, as collectors and evaluations assume.

    Raises:
        ValueError: They have another autoreset mode.
    """
    if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
        raise ValueError(f"envs must have autoreset_mode='same_step'; got {envs.autoreset_mode.name.lower()!r}")
