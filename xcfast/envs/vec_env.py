"""The base class of all vector environments: Gymnasium's vector interface, episode statistics, state."""

import enum
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray

from xcfast.envs.action_masks import check_masks
from xcfast.envs.shared_memory import Buffers
from xcfast.errors import EnvError

STATE_VERSION = 1

# Observations, rewards, terminated, truncated and infos, as Gymnasium's `step` returns them.
StepResult = tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]
StepInfos = list[tuple[dict[str, Any], dict[str, Any] | None]]
"""Per environment: the info of the step (of the reset, where the episode ended), and the final info or None."""


class Phase(enum.Enum):
    """The phase of a vector environment. In all phases but RUNNING it needs a reset; the value says why."""

    NEW = "reset() must be called before {}()"
    RUNNING = ""
    RESET_FAILED = "the last reset() failed: call reset() before {}()"
    NO_ACTION = "an action mask allows no action: call reset() before {}()"
    STEP_FAILED = "the last step() was interrupted or failed: call reset() before {}()"


# For the code of each step: Python 3.11 takes 0.2 us to look up a member of an Enum.
RUNNING, STEP_FAILED, NEXT_STEP = Phase.RUNNING, Phase.STEP_FAILED, AutoresetMode.NEXT_STEP


def autoreset_mode_of(mode: str | AutoresetMode) -> AutoresetMode:
    """Returns Gymnasium's mode of that name.

    Args:
        mode: "same_step", "next_step", or one of these two of Gymnasium's `AutoresetMode`.

    Raises:
        ValueError: It is another one.
    """
    for known in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        if mode in (known, known.name.lower()):
            return known
    raise ValueError(f"autoreset_mode must be 'same_step' or 'next_step'; got {mode!r}")


