"""The normalization of observations and rewards."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xcfast import kernels
from xcfast.errors import NonFiniteError
from xcfast.kernels.arguments import check_memory, check_output, describe, flag_array, float_array
from xcfast.kernels.reference import LARGEST
from xcfast.moments import RunningMeanStd, state_array, within

Float32 = npt.NDArray[np.float32]
#: A function that takes rows [N, ...] of this process's envs and returns those of all envs, in their order.
Join = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class ObservationNormalizer:
    """Normalizes observations with statistics that change only in `commit`.

    Args:
        shape: Shape of one observation.
        num_envs: N, the number of envs that are tracked.
        clip: Bound of the absolute normalized value.
        epsilon: Small number that keeps the deviation away from 0.
        epsilon_outside: Where `epsilon` is added; see `RunningMeanStd`.
        enabled: Whether to normalize; otherwise observations are only cast to float32 and checked to be finite.
        join: Function that collects the rows of all processes' envs, if several processes have envs. All then have the
            same statistics.

    Attributes:
        rms: The committed statistics.

    Note:
        Several threads may use one object: each call takes a lock.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        num_envs: int,
        clip: float = 5.0,
        epsilon: float = 1e-8,
        epsilon_outside: bool = False,
        enabled: bool = True,
        join: Join | None = None,
    ) -> None:
        self.rms = RunningMeanStd(shape, epsilon, epsilon_outside)
        self.num_envs = num_envs
        self.clip = _positive("clip", clip)
        self.enabled = enabled
        self._join = join
        self._counts = np.zeros(num_envs, np.int64)
        self._means = np.zeros((num_envs, *self.rms.shape))  # when disabled: 0 until a value is not finite, then NaN
        self._m2s = np.zeros((num_envs, *self.rms.shape))
        self._may_lack_statistics = True

    def normalize(self, obs: npt.ArrayLike, out: Float32 | None = None) -> Float32:
        """Returns observations normalized, as float32; the statistics stay as they are.

        Before the first `commit`, the mean is 0 and the variance 1, so observations are only clipped; one warning says
        so.

        Args:
            obs: float [B, *shape] or [*shape].
            out: float32, shape of `obs`, for the result. It must not share memory with `obs`.
        """
        if self.enabled:
            if self._may_lack_statistics:
                self._warn_without_statistics()
            return self.rms.normalize(obs, self.clip, out)
        if out is None:
            out = np.empty(np.shape(obs), np.float32)
        check_output("out", out, np.float32, np.shape(obs))
        check_memory({"out": out}, {"obs": obs})
        np.copyto(out, float_array("obs", obs), casting="same_kind")
        return out

    def normalize_and_track(self, obs: npt.ArrayLike, out: Float32 | None = None) -> Float32:
        """Normalizes one vector step and adds it to each env's own moments, which `commit` merges.

        Args:
            obs: float [N, *shape]. A value that is not finite, or too large, makes the next `commit` fail.
            out: float32 [N, *shape], for the result. It must not share memory with `obs`.
        """
        if out is None:
            out = np.empty(self._means.shape, np.float32)
        with self.rms.lock:
            if not self._track(obs, out):
                plain = float_array("obs", obs)
                if plain.shape != self._means.shape:
                    raise ValueError(f"obs must be float {list(self._means.shape)}; got {describe(plain)}")
                check_output("out", out, np.float32, plain.shape)
                check_memory({"out": out, "the statistics": self._means}, {"obs": obs})
                result = np.empty(plain.shape, np.float32)
                self.rms.check_accepted(self._track(plain, result))
                np.copyto(out, result)
        return out

    def commit(self) -> None:
        """Merges what was tracked into `rms`, env by env, and forgets it.

        Raises:
            NonFiniteError: An observation since the last commit was NaN, infinite, or so large that the moments would
                overflow (from 1e140 in absolute value, if observations are normalized). Nothing is merged or
                forgotten.
        """
        with self.rms.lock:
            tracked = [self._counts, self._means, self._m2s]
            if self._join is not None:
                tracked = [np.ascontiguousarray(self._join(x)) for x in tracked]
            counts, means, m2s = tracked
            most = LARGEST**2 * counts.reshape(-1, *[1] * len(self.rms.shape))  # of values below LARGEST
            usable = (np.abs(means) < LARGEST) & (m2s <= most)
            if not usable.all():
                env, *element = np.argwhere(~usable)[0].tolist()
                index = (env, *element)
                finite = np.isfinite(means[index]) and np.isfinite(m2s[index])
                fault = f"at least {LARGEST:g} in absolute value" if finite else "not finite"
                raise NonFiniteError(f"observation of env {env} has a value that is {fault}, element {element}")
            if self.enabled:
                rms = self.rms
                rms.check_accepted(kernels.impl.merge_tracked(*tracked, rms.mean, rms.var, rms.count_array))
            self.discard()

    def discard(self) -> None:
        """Forgets what was tracked since the last commit."""
        with self.rms.lock:
            self._counts[...] = 0
            self._means[...] = 0
            self._m2s[...] = 0

    def memory(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the arrays themselves, for native code that does the work of `normalize_and_track`."""
        rms = self.rms
        return {
            "mean": rms.mean,
            "var": rms.var,
            "count": rms.count_array,
            "counts": self._counts,
            "means": self._means,
            "m2s": self._m2s,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the statistics and of what was tracked since the last commit."""
        with self.rms.lock:
            return {
                "rms": self.rms.state_dict(),
                "counts": self._counts.copy(),
                "means": self._means.copy(),
                "m2s": self._m2s.copy(),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state that `state_dict` returned, in place.

        Raises:
            ValueError: The state does not fit, or has negative counts or sums of squares. Nothing has changed.
        """
        targets = {"counts": self._counts, "means": self._means, "m2s": self._m2s}
        arrays = {name: state_array(state, name, target) for name, target in targets.items()}
        if (arrays["counts"] < 0).any() or (arrays["m2s"] < 0).any():
            raise ValueError("state 'counts' and 'm2s' must be >= 0")
        with self.rms.lock:
            self.rms.load_state_dict(state["rms"])
            for name, target in targets.items():
                target[...] = arrays[name]

    def _track(self, obs: Any, out: Float32) -> bool:
        rms = self.rms
        if not self.enabled:
            return bool(kernels.impl.cast_and_track(obs, self._means, out))
        return bool(
            kernels.impl.normalize_and_track(
                obs, rms.mean, rms.var, rms.count_array, rms.epsilon, rms.epsilon_outside, self.clip,
                self._counts, self._means, self._m2s, out,
            )
        )  # fmt: skip

    def _warn_without_statistics(self) -> None:
        """Warns once if there are no statistics, neither committed nor tracked."""
        if self.rms.count == 0 and self._counts.any():
            return  # a first rollout, which `commit` follows
        self._may_lack_statistics = False
        if self.rms.count == 0:
            warnings.warn(
                "observations are clipped but not normalized: the normalizer has seen none yet. "
                "Call normalize_and_track() and commit(), or load a state, before normalize()",
                RuntimeWarning,
                stacklevel=3,
            )


class RewardNormalizer:
    """Scales rewards by the standard deviation of each env's running discounted return.

    R_t = gamma R_{t-1} (1 - done_{t-1}) + r_t for each env, carried over from rollout to rollout. A rollout's T N
    values of R first enter the variance; then the whole rollout is scaled: clip(r / deviation, ±clip).

    Args:
        num_envs: N.
        gamma: Discount, in [0, 1].
        clip: Bound of the absolute scaled reward.
        epsilon: Number added to the variance before its root is taken.
        enabled: Whether to scale; otherwise rewards are only cast to float32 and checked to be finite.
        join: Function that collects the rows of all processes' envs, if several processes have envs. All then have the
            same statistics.

    Attributes:
        rms: Statistics of the discounted returns; scalar.
        returns: float64 [N], each env's discounted return so far.

    Note:
        Several threads may use one object: each call takes a lock.
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
            out: float32 [T, N], for the result. It must not share memory with `rewards`, `done` or `returns`.

        Raises:
            NonFiniteError: A reward is not finite, or at least 1e140 in absolute value (above float32's range if
                rewards are not scaled). The statistics have not changed.
            TypeError: An argument is a masked array, or has another kind of dtype.
            ValueError: A shape is wrong, `out` is read-only, or shares memory with another argument.
        """
        r, d = float_array("rewards", rewards), flag_array("done", done)
        if r.ndim != 2 or r.shape[1:] != self.returns.shape or len(r) < 1 or d.shape != r.shape:
            raise ValueError(
                f"rewards and done must be [T >= 1, {len(self.returns)}]; got {describe(r)}, {describe(d)}"
            )
        finite = within(r, LARGEST if self.enabled else _LARGEST_FLOAT32)
        if not finite.all():
            step, env = np.argwhere(~finite)[0].tolist()
            raise NonFiniteError.at("reward", env, step, r[step, env])
        if out is None:
            out = np.empty(r.shape, np.float32)
        check_output("out", out, np.float32, r.shape)
        check_memory({"out": out, "returns": self.returns}, {"rewards": rewards, "done": done})
        with self.rms.lock:
            self._scale(r, d, out)
        return out

    def _scale(self, rewards: npt.NDArray[Any], done: npt.NDArray[np.bool_], out: Float32) -> None:
        rms = self.rms
        if not self.enabled:
            np.copyto(out, rewards, casting="same_kind")
        elif self._join is not None:
            self._merge_joined(rewards, done, self._join)
            scaled = rewards * (1.0 / rms.deviation)
            np.clip(scaled, -self.clip, self.clip, out=out, casting="same_kind")
        else:
            plain = out.flags.c_contiguous and out.flags.aligned
            target = out if plain else np.empty(out.shape, np.float32)
            rms.check_accepted(
                kernels.impl.normalize_rewards(
                    rewards, done, self.gamma, self.returns, self._scratch,
                    rms.mean, rms.var, rms.count_array, rms.epsilon, rms.epsilon_outside, self.clip, target,
                )
            )  # fmt: skip
            if target is not out:
                np.copyto(out, target)

    def _merge_joined(self, rewards: npt.NDArray[Any], done: npt.NDArray[np.bool_], join: Join) -> None:
        """Merges the moments of all processes' returns, with the kernel's operations in their order."""
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
        rms = self.rms
        rms.check_accepted(kernels.impl.merge_tracked(counts, means, m2s, rms.mean, rms.var, rms.count_array))

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the statistics and the running returns."""
        with self.rms.lock:
            return {"rms": self.rms.state_dict(), "returns": self.returns.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state that `state_dict` returned, in place.

        Raises:
            ValueError: The state does not fit, or a return is not finite. Nothing has changed.
        """
        returns = state_array(state, "returns", self.returns)
        if not np.isfinite(returns).all():
            raise ValueError("state 'returns' must be finite")
        with self.rms.lock:
            self.rms.load_state_dict(state["rms"])
            self.returns[...] = returns


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be > 0; got {value}")
    return float(value)
