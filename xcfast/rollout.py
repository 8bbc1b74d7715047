"""The rollout buffer: storage, episode statistics, stratified minibatches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xcfast import kernels
from xcfast.errors import NonFiniteError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

EPISODE_DTYPE = np.dtype([("step", np.int64), ("env", np.int64), ("ret", np.float64), ("length", np.int64)])

_COLLECTED = ("obs", "actions", "rewards", "terminated", "truncated", "action_masks")


class Minibatch(NamedTuple):
    """What the loss needs of B steps."""

    obs: Float32  #: [B, *obs_shape]
    actions: npt.NDArray[Any]  #: [B, *action_shape]
    log_probs: Float32  #: [B]
    advantages: Float32  #: [B]
    returns: Float32  #: [B]
    action_masks: npt.NDArray[np.bool_] | None = None  #: [B, num_actions]


class Rollout:
    """T steps of N envs, time-major, allocated once. A partly filled rollout may be continued at any time.

    Args:
        num_steps: T.
        num_envs: N.
        obs_shape: Shape of one observation.
        action_shape: Shape of one action.
        action_dtype: dtype of the actions.
        num_actions: Number of discrete actions, where masks of the allowed ones are to be kept.
        allocate: Called as ``allocate(shape, dtype)`` for each array, for memory from elsewhere (page-locked,
            shared); C-contiguous.

    Attributes:
        obs: float32 [T, N, *obs_shape], what the policy saw.
        actions: [T, N, *action_shape].
        rewards: float32 [T, N], raw.
        terminated: bool [T, N].
        truncated: bool [T, N].
        values: float32 [T, N].
        log_probs: float32 [T, N].
        advantages: float32 [T, N].
        returns: float32 [T, N].
        action_masks: bool [T, N, num_actions], the actions that were allowed; None without `num_actions`.
        last_obs: float32 [N, *obs_shape], what the policy sees after the last step; written by the collector.
        step: Rows filled so far.
        episode_returns: float64 [N], sum of raw rewards of each running episode; kept by `clear`.
        episode_lengths: int64 [N], likewise.
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
            kernels.impl.warmup()  # compiling takes seconds: here, where nobody measures, and not at the first step
        self.step = 0
        self.episode_returns = np.zeros(num_envs)
        self.episode_lengths = np.zeros(num_envs, np.int64)
        # Growable; each always has room for one more vector step.
        self._episodes = np.zeros(2 * num_envs, EPISODE_DTYPE)
        self._final_index = np.zeros(2 * num_envs, np.int64)
        self._final_obs = np.zeros((2 * num_envs, *self.obs_shape), np.float32)
        self._num_episodes = self._num_final = 0
        self._permutation = np.zeros(num_steps, np.int64)
        kept = (self.obs, self.actions, self.log_probs, self.advantages, self.returns, self.action_masks)
        self._flat = tuple(x.reshape(-1, *x.shape[2:]) for x in kept if x is not None)

    def spare(self) -> "Rollout":
        """Returns an empty rollout of the same form for the same envs: the two share the running episodes."""
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
        """Whether all T steps are filled."""
        return self.step == self.num_steps

    @property
    def episodes(self) -> npt.NDArray[np.void]:
        """Episodes finished since `clear`, in time, then env order: fields step (of its end), env, ret, length."""
        return self._episodes[: self._num_episodes]

    @property
    def final_obs(self) -> Float32:
        """float32 [K, *obs_shape], last observations of episodes cut by a time limit only, in time, then env order."""
        return self._final_obs[: self._num_final]

    @property
    def final_index(self) -> Int64:
        """int64 [K], flat index t * N + env of the step that each row of `final_obs` belongs to."""
        return self._final_index[: self._num_final]

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the filled rows and of what belongs to them; the running episodes are not among it."""
        kept = {name: getattr(self, name) for name in _COLLECTED}
        rows = {name: array[: self.step].copy() for name, array in kept.items() if array is not None}
        ends = {name: getattr(self, name).copy() for name in ("final_obs", "final_index", "last_obs")}
        episodes = {name: self.episodes[name].copy() for name in EPISODE_DTYPE.names or ()}
        return {"rows": rows, **ends, "episodes": episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, of a rollout of these sizes."""
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
        """Starts a new rollout. Running episodes go on."""
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
        """Writes one vector step at row `step` and advances it.

        Args:
            obs: float32 [N, *obs_shape]. What is row `step` of `self.obs` already is not copied; likewise `actions`.
            actions: [N, *action_shape].
            rewards: float [N], raw.
            terminated: bool [N].
            truncated: bool [N].
            final_obs: float32 [k, *obs_shape], one row for each env that is truncated and not terminated, in env order.
            action_masks: bool [N, num_actions], for a rollout with masks.

        Raises:
            IndexError: The rollout is full.
            ValueError: A shape is wrong, or final observations are missing or too many. Nothing was written.
        """
        num_final = 0
        if final_obs is not None:
            final_obs = np.asarray(final_obs, np.float32)
            if final_obs.shape[1:] != self.obs_shape or final_obs.ndim < 1:
                raise ValueError(f"final_obs must be {self._wanted('k', self.obs_shape)}; got {list(final_obs.shape)}")
            num_final = len(final_obs)
        if action_masks is not None or self.action_masks is not None:
            self._store_masks(action_masks)
        stored = self._store(num_final, obs, actions, rewards, terminated, truncated)
        if stored is None:
            stored = self._store(num_final, *self._converted(obs, actions, rewards, terminated, truncated))
        if final_obs is not None:
            self._final_obs[self._num_final : self._num_final + num_final] = final_obs
            self._num_final += num_final
        self.step += 1
        self._num_episodes += stored[0]
        if stored[0]:
            self._make_room()

    def advance(self, num_steps: int, episodes: npt.NDArray[np.void], final_index: Int64, final_obs: Float32) -> None:
        """Counts the next rows as filled, after native code has written them and the running episodes' accumulators.

        Args:
            num_steps: Number of rows.
            episodes: Those that finished in them, as `self.episodes` has them.
            final_index: As `self.final_index`, of these rows.
            final_obs: As `self.final_obs`, of these rows.
        """
        self._make_room(len(episodes), len(final_index))
        self._episodes[self._num_episodes : self._num_episodes + len(episodes)] = episodes
        self._final_index[self._num_final : self._num_final + len(final_index)] = final_index
        self._final_obs[self._num_final : self._num_final + len(final_index)] = final_obs
        self._num_episodes += len(episodes)
        self._num_final += len(final_index)
        self.step += num_steps

    def check_finite(self, env_offset: int = 0) -> None:
        """Checks a full rollout: rewards, last observations, and those that a time limit cut off must be finite.

        Observations before a step are checked with the statistics.

        Args:
            env_offset: Global index of its first env.

        Raises:
            NonFiniteError: One of them is not; the message names the env and the step.
        """
        num_envs = len(self.last_obs)
        if not np.isfinite(self.rewards).all():
            step, env = np.argwhere(~np.isfinite(self.rewards))[0].tolist()
            reward = self.rewards[step, env]
            raise NonFiniteError(f"reward of env {env_offset + env} at step {step} of the rollout is {reward}")
        for row in _not_finite(self.last_obs):
            env = env_offset + row
            raise NonFiniteError(f"observation of env {env} after the last step of the rollout is not finite")
        for row in _not_finite(self.final_obs):
            step, env = divmod(int(self.final_index[row]), num_envs)
            env += env_offset
            raise NonFiniteError(f"final observation of env {env} at step {step} of the rollout is not finite")

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
        """Returns the minibatches of one epoch: each step once, sizes and each env's share differing by at most one.

        Each env's steps are permuted by a counter-based generator keyed by (seed, iteration, epoch, global env
        index) and dealt in turn, starting where the env before it stopped. So ranks that hold different envs form the
        same minibatches as one that holds all.

        Args:
            seed: Any int.
            iteration: Number of the rollout, >= 0.
            epoch: Number of the epoch, >= 0.
            n_minibatch: Number of minibatches, at most T * total_envs.
            env_offset: Global index of the first env.
            total_envs: Number of envs of all ranks; default: N. Where it is more, a minibatch may be empty here.

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
        """Returns room for a minibatch of up to `size` steps, to be allocated once and handed to `gather`."""
        return Minibatch(*(self._allocate((size, *x.shape[1:]), x.dtype) for x in self._flat))

    def gather(self, indices: npt.ArrayLike, out: Minibatch) -> Minibatch:
        """Copies the steps at flat `indices` into `out`, all arrays in one call; returns views of their number.

        Raises:
            IndexError: An index is outside [0, T * N).
            ValueError: `out` is too small or not from `minibatch`.
        """
        arrays = out[: len(self._flat)]
        if not kernels.impl.gather(indices, self._flat, arrays):
            indices = np.ascontiguousarray(indices, np.int64)
            if not kernels.impl.gather(indices, self._flat, arrays):
                raise ValueError(
                    "indices must be int64 [B], out room for as many steps of this rollout; "
                    f"got {list(indices.shape)}, {len(out[0])}"
                )
        count = len(indices)  # type: ignore[arg-type]
        return out if count == len(out[0]) else Minibatch(*(x[:count] for x in arrays))  # type: ignore[index, arg-type]

    def _store_masks(self, masks: npt.ArrayLike | None) -> None:
        """Writes the masks of row `step`, where nothing is read before the step counts."""
        if self.action_masks is None:
            raise ValueError("action_masks are for a rollout with num_actions; this one has none")
        wanted = self.action_masks.shape[1:]
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
        """Returns the arrays of one vector step as the kernel wants them; raises where that cannot be."""
        if self.full:
            raise IndexError(f"the rollout is full ({self.num_steps} steps); clear() starts the next one")
        names = ("obs", "actions", "rewards", "terminated", "truncated")
        buffers: list[npt.NDArray[Any]] = [self.obs, self.actions, self.episode_returns[None]]
        buffers += [self.terminated, self.truncated]
        converted = []
        for name, buffer, x in zip(names, buffers, step, strict=True):
            array = np.asarray(x)
            if array.shape != buffer.shape[1:]:
                wanted = self._wanted(self.num_envs, buffer.shape[2:])
                raise ValueError(f"{name} must be {buffer.dtype} {wanted}; got {array.dtype} {list(array.shape)}")
            converted.append(np.ascontiguousarray(array.astype(buffer.dtype, casting="same_kind", copy=False)))
        return converted

    @staticmethod
    def _wanted(first: int | str, rest: tuple[int, ...]) -> str:
        return f"[{', '.join(map(str, (first, *rest)))}]"

    def _make_room(self, episodes: int = 0, finals: int = 0) -> None:
        """Makes room for that many more, and for another vector step after them."""

        def grown(array: npt.NDArray[Any], needed: int) -> npt.NDArray[Any]:
            if needed <= len(array):
                return array
            return np.concatenate([array, np.zeros_like(array, shape=(needed, *array.shape[1:]))])

        self._episodes = grown(self._episodes, self._num_episodes + episodes + self.num_envs)
        self._final_index = grown(self._final_index, self._num_final + finals + self.num_envs)
        self._final_obs = grown(self._final_obs, self._num_final + finals + self.num_envs)


def _not_finite(obs: np.ndarray) -> list[int]:
    return np.flatnonzero(~np.isfinite(obs).all(axis=tuple(range(1, obs.ndim)))).tolist()
