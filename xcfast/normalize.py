"""Running moments, observation and reward normalisation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from xcfast import kernels
from xcfast.errors import NonFiniteError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
#: Rows [N, ...] of this process's envs to those of all envs, in their order.
Join = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


class RunningMeanStd:
    """Mean and population variance of all samples so far, in float64 by Chan's formula.

    Args:
        shape: Shape of one sample.
        epsilon: Added to the variance before its root is taken.

    Attributes:
        mean: float64 [*shape], 0 before the first sample. Updated in place.
        var: float64 [*shape], 1 before the first sample. Updated in place.
    """

    def __init__(self, shape: tuple[int, ...] = (), epsilon: float = 1e-8) -> None:
        self.shape = tuple(shape)
        self.epsilon = float(epsilon)
        self.mean: Float64 = np.zeros(self.shape)
        self.var: Float64 = np.ones(self.shape)
        self._count = np.zeros(1, np.int64)

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self._count[0])

    def update(self, batch: npt.ArrayLike) -> None:
        """Adds a batch, float [B, *shape], B >= 1."""
        if not kernels.impl.moments_update(batch, self.mean, self.var, self._count):
            kernels.impl.moments_update(self._batch(batch), self.mean, self.var, self._count)

    def update_from_moments(self, mean: npt.ArrayLike, var: npt.ArrayLike, count: int) -> None:
        """Adds `count` samples of which only mean and population variance are known, both [*shape]."""
        if count == 0:
            return
        means, variances = np.array(mean, np.float64, ndmin=0), np.array(var, np.float64, ndmin=0)
        if means.shape != self.shape or variances.shape != self.shape or count < 0:
            raise ValueError(
                f"mean and var must be {list(self.shape)}, count >= 0; "
                f"got {list(means.shape)}, {list(variances.shape)}, {count}"
            )
        rows = np.array([count], np.int64), means[None], np.ascontiguousarray(variances[None] * count)
        kernels.impl.merge_tracked(*rows, self.mean, self.var, self._count)

    def merge(self, other: "RunningMeanStd") -> None:
        """Adds everything that `other` has seen."""
        self.update_from_moments(other.mean, other.var, other.count)

    def normalize(self, x: npt.ArrayLike, clip: float | None = None, out: Float32 | None = None) -> Float32:
        """Returns float32 clip((x - mean) / sqrt(var + epsilon)), computed in float64.

        Args:
            x: float [B, *shape], or one sample [*shape].
            clip: Bound of the absolute value; None for no bound.
            out: float32, shape of `x`, not overlapping it.
        """
        return self._apply("normalize", x, clip, out)

    def update_and_normalize(
        self, batch: npt.ArrayLike, clip: float | None = None, out: Float32 | None = None
    ) -> Float32:
        """`update`, then `normalize` the same batch, in one call."""
        return self._apply("update_and_normalize", batch, clip, out)

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of mean, var and count."""
        return {"mean": self.mean.copy(), "var": self.var.copy(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, in place."""
        _restore(self.mean, "mean", state["mean"])
        _restore(self.var, "var", state["var"])
        self._count[0] = state["count"]

    def _apply(self, kernel: str, x: Any, clip: float | None, out: Float32 | None) -> Float32:
        limit = math.inf if clip is None else clip
        if out is None:
            out = np.empty(np.shape(x), np.float32)
        call = getattr(kernels.impl, kernel)
        if call(x, self.mean, self.var, self._count, self.epsilon, limit, out):
            return out
        single = np.shape(x) == self.shape and kernel == "normalize"
        batch = self._batch(np.asarray(x)[None] if single else x)
        _check_out(out, np.shape(x))
        result = np.empty(batch.shape, np.float32)
        call(batch, self.mean, self.var, self._count, self.epsilon, limit, result)
        np.copyto(out, result[0] if single else result)
        return out

    def _batch(self, x: Any) -> npt.NDArray[Any]:
        batch = _plain_float("batch", x)
        if batch.ndim < 1 or batch.shape[1:] != self.shape or len(batch) < 1:
            wanted = ", ".join(["B >= 1", *map(str, self.shape)])
            raise ValueError(f"batch must be float [{wanted}]; got {batch.dtype} {list(batch.shape)}")
        return batch


class ObservationNormalizer:
    """Normalises observations with statistics that are frozen between commits.

    Args:
        shape: Shape of one observation.
        num_envs: N, the number of envs that are tracked.
        clip: Bound of the normalised value.
        epsilon: Added to the variance before its root is taken.
        enabled: Whether to normalise; otherwise observations are only cast to float32 and checked to be finite.
        join: Where several processes have envs: collects their rows; then all hold the same statistics.

    Attributes:
        rms: The committed statistics.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        num_envs: int,
        clip: float = 5.0,
        epsilon: float = 1e-8,
        enabled: bool = True,
        join: Join | None = None,
    ) -> None:
        self.rms = RunningMeanStd(shape, epsilon)
        self.num_envs = num_envs
        self.clip = _positive("clip", clip)
        self.enabled = enabled
        self._join = join
        self._counts = np.zeros(num_envs, np.int64)
        self._means = np.zeros((num_envs, *self.rms.shape))  # when disabled: 0 until a value is not finite, then NaN
        self._m2s = np.zeros((num_envs, *self.rms.shape))

    def normalize(self, obs: npt.ArrayLike, out: Float32 | None = None) -> Float32:
        """Returns `obs` (float [B, *shape] or [*shape]) normalised, float32; changes nothing."""
        if self.enabled:
            return self.rms.normalize(obs, self.clip, out)
        if out is None:
            out = np.empty(np.shape(obs), np.float32)
        np.copyto(out, obs, casting="same_kind")
        return out

    def normalize_and_track(self, obs: npt.ArrayLike, out: Float32 | None = None) -> Float32:
        """`normalize` for one vector step [N, *shape], which also enters each env's own moments until `commit`."""
        if out is None:
            out = np.empty(self._means.shape, np.float32)
        if not self._track(obs, out):
            plain = _plain_float("obs", obs)
            if plain.shape != self._means.shape:
                raise ValueError(f"obs must be float {list(self._means.shape)}; got {plain.dtype} {list(plain.shape)}")
            _check_out(out, plain.shape)
            result = np.empty(plain.shape, np.float32)
            self._track(plain, result)
            np.copyto(out, result)
        return out

    def commit(self) -> None:
        """Merges what was tracked into `rms`, env by env, and forgets it.

        Raises:
            NonFiniteError: An observation since the last commit was not finite; nothing is merged or forgotten.
        """
        tracked = self._counts, self._means, self._m2s
        counts, means, m2s = tracked if self._join is None else map(self._join, tracked)
        finite = np.isfinite(means) & np.isfinite(m2s)
        if not finite.all():
            env, *element = np.argwhere(~finite)[0].tolist()
            raise NonFiniteError(f"observation of env {env} has a value that is not finite, element {element}")
        if self.enabled:
            kernels.impl.merge_tracked(counts, means, m2s, self.rms.mean, self.rms.var, self.rms._count)
        self.discard()

    def discard(self) -> None:
        """Forgets what was tracked since the last commit."""
        self._counts[...] = 0
        self._means[...] = 0
        self._m2s[...] = 0

    def memory(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the arrays themselves, for native code that does the work of `normalize_and_track`."""
        rms = self.rms
        return {
            "mean": rms.mean,
            "var": rms.var,
            "count": rms._count,
            "counts": self._counts,
            "means": self._means,
            "m2s": self._m2s,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the statistics and of what was tracked since the last commit."""
        return {
            "rms": self.rms.state_dict(),
            "counts": self._counts.copy(),
            "means": self._means.copy(),
            "m2s": self._m2s.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, in place."""
        self.rms.load_state_dict(state["rms"])
        _restore(self._counts, "counts", state["counts"])
        _restore(self._means, "means", state["means"])
        _restore(self._m2s, "m2s", state["m2s"])

    def _track(self, obs: Any, out: Float32) -> bool:
        rms = self.rms
        if not self.enabled:
            return bool(kernels.impl.cast_and_track(obs, self._means, out))
        return bool(
            kernels.impl.normalize_and_track(
                obs, rms.mean, rms.var, rms._count, rms.epsilon, self.clip, self._counts, self._means, self._m2s, out
            )
        )


class RewardNormalizer:
    """Scales rewards by the standard deviation of each env's running discounted return.

    R_t = gamma R_{t-1} (1 - done_{t-1}) + r_t per env, carried over rollouts. A rollout's T N values enter the variance
    first, then the whole rollout is scaled: clip(r / sqrt(var + epsilon), ±clip).

    Args:
        num_envs: N.
        gamma: Discount, in [0, 1].
        clip: Bound of the scaled reward.
        epsilon: Added to the variance before its root is taken.
        enabled: Whether to scale; otherwise rewards are only cast to float32 and checked to be finite.
        join: Where several processes have envs: collects their rows; then all hold the same statistics.

    Attributes:
        rms: Statistics of the discounted returns; scalar.
        returns: float64 [N], each env's discounted return so far.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        gamma: float = 0.99,
        clip: float = 5.0,
        epsilon: float = 1e-8,
        enabled: bool = True,
        join: Join | None = None,
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1]; got {gamma}")
        self.rms = RunningMeanStd((), epsilon)
        self.returns = np.zeros(num_envs)
        self.gamma = float(gamma)
        self.clip = _positive("clip", clip)
        self.enabled = enabled
        self._join = join
        self._scratch = np.empty((3, num_envs))

    def __call__(self, rewards: npt.ArrayLike, done: npt.ArrayLike, out: Float32 | None = None) -> Float32:
        """Returns the scaled rewards of a rollout.

        Args:
            rewards: float [T, N], raw.
            done: bool [T, N], terminated or truncated.
            out: float32 [T, N], not overlapping `rewards`.

        Raises:
            NonFiniteError: A reward is not finite; the statistics are unchanged.
        """
        r, d = _plain_float("rewards", rewards), np.ascontiguousarray(done, bool)
        if r.ndim != 2 or r.shape[1:] != self.returns.shape or len(r) < 1 or d.shape != r.shape:
            raise ValueError(
                f"rewards and done must be [T >= 1, {len(self.returns)}]; "
                f"got {r.dtype} {list(r.shape)}, {d.dtype} {list(d.shape)}"
            )
        finite = np.isfinite(r)
        if not finite.all():
            step, env = np.argwhere(~finite)[0].tolist()
            raise NonFiniteError(f"reward of env {env} at step {step} of the rollout is {r[step, env]}")
        if out is None:
            out = np.empty(r.shape, np.float32)
        _check_out(out, r.shape)
        if not self.enabled:
            np.copyto(out, r, casting="same_kind")
            return out
        if self._join is not None:
            self._merge_joined(r, d, self._join)
            np.clip(
                r * (1.0 / np.sqrt(self.rms.var + self.rms.epsilon)),
                -self.clip,
                self.clip,
                out=out,
                casting="same_kind",
            )
            return out
        rms = self.rms
        target = out if out.flags.c_contiguous and not np.may_share_memory(out, r) else np.empty(r.shape, np.float32)
        kernels.impl.normalize_rewards(
            r, d, self.gamma, self.returns, self._scratch, rms.mean, rms.var, rms._count, rms.epsilon, self.clip, target
        )
        if target is not out:
            np.copyto(out, target)
        return out

    def _merge_joined(self, rewards: npt.NDArray[Any], done: npt.NDArray[np.bool_], join: Join) -> None:
        """What the kernel does before it scales, with the other processes' envs; the same operations in their order."""
        shift = self.gamma * self.returns + rewards[0]
        total, square = np.zeros_like(shift), np.zeros_like(shift)
        for row, ended in zip(rewards, done, strict=True):
            returns = self.gamma * self.returns + row
            delta = returns - shift
            total += delta
            square += delta * delta
            self.returns[...] = np.where(ended, 0.0, returns)
        mean = total / len(rewards)
        moments = np.stack([shift + mean, np.maximum(square - total * mean, 0.0)], axis=1)
        means, m2s = np.ascontiguousarray(join(moments).T)
        counts = np.full(len(means), len(rewards))
        kernels.impl.merge_tracked(counts, means, m2s, self.rms.mean, self.rms.var, self.rms._count)

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the statistics and the running returns."""
        return {"rms": self.rms.state_dict(), "returns": self.returns.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, in place."""
        self.rms.load_state_dict(state["rms"])
        _restore(self.returns, "returns", state["returns"])


def _plain_float(name: str, x: Any) -> npt.NDArray[Any]:
    """Returns x C-contiguous and float32 or float64; other real dtypes become float64."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers; got {array.dtype} {list(array.shape)}")
    dtype = np.float32 if array.dtype.newbyteorder("=") == np.float32 else np.float64
    return np.require(array, dtype, ["C", "A", "E"])


def _check_out(out: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        given = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be float32 {list(shape)}; got {given}")


def _restore(target: npt.NDArray[Any], name: str, value: Any) -> None:
    given = np.asarray(value)
    if given.shape != target.shape:
        raise ValueError(f"state {name!r} must be {list(target.shape)}; got {list(given.shape)}")
    target[...] = given


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be > 0; got {value}")
    return float(value)
