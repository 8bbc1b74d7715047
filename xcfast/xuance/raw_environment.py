"""A script's own environments, XuanCe's way: subclasses of ``RawEnvironment``, entered in ``REGISTRY_ENV``.

```python
class MyNewEnv(RawEnvironment): ...

REGISTRY_ENV["MyNewEnv"] = MyNewEnv  # the configuration says env_name: "MyNewEnv"
envs = make_envs(config)
```

Such an environment is registered with Gymnasium as ``<env_name>/<env_id>``, so everything that makes environments by
their id can make it.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from reprlib import repr as short_repr
from typing import Any, get_args

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete

from xcfast.config.keys import keys_of, nearest_name
from xcfast.config.schema import Config, hints
from xcfast.errors import ConfigError, EnvError

#: The `env_name` of the configuration -> the class; its constructor takes the configuration.
REGISTRY_ENV: dict[str, Callable[[Namespace], Any]] = {}

FAMILIES: tuple[str, ...] = get_args(hints()["env_name"])
_REFUSED = keys_of(Config)["env_name"].refused
# Keys that only some environments read.
_FOR_ENVIRONMENTS = ("max_episode_steps", "env_config")


class RawEnvironment(ABC):
    """Base class of a script's own environment, with XuanCe's interface.

    A subclass's constructor takes the configuration, a Namespace with all keys of the script, among them
    ``env_id`` and ``env_seed``, the seed of this environment. It calls ``super().__init__()`` and sets the attributes.

    Attributes:
        env: The simulation, if it is an object.
        observation_space: Gymnasium's space of the observations: Box or Discrete.
        action_space: Gymnasium's space of the actions: Box or Discrete.
        max_episode_steps: Number of steps after which an episode is truncated; None means no limit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.env: Any = None
        self.observation_space: gymnasium.Space[Any] | None = None
        self.action_space: gymnasium.Space[Any] | None = None
        self.max_episode_steps: int | None = None

    @abstractmethod
    def reset(self, **kwargs: Any) -> Any:
        """Begins an episode; returns the first observation and an info dict."""

    @abstractmethod
    def step(self, action: Any) -> Any:
        """Makes one step; returns observation, reward, terminated, truncated and an info dict."""

    @abstractmethod
    def render(self, *args: Any, **kwargs: Any) -> Any:
        """Returns a picture, uint8 [height, width, 3]."""

    @abstractmethod
    def close(self) -> Any:
        """Closes the environment."""


def is_own(env_name: Any) -> bool:
    """Returns whether `env_name` can only be a name in ``REGISTRY_ENV``, be it entered already or not."""
    if not isinstance(env_name, str):
        return False
    return env_name in REGISTRY_ENV or not (env_name in FAMILIES or env_name in _REFUSED)


def with_own_environment(given: Mapping[str, Any]) -> dict[str, Any]:
    """Registers the environment that `env_name` names in ``REGISTRY_ENV`` with Gymnasium.

    Args:
        given: A script's keys and values; the environment's constructor gets all of them.

    Returns:
        The same keys, with the `env_id` under which Gymnasium knows the environment. If `env_name` is a family of
        Gymnasium's environments, they are unchanged.

    Raises:
        ConfigError: The `env_name` is neither a family of Gymnasium's environments nor in ``REGISTRY_ENV``, or its
            entry is not a class.
    """
    name = given.get("env_name")
    if not isinstance(name, str) or not is_own(name):
        return dict(given)
    if name not in REGISTRY_ENV:
        allowed = f"{', '.join(FAMILIES)}, or a name in xcfast.xuance.REGISTRY_ENV"
        if REGISTRY_ENV:
            allowed += f", which has {', '.join(REGISTRY_ENV)}"
        near = nearest_name(name, (*FAMILIES, *REGISTRY_ENV))
        raise ConfigError("unknown environment", key="env_name", given=name, allowed=allowed, nearest=near)
    make = REGISTRY_ENV[name]
    if not callable(make):
        allowed = "a class whose constructor takes the configuration"
        raise ConfigError("cannot make an environment", key=f"REGISTRY_ENV[{name!r}]", given=make, allowed=allowed)
    env_id = str(given.get("env_id") or name)
    full_id = "/".join(re.sub(r"[^\w.-]", "-", part) for part in (name.replace(".", "-"), env_id))
    # Not gymnasium.register, which warns if a second call replaces the values.
    spec = EnvSpec(full_id, partial(OwnEnv, make, dict(given)), order_enforce=False, disable_env_checker=True)
    gymnasium.registry[spec.id] = spec
    kept = {key: value for key, value in given.items() if key not in _FOR_ENVIRONMENTS}
    return {**kept, "env_name": "Gymnasium", "env_id": spec.id}


