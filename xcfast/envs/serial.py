"""The serial loop over some environments, and DummyVecEnv, which is one such loop over all of them.

Each worker of SubprocVecEnv runs the same loop over its share, which is why the trajectories of the two cannot differ.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from xcfast.envs import env_state
from xcfast.envs.action_masks import MaskSource, find_mask_source
from xcfast.envs.shared_memory import Buffers, buffers_in
from xcfast.envs.vec_env import StepInfos, VecEnv, check_spaces
from xcfast.errors import EnvError

EnvFn = Callable[[], gymnasium.Env]


class EnvSlice:
    """A few environments, stepped one after the other, that read actions from and write results to buffers.

    Args:
        infos: whether `step` and `reset` return the envs' infos.
        action_masks: whether to deliver the masks of the actions that are allowed.

    Attributes:
        progress: int32 [1], local index of the env at work, -1 between two calls; kept as it is when an env raises.
        first: The index of the first of these environments among all.
    """

    def __init__(self, *, infos: bool, action_masks: bool = False) -> None:
        self.infos = infos
        self.action_masks = action_masks
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

    def attach(self, buffers: Buffers, progress: NDArray[np.int32]) -> None:
        """Sets the arrays that hold this slice's rows, and the place that tells which env is at work."""
        self._buffers, self.progress = buffers, progress
        self.progress[0] = -1

    def describe(self) -> dict[str, Any]:
        """What the vector environment must know about its envs."""
        env = self.envs[0]
        return {
            "observation_space": env.observation_space,
            "action_space": env.action_space,
            "metadata": dict(env.metadata),
            "render_mode": env.render_mode,
            "spec": env.spec,
            "state_supported": all(env_state.state_supported(env) for env in self.envs),
        }

    def reset(
        self, seeds: Sequence[int | None], options: dict[str, Any] | None, mask: Sequence[bool] | None
    ) -> list[dict[str, Any]] | None:
        """Resets the envs (those in `mask`); returns their infos if these are wanted."""
        infos: list[dict[str, Any]] = []
        for index, env in enumerate(self.envs):
            if mask is not None and not mask[index]:
                infos.append({})
                continue
            self.progress[0] = index
            self._buffers.obs[index], info = env.reset(seed=seeds[index], options=options)
            if self._buffers.action_masks is not None:
                self._buffers.action_masks[index] = self._mask_sources[index](info)
            infos.append(info)
        self.progress[0] = -1
        return infos if self.infos else None

    def step(self) -> StepInfos | None:
        """Steps every env with its row of the actions; an env whose episode ends is reset at once."""
        obs, final_obs, actions, rewards, terminated, truncated, action_masks = self._buffers
        progress = self.progress
        infos: StepInfos | None = [] if self.infos else None
        terminated.fill(False)
        truncated.fill(False)
        # A copy, because an env may keep its action until the next step, when the buffer holds another.
        for index, (step, action) in enumerate(zip(self._steps, actions.copy(), strict=True)):
            progress[0] = index
            ob, rewards[index], is_terminated, is_truncated, info = step(action)
            final_info = None
            if is_terminated or is_truncated:
                terminated[index], truncated[index] = is_terminated, is_truncated
                final_obs[index], final_info = ob, info
                ob, info = self.envs[index].reset()
            obs[index] = ob
            if action_masks is not None:
                action_masks[index] = self._mask_sources[index](info)
            if infos is not None:
                infos.append((info, final_info))
        progress[0] = -1
        return infos

    def get_state(self) -> list[dict[str, Any]]:
        """The state of each env; see `env_state`."""
        return [env_state.get_state(env) for env in self._each()]

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Restores what `get_state` returned."""
        for env, state in zip(self._each(), states, strict=True):
            env_state.set_state(env, state)

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """The attribute `name` of each env, called if it can be."""
        values = [env.get_wrapper_attr(name) for env in self._each()]
        envs = zip(self._each(), values, strict=True)
        return [value(*args, **kwargs) if callable(value) else value for _, value in envs]

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        """Sets the attribute `name` of each env to its value."""
        for env, value in zip(self._each(), values, strict=True):
            env.set_wrapper_attr(name, value)
        self._steps = [env.step for env in self.envs]

    def _each(self) -> Iterator[gymnasium.Env]:
        """The envs in order, with `progress` telling which one is at work."""
        for index, env in enumerate(self.envs):
            self.progress[0] = index
            yield env
        self.progress[0] = -1

    def render(self) -> Any:
        """The frame of the first env."""
        return self.envs[0].render()

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

    An exception of an environment reaches the caller as it is.

    Args:
        env_fns: constructors of the N environments.
        copy: whether `reset` and `step` return copies; else the internal arrays, which the next step overwrites.
        infos: whether to deliver the envs' own infos, as Gymnasium does.
        action_masks: whether to deliver the masks of allowed actions in the attribute `action_masks`.

    Raises:
        EnvError: a space is of a kind that is not supported, or there are no action masks.
    """

    def __init__(
        self, env_fns: Sequence[EnvFn], *, copy: bool = True, infos: bool = False, action_masks: bool = False
    ) -> None:
        self.closed = True  # until there is something to close
        if not env_fns:
            raise ValueError("env_fns must name at least one environment")
        self._slice = EnvSlice(infos=infos, action_masks=action_masks)
        self._slice.build(env_fns)
        description = self._slice.describe()
        observation_space, action_space = description["observation_space"], description["action_space"]
        try:
            check_spaces(observation_space, action_space)
        except EnvError:
            self._slice.close()
            raise
        super().__init__(len(env_fns), description, copy=copy, infos=infos)
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

    def render(self) -> Any:
        """The frame of the first env, as its `render_mode` says."""
        self._check_open()
        return self._slice.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the envs."""
        self._slice.close()
