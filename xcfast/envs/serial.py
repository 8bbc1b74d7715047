"""The serial loop over some environments, and DummyVecEnv, which is one such loop over all of them.

Each worker of SubprocVecEnv runs the same loop over its share, which is why the trajectories of the two cannot differ.
"""

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from xcfast.envs import env_state
from xcfast.envs.action_masks import MaskSource, find_mask_source
from xcfast.envs.returned import FLAG_TYPES, REWARD_TYPES, Step, observation_and_info, whole_step
from xcfast.envs.shared_memory import Buffers, buffers_in
from xcfast.envs.vec_env import StepInfos, VecEnv, autoreset_mode_of, check_spaces, description_of
from xcfast.errors import EnvError

EnvFn = Callable[[], gymnasium.Env]


class EnvSlice:
    """A few environments, stepped one after the other. They read actions from buffers, and write results to buffers.

    Args:
        infos: Whether `step` and `reset` return the environments' infos.
        action_masks: Whether to deliver the masks of the actions that are allowed.
        next_step: Whether an environment whose episode ended is reset by the next step instead of the same one.

    Attributes:
        progress: int32 [1], the local index of the environment at work, -1 between two calls. It keeps its value when
            an environment raises.
        first: The index, among all environments, of this slice's first one; errors name it.
    """

    def __init__(self, *, infos: bool, action_masks: bool = False, next_step: bool = False) -> None:
        self.infos = infos
        self.action_masks = action_masks
        self.next_step = next_step
        self._mask_sources: list[MaskSource] = []
        self.progress: NDArray[np.int32] = np.full(1, -1, np.int32)
        self.envs: list[gymnasium.Env] = []
        self.first = 0

    def build(self, env_fns: Iterable[EnvFn]) -> None:
        """Makes the environments, in order."""
        try:
            for index, env_fn in enumerate(env_fns):
                self.progress[0] = index
                self.envs.append(_checked(env_fn()))
                for kind in ("observation_space", "action_space"):
                    first, this = getattr(self.envs[0], kind), getattr(self.envs[index], kind)
                    if first != this:
                        raise EnvError(f"{kind} of all envs must be equal; got {first} and {this}")
                if self.action_masks:
                    self._mask_sources.append(find_mask_source(self.envs[index]))
        except BaseException:
            self.close()
            raise
        self.progress[0] = -1
        self._steps = [env.step for env in self.envs]

    def attach(self, buffers: Buffers, progress: NDArray[np.int32], first: int = 0) -> None:
        """Sets the arrays that the environments work on.

        Args:
            buffers: This slice's rows.
            progress: int32 [1], see the attribute.
            first: See the attribute.
        """
        self._buffers, self.progress, self.first = buffers, progress, first
        self.progress[0] = -1
        self._shape, self._dtype = buffers.obs.shape[1:], buffers.obs.dtype

    def describe(self) -> dict[str, Any]:
        """Returns what the vector environment must know about its environments."""
        return description_of(self.envs[0], all(map(env_state.state_supported, self.envs)))

    def reset(
        self, seeds: Sequence[int | None], options: dict[str, Any] | None, mask: Sequence[bool] | None
    ) -> list[dict[str, Any]] | None:
        """Resets the environments (those in `mask`) and returns their infos if these are wanted.

        If the slice's first environment is reset with a seed, that seed also goes to this process's global
        generators, `random` and `numpy.random`, which some environments draw from.
        """
        if seeds[0] is not None and (mask is None or mask[0]):
            random.seed(seeds[0])
            np.random.seed(seeds[0] % 2**32)  # noqa: NPY002  # the generator that such an environment uses
        infos: list[dict[str, Any]] = []
        for index, env in enumerate(self.envs):
            if mask is not None and not mask[index]:
                infos.append({})
                continue
            self.progress[0] = index
            self._buffers.obs[index], info = self._fresh(index, env.reset(seed=seeds[index], options=options))
            if self._buffers.action_masks is not None:
                self._buffers.action_masks[index] = self._mask(index, info)
            infos.append(info)
        self.progress[0] = -1
        return infos if self.infos else None

    def step(self) -> StepInfos | None:
        """Steps every environment with its row of the actions; one whose episode ends is reset at once.

        With `next_step`, it is reset by the next call, which does not step it and gives it a reward of 0.
        """
        obs, final_obs, actions, rewards, terminated, truncated, action_masks = self._buffers
        progress, shape, dtype = self.progress, self._shape, self._dtype
        infos: StepInfos | None = [] if self.infos else None
        ended = (terminated | truncated).tolist() if self.next_step else None
        terminated.fill(False)
        truncated.fill(False)
        # A copy, because an env may keep its action until the next step, when the buffer holds another.
        for index, (step, action) in enumerate(zip(self._steps, actions.copy(), strict=True)):
            progress[0] = index
            final_info = None
            if ended is not None and ended[index]:
                ob, info = self._fresh(index, self.envs[index].reset())
                rewards[index] = 0.0
            else:
                returned = step(action)
                try:
                    ob, reward, is_terminated, is_truncated, info = returned
                    usual = (
                        type(ob) is np.ndarray
                        and ob.dtype == dtype
                        and ob.shape == shape
                        and type(reward) in REWARD_TYPES
                        and type(is_terminated) in FLAG_TYPES
                        and type(is_truncated) in FLAG_TYPES
                        and type(info) is dict
                    )
                except (TypeError, ValueError):  # not five values
                    usual = False
                if not usual:
                    ob, reward, is_terminated, is_truncated, info = self._converted(index, returned)
                rewards[index] = reward
                if is_terminated or is_truncated:
                    terminated[index], truncated[index] = is_terminated, is_truncated
                    if ended is None:
                        final_obs[index], final_info = ob, info
                        ob, info = self._fresh(index, self.envs[index].reset())
            obs[index] = ob
            if action_masks is not None:
                over = terminated[index] or truncated[index]
                action_masks[index] = True if ended is not None and over else self._mask(index, info)
            if infos is not None:
                infos.append((info, final_info))
        progress[0] = -1
        return infos

    def _fresh(self, index: int, returned: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the observation and the info of a reset, after checks."""
        if type(returned) is tuple and len(returned) == 2:
            ob, info = returned
            if type(ob) is np.ndarray and ob.dtype == self._dtype and ob.shape == self._shape and type(info) is dict:
                return returned
        try:
            return observation_and_info(returned, self._shape, self._dtype)
        except EnvError as error:
            raise EnvError(f"environment {self.first + index}: {error}") from None

    def _mask(self, index: int, info: dict[str, Any]) -> NDArray[np.bool_]:
        """Returns the mask of allowed actions, after checks."""
        try:
            return self._mask_sources[index](info)
        except EnvError as error:
            raise EnvError(f"environment {self.first + index}: {error}") from None

    def _converted(self, index: int, returned: Any) -> Step:
        """Returns what a step returned as the usual types, or raises an EnvError that names the environment."""
        try:
            return whole_step(returned, self._shape, self._dtype)
        except EnvError as error:
            raise EnvError(f"environment {self.first + index}: {error}") from None

    def get_state(self) -> list[dict[str, Any]]:
        """Returns the state of each environment; see `env_state`."""
        return [env_state.get_state(env) for env in self._each()]

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Restores what `get_state` returned."""
        for env, state in zip(self._each(), states, strict=True):
            env_state.set_state(env, state)

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the attribute `name` of each environment, or its result if it can be called."""
        values = [env.get_wrapper_attr(name) for env in self._each()]
        envs = zip(self._each(), values, strict=True)
        return [value(*args, **kwargs) if callable(value) else value for _, value in envs]

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        """Sets the attribute `name` of each environment to its value."""
        for env, value in zip(self._each(), values, strict=True):
            env.set_wrapper_attr(name, value)
        self._steps = [env.step for env in self.envs]

    def _each(self) -> Iterator[gymnasium.Env]:
        """Yields the environments in order; `progress` tells which one is at work."""
        for index, env in enumerate(self.envs):
            self.progress[0] = index
            yield env
        self.progress[0] = -1

    def render(self) -> list[Any]:
        """Returns the frame of each environment."""
        return [env.render() for env in self._each()]

    def close(self) -> list[str]:
        """Closes all environments; returns one text for each that could not be closed."""
        failures, at_work = [], int(self.progress[0])
        for index, env in enumerate(self.envs):
            self.progress[0] = index
            try:
                env.close()
            except Exception as error:
                failures.append(f"environment {self.first + index} raised in close: {type(error).__name__}: {error}")
        self.progress[0] = at_work
        self.envs, self._steps, self._mask_sources = [], [], []
        return failures


def _checked(env: Any) -> gymnasium.Env:
    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"env_fns must make a gymnasium.Env; got {type(env).__name__}")
    return env


class DummyVecEnv(VecEnv):
    """Steps N environments serially in this process.

    An exception of an environment reaches the caller unchanged.

    Args:
        env_fns: Constructors of the N environments.
        copy: Whether `reset` and `step` return copies; else they return the internal arrays, which the next step
            overwrites.
        infos: Whether to deliver the environments' own infos, as Gymnasium does.
        action_masks: Whether to deliver the masks of allowed actions in the attribute `action_masks`.
        autoreset_mode: "same_step" or "next_step", see `VecEnv`.
        episode_statistics: Whether infos report each episode's return and length, see `VecEnv`.

    Raises:
        EnvError: A space has a kind that is not supported, or there are no action masks.

    Note:
        A reset with a seed also seeds this process's global generators, `random` and `numpy.random`, with the seed of
        environment 0. An environment that draws from them repeats its run, but it draws other numbers in a
        SubprocVecEnv, where each worker process has global generators of its own.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        copy: bool = True,
        infos: bool = False,
        action_masks: bool = False,
        autoreset_mode: str | AutoresetMode = "same_step",
        episode_statistics: bool = True,
    ) -> None:
        self.closed = True  # until there is something to close
        if not env_fns:
            raise ValueError("env_fns must name at least one environment")
        mode = autoreset_mode_of(autoreset_mode)
        next_step = mode is AutoresetMode.NEXT_STEP
        self._slice = EnvSlice(infos=infos, action_masks=action_masks, next_step=next_step)
        self._slice.build(env_fns)
        description = self._slice.describe()
        observation_space, action_space = description["observation_space"], description["action_space"]
        try:
            check_spaces(observation_space, action_space)
        except EnvError:
            self._slice.close()
            raise
        super().__init__(
            len(env_fns),
            description,
            copy=copy,
            infos=infos,
            autoreset_mode=mode,
            episode_statistics=episode_statistics,
        )
        layout = (self.num_envs, observation_space, action_space, action_masks)
        _, nbytes = buffers_in(None, 0, *layout)
        self._buffers, _ = buffers_in(bytearray(nbytes), 0, *layout)
        self._slice.attach(self._buffers, np.full(1, -1, np.int32))
        self.closed = False

    def _reset_envs(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: list[bool] | None
    ) -> list[dict[str, Any]] | None:
        return self._slice.reset(seeds, options, mask)

    def _step_envs(self) -> StepInfos | None:
        return self._slice.step()

    def _ask(self, method: str, *args: Any) -> list[Any]:
        return getattr(self._slice, method)(*args)

    def close_extras(self, **kwargs: Any) -> None:
        """Closes all environments; warns of those whose `close` raised."""
        for failure in self._slice.close():
            warnings.warn(failure, RuntimeWarning, stacklevel=3)
