"""What DummyVecEnv and SubprocVecEnv share: Gymnasium's vector contract, episode statistics, state."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from xcfast.envs.action_masks import check_masks
from xcfast.envs.shared_memory import Buffers
from xcfast.errors import EnvError

STATE_VERSION = 1

StepInfos = list[tuple[dict[str, Any], dict[str, Any] | None]]
"""Per env: the info of the step (of the reset, where the episode ended), and the final info or None."""


def check_spaces(observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> None:
    """Raises EnvError unless observations and actions are of kinds that the vector environments carry.

    Args:
        observation_space: of one env: Box or Discrete.
        action_space: of one env: Box or Discrete.
    """
    if not isinstance(observation_space, Box | Discrete):
        raise EnvError(
            f"observation_space must be Box (or Discrete); got {observation_space}. Dict and Tuple observations "
            "can be flattened with gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(action_space, Box | Discrete):
        raise EnvError(f"action_space must be Box or Discrete; got {action_space}")


class VecEnv(gymnasium.vector.VectorEnv):
    """A Gymnasium vector environment with SAME_STEP autoreset, episode statistics and, for many tasks, an exact state.

    Args:
        num_envs: N.
        description: what `EnvSlice.describe` says.
        copy: whether `reset` and `step` return copies; else the internal arrays, which the next step overwrites.
        infos: whether to deliver the envs' own infos too.

    Attributes:
        episode_returns: float64 [N], sum of the raw rewards of the running episodes.
        episode_lengths: int64 [N], their steps.
        state_supported: whether `get_state` and `set_state` work.
    """

    def __init__(self, num_envs: int, description: dict[str, Any], *, copy: bool, infos: bool) -> None:
        self.num_envs = num_envs
        self.single_observation_space = description["observation_space"]
        self.single_action_space = description["action_space"]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**description["metadata"], "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = description["render_mode"]
        self.spec = description["spec"]
        self.state_supported: bool = description["state_supported"]
        self.copy = copy
        self.infos = infos
        self.episode_returns = np.zeros(num_envs)
        self.episode_lengths = np.zeros(num_envs, np.int64)
        self._needs_reset = "reset() must be called before step()"

    # What a kind of vector environment adds.
    _buffers: Buffers

    def _reset_envs(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: list[bool] | None
    ) -> list[dict[str, Any]] | None:
        raise NotImplementedError

    def _step_envs(self) -> StepInfos | None:
        raise NotImplementedError

    def _ask(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of EnvSlice whose answer is a list over envs; args that are lists of N are dealt out."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Resets all envs.

        Args:
            seed: an int seeds env i with seed + i; a list gives one seed per env; None leaves the generators alone.
            options: handed to every env, except "reset_mask" (bool [N]): reset only the envs where it is True.

        Returns:
            Observations [N, *obs_shape] and the infos ({} without `infos=True`).
        """
        self._check_open()
        seeds = self._seeds(seed)
        mask, options = self._reset_mask(options)
        if mask is not None and self._needs_reset:
            raise RuntimeError("options['reset_mask'] needs a full reset() before")
        keep, self._needs_reset = self._needs_reset, "the last reset() failed: call reset() before step()"
        env_infos = self._reset_envs(seeds, options, None if mask is None else mask.tolist())
        self._needs_reset = "" if mask is None else keep
        self.episode_returns[slice(None) if mask is None else mask] = 0.0
        self.episode_lengths[slice(None) if mask is None else mask] = 0
        if self._buffers.action_masks is not None:
            self._check_masks(self._buffers.action_masks)
        infos: dict[str, Any] = {}
        for index, info in enumerate(env_infos or ()):
            infos = self._add_info(infos, info, index)
        return self._out(self._buffers.obs), infos

    def _take(self, actions: Any) -> None:
        """Copies the actions of a step into the buffers, after checks."""
        if self.closed or self._needs_reset:
            self._check_open()
            raise RuntimeError(self._needs_reset)
        wanted, actions = self._buffers.actions, np.asarray(actions)
        if actions.shape != wanted.shape:
            raise ValueError(f"actions must have shape {wanted.shape}; got {actions.shape}")
        np.copyto(wanted, actions, casting="same_kind")

    @property
    def running(self) -> bool:
        """Whether episodes are under way: reset, not closed, and no failed step since."""
        return not self.closed and not self._needs_reset

    @property
    def action_masks(self) -> NDArray[np.bool_]:
        """What is allowed at the observations that came last, bool [N, n_actions].

        The internal array unless the environment was made to `copy`.

        Raises:
            EnvError: it was made without `action_masks=True`.
        """
        masks = self._buffers.action_masks
        if masks is None:
            raise EnvError("there are no action masks: the vector environment was made without action_masks=True")
        return self._out(masks)

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Steps all envs; one whose episode ends is reset at once.

        Args:
            actions: [N, *action_shape], cast to the action space's dtype.

        Returns:
            Observations [N, *obs_shape] (after the reset, where an episode ended), rewards float64 [N], terminated
            bool [N], truncated bool [N], and infos: empty but for steps that end an episode (`_episode_infos`), or
            with `infos=True`.
        """
        self._take(actions)
        buffers = self._buffers
        self._needs_reset = "the last step() was interrupted or failed: call reset() before step()"
        step_infos = self._step_envs()
        self._needs_reset = ""

        rewards, terminated, truncated = buffers.rewards, buffers.terminated, buffers.truncated
        self.episode_returns += rewards
        self.episode_lengths += 1
        done = terminated | truncated
        infos: dict[str, Any] = {}
        if step_infos is not None:
            for index, (info, final_info) in enumerate(step_infos):
                if final_info is not None:
                    infos = self._add_info(infos, {"final_info": final_info}, index)
                infos = self._add_info(infos, info, index)
        if done.any():
            self._episode_infos(infos, done)
        if buffers.action_masks is not None:
            self._check_masks(buffers.action_masks)
        if self.copy:
            return buffers.obs.copy(), rewards.copy(), terminated.copy(), truncated.copy(), infos
        return buffers.obs, rewards, terminated, truncated, infos

    def _episode_infos(self, infos: dict[str, Any], done: NDArray[np.bool_]) -> None:
        """Adds final observations and statistics of the episodes that ended, and starts their successors."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for index in np.flatnonzero(done):
            final_obs[index] = self._out(self._buffers.final_obs[index])
        infos["final_obs"], infos["_final_obs"] = final_obs, done
        infos.setdefault("final_info", {})
        infos["_final_info"] = done.copy()
        infos["episode"] = {
            "r": np.where(done, self.episode_returns, 0.0),
            "l": np.where(done, self.episode_lengths, 0),
        }
        infos["_episode"] = done.copy()
        self.episode_returns[done] = 0.0
        self.episode_lengths[done] = 0

    def get_state(self) -> dict[str, Any]:
        """All that decides how the envs go on, as plain data (numpy arrays, numbers, strings, lists, dicts).

        A state can be loaded by either kind of vector environment with the same envs; they then go on bit for bit,
        through resets. Only for Gymnasium's own MuJoCo and classic control tasks (`state_supported`).
        """
        self._check_open()
        self._check_state_supported()
        if self._needs_reset:
            raise RuntimeError(self._needs_reset.replace("step()", "get_state()"))
        state = {
            "version": STATE_VERSION,
            "env_id": self._env_id(),
            "envs": self._ask("get_state"),
            "obs": self._buffers.obs.copy(),
            "episode_returns": self.episode_returns.copy(),
            "episode_lengths": self.episode_lengths.copy(),
        }
        if self._buffers.action_masks is not None:
            state["action_masks"] = self._buffers.action_masks.copy()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned; `state["obs"]` are the observations to go on from."""
        self._check_open()
        self._check_state_supported()
        for key, given, wanted in (
            ("version", state["version"], STATE_VERSION),
            ("env_id", state["env_id"], self._env_id()),
            ("number of envs", len(state["envs"]), self.num_envs),
        ):
            if given != wanted:
                raise ValueError(f"state has {key} {given!r}; this vector environment wants {wanted!r}")
        self._ask("set_state", list(state["envs"]))
        self._buffers.obs[...] = state["obs"]
        if self._buffers.action_masks is not None:
            self._buffers.action_masks[...] = state["action_masks"]
        self.episode_returns[...] = state["episode_returns"]
        self.episode_lengths[...] = state["episode_lengths"]
        self._needs_reset = ""

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute or the method's result `name` of every env."""
        self._check_open()
        return tuple(self._ask("call", name, args, kwargs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of every env."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets the attribute `name`: a list or tuple has one value per env, anything else goes to all."""
        self._check_open()
        values = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"values must have {self.num_envs} entries, one per env; got {len(values)}")
        self._ask("set_attr", name, values)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + index for index in range(self.num_envs)]
        seeds = [None if one is None else int(one) for one in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be an int, None or a list of {self.num_envs}; got a list of {len(seeds)}")
        return seeds

    def _reset_mask(self, options: dict[str, Any] | None) -> tuple[NDArray[np.bool_] | None, dict[str, Any] | None]:
        if not options or "reset_mask" not in options:
            return None, options
        mask = np.asarray(options["reset_mask"])
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"options['reset_mask'] must be bool [{self.num_envs}] with a True in it; got {mask.dtype} {mask.shape}"
            )
        return mask, {key: value for key, value in options.items() if key != "reset_mask"}

    def _check_masks(self, masks: NDArray[np.bool_]) -> None:
        """Refuses to go on where an env allows no action."""
        try:
            check_masks(masks, self.episode_lengths)
        except EnvError as error:
            self._needs_reset = f"{error}: call reset() before step()"
            raise

    def _out(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.copy() if self.copy else array

    def _env_id(self) -> str:
        return "" if self.spec is None else self.spec.id

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed")

    def _check_state_supported(self) -> None:
        if not self.state_supported:
            raise EnvError(
                f"the state of {self._env_id() or 'these environments'} cannot be saved or restored exactly; "
                "only that of Gymnasium's own MuJoCo and classic control tasks under their standard wrappers can"
            )
