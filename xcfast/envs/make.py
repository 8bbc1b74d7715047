"""Makes vector environments: native ones if the engine can step the task, else those that the configuration names."""

import importlib
import inspect
import sys
from typing import Any, Protocol

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode

from xcfast.envs.classic import ClassicControlVecEnv
from xcfast.envs.construct import EnvConstructor, configured_env_fn, env_constructor
from xcfast.envs.mujoco import MujocoVecEnv
from xcfast.envs.serial import DummyVecEnv
from xcfast.envs.subproc import SubprocVecEnv
from xcfast.envs.vec_env import VecEnv
from xcfast.errors import EnvError, NotNativeError, WorkerError
from xcfast.resources import available_cpus
from xcfast.tasks import is_task_env

NativeKind = type[MujocoVecEnv] | type[ClassicControlVecEnv]
_NATIVE: dict[str, NativeKind] = {"MujocoVecEnv": MujocoVecEnv, "ClassicControlVecEnv": ClassicControlVecEnv}
_VECTORIZE = ("DummyVecEnv", "SubprocVecEnv", *_NATIVE)
# The modules that define the classes that a native engine knows.
_MODULES: dict[str, NativeKind] = {
    "gymnasium.envs.mujoco.": MujocoVecEnv,
    "gymnasium.envs.classic_control": ClassicControlVecEnv,
}
_announced: set[str] = set()


class EnvConfig(Protocol):
    """The part of the configuration that decides the environments.

    These keys are read too, if it has them: native_envs (default "auto"), num_threads (0), use_actions_mask (False),
    env_timeout (60.0), env_kwargs ({}), env_wrappers ([]).
    """

    @property
    def env_id(self) -> str: ...  # noqa: D102
    @property
    def parallels(self) -> int: ...  # noqa: D102
    @property
    def vectorize(self) -> str: ...  # noqa: D102
    @property
    def num_workers(self) -> int: ...  # noqa: D102


