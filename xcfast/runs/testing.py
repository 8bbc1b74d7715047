"""Test mode: evaluate a saved model, and show it: an mp4 file or a window where rendering is asked for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from xcfast.config import Config, ConfigError
from xcfast.envs import make_env_fn
from xcfast.envs.opengl import mujoco_gl
from xcfast.envs.rendering import find_backend
from xcfast.normalize import ObservationNormalizer
from xcfast.output import checkpoint as ckpt
from xcfast.output.console import say
from xcfast.output.folders import RunFolders, find_model, model_file
from xcfast.output.summary import Summary
from xcfast.policy import ActionMap, ActorCritic, build_policy
from xcfast.resources import training_device
from xcfast.runs.evaluation import TEST_RUN, Evaluator
from xcfast.runs.recording import RecordingEvaluator

# What decides the network and what it sees; taken from the model's own configuration, whatever the YAML says now.
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
    """Evaluate the best (or else final) model of the newest run with this env id and seed, or the one that is named.

    Args:
        config: decides the env, the number of episodes, seeds, rendering.
        resume: a run folder, or a model file.
        quiet: print nothing but warnings.
    """
    path = find_model(config) if resume is None else model_file(resume)
    saved = ckpt.load_checkpoint(path)
    trained = saved["config"]
    if trained["env_id"] != config.env_id:
        raise ConfigError(f"{path} was trained on {trained['env_id']}; env_id is {config.env_id}")
    config = dataclasses.replace(config, **{key: trained[key] for key in _OF_THE_MODEL})
    with rendering(config) as able:
        env = make_env_fn(config.env_id)()
        observation_space, action_space = env.observation_space, env.action_space
        env.close()
        policy = build_policy(config, observation_space, action_space)
        normalizer = ObservationNormalizer(
            observation_space.shape or (),
            num_envs=1,
            clip=config.obsnorm_range,
            enabled=config.use_obsnorm,
        )
        try:
            policy.load_state_dict(saved["policy"])
            normalizer.rms.load_state_dict(saved["obs_normalizer"]["rms"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ckpt.CheckpointError(f"{path}: does not fit {config.env_id} as it is here: {reason}") from error
        policy.to(training_device(config))
        action_map = ActionMap(action_space, config.activation_action, bool(saved.get("identity_actions")))
        folders = RunFolders.find(path)

        start = time.perf_counter()
        say(f"testing {path} (step {saved['step']:,})", quiet)
        with playing(config, policy, normalizer, action_map, folders.log_dir if able else None, quiet) as evaluator:
            scores = evaluator(TEST_RUN)
            backend = evaluator.backend
    mean, std = float(scores.mean()), float(scores.std())
    say(f"scores {np.array2string(scores, precision=2)}", quiet)
    say(f"Mean Score: {mean:.2f}, Std: {std:.2f}, Best Score: {scores.max():.2f}", quiet)
    return Summary(
        steps=int(saved["step"]),
        collection_seconds=0.0,
        update_seconds=0.0,
        evaluation_seconds=time.perf_counter() - start,
        steps_per_second=0.0,
        best_mean=mean,
        best_std=std,
        best_step=int(saved["step"]),
        final_mean=mean,
        final_std=std,
        log_dir=str(folders.log_dir),
        model_dir=str(folders.model_dir),
        collector_backend=backend,
        learner_backend="none",
    )


@contextmanager
def rendering(config: Config) -> Iterator[bool]:
    """While active, OpenGL is set up for ``config.render``; yields whether the env can be shown.

    To be entered before MuJoCo is imported, which fails where MUJOCO_GL names a library that is missing.
    """
    backend = problem = None
    if config.render:
        backend, problem = find_backend(config.env_id, config.render_mode)
    if problem is not None:
        say(f"no {'window' if config.render_mode == 'human' else 'video'}: {problem}", error=True)
    with mujoco_gl(backend):
        yield config.render and problem is None


@contextmanager
def playing(
    config: Config,
    policy: ActorCritic,
    normalizer: ObservationNormalizer,
    action_map: ActionMap,
    video_dir: Path | None,
    quiet: bool,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Evaluator | RecordingEvaluator]:
    """Yields an evaluator that shows what it plays, where `video_dir` is given; it says where the video is.

    Args:
        config: decides the env, the number of episodes, seeds, how it is shown.
        policy: plays.
        normalizer: of its observations.
        action_map: of its actions.
        video_dir: where a video goes; None: nothing is shown.
        quiet: print nothing but warnings.
        should_stop: ends the evaluation.
    """
    render_mode = None
    if video_dir is not None and config.render_mode == "human":
        render_mode = "human"
    elif video_dir is not None and _can_encode():
        path = video_dir / f"test_{time.strftime('%Y_%m%d_%H%M%S')}.mp4"
        yield RecordingEvaluator(config, policy, normalizer, action_map, path, quiet, should_stop)
        return
    evaluator = Evaluator(config, policy, normalizer, action_map, render_mode, should_stop)
    try:
        yield evaluator
    finally:
        evaluator.close()


def _can_encode() -> bool:
    """Returns whether the package that writes videos is installed, and says so where it is not."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        say(f'no video: {error.name} is missing; pip install "xcfast[video]"', error=True)
        return False
    return True
