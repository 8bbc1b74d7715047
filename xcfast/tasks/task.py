"""MujocoTask and GymnasiumTask: what a user's task consists of."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from xcfast.errors import TaskError
from xcfast.tasks.expressions import nearest
from xcfast.tasks.records import memory_record

COMPILED = ("before_step", "control", "step", "observe")
_SIGNATURES = {
    "reset": ("rng", "qpos", "qvel", "memory"),
    "before_step": ("data", "action", "memory"),
    "control": ("data", "action", "memory"),
    "step": ("data", "action", "memory", "terms"),
    "observe": ("data", "memory"),
}


# Arguments of TaskEnv besides those of the task.
ENV_ARGUMENTS = ("task", "render_mode", "width", "height", "camera_name", "camera_id", "default_camera_config")
_NONE = object()


class _Task:
    """What both kinds of tasks share: parameters, and the methods that a task may define."""

    frame_skip: int
    memory: ClassVar[Mapping[str, Any]] = {}
    terms: ClassVar[tuple[str, ...]] = ()
    model: Any
    dt: float
    action_space: Box

    def __init__(self, **parameters: Any) -> None:
        kind = type(self)
        for name in ENV_ARGUMENTS:
            if inspect.getattr_static(kind, name, _NONE) is not _NONE:
                raise TaskError(
                    f"{kind.__name__} must not have an attribute {name}: it is an argument of the environment"
                )
        for name, value in parameters.items():
            default = inspect.getattr_static(kind, name, _NONE)
            if name.startswith("_") or default is _NONE or callable(default) or isinstance(default, property):
                known = [one for one in dir(kind) if not one.startswith("_") and not callable(getattr(kind, one, None))]
                hint = nearest(name, known) or f"; it has {', '.join(known)}"
                raise TypeError(f"{kind.__name__} got an unexpected keyword argument {name!r}{hint}")
            setattr(self, name, value)
        if isinstance(self.terms, str) or not all(isinstance(name, str) for name in self.terms):
            raise TaskError(f"{kind.__name__}.terms must be a tuple of names; got {self.terms!r}")
        for name, wanted in _SIGNATURES.items():
            method = getattr(kind, name, None)
            if method is not None:
                _check_signature(kind, name, method, wanted)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_built"):
            raise TaskError(f"{type(self).__name__}.{name} is constant after build; memory keeps what changes")
        super().__setattr__(name, value)

    def built(self) -> None:
        """Ends the preparation: from now on nothing in `self` changes, since all environments and threads share it."""
        self.initial_memory = memory_record(type(self).__name__, self.memory)
        for value in self.__dict__.values():
            if isinstance(value, np.ndarray) and value is not self.initial_memory:
                value.setflags(write=False)
        self._built = True

    def build(self) -> None:
        """Prepares the task, once, when `self.model` is there: names to ids, constants, the action space."""

    def reset(
        self, rng: np.random.Generator, qpos: NDArray[np.float64], qvel: NDArray[np.float64], memory: np.record
    ) -> None:
        """Draws the initial state of an episode.

        Args:
            rng: The environment's own generator.
            qpos: float64 [nq], the positions to start from, to be changed in place.
            qvel: float64 [nv], the velocities, likewise.
            memory: The memory with its initial contents, likewise.
        """

    def defines(self, name: str) -> bool:
        """Returns whether the task's class defines one of the methods that are optional."""
        return getattr(type(self), name, None) is not None


