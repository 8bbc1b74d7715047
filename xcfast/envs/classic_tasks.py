"""The classic control classes that the native engine knows: their arguments and resets.

Their steps, observations and rewards are in csrc/classic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.envs.classic_control import utils
from numpy.typing import NDArray

from xcfast.envs import classic_state
from xcfast.envs.native_draws import Draw
from xcfast.errors import NotNativeError

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Describes one class of Gymnasium to the engine.

    Attributes:
        name: The name of the id without version, and of the C++ model.
        constants: The attributes of the class that its steps read. The engine's names lack a leading underscore.
        initial: The default bounds of the initial state.
        probe: The largest absolute numbers of the states that the self-check steps from.
        flagged: Whether the engine's row of state ends with a flag that says whether the state is float32.
    """

    name: str
    constants: tuple[str, ...]
    initial: tuple[float, float]
    probe: tuple[float, ...]
    flagged: bool = False

    @property
    def draw_size(self) -> int:
        """The number of random numbers in an initial state."""
        return 1 if self.name.startswith("MountainCar") else classic_state.SIZES[self.name]

    @property
    def row_size(self) -> int:
        """The size of the engine's row of state."""
        return classic_state.SIZES[self.name] + self.flagged

    def values(self, base: Any) -> dict[str, float]:
        """Returns the numbers that the C++ model takes, read from the environment `base`.

        Raises:
            NotNativeError: The engine cannot compute with one of them.
        """
        values = {name.removeprefix("_"): _number(name, getattr(base, name, None)) for name in self.constants}
        if self.name == "CartPole":
            values["euler"] = float(base.kinematics_integrator == "euler")
        if self.name == "Acrobot":
            if base.torque_noise_max > 0:
                raise NotNativeError("its torque is noisy (torque_noise_max)")
            values["nips"] = float(base.book_or_nips == "nips")
            values |= {f"torque_{k}": _number("AVAIL_TORQUE", x) for k, x in enumerate(base.AVAIL_TORQUE)}
        return values

    def draw(self, options: dict[str, Any] | None = None) -> Draw:
        """Returns a function that draws initial states [count, draw_size] as the class's `reset` does.

        Args:
            options: The options of `reset`.

        Raises:
            ValueError: The class does not take these options.
        """
        low, high = self._bounds(options)

        def draw(rng: np.random.Generator, count: int) -> Rows:
            rows = rng.uniform(low, high, size=(count, self.draw_size))
            return rows.astype(np.float32).astype(np.float64) if self.name == "Acrobot" else rows

        return draw

    def _bounds(self, options: dict[str, Any] | None) -> tuple[Any, Any]:
        if self.name != "Pendulum":
            return utils.maybe_parse_reset_bounds(options, *self.initial)
        given = options or {}
        numbers = zip(("x_init", "y_init"), self.initial, strict=True)
        high = np.array([utils.verify_number_and_cast(given.get(key, default)) for key, default in numbers])
        return -high, high

    def to_row(self, physics: NDArray[Any]) -> Rows:
        """Returns the engine's row of state for the class's state."""
        flag = [float(physics.dtype == np.float32)] if self.flagged else []
        return np.concatenate([physics.astype(np.float64), flag])

    def to_physics(self, row: Rows) -> NDArray[Any]:
        """Returns the class's state, in its precision, for the engine's row."""
        size = classic_state.SIZES[self.name]
        return row[:size].astype(np.float32 if self.flagged and row[size] else np.float64)


def _number(name: str, value: Any) -> float:
    if type(value) not in (bool, int, float):
        # numpy's promotion rules treat its own scalars differently from Python's.
        raise NotNativeError(f"its {name} is not a plain number but {value!r}")
    return float(value)


_TRACK = ("min_position", "max_position", "max_speed", "goal_position", "goal_velocity")
_TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "Acrobot",
            (
                *("dt", "LINK_LENGTH_1", "LINK_MASS_1", "LINK_MASS_2", "LINK_COM_POS_1", "LINK_COM_POS_2"),
                *("LINK_MOI", "MAX_VEL_1", "MAX_VEL_2"),
            ),
            initial=(-0.1, 0.1),
            probe=(np.pi, np.pi, 12.5, 28.0),
            flagged=True,
        ),
        Task(
            "CartPole",
            (
                *("gravity", "masspole", "total_mass", "length", "polemass_length", "force_mag", "tau"),
                *("theta_threshold_radians", "x_threshold", "_sutton_barto_reward"),
            ),
            initial=(-0.05, 0.05),
            probe=(3.0, 5.0, 20.0, 5.0),
        ),
        Task("MountainCar", (*_TRACK, "force", "gravity"), initial=(-0.6, -0.4), probe=(1.2, 0.07)),
        Task(
            "MountainCarContinuous",
            (*_TRACK, "min_action", "max_action", "power"),
            initial=(-0.6, -0.4),
            probe=(1.2, 0.07),
            flagged=True,
        ),
        Task(
            "Pendulum",
            ("max_speed", "max_torque", "dt", "g", "m", "l"),
            initial=(np.pi, 1.0),
            probe=(200.0, 8.0),
        ),
    )
}


def find_task(base: Any) -> Task:
    """Returns the task of `base`, an environment without wrappers.

    Raises:
        NotNativeError: It is not exactly an instance of a known class.
    """
    name = classic_state.task_name(base)
    if name is None:
        kind = type(base)
        raise NotNativeError(f"{kind.__module__}.{kind.__qualname__} is not one of Gymnasium's classic control classes")
    return _TASKS[name]