def check_spaces(observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> None:
    """Checks that observations and actions are of kinds that the vector environments carry.

    Args:
        observation_space: The space of one environment.
        action_space: The space of one environment.

    Raises:
        EnvError: One of them is neither a Box of at least one dimension with at least one number, nor Discrete.
    """
    if not isinstance(observation_space, Box | Discrete):
        raise EnvError(
            f"observation_space must be Box (or Discrete); got {observation_space}. Dict and Tuple observations "
            "can be flattened with gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(action_space, Box | Discrete):
        raise EnvError(f"action_space must be Box or Discrete; got {action_space}")
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        if isinstance(space, Box) and (not space.shape or 0 in space.shape):
            raise EnvError(
                f"{name} must have at least one dimension, and no dimension of size 0; its shape is {space.shape}"
                + (" (a single number has the shape (1,))" if not space.shape else "")
            )


def description_of(env: gymnasium.Env, state_supported: bool) -> dict[str, Any]:
    """Returns what `VecEnv` must know about environments of which `env` is one."""
    return {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "metadata": dict(env.metadata),
        "render_mode": env.render_mode,
        "spec": env.spec,
        "state_supported": state_supported,
    }


class VecEnv(gymnasium.vector.VectorEnv):
    """A Gymnasium vector environment with autoreset, episode statistics and, for many tasks, an exact state.

    With the autoreset mode "same_step", the step that ends an episode returns the first observation of the next one,
    and infos hold the last one ("final_obs"). With "next_step", it returns the last observation; the next step ignores
    that environment's action, resets it, and gives it a reward of 0, as `gymnasium.vector.SyncVectorEnv` does.
    Training needs "same_step".

    A step that ends an episode reports its return and length as infos["episode"] {"r", "l"} with the mask
    infos["_episode"]; with "same_step", also in infos["final_info"]. Without `episode_statistics`, and inside
    Gymnasium's vector wrapper `RecordEpisodeStatistics`, which writes these entries itself, it does not.

    Args:
        num_envs: The number of environments, N.
        description: What `description_of` returns.
        copy: Whether `reset` and `step` return copies; else they return the internal arrays, which the next step
            overwrites.
        infos: Whether to deliver the environments' own infos too.
        autoreset_mode: SAME_STEP or NEXT_STEP.
        episode_statistics: Whether infos report each episode's return and length.

    Attributes:
        autoreset_mode: The mode, also in `metadata`.
        episode_statistics: Whether infos report each episode's return and length.
        episode_returns: float64 [N], the sums of the raw rewards of the running episodes.
        episode_lengths: int64 [N], the steps of the running episodes.
        state_supported: Whether `get_state` and `set_state` work.
        uses: The number of calls of `reset` and `step` so far. It shows whether other code used the environments in
            between.
    """

    def __init__(
        self,
        num_envs: int,
        description: dict[str, Any],
        *,
        copy: bool,
        infos: bool,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        episode_statistics: bool = True,
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space = description["observation_space"]
        self.single_action_space = description["action_space"]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**description["metadata"], "autoreset_mode": autoreset_mode}
        self.render_mode = description["render_mode"]
        self.spec = description["spec"]
        self.state_supported: bool = description["state_supported"]
        self.copy = copy
        self.infos = infos
        self.autoreset_mode = autoreset_mode
        self.episode_statistics = episode_statistics
        self.episode_returns = np.zeros(num_envs)
        self.episode_lengths = np.zeros(num_envs, np.int64)
        self.uses = 0
        self._reports_episodes = episode_statistics
        self._phase = Phase.NEW

    # The parts that differ between the kinds of vector environments.
    _buffers: Buffers

    def _reset_envs(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: list[bool] | None
    ) -> list[dict[str, Any]] | None:
        raise NotImplementedError

    def _step_envs(self) -> StepInfos | None:
        raise NotImplementedError

    def _ask(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of EnvSlice that answers with a list over environments; lists of N among `args` are split."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Resets all environments.

        Args:
            seed: An int seeds environment i with seed + i, a list has one seed per environment, None leaves the
                generators alone. A seed also reaches the global generators of each process that steps environments.
            options: Passed to every environment, except "reset_mask" (bool [N]), which names those to reset.

        Returns:
            Observations [N, *obs_shape] and the infos ({} without `infos=True`).

        Raises:
            EnvError: An environment did not return an observation of its space and an info.
        """
        self._check_open()
        self.uses += 1
        seeds = self._seeds(seed)
        mask, options = self._reset_mask(options)
        if mask is not None and self._phase is not Phase.RUNNING:
            raise RuntimeError("options['reset_mask'] needs a full reset() before")
        self._reports_episodes = self.episode_statistics and not self._recorded_by_wrapper()
        self._phase = Phase.RESET_FAILED
        env_infos = self._reset_envs(seeds, options, None if mask is None else mask.tolist())
        self._phase = Phase.RUNNING
        rows = slice(None) if mask is None else mask
        for array in (self.episode_returns, self.episode_lengths, self._buffers.terminated, self._buffers.truncated):
            array[rows] = 0
        if self._buffers.action_masks is not None:
            self._check_masks(self._buffers.action_masks)
        infos: dict[str, Any] = {}
        for index, info in enumerate(env_infos or ()):
            infos = self._add_info(infos, info, index)
        return self._out(self._buffers.obs), infos

    def _take(self, actions: Any) -> None:
        """Begins a step: copies its actions into the buffers, after checks."""
        if self.closed or self._phase is not RUNNING:
            raise self._not_ready("step")
        wanted, actions = self._buffers.actions, np.asarray(actions)
        if actions.shape != wanted.shape:
            raise ValueError(f"actions must have shape {wanted.shape}; got {actions.shape}")
        if actions.dtype is wanted.dtype:
            wanted[...] = actions  # a third of the time that copyto takes
        else:
            np.copyto(wanted, actions, casting="same_kind")
        self.uses += 1

    def _not_ready(self, method: str) -> RuntimeError:
        """Returns the error of a call that needs running episodes."""
        self._check_open()
        return RuntimeError(self._phase.value.format(method))

    @property
    def running(self) -> bool:
        """Whether episodes are under way: reset, not closed, and no step has failed since."""
        return not self.closed and self._phase is Phase.RUNNING

    @property
    def action_masks(self) -> NDArray[np.bool_]:
        """The actions that are allowed at the latest observations, bool [N, n_actions].

        This is the internal array unless the vector environment was made with `copy=True`.

        Raises:
            EnvError: The vector environment was made without `action_masks=True`.
        """
        masks = self._buffers.action_masks
        if masks is None:
            raise EnvError("there are no action masks: the vector environment was made without action_masks=True")
        return self._out(masks)

    def step(self, actions: Any) -> StepResult:
        """Steps all environments; one whose episode ends is reset, see the class.

        Args:
            actions: [N, *action_shape], cast to the action space's dtype.

        Returns:
            Observations [N, *obs_shape], rewards float64 [N], terminated bool [N], truncated bool [N], and infos,
            which are empty except when an episode ends, unless the vector environment was made with `infos=True`.

        Raises:
            EnvError: An environment did not return an observation of its space, one real number, two flags and an info.
        """
        self._take(actions)
        buffers = self._buffers
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        restarted = None if same_step else buffers.terminated | buffers.truncated
        self._phase = Phase.STEP_FAILED
        step_infos = self._step_envs()
        self._phase = Phase.RUNNING

        rewards, terminated, truncated = buffers.rewards, buffers.terminated, buffers.truncated
        self.episode_returns += rewards
        self.episode_lengths += 1
        if restarted is not None:
            self.episode_lengths[restarted] = 0
        done = terminated | truncated
        infos = {} if step_infos is None else self._joined(step_infos)
        if done.any():
            self._report_ends(infos, done)
        if buffers.action_masks is not None:
            self._check_masks(buffers.action_masks)
        return self._results(infos)

    def _results(self, infos: dict[str, Any]) -> StepResult:
        """Returns what `step` returns: the buffers, or copies of them, and the infos."""
        buffers, out = self._buffers, self._out
        return out(buffers.obs), out(buffers.rewards), out(buffers.terminated), out(buffers.truncated), infos

    def _joined(self, step_infos: StepInfos) -> dict[str, Any]:
        """Returns the infos of all environments in Gymnasium's vector form."""
        infos: dict[str, Any] = {}
        for index, (info, final_info) in enumerate(step_infos):
            if final_info is not None:
                infos = self._add_info(infos, {"final_info": final_info}, index)
            infos = self._add_info(infos, info, index)
        return infos

    def _report_ends(self, infos: dict[str, Any], done: NDArray[np.bool_]) -> None:
        """Adds the entries about episodes that ended to the infos, and starts the statistics of the next episodes."""
        places = [infos]
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            final_obs = np.empty(self.num_envs, dtype=object)  # of None
            for index in done.nonzero()[0].tolist():
                final_obs[index] = self._out(self._buffers.final_obs[index])
            infos["final_obs"], infos["_final_obs"] = final_obs, done
            infos["_final_info"] = done
            places.append(infos.setdefault("final_info", {}))
        if self._reports_episodes:
            returns, lengths = np.where(done, self.episode_returns, 0.0), np.where(done, self.episode_lengths, 0)
            for place in places:
                if place is infos or "episode" not in place:  # a wrapper of the single environments may have added it
                    place["episode"], place["_episode"] = {"r": returns, "l": lengths}, done
        self.episode_returns[done] = 0.0
        self.episode_lengths[done] = 0

    def _recorded_by_wrapper(self) -> bool:
        """Whether Gymnasium's RecordEpisodeStatistics makes this call of `reset`.

        That wrapper refuses a vector environment whose infos have the entries that it adds, and there is no way to
        tell it that they are there. A wrapper's `reset` calls that of the one inside, so the callers show who wraps.
        """
        frame = sys._getframe(1)
        while frame := frame.f_back:  # type: ignore[assignment]
            caller = frame.f_locals.get("self")
            if isinstance(caller, RecordEpisodeStatistics):
                return True
            if caller is not self and not isinstance(caller, gymnasium.vector.VectorWrapper):
                return False
        return False

    def render(self) -> tuple[Any, ...]:
        """Returns the frames of all environments, N of them, as their `render_mode` says."""
        self._check_open()
        return tuple(self._ask("render"))

    def get_state(self) -> dict[str, Any]:
        """Returns everything that decides how the environments continue, as arrays, numbers, strings, lists and dicts.

        Any kind of vector environment with the same environments can load a state, and then continues bit for bit,
        through resets. Only Gymnasium's own MuJoCo and classic control tasks have one (`state_supported`).
        """
        self._check_open()
        self._check_state_supported()
        if self._phase is not Phase.RUNNING:
            raise self._not_ready("get_state")
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
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            state["terminated"] = self._buffers.terminated.copy()
            state["truncated"] = self._buffers.truncated.copy()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned.

        Args:
            state: The state; `state["obs"]` are the observations to continue from.

        Raises:
            EnvError: These environments have no exact state.
            ValueError: The state belongs to other environments, or to another autoreset mode.
        """
        self._check_open()
        self._check_state_supported()
        for key, given, wanted in (
            ("version", state["version"], STATE_VERSION),
            ("env_id", state["env_id"], self._env_id()),
            ("number of envs", len(state["envs"]), self.num_envs),
            ("autoreset mode", "next_step" if "terminated" in state else "same_step", self.autoreset_mode.name.lower()),
        ):
            if given != wanted:
                raise ValueError(f"state has {key} {given!r}; this vector environment needs {wanted!r}")
        self._ask("set_state", list(state["envs"]))
        self._buffers.obs[...] = state["obs"]
        if self._buffers.action_masks is not None:
            self._buffers.action_masks[...] = state["action_masks"]
        self.episode_returns[...] = state["episode_returns"]
        self.episode_lengths[...] = state["episode_lengths"]
        self._buffers.terminated[...] = state.get("terminated", False)
        self._buffers.truncated[...] = state.get("truncated", False)
        self._phase = Phase.RUNNING

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Returns the attribute `name` of every environment, or its result if it can be called."""
        self._check_open()
        return tuple(self._ask("call", name, args, kwargs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Returns the attribute `name` of every environment, as `call` does."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of every environment.

        Args:
            name: The name of the attribute.
            values: A list or tuple with one value per environment; anything else goes to all of them.
        """
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
        """Raises an EnvError if an env allows no action."""
        try:
            check_masks(masks, self.episode_lengths)
        except EnvError:
            self._phase = Phase.NO_ACTION
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
