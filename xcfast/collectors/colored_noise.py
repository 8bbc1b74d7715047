"""Gaussian noise that is correlated over the steps of an environment."""

from __future__ import annotations

import numpy as np

from xcfast.kernels import noise

BLOCK = 1024  #: steps of a block; a power of two, whose transform is fast


class ColoredNoise:
    """Noise with the power spectrum 1 / f**beta, for each environment and action dimension on its own.

    The steps of an environment are divided into blocks. The noise of a block is the inverse Fourier transform of
    standard normal numbers, each times the square root of the power at its frequency. So each number is standard
    normal, whatever its step, and depends on nothing but beta, the seed, the environment's global index, the step and
    the dimension. The constant part of a block has the power density of its lowest frequency. Blocks are independent
    of each other, and do not begin anew where an episode ends. `kernels/reference.py` is the full definition.

    Source:
        Hollenstein, Martius and Piater, Colored Noise in PPO, AAAI 2024, arXiv 2312.11091. In the authors' code, blocks
        have the same length and continue over the ends of episodes, too. Its deviation is a little above 1 (by half a
        percent if beta is 0.5), since it does not count the constant part.

    Args:
        beta: The exponent, > 0.
        seed: The seed.
        env_offset: The global index of the first environment.
        num_envs: The number of environments, N.
        width: The number of action dimensions, A.
    """

    def __init__(self, beta: float, seed: int, env_offset: int, num_envs: int, width: int) -> None:
        self._seed, self._env_offset = seed, env_offset
        self._numbers = np.full(num_envs, -1, np.int64)  # the block of each environment in `_values`
        self._values = np.empty((num_envs, BLOCK, width), np.float32)
        self._white = np.empty((width, BLOCK), np.float32)
        self._spectrum = np.zeros((width, BLOCK // 2 + 1), np.complex128)
        power = np.maximum(np.arange(BLOCK // 2 + 1), 1.0) ** -beta
        power[1:-1] *= 2  # a cosine and a sine; frequency 0 and the highest one have a cosine alone
        self._scale = np.sqrt(power / power.sum())
        self._scale[1:-1] /= 2  # irfft counts these coefficients twice

    def rows(self, counters: np.ndarray, num_steps: int) -> np.ndarray:
        """Returns the noise of the next steps, float32 [num_steps, N, A].

        Args:
            counters: int64 [N], the steps of each environment so far.
            num_steps: The number of steps.
        """
        num_envs, _, width = self._values.shape
        out = np.empty((num_steps, num_envs, width), np.float32)
        envs, done = np.arange(num_envs), 0
        while done < num_steps:
            numbers, places = np.divmod(counters + done, BLOCK)
            for env in np.flatnonzero(numbers != self._numbers):
                self._fill(env, numbers[env])
            count = min(num_steps - done, BLOCK - int(places.max()))
            out[done : done + count] = self._values[envs, places + np.arange(count)[:, None]]
            done += count
        return out

    def _fill(self, env: np.intp, number: np.int64) -> None:
        """Makes a block of one environment. No other environment's numbers take part, so none changes the rounding."""
        white, highest = self._white, BLOCK // 2
        noise.gaussian_noise(
            self._seed, self._env_offset + int(env), np.array([number], np.int64), white.reshape(1, white.size)
        )
        np.multiply(white[:, : highest + 1], self._scale, out=self._spectrum.real)
        np.multiply(white[:, highest + 1 :], self._scale[1:-1], out=self._spectrum.imag[:, 1:-1])
        self._values[env] = np.fft.irfft(self._spectrum, BLOCK, norm="forward").T
        self._numbers[env] = number
