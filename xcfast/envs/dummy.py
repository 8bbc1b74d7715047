"""DummyVecEnv: all environments in this process, one after the other. The reference for the faster kinds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcfast.envs.env_slice import EnvFn, EnvSlice, StepInfos
from xcfast.envs.errors import EnvError
from xcfast.envs.shared_memory import buffers_in
from xcfast.envs.vec_env import VecEnv, check_spaces


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
