"""Makes environments by their Gymnasium id, and vector environments from a configuration."""

import contextlib
import difflib
import importlib
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
from gymnasium.spaces import Discrete

from xcfast.envs.classic import ClassicControlVecEnv
from xcfast.envs.cpus import available_cpus
from xcfast.envs.dummy import DummyVecEnv
from xcfast.envs.errors import EnvError, NotNativeError, WorkerError
from xcfast.envs.mujoco import MujocoVecEnv
from xcfast.envs.native_notice import mention_native, native_kind
from xcfast.envs.subproc import SubprocVecEnv
from xcfast.envs.vec_env import VecEnv
from xcfast.rendering import opengl_problem

VECTORIZE = ("DummyVecEnv", "SubprocVecEnv", "MujocoVecEnv", "ClassicControlVecEnv")
_NATIVE = {kind.__name__: kind for kind in (MujocoVecEnv, ClassicControlVecEnv)}


class EnvConfig(Protocol):
    """The part of the configuration that decides the environments."""

    @property
    def env_id(self) -> str: ...  # noqa: D102
    @property
    def parallels(self) -> int: ...  # noqa: D102
    @property
    def vectorize(self) -> str: ...  # noqa: D102
    @property
    def num_workers(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class EnvConstructor:
    """A picklable constructor of one environment."""

    env_id: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> gymnasium.Env:
        """Makes the environment.

        Raises:
            EnvError: the id is unknown, or a package or library that it needs is missing.
        """
        try:
            with _without_deprecation_noise(self.env_id):
                return gymnasium.make(self.env_id, disable_env_checker=True, **self.kwargs)
        except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
            raise EnvError(unknown_id_message(self.env_id, error)) from None
        except Exception as error:
            in_mujoco = any("mujoco" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
            if in_mujoco and (problem := opengl_problem()):
                raise EnvError(f"env_id {self.env_id!r} cannot be made: {problem}") from None
            if isinstance(error, gymnasium.error.DependencyNotInstalled | ImportError):
                raise EnvError(missing_dependency_message(self.env_id, error)) from error
            raise


def make_env_fn(env_id: str, **kwargs: Any) -> EnvConstructor:
    """A picklable constructor of the environment `env_id`, without Gymnasium's environment checker.

    Args:
        env_id: a registered id, or "module:id".
        **kwargs: for `gymnasium.make`.
    """
    return EnvConstructor(env_id, kwargs)


def make_native_or_subproc(
    env_id: str,
    num_envs: int = 1,
    num_threads: int | None = None,
    infos: bool = False,
    *,
    kind: type[MujocoVecEnv] | type[ClassicControlVecEnv] | None = None,
    num_workers: int | None = None,
    copy: bool = True,
    action_masks: bool = False,
    **env_kwargs: Any,
) -> VecEnv:
    """A native vector environment; where the engine cannot serve, a SubprocVecEnv, after one line on stderr why.

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
        EnvError: Gymnasium cannot make it; or masks are asked for, and it is native: none of those tasks has any.
    """
    try:
        envs = (kind or native_kind(env_id))(env_id, num_envs, num_threads, infos, copy=copy, **env_kwargs)
        if not action_masks:
            return envs
        envs.close()
        raise EnvError(f"{env_id} delivers no action masks; use_actions_mask: False trains without")
    except NotNativeError as error:
        print(f"xcfast: {env_id} is stepped by SubprocVecEnv, not by the native engine: {error}", file=sys.stderr)
    env_fns = [make_env_fn(env_id, **env_kwargs)] * num_envs
    return SubprocVecEnv(env_fns, num_workers, copy=copy, infos=infos, action_masks=action_masks)


def make_envs(
    config: EnvConfig, *, num_envs: int | None = None, render_mode: str | None = None, sharing: int = 1
) -> VecEnv:
    """The vector environment that `config` asks for, with internal buffers handed out (`copy=False`).

    Args:
        config: its env_id, parallels, vectorize, num_workers, num_threads (0: as many as there are CPUs) and
            use_actions_mask are read. Its render_mode is not: an environment that trains does not render. Where a
            native kind cannot serve, SubprocVecEnv does, after one line that says why.
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
    masks = bool(getattr(config, "use_actions_mask", False))
    kwargs: dict[str, Any] = {"render_mode": render_mode} if render_mode else {}
    env_fns = [make_env_fn(config.env_id, **kwargs)] * num_envs
    if config.vectorize not in VECTORIZE:
        raise EnvError(f"vectorize must be one of {', '.join(VECTORIZE)}; got {config.vectorize!r}")
    part = None if sharing == 1 else max(1, available_cpus() // sharing)
    num_workers = config.num_workers or part
    try:
        if config.vectorize in _NATIVE:
            num_threads = getattr(config, "num_threads", 0) or part
            kind = _NATIVE[config.vectorize]
            more: dict[str, Any] = {"num_workers": num_workers, "action_masks": masks, **kwargs}
            envs: VecEnv = make_native_or_subproc(config.env_id, num_envs, num_threads, kind=kind, copy=False, **more)
        elif config.vectorize == "DummyVecEnv":
            mention_native(config.env_id, num_envs)
            envs = DummyVecEnv(env_fns, copy=False, action_masks=masks)
        else:
            envs = SubprocVecEnv(env_fns, num_workers, copy=False, action_masks=masks)
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


@contextlib.contextmanager
def _without_deprecation_noise(env_id: str) -> Iterator[None]:
    """Drops the deprecation notices of making one env: those of Gymnasium and those of MuJoCo's compiler.

    Which version of a task to train is the user's choice (v4 is what results are published for), and what Gymnasium's
    model files contain is not. MuJoCo would print its notice once per env and write it to a file in the folder.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date.*", category=DeprecationWarning)
        registered = gymnasium.registry.get(env_id)
        if registered is None or "gymnasium.envs.mujoco" not in str(registered.entry_point):
            yield
            return
        try:
            import mujoco

            previous = mujoco.get_mju_user_warning()
        except Exception:  # gymnasium.make says so; or an old MuJoCo without these functions
            yield
            return
        mujoco.set_mju_user_warning(_drop_deprecation)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(previous)


def _spec(env_id: str) -> Any:
    """The registered specification; of "module:id" after the module's import, which registers it."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    return gymnasium.spec(name)


def _drop_deprecation(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def unknown_id_message(env_id: str, error: Exception) -> str:
    """Says that `env_id` is not registered, and which id comes nearest."""
    known = [str(name) for name in gymnasium.registry]
    lower = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(env_id.lower(), lower, n=1, cutoff=0.6)
    hint = f"the nearest is {lower[nearest[0]]!r}" if nearest else str(error)
    return f"env_id {env_id!r} is not a registered Gymnasium id; {hint}"


def missing_dependency_message(env_id: str, error: Exception) -> str:
    """Says which package `env_id` needs and how to install it."""
    text = " ".join(str(error).split())
    extra = re.search(r"gymnasium\[([\w-]+)\]", text)
    if re.search("box2d", text, re.IGNORECASE):
        return f'env_id {env_id!r} needs Box2D: pip install "gymnasium[box2d]"'
    if extra:
        return f'env_id {env_id!r} needs a package that is not installed: pip install "gymnasium[{extra.group(1)}]"'
    return f"env_id {env_id!r} cannot be made: {text}"
