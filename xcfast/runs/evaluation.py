"""Evaluation: most likely actions, frozen statistics, environments of its own, the same number of episodes in each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from xcfast.collectors.collector import check_autoreset
from xcfast.collectors.native import EnvLoop, reason_not_native
from xcfast.envs import NativeVecEnv, make_envs

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.envs import VecEnv
    from xcfast.runs.player import Player

MAX_ENVS = 64
TEST_RUN = 2**31  #: the evaluation number of test mode; training never gets there
_REPORT_SECONDS = 1.0


class EvaluationStopped(Exception):
    """The evaluation was asked to stop before it was done."""


def evaluation_seeds(config: Config, number: int, num_envs: int) -> list[int]:
    """Returns the reset seeds of an evaluation: ``test_seed`` and up, or else ``fresh_seeds``.

    Args:
        config: The run's configuration.
        number: Number of the evaluation, >= 0.
        num_envs: Number of environments.
    """
    if config.test_seed is not None:
        return [config.test_seed + i for i in range(num_envs)]
    return fresh_seeds(config, number, num_envs)


def fresh_seeds(config: Config, number: int, num_envs: int) -> list[int]:
    """Returns reset seeds that differ from number to number and are never those with which training starts.

    They are below 2**32, the largest that old generators take.
    """
    training = range(config.env_seed, config.env_seed + config.parallels)
    words = np.random.SeedSequence((config.env_seed, number)).generate_state(num_envs + len(training), np.uint32)
    return [int(word) for word in words if int(word) not in training][:num_envs]


def num_evaluation_envs(episodes: int) -> int:
    """Returns how many environments, at most ``MAX_ENVS``, share the episodes as evenly as can be."""
    per_env = -(-episodes // MAX_ENVS)
    return -(-episodes // per_env)


def has_time_limit(envs: VecEnv) -> bool:
    """Returns whether the task itself ends every episode after some number of steps."""
    return envs.spec is not None and envs.spec.max_episode_steps is not None


class Evaluator:
    """Plays ``test_episode`` episodes with the policy's most likely actions, and leaves no trace in training.

    The episodes are played in one native call where that is possible and ``collector_backend`` is not ``torch``. The
    environments are made at the first call and kept until ``close``, unless the caller passed them in.

    If the task has no time limit, an episode is cut off after ``test_step_limit`` steps, and its return so far counts.

    Args:
        config: The run's configuration.
        player: The policy with its statistics and action map.
        should_stop: Called while episodes are played; True ends the evaluation.
        envs: Environments to play in, which the caller closes. None: the evaluator makes those of the configuration.

    Attributes:
        report: Called about once a second with the number of episodes that have ended, and the number of all.
    """

    def __init__(
        self,
        config: Config,
        player: Player,
        should_stop: Callable[[], bool] = lambda: False,
        envs: VecEnv | None = None,
    ) -> None:
        self._config, self._player = config, player
        self._should_stop = should_stop
        self.report: Callable[[int, int], None] = lambda done, wanted: None
        self._owns_envs = envs is None
        self._envs: VecEnv | None = None
        self._loop: EnvLoop | None = None
        if envs is not None:
            self._use(envs)

    def __call__(self, number: int) -> np.ndarray:
        """Plays evaluation ``number``, which decides the seeds.

        Every environment plays the same number of episodes. If that makes more than are wanted, the last ones of the
        last environments do not count; which ones is decided before they are played.

        Returns:
            Episode returns float64 [test_episode], round by round over the environments where some do not count, else
            environment by environment.

        Raises:
            EvaluationStopped: ``should_stop`` returned True.
        """
        envs, wanted = self._envs, self._config.test_episode
        if envs is None:
            envs = self._use(make_envs(self._config, num_envs=num_evaluation_envs(wanted)))
        num_envs = envs.num_envs
        per_env = -(-wanted // num_envs)
        seeds = evaluation_seeds(self._config, number, num_envs)
        if self._loop is not None:
            envs.reset(seed=seeds)
            played = self._loop.evaluate(per_env, self._should_stop, self._reporter(per_env * num_envs))
            if played is None:
                raise EvaluationStopped
            scores = played
        else:
            scores = self._play(envs, seeds, per_env)
        if len(scores) == wanted:
            return scores
        return scores.reshape(num_envs, per_env).T.reshape(-1)[:wanted]

    def _play(self, envs: VecEnv, seeds: list[int], per_env: int) -> np.ndarray:
        """Returns float64 [N * per_env] of the first ``per_env`` episodes of each environment, one after the other."""
        scores: list[list[float]] = [[] for _ in seeds]
        limit = None if has_time_limit(envs) else self._config.test_step_limit
        threads, report = torch.get_num_threads(), self._reporter(per_env * len(seeds))
        torch.set_num_threads(1)
        try:
            obs, _ = envs.reset(seed=seeds)
            while not self._should_stop():
                actions = self._player.act(obs, envs.action_masks if self._config.use_actions_mask else None)
                obs, _, _, _, infos = envs.step(actions)
                if "episode" in infos:
                    for env in np.flatnonzero(infos["_episode"]):
                        scores[env].append(float(infos["episode"]["r"][env]))
                if limit is not None and (long := envs.episode_lengths >= limit).any():
                    for env in np.flatnonzero(long):
                        scores[env].append(float(envs.episode_returns[env]))
                    obs, _ = envs.reset(options={"reset_mask": long})
                if all(len(score) >= per_env for score in scores):
                    return np.array([value for score in scores for value in score[:per_env]])
                report(sum(min(len(score), per_env) for score in scores))
            raise EvaluationStopped
        finally:
            torch.set_num_threads(threads)

    def _reporter(self, wanted: int) -> Callable[[int], None]:
        """Returns a function that hands a number of ended episodes on to ``report``, about once a second."""
        reported = time.monotonic()

        def hand_on(ended: int) -> None:
            nonlocal reported
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                self.report(ended, wanted)

        return hand_on

    def _use(self, envs: VecEnv) -> VecEnv:
        check_autoreset(envs)
        if not envs.episode_statistics:
            raise ValueError("envs must report episode statistics; they were made with episode_statistics=False")
        self._envs, config = envs, self._config
        forbidden = config.collector_backend == "torch" or config.use_actions_mask or not has_time_limit(envs)
        if not forbidden and isinstance(envs, NativeVecEnv) and reason_not_native(envs, self._player.policy) is None:
            self._loop = EnvLoop(envs, *self._player)
        return envs

    @property
    def backend(self) -> str:
        """The engine that plays: ``native`` or ``torch``."""
        return "torch" if self._loop is None else "native"

    def close(self) -> None:
        """Closes the environments that were made here. The next call makes others."""
        if self._envs is not None and self._owns_envs:
            self._envs.close()
            self._envs = self._loop = None