class MujocoTask(_Task):
    """A task on a MuJoCo model of your own.

    A subclass sets the attributes below and defines `step` and `observe`, and where it needs them `build`, `reset`,
    `before_step` and `control`. In these, `data` is the simulation's mjData, `action` float64 [action_size], `memory`
    and `terms` have the named fields that the class declares. What `build` stores in `self` is constant afterwards.

    - ``reset(self, rng, qpos, qvel, memory)`` draws an initial state, in place. It always runs as Python.
    - ``before_step(self, data, action, memory)`` is called once per step, before the physics.
    - ``control(self, data, action, memory)`` is called before each of the `frame_skip` physics steps, and writes
      ``data.ctrl``. Without it, the action is copied to ``data.ctrl`` once per step.
    - ``step(self, data, action, memory, terms)`` is called after the physics. It returns the reward and whether the
      episode terminates.
    - ``observe(self, data, memory)`` returns the observation, one array of one dimension, after each step and reset.

    Attributes:
        xml: The model: a file's path (absolute, beside the class's file, or among Gymnasium's models), or XML itself.
        frame_skip: The number of physics steps per step.
        keyframe: The name of the keyframe that an episode starts from; "" for the model's own initial state.
        memory: The fields that each environment remembers between steps, with the values that an episode starts with:
            numbers, or arrays.
        terms: The names of the parts of the reward, which infos and the log report. Those that `step` does not set
            are 0.
        render_fps: Frames per second of a video; 0 for one per step.

    Args:
        **parameters: New values of the class's own attributes, such as ``frame_skip=2``: what `env_kwargs` sets.

    Raises:
        TaskError: The task lacks something or contradicts itself, or its model cannot be loaded.
        TypeError: The class has no attribute of the name of a parameter.
    """

    xml = ""
    frame_skip = 1
    keyframe = ""
    render_fps = 0

    init_qpos: NDArray[np.float64]
    init_qvel: NDArray[np.float64]

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        import mujoco

        kind = type(self).__name__
        for name in ("step", "observe"):
            if not self.defines(name):
                raise TaskError(f"{kind} must define {name}(self, {', '.join(_SIGNATURES[name])})")
        if not isinstance(self.frame_skip, int) or self.frame_skip < 1:
            raise TaskError(f"{kind}.frame_skip must be a whole number of at least 1; got {self.frame_skip!r}")
        source = self.make_model()
        if isinstance(source, mujoco.MjSpec):
            source = source.compile()
        if not isinstance(source, mujoco.MjModel):
            raise TaskError(f"{kind}.make_model() must return an MjModel or an MjSpec; got {type(source).__name__}")
        self.model = source
        self.dt = self.frame_skip * float(self.model.opt.timestep)
        self.keyframe_id = -1
        self.init_qpos, self.init_qvel = self.model.qpos0.copy(), np.zeros(self.model.nv)
        if self.keyframe:
            self.keyframe_id = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_KEY, self.keyframe)
            if self.keyframe_id < 0:
                known = [self.model.key(index).name for index in range(self.model.nkey)]
                raise TaskError(f"{kind}.keyframe must be one of the model's {known}; got {self.keyframe!r}")
            key = self.model.key(self.keyframe_id)
            self.init_qpos, self.init_qvel = key.qpos.copy(), key.qvel.copy()
        self.build()
        self._check_actions()
        self.built()

    def make_model(self) -> Any:
        """Returns the model, an `mujoco.MjModel` or `mujoco.MjSpec`. By default it is loaded from `xml`."""
        import mujoco

        if not self.xml:
            raise TaskError(f"{type(self).__name__} must set xml, or define make_model")
        text = "<mujoco" in self.xml
        path = "" if text else self.find_xml(self.xml)
        try:
            return mujoco.MjModel.from_xml_string(self.xml) if text else mujoco.MjModel.from_xml_path(path)
        except ValueError as error:
            raise TaskError(
                f"{type(self).__name__}: the model cannot be loaded: {' '.join(str(error).split())}"
            ) from None

    def find_xml(self, name: str) -> str:
        """Returns the path of a model: an absolute one, beside the file of the class, or among Gymnasium's models.

        Raises:
            TaskError: There is no such file. The message says where it was looked for.
        """
        from gymnasium.envs.mujoco import mujoco_env

        path = Path(name).expanduser()
        places = [path]
        if not path.is_absolute():
            folders = [folder for kind in type(self).__mro__ if (folder := _folder_of(kind)) is not None]
            places = [folder / path for folder in (*folders, Path(mujoco_env.__file__).parent / "assets")]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            looked = ", ".join(dict.fromkeys(map(str, places)))
            hint = nearest(path.name, [file.name for file in places[-1].parent.glob("*.xml")])
            raise TaskError(f"{type(self).__name__}: there is no model {name}; looked for {looked}{hint}")
        return str(found)

    def _check_actions(self) -> None:
        kind, model = type(self).__name__, self.model
        if not hasattr(self, "action_space"):
            low, high = model.actuator_ctrlrange.astype(np.float32).T
            if model.nu == 0 or (low >= high).any():
                raise TaskError(
                    f"{kind}: the model must have actuators with a ctrlrange; else build must set self.action_space"
                )
            self.action_space = Box(low, high, dtype=np.float32)
        space = self.action_space
        if not isinstance(space, Box) or space.dtype != np.float32 or len(space.shape) != 1:
            raise TaskError(f"{kind}.action_space must be a float32 Box of one dimension; got {space}")
        if space.shape[0] != model.nu and not self.defines("control"):
            raise TaskError(
                f"{kind} must define control(self, data, action, memory), since its actions have {space.shape[0]} "
                f"numbers and the model has {model.nu} actuators"
            )


