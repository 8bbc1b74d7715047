"""Plays the episodes of an agent's test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xcfast.runs.evaluation import EvaluationStopped, Evaluator
from xcfast.runs.testing import play, rendering
from xcfast.xuance.environment import plain
from xcfast.xuance.script_ranks import undivided

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.envs import VecEnv
    from xcfast.runs.player import Player
    from xcfast.xuance.environment import XuanCeVecEnv


def play_test(
    config: Config,
    player: Player,
    env_fn: Callable[[], XuanCeVecEnv | VecEnv] | None,
    test_envs: XuanCeVecEnv | VecEnv | None,
    number: int,
    folder: Path | None,
    quiet: bool,
    should_stop: Callable[[], bool],
) -> np.ndarray | None:
    """Plays the episodes of a test, and shows them if that is wanted and possible.

    Args:
        config: The agent's configuration, with the number of episodes.
        player: The policy with its statistics and action map.
        env_fn: Makes the environments to play in. They are closed afterwards.
        test_envs: Environments to play in, instead of ``env_fn``.
        number: Number of the evaluation, which decides the seeds.
        folder: Folder for a video, if episodes are to be shown. They are then played in an environment that renders.
        quiet: Whether to print nothing but warnings.
        should_stop: Called while episodes are played; True ends the test.

    Returns:
        Episode returns float64 [test_episode]; None if the test was stopped.
    """
    with undivided():
        given = test_envs if env_fn is None else env_fn()
    assert given is not None  # the caller gives one of the two
    envs = plain(given)
    try:
        with suppress(EvaluationStopped):
            if folder is not None:
                with rendering(config) as able:
                    if able:
                        folder.mkdir(parents=True, exist_ok=True)
                        return play(config, player, number, folder, quiet, should_stop)[0]
            return Evaluator(config, player, should_stop, envs)(number)
        return None
    finally:
        if env_fn is not None:
            envs.close()
