"""Test mode: plays a saved model, and shows it in a video or a window where rendering is wanted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xcfast.envs.construct import configured_env_fn
from xcfast.envs.opengl import mujoco_gl
from xcfast.envs.rendering import find_backend
from xcfast.envs.serial import DummyVecEnv
from xcfast.errors import ConfigError
from xcfast.output.console import say, score_text
from xcfast.output.folders import RunFolders, find_model, model_file
from xcfast.output.summary import Summary
from xcfast.resources import enough_of_all, training_device
from xcfast.runs.evaluation import TEST_RUN, Evaluator
from xcfast.runs.player import Player, load_player
from xcfast.runs.recording import RecordingEvaluator

if TYPE_CHECKING:
    from xcfast.config.schema import Config

# Keys that describe the network and its input. The model's own values count, whatever the configuration says.
_OF_THE_MODEL = (
    "policy",
    "representation",
    "representation_hidden_size",
    "actor_hidden_size",
    "critic_hidden_size",
    "shared_representation",
    "activation",
    "activation_action",
    "normalize",
    "use_obsnorm",
    "obsnorm_range",
    "use_actions_mask",
)


def run_test(config: Config, resume: Path | None = None, quiet: bool = False) -> Summary:
    """Evaluates the best model (or else the final one) of the newest run with this env id and seed, or a given model.

    Args:
        config: Decides the environment, the number of episodes, seeds and rendering.
        resume: A run folder, or a model file, instead of the newest run.
        quiet: Whether to print nothing but warnings.
    """
    path = find_model(config) if resume is None else model_file(resume)
    with rendering(config) as able, enough_of_all():
        saved = load_player(path)
        if saved.config.env_id != config.env_id:
            raise ConfigError(f"{path} was trained on {saved.config.env_id}; env_id is {config.env_id}")
        config = dataclasses.replace(config, **{key: getattr(saved.config, key) for key in _OF_THE_MODEL})
        saved.player.policy.to(training_device(config))
        folders = RunFolders.find(path)

        start = time.perf_counter()
        say(f"testing {path} (step {saved.step:,})", quiet)
        scores, backend = play(config, saved.player, TEST_RUN, folders.log_dir if able else None, quiet)
    mean, std = float(scores.mean()), float(scores.std())
    say(f"scores {np.array2string(scores, precision=2)}", quiet)
    say(f"Mean Score: {score_text(mean)}, Std: {score_text(std)}, Best Score: {score_text(scores.max())}", quiet)
    return Summary(
        steps=saved.step,
        collection_seconds=0.0,
        update_seconds=0.0,
        evaluation_seconds=time.perf_counter() - start,
        steps_per_second=0.0,
        best_mean=mean,
        best_std=std,
        best_step=saved.step,
        final_mean=mean,
        final_std=std,
        final_step=saved.step,
        log_dir=str(folders.log_dir),
        model_dir=str(folders.model_dir),
        collector_backend=backend,
        learner_backend="none",
    )


@contextmanager
def rendering(config: Config) -> Iterator[bool]:
    """Sets up OpenGL for ``config.render``; yields whether the environment can be shown.

    Enter it before MuJoCo is imported, since that import fails if MUJOCO_GL names a missing library.
    """
    backend = problem = None
    if config.render:
        backend, problem = find_backend(configured_env_fn(config), config.render_mode)
    if problem is not None:
        say(f"no {'window' if config.render_mode == 'human' else 'video'}: {problem}", error=True)
    with mujoco_gl(backend):
        yield config.render and problem is None


def play(
    config: Config,
    player: Player,
    number: int,
    folder: Path | None,
    quiet: bool,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, str]:
    """Plays the episodes of a test, and shows them: all of them in a window, or the best one in a video.

    Args:
        config: Decides the environment, the number of episodes, and how they are shown.
        player: The policy with its statistics and action map.
        number: Number of the evaluation, which decides the seeds.
        folder: Folder for a video. None: nothing is shown.
        quiet: Whether to print nothing but warnings.
        should_stop: Called while episodes are played; True ends the test.

    Returns:
        Episode returns float64 [test_episode], and the engine that played.

    Raises:
        EvaluationStopped: ``should_stop`` returned True.
    """
    if folder is not None and config.render_mode == "rgb_array" and _can_encode():
        path = folder / f"test_{time.strftime('%Y_%m%d_%H%M%S')}.mp4"
        return RecordingEvaluator(config, player, path, quiet, should_stop)(number), RecordingEvaluator.backend
    with ExitStack() as stack:
        envs = None
        if folder is not None and config.render_mode == "human":
            env_fn = configured_env_fn(config, "human")
            envs = DummyVecEnv([env_fn], copy=False, action_masks=config.use_actions_mask)
            stack.callback(envs.close)
        evaluator = Evaluator(config, player, should_stop, envs)
        stack.callback(evaluator.close)
        return evaluator(number), evaluator.backend


def _can_encode() -> bool:
    """Returns whether the package that writes videos is installed; prints a line if it is not."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        say(f'no video: {error.name} is missing; pip install "xcfast[video]"', error=True)
        return False
    return True