class OwnEnv(gymnasium.Env[Any, Any]):
    """A RawEnvironment, or a class with the same methods, as an environment of Gymnasium.

    XuanCe tells an environment its seed through the configuration's `env_seed`. So a reset with a seed makes the
    environment anew with that `env_seed`, unless it has just been made with it.

    Args:
        make: The class; it is called with the configuration.
        values: The configuration's keys and values.
        render_mode: ``rgb_array``, ``human`` or None.

    Raises:
        EnvError: The environment lacks an attribute or a method. The message says which.
    """

    metadata = {"render_modes": ["rgb_array", "human"]}  # noqa: RUF012

    def __init__(
        self, make: Callable[[Namespace], Any], values: dict[str, Any], render_mode: str | None = None
    ) -> None:
        self._make, self._values = make, values
        self._name = getattr(make, "__name__", type(make).__name__)
        self.render_mode = render_mode
        self._spec: EnvSpec | None = None
        self._raw: Any = None
        self._build(values.get("env_seed"))

    def _build(self, seed: int | None) -> None:
        self.close()
        self._seed, self._fresh, self._elapsed = seed, True, 0
        raw = self._raw = self._make(Namespace(**{**self._values, "env_seed": seed}))
        for method in ("reset", "step", "render", "close"):
            if not callable(getattr(raw, method, None)):
                raise EnvError(f"{self._name} must have a method {method}()")
        for kind in ("observation_space", "action_space"):
            space = getattr(raw, kind, None)
            if not isinstance(space, Box | Discrete):
                given = f"{type(space).__module__.partition('.')[0]}'s {type(space).__name__}"
                raise EnvError(
                    f"{self._name}: its constructor must set self.{kind} to a Box or Discrete of gymnasium.spaces; "
                    f"got {'None' if space is None else given}"
                )
        limit = getattr(raw, "max_episode_steps", None)
        if limit is not None and not (isinstance(limit, int | np.integer) and limit > 0):
            raise EnvError(f"{self._name}: max_episode_steps must be a positive integer or None; got {limit!r}")
        self.observation_space, self.action_space = raw.observation_space, raw.action_space
        self.max_episode_steps = None if limit is None else int(limit)
        self.metadata = {**OwnEnv.metadata, **(getattr(raw, "metadata", None) or {})}
        if callable(getattr(raw, "avail_actions", None)):
            self.action_masks = raw.avail_actions
        self._takes_seed = _accepts(raw.reset, seed=0)
        self._takes_mode = _accepts(raw.render, "rgb_array")

    @property
    def spec(self) -> EnvSpec | None:
        """Gymnasium's description of the environment, with its time limit, in a form that any process can unpickle."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        place = f"{OwnEnv.__module__}:{OwnEnv.__name__}"
        self._spec = spec and replace(spec, entry_point=place, kwargs={}, max_episode_steps=self.max_episode_steps)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; with a seed, in an environment that is made anew with it."""
        super().reset(seed=seed)
        if seed is not None and not (self._fresh and seed == self._seed):
            self._build(seed)
        self._fresh, self._elapsed = False, 0
        result = self._raw.reset(seed=seed) if self._takes_seed else self._raw.reset()
        pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        obs, info = result if pair else (result, {})
        obs = self._observation(obs, "reset")
        if self.render_mode == "human":
            self.render()
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Makes one step; at ``max_episode_steps`` the episode is truncated if the environment does not do it."""
        result = self._raw.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            given = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise EnvError(
                f"{self._name}: step() must return (observation, reward, terminated, truncated, info); got {given}"
            )
        obs, reward, terminated, truncated, info = result
        self._elapsed += 1
        if type(reward) is not float:
            reward = self._number(reward)
        obs = self._observation(obs, "step")
        if self.render_mode == "human":
            self.render()
        return obs, reward, bool(terminated), bool(truncated or self._elapsed == self.max_episode_steps), info

    def _number(self, reward: Any) -> float:
        array = np.asarray(reward)
        if array.size != 1 or array.dtype.kind not in "fiub":
            raise EnvError(f"{self._name}: step() must return a number as reward; got {short_repr(reward)}")
        return float(array.item())

    def _observation(self, obs: Any, method: str) -> Any:
        space = self.observation_space
        if not isinstance(space, Box):
            return obs
        array = np.asarray(obs)
        if array.shape != space.shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
            raise EnvError(
                f"{self._name}: {method}() must return observations {space.dtype} {list(space.shape)}, as its "
                f"observation_space has it; got {array.dtype} {list(array.shape)}"
            )
        return array.astype(space.dtype, copy=False)

    def render(self) -> Any:
        """Returns the environment's picture."""
        return self._raw.render(self.render_mode) if self._takes_mode else self._raw.render()

    def close(self) -> None:
        """Closes the environment; calling it again does nothing."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()


def _accepts(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Returns whether a function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True