def make_envs(
    config: EnvConfig, *, num_envs: int | None = None, render_mode: str | None = None, sharing: int = 1
) -> VecEnv:
    """Makes the vector environment of a configuration. It returns its internal arrays instead of copies (`copy=False`).

    With `native_envs: auto`, Gymnasium's own MuJoCo and classic control tasks are stepped natively, whatever
    `vectorize` says: the numbers are the same. One line on stderr says so.

    Args:
        config: The configuration. Its env_id, env_kwargs, env_wrappers, parallels, vectorize, native_envs, num_workers,
            num_threads (0: as many as there are CPUs), env_timeout and use_actions_mask are read. Its render_mode is
            not, since training does not render.
        num_envs: The number of environments instead of `config.parallels`.
        render_mode: The render mode for `gymnasium.make`.
        sharing: The number of processes that share the CPUs; this one takes its part of them.

    Returns:
        The vector environment, not yet reset. `reset(seed=config.env_seed)` seeds environment i with env_seed + i.

    Raises:
        EnvError: The environment cannot be made, its observations or actions are not supported, or it has no masks.
    """
    num_envs = config.parallels if num_envs is None else num_envs
    if num_envs < 1:
        raise EnvError(f"num_envs must be at least 1; got {num_envs}")
    if config.vectorize not in _VECTORIZE:
        raise EnvError(f"vectorize must be one of {', '.join(_VECTORIZE)}; got {config.vectorize!r}")
    part = None if sharing == 1 else max(1, available_cpus() // sharing)
    try:
        num_threads, num_workers = getattr(config, "num_threads", 0) or part, config.num_workers or part
        envs = _make(config, num_envs, num_threads, num_workers, render_mode)
    except WorkerError as error:
        if error.exception_type != EnvError.__name__:
            raise
        raise EnvError(error.exception_message) from None
    if isinstance(envs.single_observation_space, Discrete):
        envs.close()
        raise EnvError(
            f"{config.env_id} has Discrete observations, which policies do not support; "
            "gymnasium.wrappers.FlattenObservation turns them into one-hot vectors"
        )
    return envs


def _make(
    config: EnvConfig, num_envs: int, num_threads: int | None, num_workers: int | None, render_mode: str | None
) -> VecEnv:
    constructor, masks = configured_env_fn(config, render_mode), bool(getattr(config, "use_actions_mask", False))
    if config.vectorize in _NATIVE or (getattr(config, "native_envs", "auto") == "auto" and not masks):
        envs = _native_if_it_serves(config, num_envs, num_threads, constructor)
        if envs is not None and masks:
            envs.close()
            raise _no_masks(config.env_id)
        if envs is not None:
            return envs
    env_fns = [constructor] * num_envs
    if config.vectorize == "DummyVecEnv":
        return DummyVecEnv(env_fns, copy=False, action_masks=masks)
    timeout = getattr(config, "env_timeout", 60.0)
    return SubprocVecEnv(env_fns, num_workers, timeout, copy=False, action_masks=masks)


def _native_if_it_serves(
    config: EnvConfig, num_envs: int, num_threads: int | None, constructor: EnvConstructor
) -> VecEnv | None:
    """Makes the native vector environment, or returns None if the engine cannot step the task.

    Prints a line if the native environment replaces the one that `vectorize` names. Prints the reason for None if
    `vectorize` names a native environment, or if the reason is a wrapper.
    """
    env_id, vectorize = config.env_id, config.vectorize
    kind = _NATIVE.get(vectorize) or native_kind(env_id)
    if kind is None:
        return None
    other = vectorize if vectorize not in _NATIVE else "SubprocVecEnv"
    if constructor.wrappers:
        _announce(f"{env_id} is stepped by {other}, not by the native engine: env_wrappers wraps it")
        return None
    if kind_takes := constructor.kwargs.keys() & inspect.signature(kind).parameters.keys():
        raise EnvError(f"env_kwargs: no environment of {kind.__name__} takes {min(kind_takes)}")
    try:
        envs = kind(env_id, num_envs, num_threads, copy=False, **constructor.kwargs)
    except (NotNativeError, ImportError) as error:
        if vectorize in _NATIVE or (isinstance(error, NotNativeError) and is_own_task(env_id)):
            if not isinstance(error, NotNativeError):
                raise
            reason = f"{env_id} is stepped by {other}, not by the native engine: {error}"
            if vectorize in _NATIVE:
                print(f"xcfast: {reason}", file=sys.stderr)
            else:
                _announce(reason)
        return None
    if vectorize not in _NATIVE:
        numbers = f"{env_id} is stepped by {kind.__name__}, with the numbers of {vectorize}"
        _announce(f"{numbers}; native_envs: off forbids it")
    return envs


def _announce(line: str) -> None:
    """Prints a line on stderr, once per process."""
    if line not in _announced:
        _announced.add(line)
        print(f"xcfast: {line}", file=sys.stderr)


def _no_masks(env_id: str | type) -> EnvError:
    return EnvError(f"{env_id} has no action masks; set use_actions_mask: False to train without them")


def native_kind(env_id: str) -> NativeKind | None:
    """Returns the native vector environment that may step a registered id, or None.

    The module of the registered class decides; the constructor of that vector environment checks further. The
    module of "module:id" is imported.
    """
    if is_own_task(env_id):
        return MujocoVecEnv
    registered = _registered(env_id)
    place = "" if registered is None else str(registered.entry_point)
    return next((kind for module, kind in _MODULES.items() if place.startswith(module)), None)


def is_own_task(env_id: str | type) -> bool:
    """Returns whether an id, or a class, is that of a task of one's own; see `xcfast.tasks`."""
    if isinstance(env_id, type):
        return True
    registered = _registered(env_id)
    return registered is not None and is_task_env(registered.entry_point)


def _registered(env_id: str) -> EnvSpec | None:
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError:  # gymnasium.make raises it again, and the caller says what is wrong
            return None
    return gymnasium.registry.get(name)


def make_task_envs(num_envs: int = 1, *, task: type, **kwargs: Any) -> VecEnv:
    """Makes the vector environment of a task of one's own, for `gymnasium.make_vec`; see `make_native_or_subproc`."""
    return make_native_or_subproc(task, num_envs, **kwargs)


def make_native_or_subproc(
    env_id: str | type,
    num_envs: int = 1,
    num_threads: int | None = None,
    infos: bool = False,
    *,
    kind: NativeKind | None = None,
    num_workers: int | None = None,
    timeout: float = 60.0,
    copy: bool = True,
    action_masks: bool = False,
    autoreset_mode: str | AutoresetMode = "same_step",
    episode_statistics: bool = True,
    **env_kwargs: Any,
) -> VecEnv:
    """Makes a native vector environment, or else a SubprocVecEnv, after printing the reason on stderr.

    Args:
        env_id: Gymnasium's id, or the class of a task of one's own.
        num_envs: The number of environments, N.
        num_threads: The number of threads of the native one.
        infos: Whether to deliver the environments' own infos too.
        kind: The native one; by default the one for `env_id`.
        num_workers: The number of processes of SubprocVecEnv.
        timeout: The timeout of SubprocVecEnv, in seconds.
        copy: Whether `reset` and `step` return copies.
        action_masks: Whether to deliver the masks of allowed actions.
        autoreset_mode: "same_step" or "next_step", see `VecEnv`.
        episode_statistics: Whether infos report each episode's return and length.
        **env_kwargs: Keyword arguments of `gymnasium.make`.

    Raises:
        EnvError: Gymnasium cannot make it, or it has no action masks (no native task has any).
    """
    shared: dict[str, Any] = {
        "copy": copy,
        "infos": infos,
        "autoreset_mode": autoreset_mode,
        "episode_statistics": episode_statistics,
    }
    kind = kind or (MujocoVecEnv if isinstance(env_id, type) else native_kind(env_id)) or MujocoVecEnv
    try:
        envs = kind(env_id, num_envs, num_threads, **shared, **env_kwargs)
        if not action_masks:
            return envs
        envs.close()
        raise _no_masks(env_id)
    except NotNativeError as error:
        print(f"xcfast: {env_id} is stepped by SubprocVecEnv, not by the native engine: {error}", file=sys.stderr)
    env_fns = [env_constructor(env_id, env_kwargs)] * num_envs
    return SubprocVecEnv(env_fns, num_workers, timeout, action_masks=action_masks, **shared)
