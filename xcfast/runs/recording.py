"""A recorded test: it plays all episodes without rendering, then plays the best one again and records it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from xcfast.envs.action_masks import find_mask_source
from xcfast.envs.construct import EnvConstructor, configured_env_fn
from xcfast.envs.opengl import first_line
from xcfast.envs.rendering import render_kwargs
from xcfast.output.console import say
from xcfast.output.video import Act, Episode, Stopped, frames_per_second, play_episode, record_episode
from xcfast.runs.evaluation import EvaluationStopped, evaluation_seeds

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.runs.player import Player


class RecordingEvaluator:
    """Plays the episodes of a test and records the best one.

    Each episode has a seed of its own, so that the best one can be played again, alone, with the same actions.

    Args:
        config: The configuration.
        player: The policy, which plays its most likely actions, with its statistics and action map.
        path: The mp4 file to write.
        quiet: Whether to print nothing but warnings, and no progress bar.
        should_stop: Called before each step; True ends the test.
    """

    backend = "torch"  #: engine of the policy

    def __init__(
        self,
        config: Config,
        player: Player,
        path: Path,
        quiet: bool,
        should_stop: Callable[[], bool],
    ) -> None:
        self._config, self._player = config, player
        self._path, self._quiet, self._should_stop = path, quiet, should_stop

    @torch.inference_mode()
    def __call__(self, number: int) -> np.ndarray:
        """Returns the episodes' returns, float64 [test_episode], of evaluation `number`, which decides the seeds.

        Raises:
            EvaluationStopped: `should_stop` returned True before all episodes were played.
        """
        config, constructor = self._config, configured_env_fn(self._config)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            env = constructor()
            try:
                seeds = evaluation_seeds(config, number, config.test_episode)
                episodes = [self._play(env, seed) for seed in seeds]
            finally:
                env.close()
            best = int(np.argmax([episode.episode_return for episode in episodes]))
            self._record(constructor, best, episodes)
        finally:
            torch.set_num_threads(threads)
        return np.array([episode.episode_return for episode in episodes])

    def _play(self, env: gymnasium.Env[Any, Any], seed: int) -> Episode:
        try:
            return play_episode(
                env, self._act(env), seed=seed, max_steps=self._limit(env), should_stop=self._should_stop
            )
        except Stopped:
            raise EvaluationStopped from None

    def _record(self, constructor: EnvConstructor, number: int, episodes: list[Episode]) -> None:
        """Plays an episode again and records it; prints where the video is, or why there is none."""
        best = episodes[number]
        try:
            with closing(replace(constructor, kwargs=render_kwargs(constructor, "rgb_array"))()) as env:
                fps = frames_per_second(env, self._config.fps)
                replay = record_episode(
                    env,
                    self._act(env),
                    self._path,
                    fps,
                    seed=best.seed,
                    max_steps=self._limit(env),
                    length=best.length,
                    progress=not self._quiet,
                    should_stop=self._should_stop,
                )
        except Stopped:
            say("no video: the recording was stopped", error=True)
            return
        except Exception as error:  # an error of a renderer must not lose the scores of the test
            say(f"no video: {first_line(error)}", error=True)
            return
        say(
            f"video {self._path} (the best of {len(episodes)} episodes: number {number + 1}, "
            f"return {replay.episode_return:.2f}; {fps:g} frames per second)",
            self._quiet,
        )
        if replay != best:
            say(
                f"warning: the video shows a return of {replay.episode_return:.2f}, the episode that was played had "
                f"{best.episode_return:.2f}: in this environment the same seed and actions give another episode",
                error=True,
            )

    def _act(self, env: gymnasium.Env[Any, Any]) -> Act:
        """Returns the policy as a function of one observation and its info."""
        mask_of = find_mask_source(env) if self._config.use_actions_mask else None

        def act(obs: Any, info: dict[str, Any]) -> Any:
            masks = None if mask_of is None else mask_of(info)[None]
            return self._player.act(np.asarray(obs)[None], masks)[0]

        return act

    def _limit(self, env: gymnasium.Env[Any, Any]) -> int | None:
        """Returns the number of steps after which an episode is cut, if the task has no time limit of its own."""
        return self._config.test_step_limit if env.spec is None or env.spec.max_episode_steps is None else None
