"""The MuJoCo classes of Gymnasium that the native engine knows: their arguments and resets.

Their observations and rewards are in csrc/mujoco, their infos in mujoco_infos.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcfast.errors import NotNativeError

Rows = NDArray[np.float64]
Draw = Callable[[Any, np.random.Generator, int], Rows]


@dataclass(frozen=True)
class Task:
    """Describes one class of Gymnasium to the engine.

    Attributes:
        name: The name of the id without version, and of the C++ task.
        v5: Whether it is version 5 of the class, else 4.
        draw: Draws initial states [count, nq + nv] in the order in which the class draws them.
        numbers: The keyword arguments that are numbers or truth values, with the values for a class without them.
        ranges: The keyword arguments that are (low, high), likewise.
        bodies: The bodies that the reward reads, by their names in the engine.
        skipped_qpos: The number of leading positions that the observation leaves out by default.
        parts: The optional parts of the observation.
    """

    name: str
    v5: bool
    draw: Draw
    numbers: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bodies: Mapping[str, str] = field(default_factory=dict)
    skipped_qpos: int = 0
    parts: tuple[str, ...] = ()

    def values(self, base: Any) -> dict[str, float]:
        """Returns the numbers that the C++ task takes, read from the environment `base`."""
        values = {name: _number(base, name, default) for name, default in self.numbers.items()}
        for name, default in self.ranges.items():
            low, high = getattr(base, f"_{name}", default)
            stem = name.removesuffix("_range")
            values[f"{stem}_min"], values[f"{stem}_max"] = float(low), float(high)
        for name, body in self.bodies.items():
            body = base._main_body if name == "torso" and self.v5 else body
            values[name] = float(base.model.body(body).id)
        if self.skipped_qpos:
            skips = getattr(base, "_exclude_current_positions_from_observation", True)
            values["skipped_qpos"] = float(self.skipped_qpos if skips else 0)
        for part in self.parts:
            values[f"include_{part}"] = float(_includes(self, base, part))
        if self.name in ("Hopper", "Walker2d"):
            values["has_healthy_state_range"] = float(self.name == "Hopper")
        if self.name == "HumanoidStandup":
            values["timestep"] = float(base.model.opt.timestep)
        return values


def _number(base: Any, name: str, default: float) -> float:
    value = getattr(base, f"_{name}", default)
    if type(value) not in (bool, int, float):
        # numpy's promotion rules treat its own scalars differently from Python's.
        raise NotNativeError(f"its {name} is not a plain number but {value!r}")
    return float(value)


def _includes(task: Task, base: Any, part: str) -> bool:
    if task.name == "Ant":
        return bool(base._include_cfrc_ext_in_observation if task.v5 else base._use_contact_forces)
    return getattr(base, f"_include_{part}_in_observation", True) is True


# --- initial states -------------------------------------------------------------------------------------------------


def _uniform_draws(default_scale: float) -> Draw:
    def draw(base: Any, rng: np.random.Generator, count: int) -> Rows:
        scale = getattr(base, "_reset_noise_scale", default_scale)
        init = np.concatenate((base.init_qpos, base.init_qvel))
        # Positions and velocities have the same bounds, so that one call continues the stream as the classes' two do.
        return init + rng.uniform(low=-scale, high=scale, size=(count, init.size))

    return draw


def _normal_velocity_draws(base: Any, rng: np.random.Generator, count: int) -> Rows:
    scale = getattr(base, "_reset_noise_scale", 0.1)
    nq, nv = base.model.nq, base.model.nv
    rows = np.empty((count, nq + nv))
    for row in rows:
        row[:nq] = base.init_qpos + rng.uniform(low=-scale, high=scale, size=nq)
        row[nq:] = base.init_qvel + scale * rng.standard_normal(nv)
    return rows


def _reacher_draws(base: Any, rng: np.random.Generator, count: int) -> Rows:
    nq, nv = base.model.nq, base.model.nv
    rows = np.empty((count, nq + nv))
    for row in rows:
        row[:nq] = rng.uniform(low=-0.1, high=0.1, size=nq) + base.init_qpos
        while True:
            goal = rng.uniform(low=-0.2, high=0.2, size=2)
            if np.linalg.norm(goal) < 0.2:
                break
        row[nq - 2 : nq] = goal
        row[nq:] = base.init_qvel + rng.uniform(low=-0.005, high=0.005, size=nv)
        row[-2:] = 0
    return rows


def _pusher_draws(base: Any, rng: np.random.Generator, count: int) -> Rows:
    nq, nv = base.model.nq, base.model.nv
    rows = np.empty((count, nq + nv))
    for row in rows:
        row[:nq] = base.init_qpos
        while True:
            cylinder = np.concatenate([rng.uniform(low=-0.3, high=0, size=1), rng.uniform(low=-0.2, high=0.2, size=1)])
            if np.linalg.norm(cylinder) > 0.17:
                break
        row[nq - 4 : nq - 2] = cylinder
        row[nq - 2 : nq] = 0
        row[nq:] = base.init_qvel + rng.uniform(low=-0.005, high=0.005, size=nv)
        row[-4:] = 0
    return rows


# --- the table ------------------------------------------------------------------------------------------------------

_RUN = {"forward_reward_weight": 1.0, "ctrl_cost_weight": 0.1}
_WALK = {**_RUN, "healthy_reward": 1.0, "terminate_when_unhealthy": True}
_PARTS = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
_EVERYTHING = (-np.inf, np.inf)


def _tasks(version: int) -> dict[tuple[str, str], Task]:
    v5 = version == 5
    planar_ranges = dict.fromkeys(("healthy_state_range", "healthy_z_range", "healthy_angle_range"), _EVERYTHING)
    tasks = {
        ("ant", "AntEnv"): Task(
            "Ant",
            v5,
            _normal_velocity_draws,
            numbers={**_WALK, "contact_cost_weight": 5e-4},
            ranges={"healthy_z_range": _EVERYTHING, "contact_force_range": _EVERYTHING},
            bodies={"torso": "torso"},
            skipped_qpos=2,
            parts=("cfrc_ext",),
        ),
        ("half_cheetah", "HalfCheetahEnv"): Task(
            "HalfCheetah", v5, _normal_velocity_draws, numbers=_RUN, skipped_qpos=1
        ),
        ("hopper", "HopperEnv"): Task(
            "Hopper", v5, _uniform_draws(5e-3), numbers=_WALK, ranges=planar_ranges, skipped_qpos=1
        ),
        ("walker2d", "Walker2dEnv"): Task(
            "Walker2d", v5, _uniform_draws(5e-3), numbers=_WALK, ranges=planar_ranges, skipped_qpos=1
        ),
        ("humanoid", "HumanoidEnv"): Task(
            "Humanoid",
            v5,
            _uniform_draws(1e-2),
            numbers={**_WALK, "contact_cost_weight": 0.0},
            ranges={"healthy_z_range": _EVERYTHING, "contact_cost_range": _EVERYTHING},
            skipped_qpos=2,
            parts=_PARTS,
        ),
        ("humanoidstandup", "HumanoidStandupEnv"): Task(
            "HumanoidStandup",
            v5,
            _uniform_draws(1e-2),
            numbers={"ctrl_cost_weight": 0.1, "impact_cost_weight": 0.5e-6},
            ranges={"impact_cost_range": (-np.inf, 10.0)},
            skipped_qpos=2,
            parts=_PARTS,
        ),
        ("swimmer", "SwimmerEnv"): Task("Swimmer", v5, _uniform_draws(0.1), numbers=_RUN, skipped_qpos=2),
        ("reacher", "ReacherEnv"): Task(
            "Reacher",
            v5,
            _reacher_draws,
            numbers={"reward_dist_weight": 1.0, "reward_control_weight": 1.0},
            bodies={"fingertip": "fingertip", "target": "target"},
        ),
        ("pusher", "PusherEnv"): Task(
            "Pusher",
            v5,
            _pusher_draws,
            numbers={"reward_near_weight": 0.5, "reward_dist_weight": 1.0, "reward_control_weight": 0.1},
            bodies={"tips_arm": "tips_arm", "object": "object", "goal": "goal"},
        ),
        ("inverted_pendulum", "InvertedPendulumEnv"): Task("InvertedPendulum", v5, _uniform_draws(1e-2)),
        ("inverted_double_pendulum", "InvertedDoublePendulumEnv"): Task(
            "InvertedDoublePendulum", v5, _normal_velocity_draws, numbers={"healthy_reward": 10.0}
        ),
    }
    return {(f"gymnasium.envs.mujoco.{module}_v{version}", name): task for (module, name), task in tasks.items()}


_TASKS = {**_tasks(4), **_tasks(5)}


def find_task(base: Any) -> Task:
    """Returns the task of `base`, an environment without wrappers.

    Raises:
        NotNativeError: It is not exactly an instance of a known class, or MuJoCo calls back into this program.
    """
    kind = type(base)
    task = _TASKS.get((kind.__module__, kind.__qualname__))
    if task is None:
        raise NotNativeError(
            f"{kind.__module__}.{kind.__qualname__} is not one of Gymnasium's MuJoCo classes v4 and v5"
        )
    _refuse_callbacks()
    return task


def _refuse_callbacks() -> None:
    import mujoco

    for name in dir(mujoco):
        if name.startswith("get_mjcb_") and getattr(mujoco, name)() is not None:
            raise NotNativeError(f"MuJoCo calls back into this program ({name.removeprefix('get_')} is set)")
