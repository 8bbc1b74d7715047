"""Makes one environment by its Gymnasium id, with errors that say what is missing."""

import contextlib
import difflib
import importlib
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from xcfast.envs.opengl import opengl_problem
from xcfast.errors import EnvError

_MUJOCO_TASKS = "gymnasium.envs.mujoco"
_WRONG_ARGUMENT = re.compile(r"missing \d+ required|unexpected keyword argument|multiple values for|takes .*argument")


@dataclass(frozen=True)
class EnvWrapper:
    """A wrapper of one environment, by name.

    Attributes:
        name: Its class as "module:Class".
        kwargs: Keyword arguments of the class.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, env: gymnasium.Env) -> gymnasium.Env:
        """Wraps an environment.

        Raises:
            EnvError: The class cannot be imported, or cannot wrap this environment with these arguments.
        """
        module, _, path = self.name.partition(":")
        try:
            kind: Any = importlib.import_module(module)
            for name in path.split("."):
                kind = getattr(kind, name)
        except ImportError as error:
            raise EnvError(f"env_wrappers: {self.name!r} cannot be imported: {error}") from None
        except AttributeError:
            raise EnvError(f"env_wrappers: {self.name!r}: the module {module} has no {path}") from None
        given = f" with {dict(self.kwargs)}" if self.kwargs else ""
        try:
            wrapped = kind(env, **self.kwargs)
        except Exception as error:
            raise EnvError(f"env_wrappers: {self.name!r} cannot be applied{given}: {_one_line(error)}") from error
        if not isinstance(wrapped, gymnasium.Env):
            raise EnvError(f"env_wrappers: {self.name!r} must make a gymnasium.Env; got {type(wrapped).__name__}")
        return wrapped


@dataclass(frozen=True)
class EnvConstructor:
    """A constructor of one environment that can be pickled.

    Attributes:
        env_id: The id given to `gymnasium.make`.
        kwargs: The keyword arguments given to `gymnasium.make`.
        wrappers: The wrappers around the environment, the innermost first.
        spec: The registration of the id in the process that made this constructor, or None. A worker process needs it,
            because it has not run the user's script, which may have registered the id.
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[EnvWrapper, ...] = ()
    spec: EnvSpec | None = None

    def __call__(self) -> gymnasium.Env:
        """Makes the environment.

        Raises:
            EnvError: The id is unknown, a package or library that it needs is missing, its constructor does not take
                the arguments, or a wrapper cannot be applied.
        """
        env = self._make()
        try:
            for wrapper in self.wrappers:
                env = wrapper(env)
        except BaseException:
            env.close()
            raise
        return env

    def _make(self) -> gymnasium.Env:
        env_id = self.env_id
        if not re.fullmatch(r"([^:]+:)?[^:]+", env_id):
            raise EnvError(f"env_id must be a registered Gymnasium id or 'module:id'; got {env_id!r}")
        try:
            with _without_deprecation_noise(env_id, self.spec):
                return gymnasium.make(self.spec or env_id, disable_env_checker=True, **self.kwargs)
        except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
            raise EnvError(unknown_id_message(env_id, error)) from None
        except EnvError:  # of a task of one's own, and a whole sentence
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            if any("mujoco" in frame.filename for frame in frames) and (problem := opengl_problem()):
                raise EnvError(f"env_id {env_id!r} cannot be made: {problem}") from None
            if isinstance(error, gymnasium.error.DependencyNotInstalled | ImportError):
                raise EnvError(missing_dependency_message(env_id, error)) from error
            if isinstance(error, gymnasium.error.Error) or frames[-1].name == load_env_creator.__name__:
                raise EnvError(_registration_message(env_id, error)) from error
            given = {name: value for name, value in self.kwargs.items() if name != "render_mode"}
            if given or (isinstance(error, TypeError) and _WRONG_ARGUMENT.search(str(error))):
                how = f" with env_kwargs {given}" if given else ""
                raise EnvError(f"env_id {env_id!r} cannot be made{how}: {_one_line(error)}") from error
            raise


def make_env_fn(env_id: str | type, **kwargs: Any) -> EnvConstructor:
    """Returns a constructor of the environment `env_id` that can be pickled, without Gymnasium's environment checker.

    Args:
        env_id: A registered id, or "module:id"; or the class of a task of one's own, see `xcfast.tasks`.
        **kwargs: Keyword arguments of `gymnasium.make`.

    Raises:
        TaskError: A class is not that of a task.
    """
    return env_constructor(env_id, kwargs)


def env_constructor(
    env_id: str | type, kwargs: Mapping[str, Any], wrappers: Iterable[EnvWrapper] = ()
) -> EnvConstructor:
    """Returns a picklable constructor of the environment `env_id`, which carries the id's registration along.

    Args:
        env_id: A registered id, or "module:id"; or the class of a task of one's own.
        kwargs: Keyword arguments of `gymnasium.make`.
        wrappers: Wrappers around the environment, the innermost first.

    Raises:
        TaskError: A class is not that of a task.
    """
    if isinstance(env_id, type):
        from xcfast.tasks.registration import task_spec

        task = task_spec(env_id)
        return EnvConstructor(task.id, dict(kwargs), tuple(wrappers), task)
    spec = gymnasium.registry.get(env_id)
    if spec is not None and isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        creator: Any = load_env_creator(spec.entry_point)
        spec = replace(spec, entry_point=creator)  # a worker has another main module
    return EnvConstructor(env_id, dict(kwargs), tuple(wrappers), spec)


