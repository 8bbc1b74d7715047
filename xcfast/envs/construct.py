"""Makes one environment by its Gymnasium id, with errors that say what is missing."""

import contextlib
import difflib
import re
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from xcfast.envs.opengl import opengl_problem
from xcfast.errors import EnvError


@dataclass(frozen=True)
class EnvConstructor:
    """A constructor of one environment that cloudpickle can pickle.

    Attributes:
        env_id: Gymnasium id, or "module:id".
        kwargs: Arguments for `gymnasium.make`.
        spec: What this process has registered under the id, where that is a class or a function: another process does
            not know it.
    """

    env_id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    spec: EnvSpec | None = None

    def __call__(self) -> gymnasium.Env:
        """Makes the environment.

        Raises:
            EnvError: the id is unknown, or a package or library that it needs is missing.
        """
        try:
            with _without_deprecation_noise(self.env_id):
                return gymnasium.make(self.spec or self.env_id, disable_env_checker=True, **self.kwargs)
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
    spec = gymnasium.registry.get(env_id)
    return EnvConstructor(env_id, kwargs, spec if spec is not None and callable(spec.entry_point) else None)


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
