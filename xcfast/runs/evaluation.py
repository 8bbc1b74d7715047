"""Evaluation: deterministic actions, frozen statistics, envs of its own, the same number of episodes in every env."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from xcfast.collectors.native import EnvLoop, reason_not_native
from xcfast.envs import NativeVecEnv, make_envs

if TYPE_CHECKING:
    from xcfast.config import Config
    from xcfast.envs import VecEnv
    from xcfast.normalize import ObservationNormalizer
    from xcfast.policy import ActionMap, ActorCritic

MAX_ENVS = 64
TEST_RUN = 2**31  # the evaluation number of test mode: training never gets there


class EvaluationStopped(Exception):
    """The evaluation was asked to stop before it was done."""


def evaluation_seeds(config: Config, number: int, num_envs: int) -> list[int]:
    """Reset seeds of evaluation ``number``: below 2**32, as old generators want them, and never one of training."""
    training = range(config.env_seed, config.env_seed + config.parallels)
    words = np.random.SeedSequence((config.env_seed, number)).generate_state(num_envs + len(training), np.uint32)
    return [int(word) for word in words if int(word) not in training][:num_envs]


def num_evaluation_envs(episodes: int) -> int:
    """The most envs, at most MAX_ENVS, that can share the episodes equally."""
    return next(n for n in range(min(episodes, MAX_ENVS), 0, -1) if episodes % n == 0)


class Evaluator:
    """Runs ``test_episode`` episodes with the policy's most likely actions; leaves no trace in training.

    In one native call where that is possible and ``collector_backend`` is not ``torch``. The envs are made at the first
    call and kept until ``close``, or are the caller's. With ``render_mode`` there is one env, which shows every step.
    """

    def __init__(
        self,
        config: Config,
        policy: ActorCritic,
        normalizer: ObservationNormalizer,
        action_map: ActionMap,
        render_mode: str | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        envs: VecEnv | None = None,
    ) -> None:
        self._config = config
        self._policy = policy
        self._normalizer = normalizer
        self._action_map = action_map
        self._render_mode = render_mode
        self._should_stop = should_stop
        self._envs: VecEnv | None = None
        self._own = envs is None
        self._loop: EnvLoop | None = None
        if envs is not None:
            self._use(envs)

    @torch.inference_mode()
    def __call__(self, number: int) -> np.ndarray:
        """Episode returns float64 [test_episode] of evaluation ``number``, which decides the seeds; env by env.

        Where the caller's envs cannot share the episodes equally, every env plays the larger number, and the last
        ones of the last envs are left out: which those are is decided before they are played.

        Raises:
            EvaluationStopped: ``should_stop`` said so.
        """
        config, policy = self._config, self._policy
        envs = self._envs
        if envs is None:
            num_envs = 1 if self._render_mode else num_evaluation_envs(config.test_episode)
            envs = self._use(make_envs(config, num_envs=num_envs, render_mode=self._render_mode))
        num_envs = envs.num_envs
        quota = -(-config.test_episode // num_envs)
        if self._loop is not None:
            envs.reset(seed=evaluation_seeds(config, number, num_envs))
            return self._counted(self._loop.evaluate(quota))
        scores: list[list[float]] = [[] for _ in range(num_envs)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            obs, _ = envs.reset(seed=evaluation_seeds(config, number, num_envs))
            while not self._should_stop():
                normalized = torch.from_numpy(self._normalizer.normalize(obs)).to(policy.device)
                masks = torch.from_numpy(envs.action_masks).to(policy.device) if config.use_actions_mask else None
                actions = policy.actor.mode(policy.act(normalized, masks)).cpu().numpy()
                obs, _, _, _, infos = envs.step(self._action_map(actions))
                if "episode" in infos:
                    for env in np.flatnonzero(infos["_episode"]):
                        if len(scores[env]) < quota:
                            scores[env].append(float(infos["episode"]["r"][env]))
                    if all(len(score) == quota for score in scores):
                        return self._counted(np.array([value for score in scores for value in score]))
            raise EvaluationStopped
        finally:
            torch.set_num_threads(threads)

    def _use(self, envs: VecEnv) -> VecEnv:
        self._envs = envs
        config = self._config
        wanted = config.collector_backend != "torch" and self._render_mode is None and not config.use_actions_mask
        if wanted and isinstance(envs, NativeVecEnv) and reason_not_native(envs, self._policy) is None:
            self._loop = EnvLoop(envs, self._policy, self._normalizer, self._action_map)
        return envs

    def _counted(self, scores: np.ndarray) -> np.ndarray:
        """The scores that count, of those of all envs, env by env."""
        wanted = self._config.test_episode
        if len(scores) == wanted:
            return scores
        assert self._envs is not None
        return scores.reshape(self._envs.num_envs, -1).T.reshape(-1)[:wanted]

    @property
    def backend(self) -> str:
        """The engine of the last call, ``native`` or ``torch``."""
        return "torch" if self._loop is None else "native"

    def close(self) -> None:
        """Close the envs that were made here."""
        if self._envs is not None and self._own:
            self._envs.close()
            self._envs = self._loop = None
