"""Makes vector environments: natively where the engine can serve, else as the configuration says."""

import sys
from typing import Any, Protocol

import gymnasium
from gymnasium.spaces import Discrete

from xcfast.envs.classic import ClassicControlVecEnv
from xcfast.envs.construct import make_env_fn
from xcfast.envs.mujoco import MujocoVecEnv
from xcfast.envs.serial import DummyVecEnv
from xcfast.envs.subproc import SubprocVecEnv
from xcfast.envs.vec_env import VecEnv
from xcfast.errors import EnvError, NotNativeError, WorkerError
from xcfast.resources import available_cpus

NativeKind = type[MujocoVecEnv] | type[ClassicControlVecEnv]
_NATIVE: dict[str, NativeKind] = {"MujocoVecEnv": MujocoVecEnv, "ClassicControlVecEnv": ClassicControlVecEnv}
_VECTORIZE = ("DummyVecEnv", "SubprocVecEnv", *_NATIVE)
# Where the classes that a native engine knows are defined.
_MODULES: dict[str, NativeKind] = {
    "gymnasium.envs.mujoco.": MujocoVecEnv,
    "gymnasium.envs.classic_control": ClassicControlVecEnv,
}
_announced: set[str] = set()


class EnvConfig(Protocol):
    """The part of the configuration that decides the environments.

    These keys are read too where there are any: native_envs (auto), num_threads (0), use_actions_mask (False).
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
    """Makes the vector environment of a configuration, with internal buffers handed out (`copy=False`).

    With `native_envs: auto`, Gymnasium's own MuJoCo and classic control tasks are stepped natively, whatever
    `vectorize` says: the numbers are the same. One line on stderr says so.

    Args:
        config: its env_id, parallels, vectorize, native_envs, num_workers, num_threads (0: as many as there are CPUs)
            and use_actions_mask are read. Its render_mode is not: an environment that trains does not render.
        num_envs: number of environments instead of `config.parallels`.
        render_mode: for `gymnasium.make`.
        sharing: number of processes that share this one's CPUs; where all CPUs are wanted, it takes its part.

    Returns:
        The vector environment, not yet reset; the caller's `reset(seed=config.env_seed)` seeds env i with env_seed + i.

    Raises:
        EnvError: the environment cannot be made, its observations or actions are not supported, or it has no masks.
    """
    num_envs = config.parallels if num_envs is None else num_envs
    if num_envs < 1:
        raise EnvError(f"num_envs must be at least 1; got {num_envs}")
    if config.vectorize not in _VECTORIZE:
        raise EnvError(f"vectorize must be one of {', '.join(_VECTORIZE)}; got {config.vectorize!r}")
    kwargs: dict[str, Any] = {"render_mode": render_mode} if render_mode else {}
    part = None if sharing == 1 else max(1, available_cpus() // sharing)
    try:
        envs = _make(config, num_envs, getattr(config, "num_threads", 0) or part, config.num_workers or part, kwargs)
    except WorkerError as error:
        if error.exception_type != EnvError.__name__:
            raise
        raise EnvError(error.exception_message) from None
    if isinstance(envs.single_observation_space, Discrete):
        envs.close()
        raise EnvError(
            f"{config.env_id} has Discrete observations, which the policy does not take; "
            "gymnasium.wrappers.FlattenObservation turns them into one-hot vectors"
        )
    return envs


def _make(
    config: EnvConfig, num_envs: int, num_threads: int | None, num_workers: int | None, kwargs: dict[str, Any]
) -> VecEnv:
    env_id, masks = config.env_id, bool(getattr(config, "use_actions_mask", False))
    if config.vectorize in _NATIVE:
        kind = _NATIVE[config.vectorize]
        return make_native_or_subproc(
            env_id, num_envs, num_threads, kind=kind, num_workers=num_workers, copy=False, action_masks=masks, **kwargs
        )
    if getattr(config, "native_envs", "auto") == "auto" and not masks:
        envs = _native_if_it_serves(env_id, num_envs, num_threads, config.vectorize, kwargs)
        if envs is not None:
            return envs
    env_fns = [make_env_fn(env_id, **kwargs)] * num_envs
    if config.vectorize == "DummyVecEnv":
        return DummyVecEnv(env_fns, copy=False, action_masks=masks)
    return SubprocVecEnv(env_fns, num_workers, copy=False, action_masks=masks)


def _native_if_it_serves(
    env_id: str, num_envs: int, num_threads: int | None, vectorize: str, kwargs: dict[str, Any]
) -> VecEnv | None:
    kind = native_kind(env_id)
    if kind is None:
        return None
    try:
        envs = kind(env_id, num_envs, num_threads, copy=False, **kwargs)
    except (NotNativeError, ImportError):
        return None
    if env_id not in _announced:
        _announced.add(env_id)
        print(
            f"xcfast: {env_id} is stepped by {kind.__name__}, with the numbers of {vectorize}; "
            "native_envs: off forbids it",
            file=sys.stderr,
        )
    return envs


def native_kind(env_id: str) -> NativeKind | None:
    """The native vector environment that may serve a registered id, by the place of its class; None if none may."""
    registered = gymnasium.registry.get(env_id.rpartition(":")[2])
    place = "" if registered is None else str(registered.entry_point)
    return next((kind for module, kind in _MODULES.items() if place.startswith(module)), None)


def make_native_or_subproc(
    env_id: str,
    num_envs: int = 1,
    num_threads: int | None = None,
    infos: bool = False,
    *,
    kind: NativeKind | None = None,
    num_workers: int | None = None,
    copy: bool = True,
    action_masks: bool = False,
    **env_kwargs: Any,
) -> VecEnv:
    """Makes a native vector environment; where the engine cannot serve, a SubprocVecEnv, and says why on stderr.

    Args:
        env_id: Gymnasium's id.
        num_envs: N.
        num_threads: of the native one.
        infos: of either.
        kind: the native one; by default the one for `env_id`.
        num_workers: of SubprocVecEnv.
        copy: of either.
        action_masks: of SubprocVecEnv.
        **env_kwargs: for `gymnasium.make`.

    Raises:
        EnvError: Gymnasium cannot make it; or masks are wanted, and it is native: none of those tasks has any.
    """
    kind = kind or native_kind(env_id) or MujocoVecEnv
    try:
        envs = kind(env_id, num_envs, num_threads, infos, copy=copy, **env_kwargs)
        if not action_masks:
            return envs
        envs.close()
        raise EnvError(f"{env_id} delivers no action masks; use_actions_mask: False trains without")
    except NotNativeError as error:
        print(f"xcfast: {env_id} is stepped by SubprocVecEnv, not by the native engine: {error}", file=sys.stderr)
    env_fns = [make_env_fn(env_id, **env_kwargs)] * num_envs
    return SubprocVecEnv(env_fns, num_workers, copy=copy, infos=infos, action_masks=action_masks)
