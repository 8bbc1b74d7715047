"""The rollout buffer: storage of steps, statistics of episodes, minibatches."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xcfast import kernels
from xcfast.errors import NonFiniteError
from xcfast.kernels.arguments import check_unmasked

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

EPISODE_DTYPE = np.dtype([("step", np.int64), ("env", np.int64), ("ret", np.float64), ("length", np.int64)])

_COLLECTED = ("obs", "actions", "rewards", "terminated", "truncated", "action_masks")


class Minibatch(NamedTuple):
    """The arrays that the loss reads, for B steps."""

    obs: Float32  #: [B, *obs_shape]
    actions: npt.NDArray[Any]  #: [B, *action_shape]
    log_probs: Float32  #: [B]
    advantages: Float32  #: [B]
    returns: Float32  #: [B]
    action_masks: npt.NDArray[np.bool_] | None = None  #: [B, num_actions]


class Rollout:
    """T steps of N envs, time-major, in arrays that are allocated once.

    Filling may stop after any step and continue later.

    Args:
        num_steps: T, the number of steps of each env.
        num_envs: N, the number of envs.
        obs_shape: Shape of one observation.
        action_shape: Shape of one action.
        action_dtype: dtype of the actions.
        num_actions: Number of discrete actions; the rollout then also stores the masks of the allowed ones.
        allocate: Function that returns a C-contiguous, writable array for ``allocate(shape, dtype)``, in page-locked or
            shared memory, for example. The rollout calls it once for each array.

    Attributes:
        obs: float32 [T, N, *obs_shape], what the policy saw.
        actions: [T, N, *action_shape], the policy's raw actions.
        rewards: float32 [T, N], the envs' rewards, not scaled.
        terminated: bool [T, N], the episode ended at this step by the task.
        truncated: bool [T, N], the episode ended at this step by a time limit.
        values: float32 [T, N], V of each observation.
        log_probs: float32 [T, N], log-probability of each action.
        advantages: float32 [T, N], see `compute_gae`.
        returns: float32 [T, N], see `compute_gae`.
        action_masks: bool [T, N, num_actions], the actions that were allowed; None without `num_actions`.
        last_obs: float32 [N, *obs_shape], what the policy sees after the last step; the collector writes it.
        step: Number of rows filled so far.
        episode_returns: float64 [N], sum of the rewards of each running episode; `clear` keeps it.
        episode_lengths: int64 [N], number of steps of each running episode; `clear` keeps it.

    Note:
        One thread at a time may use a rollout; `store` in two threads at once raises a RuntimeError in one of them.
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        action_shape: tuple[int, ...] = (),
        action_dtype: npt.DTypeLike = np.float32,
        *,
        num_actions: int | None = None,
        allocate: Callable[..., npt.NDArray[Any]] = np.zeros,
    ) -> None:
        if num_steps < 1 or num_envs < 1:
            raise ValueError(f"num_steps and num_envs must be >= 1; got {num_steps} and {num_envs}")
        self.num_steps, self.num_envs = num_steps, num_envs
        self.obs_shape, self.action_shape = tuple(obs_shape), tuple(action_shape)
        steps = (num_steps, num_envs)
        self._allocate = allocate
        self.obs: Float32 = allocate((*steps, *self.obs_shape), np.float32)
        self.actions = allocate((*steps, *self.action_shape), np.dtype(action_dtype))
        self.rewards: Float32 = allocate(steps, np.float32)
        self.terminated: npt.NDArray[np.bool_] = allocate(steps, np.bool_)
        self.truncated: npt.NDArray[np.bool_] = allocate(steps, np.bool_)
        self.values: Float32 = allocate(steps, np.float32)
        self.log_probs: Float32 = allocate(steps, np.float32)
        self.advantages: Float32 = allocate(steps, np.float32)
        self.returns: Float32 = allocate(steps, np.float32)
        self.action_masks: npt.NDArray[np.bool_] | None = None
        if num_actions is not None:
            self.action_masks = allocate((*steps, num_actions), np.bool_)
        self.last_obs: Float32 = allocate((num_envs, *self.obs_shape), np.float32)
        if kernels.name == "numba":
            kernels.impl.warmup()  # compiling takes seconds, which should not count as time of the first step
        self.step = 0
        self.episode_returns = np.zeros(num_envs)
        self.episode_lengths = np.zeros(num_envs, np.int64)
        self._storing = threading.Lock()
        # These arrays grow: each has room for one more vector step at any time.
        self._episodes = np.zeros(2 * num_envs, EPISODE_DTYPE)
        self._final_index = np.zeros(2 * num_envs, np.int64)
        self._final_obs = np.zeros((2 * num_envs, *self.obs_shape), np.float32)
        self._num_episodes = self._num_final = 0
        self._permutation = np.zeros(num_steps, np.int64)
        kept = (self.obs, self.actions, self.log_probs, self.advantages, self.returns, self.action_masks)
        self._flat = tuple(x.reshape(-1, *x.shape[2:]) for x in kept if x is not None)

    def spare(self) -> "Rollout":
        """Returns an empty rollout of the same form for the same envs, which shares the running episodes."""
        other = Rollout(
            self.num_steps,
            self.num_envs,
            self.obs_shape,
            self.action_shape,
            self.actions.dtype,
            num_actions=None if self.action_masks is None else self.action_masks.shape[-1],
            allocate=self._allocate,
        )
        other.episode_returns, other.episode_lengths = self.episode_returns, self.episode_lengths
        return other

    @property
    def full(self) -> bool:
        """Whether all T rows are filled."""
        return self.step == self.num_steps

    @property
    def episodes(self) -> npt.NDArray[np.void]:
        """The episodes that ended since `clear`, ordered by time, then env.

        A structured array with the fields step (the row of the last step), env, ret (sum of rewards) and length.
        """
        return self._episodes[: self._num_episodes]

    @property
    def final_obs(self) -> Float32:
        """float32 [K, *obs_shape], the last observations of episodes that only a time limit ended, in order."""
        return self._final_obs[: self._num_final]

    @property
    def final_index(self) -> Int64:
        """int64 [K], the step to which each row of `final_obs` belongs, as flat index t * N + env."""
        return self._final_index[: self._num_final]

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the filled rows, their final observations and their episodes; not the running episodes."""
        kept = {name: getattr(self, name) for name in _COLLECTED}
        rows = {name: array[: self.step].copy() for name, array in kept.items() if array is not None}
        ends = {name: getattr(self, name).copy() for name in ("final_obs", "final_index", "last_obs")}
        episodes = {name: self.episodes[name].copy() for name in EPISODE_DTYPE.names or ()}
        return {"rows": rows, **ends, "episodes": episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` of a rollout of these sizes returned."""
        self.clear()
        rows = {name: np.asarray(x) for name, x in state["rows"].items()}
        for name, x in rows.items():
            getattr(self, name)[: len(x)] = x
        self.last_obs[:] = np.asarray(state["last_obs"])
        episodes = np.zeros(len(state["episodes"]["ret"]), EPISODE_DTYPE)
        for name, x in state["episodes"].items():
            episodes[name] = np.asarray(x)
        self.advance(len(rows["rewards"]), episodes, np.asarray(state["final_index"]), np.asarray(state["final_obs"]))

    def clear(self) -> None:
        """Starts a new rollout. Running episodes continue."""
        self.step = self._num_episodes = self._num_final = 0

    def store(
        self,
        obs: npt.ArrayLike,
        actions: npt.ArrayLike,
        rewards: npt.ArrayLike,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike,
        final_obs: npt.ArrayLike | None = None,
        action_masks: npt.ArrayLike | None = None,
    ) -> None:
        """Writes one vector step to row `step`, and adds 1 to `step`.

        Args:
            obs: float32 [N, *obs_shape]. It may be row `step` of `self.obs` itself, which saves copying it.
            actions: [N, *action_shape]. It may be row `step` of `self.actions` itself.
            rewards: float [N], not scaled.
            terminated: bool [N], the episode ended at this step by the task.
            truncated: bool [N], the episode ended at this step by a time limit.
            final_obs: float32 [k, *obs_shape], one row for each env that is truncated and not terminated, in env order.
            action_masks: bool [N, num_actions], the allowed actions; only for a rollout with `num_actions`.

        Raises:
            IndexError: The rollout is full.
            RuntimeError: Another thread is storing a step.
            TypeError: A dtype does not fit, or an argument is a masked array.
            ValueError: A shape is wrong, or final observations are missing or too many. `step` has not changed.
        """
        if not self._storing.acquire(blocking=False):
            raise RuntimeError("another thread is storing a step in this rollout; use it from one thread at a time")
        try:
            self._store_step(obs, actions, rewards, terminated, truncated, final_obs, action_masks)
        finally:
            self._storing.release()

    def _store_step(
        self,
        obs: npt.ArrayLike,
        actions: npt.ArrayLike,
        rewards: npt.ArrayLike,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike,
        final_obs: npt.ArrayLike | None,
        action_masks: npt.ArrayLike | None,
    ) -> None:
        num_final = 0
        if final_obs is not None:
            check_unmasked({"final_obs": final_obs})
            final_obs = np.asarray(final_obs, np.float32)
            if final_obs.shape[1:] != self.obs_shape or final_obs.ndim < 1:
                raise ValueError(f"final_obs must be {self._wanted('k', self.obs_shape)}; got {list(final_obs.shape)}")
            num_final = len(final_obs)
        if action_masks is not None or self.action_masks is not None:
            self._store_masks(action_masks)
        stored = self._store(num_final, obs, actions, rewards, terminated, truncated)
        if stored is None:
            stored = self._store(num_final, *self._converted(obs, actions, rewards, terminated, truncated))
        if stored is None:
            raise ValueError("the arrays of a rollout must stay C-contiguous and writable, of their dtype and shape")
        if final_obs is not None:
            self._final_obs[self._num_final : self._num_final + num_final] = final_obs
            self._num_final += num_final
        self.step += 1
        self._num_episodes += stored[0]
        if stored[0]:
            self._make_room()

    def advance(self, num_steps: int, episodes: npt.NDArray[np.void], final_index: Int64, final_obs: Float32) -> None:
        """Counts the next rows as filled, after native code has written them and updated the running episodes.

        Args:
            num_steps: Number of rows.
            episodes: The episodes that ended in these rows, in the form of `self.episodes`.
            final_index: The steps that only a time limit ended, in the form of `self.final_index`.
            final_obs: Their last observations, in the form of `self.final_obs`.
        """
        self._make_room(len(episodes), len(final_index))
        self._episodes[self._num_episodes : self._num_episodes + len(episodes)] = episodes
        self._final_index[self._num_final : self._num_final + len(final_index)] = final_index
        self._final_obs[self._num_final : self._num_final + len(final_index)] = final_obs
        self._num_episodes += len(episodes)
        self._num_final += len(final_index)
        self.step += num_steps

    def check_finite(self, env_offset: int = 0) -> None:
        """Checks that a full rollout's rewards, last observations and final observations are finite.

        `ObservationNormalizer.commit` checks the observations before each step.

        Args:
            env_offset: Global index of the rollout's first env, for the message.

        Raises:
            NonFiniteError: A value is not finite. The message names the env and the step.
        """
        if not np.isfinite(self.rewards).all():
            step, env = np.argwhere(~np.isfinite(self.rewards))[0].tolist()
            reward: Any = self.rewards[step, env]
            if np.isinf(reward):
                reward = f"{reward} as float32, whose largest number is {np.finfo(np.float32).max:.2g}"
            raise NonFiniteError.at("reward", env_offset + env, step, reward)
        check_finite("observation", self.last_obs, env_offset + np.arange(self.num_envs))
        steps, envs = np.divmod(self.final_index, self.num_envs)
        check_finite("final observation", self.final_obs, env_offset + envs, steps)

    def minibatch_indices(
        self,
        seed: int,
        iteration: int,
        epoch: int,
        n_minibatch: int,
        *,
        env_offset: int = 0,
        total_envs: int | None = None,
    ) -> tuple[Int64, Int64]:
        """Returns the minibatches of one epoch, which hold each step once.

        The sizes of minibatches differ by at most one, and so do the shares of an env in them. A counter-based
        generator, keyed by (seed, iteration, epoch, global env index), permutes each env's steps. The minibatches
        receive them in turn, starting where the env before stopped. So ranks that hold different envs form the same
        minibatches as one rank that holds all.

        Args:
            seed: Any int.
            iteration: Number of the rollout, >= 0.
            epoch: Number of the epoch, >= 0.
            n_minibatch: Number of minibatches, at most T * total_envs.
            env_offset: Global index of the first env.
            total_envs: Number of envs of all ranks; default: N. If there are more than N, a minibatch may have no
                steps on this rank.

        Returns:
            indices int64 [T * N], flat t * N + env; offsets int64 [n_minibatch + 1]: minibatch m is
            indices[offsets[m]:offsets[m + 1]].
        """
        total = self.num_steps * self.num_envs
        most = self.num_steps * (total_envs or self.num_envs)
        if not 1 <= n_minibatch <= most or min(iteration, epoch, env_offset) < 0:
            raise ValueError(
                f"n_minibatch must be in [1, {most}] and iteration, epoch, env_offset >= 0; "
                f"got {n_minibatch}, {iteration}, {epoch}, {env_offset}"
            )
        indices, offsets = np.empty(total, np.int64), np.empty(n_minibatch + 1, np.int64)
        kernels.impl.minibatch_indices(
            seed,
            iteration,
            epoch,
            self.num_steps,
            self.num_envs,
            n_minibatch,
            env_offset,
            indices,
            offsets,
            self._permutation,
        )
        return indices, offsets

    def minibatch(self, size: int) -> Minibatch:
        """Returns arrays for a minibatch of up to `size` steps, which `gather` fills. Allocate them once."""
        return Minibatch(*(self._allocate((size, *x.shape[1:]), x.dtype) for x in self._flat))

    def gather(self, indices: npt.ArrayLike, out: Minibatch) -> Minibatch:
        """Copies steps into a minibatch.

        Args:
            indices: int64 [B], flat indices t * N + env of the steps.
            out: Arrays from `minibatch`, for at least B steps.

        Returns:
            `out`, or views of its first B steps if it has room for more.

        Raises:
            IndexError: An index is outside [0, T * N).
            ValueError: `out` is too small, not from `minibatch`, or shares memory with `indices` or this rollout.
        """
        arrays = out[: len(self._flat)]
        if not kernels.impl.gather(indices, self._flat, arrays):
            check_unmasked({"indices": indices})
            indices = np.require(indices, np.int64, ["C", "A", "E"])
            if not kernels.impl.gather(indices, self._flat, arrays):
                raise ValueError(
                    "indices must be int64 [B], and out must be arrays from minibatch() for at least B steps, which "
                    "share no memory with indices or the rollout; "
                    f"got indices {list(indices.shape)} and arrays for {len(out[0])} steps"
                )
        count = len(indices)  # type: ignore[arg-type]
        return out if count == len(out[0]) else Minibatch(*(x[:count] for x in arrays))  # type: ignore[index, arg-type]

    def _store_masks(self, masks: npt.ArrayLike | None) -> None:
        """Writes the masks to row `step`. Nobody reads them there before `step` advances."""
        if self.action_masks is None:
            raise ValueError("action_masks are for a rollout with num_actions; this one has none")
        wanted = self.action_masks.shape[1:]
        check_unmasked({"action_masks": masks})
        given = None if masks is None else np.asarray(masks)
        if given is None or given.shape != wanted or given.dtype != np.bool_:
            got = None if given is None else f"{given.dtype} {list(given.shape)}"
            raise ValueError(f"action_masks must be bool {list(wanted)}; got {got}")
        if not self.full:
            self.action_masks[self.step] = given

    def _store(self, num_final: int, obs: Any, actions: Any, rewards: Any, terminated: Any, truncated: Any) -> Any:
        return kernels.impl.store_step(
            self.step, self.obs, self.actions, self.rewards, self.terminated, self.truncated,
            self.episode_returns, self.episode_lengths, self._episodes, self._num_episodes,
            self._final_index, self._num_final, num_final, obs, actions, rewards, terminated, truncated,
        )  # fmt: skip

    def _converted(self, *step: Any) -> list[npt.NDArray[Any]]:
        """Returns the arrays of one vector step in the form that the kernel takes. Raises if one does not fit."""
        if self.full:
            raise IndexError(f"the rollout is full ({self.num_steps} steps); clear() starts the next one")
        names = ("obs", "actions", "rewards", "terminated", "truncated")
        buffers: list[npt.NDArray[Any]] = [self.obs, self.actions, self.episode_returns[None]]
        buffers += [self.terminated, self.truncated]
        converted = []
        for name, buffer, x in zip(names, buffers, step, strict=True):
            check_unmasked({name: x})
            array = np.asarray(x)
            if array.shape != buffer.shape[1:]:
                wanted = self._wanted(self.num_envs, buffer.shape[2:])
                raise ValueError(f"{name} must be {buffer.dtype} {wanted}; got {array.dtype} {list(array.shape)}")
            if not np.can_cast(array.dtype, buffer.dtype, "same_kind"):
                raise TypeError(f"{name} must be {buffer.dtype}; got {array.dtype}")
            converted.append(np.require(array.astype(buffer.dtype, copy=False), None, ["C", "A", "E"]))
        return converted

    @staticmethod
    def _wanted(first: int | str, rest: tuple[int, ...]) -> str:
        return f"[{', '.join(map(str, (first, *rest)))}]"

    def _make_room(self, episodes: int = 0, finals: int = 0) -> None:
        """Makes room for that many more episodes and final observations, and for one more vector step after them."""

        def grown(array: npt.NDArray[Any], needed: int) -> npt.NDArray[Any]:
            if needed <= len(array):
                return array
            return np.concatenate([array, np.zeros_like(array, shape=(needed, *array.shape[1:]))])

        self._episodes = grown(self._episodes, self._num_episodes + episodes + self.num_envs)
        self._final_index = grown(self._final_index, self._num_final + finals + self.num_envs)
        self._final_obs = grown(self._final_obs, self._num_final + finals + self.num_envs)


def check_finite(what: str, obs: npt.NDArray[Any], envs: Int64, steps: Int64 | int | None = None) -> None:
    """Checks that observations are finite.

    Collectors call it before they normalize the observations, since normalization clips infinity.

    Args:
        what: Name of one observation, for the message.
        obs: float [K, *obs_shape].
        envs: int64 [K], the global index of each observation's environment.
        steps: The step of the rollout that returned each observation, or all of them; None if they came after the last.

    Raises:
        NonFiniteError: An observation has a NaN or infinite element. The message names the environment and the step.
    """
    finite = np.isfinite(obs).all(axis=tuple(range(1, obs.ndim)))
    if not finite.all():
        row = int(np.argmin(finite))
        step = None if steps is None else int(np.broadcast_to(steps, len(obs))[row])
        raise NonFiniteError.at(what, int(envs[row]), step)