class GymnasiumTask(_Task):
    """One of Gymnasium's MuJoCo tasks with another reward or another end.

    A subclass sets `env_id` and defines `step`, `observe` if it wants another observation, and `build` and
    `before_step` as in `MujocoTask`. The physics, the initial states and the actions are those of Gymnasium's task.

    In `step`, ``terms.reward`` and ``terms.terminated`` (0 or 1) are those of Gymnasium's task, and ``terms`` has what
    they were made of as far as the task has it: ``x_velocity``, ``y_velocity``, ``forward``, ``healthy``, ``control``
    and ``contact``, with Gymnasium's weights, costs as positive numbers. Arms have the distance term in
    ``forward``, and Pusher the near term in ``contact``. InvertedDoublePendulum has its penalties of distance in
    ``forward`` and of velocity in ``control``. Those classes have all of these as Gymnasium reports them: negative.
    The class's own `terms` come after these.

    Attributes:
        env_id: The id of Gymnasium's task, such as "HalfCheetah-v5".
        env_kwargs: Keyword arguments of `gymnasium.make` for it.
        memory: See `MujocoTask`. An episode starts with these values.
        terms: The names of further parts of the reward.

    Args:
        **parameters: New values of the class's own attributes.

    Raises:
        TaskError: The task lacks something or contradicts itself.
        TypeError: The class has no attribute of the name of a parameter.
    """

    env_id = ""
    env_kwargs: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        if not self.env_id:
            raise TaskError(f"{type(self).__name__} must set env_id, such as HalfCheetah-v5")
        if not self.defines("step"):
            raise TaskError(f"{type(self).__name__} must define step(self, {', '.join(_SIGNATURES['step'])})")
        for name in ("control", "reset", "xml", "frame_skip", "keyframe"):
            if inspect.getattr_static(type(self), name, None) is not inspect.getattr_static(GymnasiumTask, name, None):
                raise TaskError(f"{type(self).__name__} must not define {name}: {self.env_id} has its own")


def _folder_of(kind: type) -> Path | None:
    """Returns the folder of the file of a user's class; None for the classes of this module and of Python."""
    if kind.__module__ in (__name__, "builtins"):
        return None
    try:
        return Path(inspect.getfile(kind)).absolute().parent
    except (TypeError, OSError):
        return None


def _check_signature(kind: type, name: str, method: Any, wanted: tuple[str, ...]) -> None:
    given = tuple(inspect.signature(method).parameters)[1:]
    if given != wanted:
        raise TaskError(f"{kind.__name__} must define {name}(self, {', '.join(wanted)}); got ({', '.join(given)})")