def configured_env_fn(config: Any, render_mode: str | None = None) -> EnvConstructor:
    """Returns the constructor of a configuration's environment, with its arguments and wrappers.

    Args:
        config: The configuration. Its env_id is read, and its env_kwargs and env_wrappers if it has them.
        render_mode: The render mode for `gymnasium.make`.

    Raises:
        EnvError: env_kwargs or env_wrappers has a form that is not allowed.
    """
    kwargs = getattr(config, "env_kwargs", {}) or {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise EnvError(f"env_kwargs must be a mapping of the environment's arguments to their values; got {kwargs!r}")
    if taken := sorted({"render_mode", "disable_env_checker", "id"} & kwargs.keys()):
        raise EnvError(f"env_kwargs must not contain {taken[0]}, which xcfast sets itself")
    if render_mode:
        kwargs = {**kwargs, "render_mode": render_mode}
    return env_constructor(config.env_id, kwargs, parse_wrappers(getattr(config, "env_wrappers", ())))


def parse_wrappers(entries: Any) -> tuple[EnvWrapper, ...]:
    """Returns the wrappers that the configuration's key `env_wrappers` names.

    Args:
        entries: A list of "module:Class" and {"module:Class": {keyword arguments}}, the innermost wrapper first.

    Raises:
        EnvError: An entry has another form.
    """
    if not isinstance(entries, list | tuple):
        raise EnvError(f"env_wrappers must be a list; got {entries!r}")
    wrappers = []
    for entry in entries:
        name, kwargs = next(iter(entry.items())) if isinstance(entry, Mapping) and len(entry) == 1 else (entry, {})
        kwargs = {} if kwargs is None else kwargs
        named = isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name)
        if not named or not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
            raise EnvError(
                "an entry of env_wrappers must be 'module:Class' or {'module:Class': {keyword arguments}}; "
                f"got {entry!r}"
            )
        wrappers.append(EnvWrapper(name, dict(kwargs)))
    return tuple(wrappers)


@contextlib.contextmanager
def _without_deprecation_noise(env_id: str, spec: EnvSpec | None) -> Iterator[None]:
    """Drops the deprecation notices of making one environment: those of Gymnasium and those of MuJoCo's compiler.

    The user chooses the version of a task (published results are for v4), and cannot change Gymnasium's model files.
    MuJoCo would print its notice once per environment and write it to a file in the working folder.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date.*", category=DeprecationWarning)
        if not _is_mujoco_task(env_id, spec):
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


def _is_mujoco_task(env_id: str, spec: EnvSpec | None) -> bool:
    """Returns whether the environment's class is one of Gymnasium's MuJoCo tasks, or derived from one.

    An entry point may be a function, which does not reveal the class. It counts as a MuJoCo task once MuJoCo has been
    imported.
    """
    try:
        module, _, name = env_id.rpartition(":")
        if spec is None and module:
            importlib.import_module(module)  # registers the id
        spec = spec or gymnasium.registry.get(name)
        entry_point = None if spec is None else spec.entry_point
        creator: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    except Exception:  # gymnasium.make raises it again, and says what is wrong
        return False
    if isinstance(creator, type):
        return any(base.__module__.startswith((_MUJOCO_TASKS, "xcfast.tasks.")) for base in creator.__mro__)
    return creator is not None and "mujoco" in sys.modules


def _drop_deprecation(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def unknown_id_message(env_id: str, error: Exception) -> str:
    """Returns a sentence that says that `env_id` is not registered, and which id is the nearest."""
    known = [str(name) for name in gymnasium.registry]
    lower = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(env_id.lower(), lower, n=1, cutoff=0.6)
    hint = f"the nearest is {lower[nearest[0]]!r}" if nearest else str(error)
    return f"env_id {env_id!r} is not a registered Gymnasium id; {hint}"


def missing_dependency_message(env_id: str, error: Exception) -> str:
    """Returns a sentence that says which package `env_id` needs and how to install it."""
    text = _one_line(error)
    extra = re.search(r"gymnasium\[([\w-]+)\]", text)
    if re.search("box2d", text, re.IGNORECASE):
        return f'env_id {env_id!r} needs Box2D: pip install "gymnasium[box2d]"'
    if extra:
        return f'env_id {env_id!r} needs a package that is not installed: pip install "gymnasium[{extra.group(1)}]"'
    return f"env_id {env_id!r} cannot be made: {text}"


def _registration_message(env_id: str, error: Exception) -> str:
    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    if spec is None or spec.entry_point is not None:
        return f"env_id {env_id!r} cannot be made: {_one_line(error)}"
    single = spec.kwargs.get("env_id")
    hint = f"; env_id: {single} is the single environment" if isinstance(single, str) else ""
    return f"env_id {env_id!r} has only a vector entry point, and a single environment is needed{hint}"


def _one_line(error: Exception) -> str:
    """Returns the error's text without line breaks, and without what Gymnasium appends to a constructor's error."""
    text = " ".join(str(error).split()).partition(" was raised from the environment creator for ")[0]
    return text or type(error).__name__
