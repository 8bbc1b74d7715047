"""TaskEnv: one environment that runs a task's functions as plain Python. It is the reference of the compiled ones."""

import functools
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from gymnasium.spaces import Box
from numpy.typing import NDArray

from xcfast.errors import NonFiniteError, TaskError
from xcfast.tasks.built_in import TERMS, terms_of
from xcfast.tasks.records import check_name, empty_record
from xcfast.tasks.task import COMPILED, GymnasiumTask, MujocoTask


class TaskEnv(gymnasium.Env):
    """One environment of a task of one's own, as `gymnasium.make` returns it.

    Args:
        task: The class of the task.
        render_mode: "human", "rgb_array", "depth_array", or None.
        width: The width of a frame in pixels.
        height: The height of a frame in pixels.
        camera_name: The camera of the frames; None for a free camera.
        camera_id: Its number instead of its name.
        default_camera_config: Attributes of the free camera.
        **parameters: New values of the attributes of the task's class.

    Attributes:
        task: The task.
        memory: Its memory, a record.
        terms: The terms of the last step, a record.
        model: The mjModel.
        data: The mjData.

    Raises:
        TaskError: The task lacks something or contradicts itself.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012, as in gymnasium.Env
        "render_modes": ["human", "rgb_array", "depth_array"],
        "render_fps": 100,
    }

    def __init__(
        self,
        task: type[MujocoTask] | type[GymnasiumTask],
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera_name: str | None = None,
        camera_id: int | None = None,
        default_camera_config: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> None:
        import mujoco

        self.render_mode = render_mode
        made = task(**parameters)
        self.task: Any = made
        self.base: Any = None
        if isinstance(made, GymnasiumTask):
            self.base = _gymnasium_task(made)
            self.model, self.data = self.base.model, self.base.data
            made.model, made.dt, made.frame_skip = self.model, float(self.base.dt), self.base.frame_skip
            made.action_space = self.base.action_space
            made.build()
            made.built()
            self._init_state = self.base.init_qpos, self.base.init_qvel
        else:
            self.model, self.data = made.model, mujoco.MjData(made.model)
            self._init_state = made.init_qpos, made.init_qvel
        names = (*(TERMS if isinstance(made, GymnasiumTask) else ()), *made.terms)
        for name in names:
            check_name(task.__name__, "terms", name)
        if len(set(names)) < len(names):
            raise TaskError(f"{task.__name__}.terms must be different names; got {names}")
        self.term_names = tuple(names)
        self.frame_skip, self.dt = made.frame_skip, made.dt
        self._memory, self._terms = made.initial_memory.copy(), empty_record((name, "f8", ()) for name in names)
        self.memory, self.terms = self._memory[0], self._terms[0]
        self.action_space: Box = made.action_space
        self.observation_space: Box = self._make_observation_space()
        self.metadata = {**self.metadata, "render_fps": getattr(made, "render_fps", 0) or round(1 / self.dt)}
        self.mujoco_renderer = MujocoRenderer(
            self.model, self.data, default_camera_config, width, height, camera_id=camera_id, camera_name=camera_name
        )

    def _make_observation_space(self) -> Box:
        import mujoco

        if self.base is not None and not self.task.defines("observe"):
            return self.base.observation_space
        # Observes the initial state; the first reset starts from it again.
        if self.base is None:
            self._start(*self._init_state, self.task.initial_memory[0])
        else:
            mujoco.mj_forward(self.model, self.data)
        ob = self.task.observe(self.data, self.memory)
        name = type(self.task).__name__
        if not isinstance(ob, np.ndarray) or ob.ndim != 1 or ob.size == 0 or ob.dtype != np.float64:
            given = f"{ob.dtype} {list(ob.shape)}" if isinstance(ob, np.ndarray) else type(ob).__name__
            raise TaskError(f"{name}.observe must return a float64 array of one dimension; got {given}")
        return Box(-np.inf, np.inf, ob.shape, np.float64)

    @functools.cached_property
    def fields_read(self) -> tuple[str, ...]:
        """The arrays of mjData that the task's functions read, as far as their source says."""
        from xcfast.tasks.expressions import RefusedError
        from xcfast.tasks.source import write_source

        try:
            methods = tuple(name for name in COMPILED if self.task.defines(name))
            fields = write_source(self.task, self.data, methods, self.term_names).fields
        except RefusedError:
            return ()
        return tuple(name for name in fields if isinstance(getattr(self.data, name), np.ndarray))

    @property
    def obs_size(self) -> int:
        """The number of values of an observation."""
        return int(np.prod(self.observation_space.shape))

    @property
    def action_size(self) -> int:
        """The number of values of an action."""
        return int(np.prod(self.action_space.shape))

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64], np.record]:
        """Draws an initial state: positions, velocities and memory."""
        qpos, qvel = (array.copy() for array in self._init_state)
        memory = self.task.initial_memory.copy()[0]
        if isinstance(self.task, MujocoTask):
            self.task.reset(rng, qpos, qvel, memory)
        return qpos, qvel, memory

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Starts an episode; see `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        if self.base is None:
            self._start(*self.draw(self.np_random))
            ob = self._observe()
        else:
            self.base._np_random, self.base._np_random_seed = self.np_random, self.np_random_seed
            ob, _ = self.base.reset(options=options)
            self._memory[0] = self.task.initial_memory[0]
            ob = self._observe(ob)
        self._terms[:] = 0
        if self.render_mode == "human":
            self.render()
        return ob, {}

    def _start(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64], memory: np.record) -> None:
        import mujoco

        keyframe = self.task.keyframe_id
        if keyframe < 0:
            mujoco.mj_resetData(self.model, self.data)
        else:
            mujoco.mj_resetDataKeyframe(self.model, self.data, keyframe)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)
        self._memory[0] = memory

    def step(self, action: Any) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Steps the task; see `gymnasium.Env.step`. The info has the terms of the reward.

        Raises:
            NonFiniteError: The reward is NaN or infinite. The message names the terms that are.
        """
        import mujoco

        task = self.task
        action = np.asarray(action, np.float32)
        numbers = action.astype(np.float64)
        self._terms[:] = 0
        if task.defines("before_step"):
            task.before_step(self.data, numbers, self.memory)
        ob = None
        if self.base is None:
            controls = task.defines("control")
            if not controls:
                self.data.ctrl[:] = action
            for _ in range(self.frame_skip):
                if controls:
                    task.control(self.data, numbers, self.memory)
                mujoco.mj_step(self.model, self.data)
            mujoco.mj_rnePostConstraint(self.model, self.data)  # contact forces, as Gymnasium's MujocoEnv
        else:
            ob, reward, terminated, _, info = self.base.step(action)
            for name, value in terms_of(self.base, action, reward, terminated, info).items():
                self.terms[name] = value
        returned = task.step(self.data, numbers, self.memory, self.terms)
        if not isinstance(returned, tuple) or len(returned) != 2:
            name = type(task).__name__
            raise TaskError(f"{name}.step must return the reward and whether the episode terminates; got {returned!r}")
        reward, terminated = returned
        if ob is not None:
            ob = self.base._get_obs()  # which sees what step wrote into data
        if not np.isfinite(reward):
            wrong = [f"{name} is {self.terms[name]}" for name in self.term_names if not np.isfinite(self.terms[name])]
            raise NonFiniteError(
                f"{type(task).__name__}.step returned the reward {reward}"
                + ("; of its terms, " if wrong else "")
                + ", ".join(wrong)
            )
        info = {name: float(self.terms[name]) for name in self.term_names}
        if self.render_mode == "human":
            self.render()
        return self._observe(ob), float(reward), bool(terminated), False, info

    def _observe(self, ob: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        if not self.task.defines("observe"):
            assert ob is not None
            return ob
        found: NDArray[np.float64] = self.task.observe(self.data, self.memory)
        wanted = self.observation_space.shape
        name = type(self.task).__name__
        if found.shape != wanted:
            raise TaskError(f"{name}.observe must always return as many numbers, {wanted}; got {found.shape}")
        if not np.isfinite(found).all():
            index = int(np.argmin(np.isfinite(found)))
            raise NonFiniteError(f"{name}.observe returned {found[index]} as number {index}")
        return found.copy()

    def set_memory(self, numbers: NDArray[np.float64]) -> None:
        """Sets the memory to what `numpy.frombuffer(env.memory.tobytes())` was."""
        self._memory[0] = np.asarray(numbers, np.float64).view(self.memory.dtype)[0]

    def render(self) -> Any:
        """Returns a frame, as `render_mode` says."""
        return self.mujoco_renderer.render(self.render_mode)

    def close(self) -> None:
        """Closes the renderer."""
        self.mujoco_renderer.close()
        if self.base is not None:
            self.base.close()


def _gymnasium_task(task: GymnasiumTask) -> Any:
    base = gymnasium.make(task.env_id, disable_env_checker=True, **task.env_kwargs).unwrapped
    if not isinstance(base, MujocoEnv):
        raise TaskError(f"{type(task).__name__}.env_id must be one of Gymnasium's MuJoCo tasks; got {task.env_id!r}")
    return base
