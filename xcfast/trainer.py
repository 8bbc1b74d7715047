"""The run: builds the parts, owns the loop (collect, update, log, evaluate, save), and the three modes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast import checkpoint as ckpt
from xcfast.collector import check_finite
from xcfast.collector_native import make_collector
from xcfast.config import Config
from xcfast.envs import EnvError, MujocoVecEnv, SimulationError, WorkerError, make_envs
from xcfast.evaluation import TEST_RUN, EvaluationStopped, Evaluator, evaluation_seeds
from xcfast.learner_cuda import CudaLearner, pinned
from xcfast.learner_native import make_learner
from xcfast.metrics import make_writer
from xcfast.normalize import NonFiniteError, ObservationNormalizer, RewardNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.progress import Progress, check_same_run
from xcfast.report import ProgressBar, describe, end_table, num_threads, resolve_device, say, start_table
from xcfast.results import Mode, ResultFiles, RunFolders, Summary, package_versions, write_json
from xcfast.rollout import Rollout
from xcfast.signals import StopRequest

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.envs import VecEnv
    from xcfast.policy import ActorCritic

__all__ = ["Parts", "RunFailed", "Summary", "Trainer", "describe", "run"]


class RunFailed(RuntimeError):
    """The run cannot go on; the message says at which step, why, and what was saved.

    Attributes:
        expected: whether the message tells all there is to know; otherwise the cause's traceback does.
    """

    expected = True


def run(config: Config, mode: Mode | None = None, resume: str | Path | None = None, quiet: bool = False) -> Summary:
    """Do what the command line does.

    Args:
        config: from ``load_config``.
        mode: ``benchmark`` trains and evaluates, ``train`` only trains, ``test`` evaluates a saved model. None: that of
            the run that is resumed, else ``benchmark``.
        resume: a run folder or a checkpoint file to continue (in ``test`` mode: to take the model from).
        quiet: print nothing but warnings.

    Raises:
        CheckpointError: the run or model asked for cannot be read.
        ConfigError: the configuration does not fit the environment.
        RunFailed: training stopped on a failure; a checkpoint was saved where possible.
    """
    resume = None if resume is None else Path(resume)
    if mode == "test":
        from xcfast.testing import run_test

        return run_test(config, resume, quiet)
    trainer = Trainer(config, mode, resume, quiet)
    try:
        return trainer.run()
    finally:
        trainer.close()


@dataclass(frozen=True)
class Parts:
    """What the caller of a ``Trainer`` brings; what is None is made as the configuration says.

    Attributes:
        envs: ``config.parallels`` of them; they stay the caller's to close.
        policy: of the form that ``config`` describes; its weights are trained in place.
        optimizer: of the policy's parameters.
        scheduler: of that optimizer; stepped once after each update, it decides the learning rates.
        below_env: whether the run's folders are in one ``<env_id>``.
    """

    envs: VecEnv | None = None
    policy: ActorCritic | None = None
    optimizer: torch.optim.Optimizer | None = None
    scheduler: LRScheduler | None = None
    below_env: bool = True


class Trainer:
    """One training run; ``close()`` frees what it holds.

    ``run()`` trains to the end, or until it is asked to stop. Whoever has a loop of their own calls ``advance()`` for
    some steps at a time instead, ``add_scores()`` after evaluations, and ``finish()``.

    Attributes:
        begun: whether the envs' first episodes have begun.
        episodes_done: int64 [N], episodes that each env has finished in rollouts that were learned from.
    """

    def __init__(
        self,
        config: Config,
        mode: Mode | None = None,
        resume: Path | None = None,
        quiet: bool = False,
        parts: Parts = Parts(),
    ) -> None:
        self.config, self.quiet = config, quiet
        self._parts = parts
        self.mode: Mode = mode or "benchmark"
        self.progress = Progress()
        self._stop = StopRequest()
        self.begun = resume is not None
        self._started = time.perf_counter()
        self._rollout_seconds = 0.0
        self._threads = torch.get_num_threads()
        self._closers: list[Callable[[], object]] = []

        checkpoint_file = saved = None
        if resume is not None:
            self.folders = RunFolders.find(resume)
            self.mode = mode or self.folders.mode
            checkpoint_file = resume if resume.suffix == ".pth" else self.folders.newest_checkpoint()
            saved = ckpt.load_checkpoint(checkpoint_file)
        try:
            self._build(saved or {})
            if saved is None:
                self.folders = RunFolders.create(config, self.mode, parts.below_env)
            resume_step = None if saved is None else int(saved["step"])
            self.writer = make_writer(config, self.folders.log_dir, resume_step=resume_step)
            self._closers.append(self.writer.close)
            self.results = ResultFiles(self.folders, config, self.mode, str(self.device), resume_step)
            if not quiet:
                say(
                    start_table(
                        config,
                        self.mode,
                        self.policy,
                        self.action_map,
                        self.device,
                        self.envs,
                        self.folders,
                        f"{self.collector.name} ({self.collector_reason})",
                        f"{self.learner.name} ({self.learner_reason})",
                    )
                )
            if saved is not None and checkpoint_file is not None:
                self._restore(saved, checkpoint_file)
                say(f"resuming {checkpoint_file} at step {self.step}", quiet)
        except BaseException:
            self.close()
            raise

    @property
    def step(self) -> int:
        """Env steps trained on so far, over all envs."""
        return self.progress.iteration * self.config.batch_size

    def _build(self, saved: dict[str, Any]) -> None:
        config, parts = self.config, self._parts
        self.device = resolve_device(config)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if parts.envs is None:
            self.envs = make_envs(config)
            self._closers.append(self.envs.close)
        else:
            self.envs = parts.envs
        observation_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        self.policy = parts.policy or build_policy(config, observation_space, action_space)
        self.action_map = ActionMap(action_space, config.activation_action, bool(saved.get("identity_actions")))
        self._inference = saved.get("engines", {}).get("inference")
        num_envs, obs_shape = self.envs.num_envs, observation_space.shape or ()
        self.obs_normalizer = ObservationNormalizer(
            obs_shape, num_envs=num_envs, clip=config.obsnorm_range, enabled=config.use_obsnorm
        )
        self.reward_normalizer = RewardNormalizer(
            num_envs, gamma=config.gamma, clip=config.rewnorm_range, enabled=config.use_rewnorm
        )
        self.episodes_done = np.zeros(num_envs, np.int64)
        discrete = self.action_map.discrete
        self.rollout = Rollout(
            config.num_steps,
            num_envs,
            obs_shape,
            () if discrete else (math.prod(action_space.shape or ()),),
            np.int64 if discrete else np.float32,
            num_actions=int(getattr(action_space, "n")) if config.use_actions_mask else None,  # noqa: B009
            allocate=pinned if self.device.type == "cuda" else np.zeros,
        )
        self.learner, self.learner_reason = make_learner(
            config,
            self.policy,
            self.rollout,
            self.reward_normalizer,
            num_threads(config),
            self.device,
            parts.optimizer,
            parts.scheduler,
        )
        self._connect()
        self._closers.append(lambda: self.evaluator.close())
        torch.set_num_threads(1)  # the env loop's inference; the learner takes all of them for the update

    def _connect(self) -> None:
        """Make what applies the action map."""
        parts = (self.policy, self.obs_normalizer, self.action_map)
        on_device = self.learner.device_policy if isinstance(self.learner, CudaLearner) else None
        self.collector, self.collector_reason = make_collector(
            self.config, self.envs, *parts, on_device, self._inference
        )
        self.evaluator = Evaluator(self.config, *parts, should_stop=lambda: self._stop.requested)

    def start(self) -> None:
        """Begin the first episodes, and give the observation statistics a start unless they have one; only once."""
        if self.begun:
            return
        self.begun = True
        self.collector.reset([self.config.env_seed + i for i in range(self.envs.num_envs)])
        if self.config.use_obsnorm and self.obs_normalizer.rms.count == 0:
            self.collector.warm_up(self.rollout)

    def run(self) -> Summary:
        """Train until ``running_steps``, or until SIGINT, SIGTERM or SIGHUP; returns what was achieved.

        Raises:
            RunFailed: something broke, or what had to be saved at the end could not be.
        """
        self._started = time.perf_counter() - self.progress.elapsed_seconds
        with self._stop:
            try:
                self._train()
            except Exception as error:
                raise self._failure(error) from error
            finally:
                self.results.close(self._elapsed_seconds)
            return self._finish()

    def _failure(self, error: Exception) -> RunFailed:
        failure = RunFailed(self._save_after_failure(error))
        failure.expected = isinstance(error, EnvError | NonFiniteError | SimulationError | WorkerError)
        return failure

    def _train(self) -> None:
        """The loop. It ends between two iterations, where a checkpoint can be taken, perhaps with an evaluation due."""
        config = self.config
        if not self.begun:
            self.start()
            self.progress.evaluation_due = self.mode == "benchmark"
        with ProgressBar(config.num_iterations * config.batch_size, self.step, enabled=not self.quiet) as bar:
            while True:
                if self.progress.evaluation_due and not self._stop.requested:
                    self._evaluate()
                if self._finished or self._stop.requested:
                    break
                if self._passed(config.checkpoint_every):
                    self._save_checkpoint()
                self._iterate()
                due = self._finished or self._passed(config.eval_interval)
                self.progress.evaluation_due = due and self.mode == "benchmark"
                bar.update(self.step, self.progress.recent_returns)

    @property
    def _finished(self) -> bool:
        return self.progress.iteration == self.config.num_iterations

    @property
    def _elapsed_seconds(self) -> float:
        """Wall-clock seconds of this run, with those of the parts before it was resumed."""
        return time.perf_counter() - self._started

    def advance(self, num_steps: int) -> dict[str, float]:
        """Train for ``num_steps`` steps of each env; a rollout that is not full then waits for the next call.

        Returns:
            What the last update logged; nothing where there was none.

        Raises:
            RunFailed: something broke.
        """
        num_envs = self.envs.num_envs
        begin = self.step + self.rollout.step * num_envs
        logged: dict[str, float] = {}
        try:
            self.start()
            with ProgressBar(begin + num_steps * num_envs, begin, enabled=not self.quiet) as bar:
                while num_steps > 0:
                    part = min(num_steps, self.rollout.num_steps - self.rollout.step)
                    num_steps -= part
                    logged = self._iterate(part) or logged
                    if self.rollout.step == 0 and self._passed(self.config.checkpoint_every):
                        self._save_checkpoint()
                    bar.update(self.step + self.rollout.step * num_envs, self.progress.recent_returns)
        except Exception as error:
            raise self._failure(error) from error
        return logged

    def restart_episodes(self) -> None:
        """Start new episodes in every env, after others used them; rows of an unfinished rollout are dropped."""
        self.rollout.clear()
        self.rollout.episode_returns[:] = 0.0
        self.rollout.episode_lengths[:] = 0
        self.reward_normalizer.returns[:] = 0.0
        self.obs_normalizer.discard()
        self.collector.reset(None)

    def use_identity_actions(self, identity: bool) -> None:
        """Whether actions go to the envs as the policy makes them; see ``ActionMap``. Episodes must then start anew."""
        if identity == self.action_map.identity:
            return
        space = self.envs.single_action_space
        self.action_map = ActionMap(space, self.config.activation_action, identity)
        noise = self.collector.state_dict(with_envs=False)
        self.evaluator.close()
        self._connect()
        self.collector.load_state_dict(noise)

    def finish(self) -> Summary:
        """The end of a run by ``advance``: the last weights in a checkpoint, the results' end, the summary."""
        path = ckpt.checkpoint_path(self.folders.model_dir, self.step)
        if self.progress.iteration > 0 and not path.exists():
            self._save_checkpoint()
        self.results.close(self._elapsed_seconds)
        summary = self._summary()
        write_json(self.folders.log_dir / "summary.json", summary.to_dict())
        return summary

    def _finish(self) -> Summary:
        """Save what resuming or testing needs, and report."""
        saved = self._save_checkpoint()
        if self._finished:
            saved = self._save(ckpt.FINAL_MODEL) and saved
        summary = self._summary()
        write_json(self.folders.log_dir / "summary.json", summary.to_dict())
        if not saved:
            raise RunFailed(f"step {self.step} was reached but could not be saved; see the warnings above")
        warnings = self.envs.warning_counts if isinstance(self.envs, MujocoVecEnv) else {}
        if warnings:
            listed = ", ".join(f"{name} {count} times" for name, count in warnings.items())
            say(f"warning: MuJoCo reported in training: {listed}", error=True)
        if not self.quiet:
            say(end_table(summary, self._stop.signal_name))
        return summary

    def _iterate(self, num_steps: int | None = None) -> dict[str, float]:
        """One PPO iteration: collect, update, log; returns what is logged.

        With ``num_steps`` that do not fill the rollout, only their collection, and nothing is returned.
        """
        start = time.perf_counter()
        self.collector.collect(self.rollout, num_steps)
        self._rollout_seconds += time.perf_counter() - start
        if not self.rollout.full:
            return {}
        check_finite(self.rollout)
        collected = time.perf_counter()
        metrics = self.learner.update(self.rollout, self.progress.iteration)
        updated = time.perf_counter()
        self.progress.collection_seconds += self._rollout_seconds
        self.progress.update_seconds += updated - collected
        self._log_episodes()
        self.progress.iteration += 1
        scalars = self._log_iteration(metrics, self._rollout_seconds, updated - collected)
        self.writer.flush()
        self.rollout.clear()
        self._rollout_seconds = 0.0
        return scalars

    def _passed(self, interval: int) -> bool:
        """Whether the last iteration took the step counter past a multiple of ``interval``."""
        return self.progress.iteration > 0 and self.step // interval > (self.step - self.config.batch_size) // interval

    def _evaluate(self) -> None:
        start = time.perf_counter()
        try:
            scores = self.evaluator(self.progress.evaluations)
        except EvaluationStopped:  # it stays due, and a resumed run begins with it
            return
        if self.add_scores(scores, self.step, time.perf_counter() - start):
            self._save(ckpt.BEST_MODEL)
            self.results.new_best(float(scores.mean()), float(scores.std()), self.step)

    def add_scores(self, scores: np.ndarray, step: int, seconds: float) -> bool:
        """Log an evaluation, in benchmark mode to the result files too; returns whether it is the best so far.

        Args:
            scores: float64 [episodes], episode returns.
            step: env steps, over all envs, after which it took place.
            seconds: how long it took.
        """
        is_best = self.progress.add_evaluation(scores, step, seconds)
        mean, std = float(scores.mean()), float(scores.std())
        self.results.add_scores(step, scores, self._elapsed_seconds)
        tags = {"Test-Episode-Rewards/Mean-Score": mean, "Test-Episode-Rewards/Std-Score": std}
        self.writer.scalars(tags, step)
        self.writer.flush()
        say(f"step {step:>9,}  score {mean:10.2f} +- {std:.2f}", self.quiet)
        return is_best

    def _log_episodes(self) -> None:
        """XuanCe's two curves per env, at the step at which the episode ended."""
        num_envs = self.envs.num_envs
        for row, env, episode_return, length in self.rollout.episodes.tolist():
            self.episodes_done[env] += 1
            self.progress.recent_returns.append(episode_return)
            tags = {
                f"Train-Episode-Rewards/rank_0/env-{env}": episode_return,
                f"Episode-Steps/rank_0/env-{env}": float(length),
            }
            self.writer.scalars(tags, self.step + (row + 1) * num_envs)

    def _log_iteration(self, metrics: dict[str, float], collection: float, update: float) -> dict[str, float]:
        scalars = {
            **metrics,
            "actor_loss": metrics["losses/policy_loss"],
            "critic_loss": metrics["losses/value_loss"],
            "entropy": metrics["losses/entropy"],
            "clip_ratio": metrics["losses/clipfrac"],
            "charts/SPS": self.config.batch_size / (collection + update),
            "time/collection_seconds": self.progress.collection_seconds,
            "time/update_seconds": self.progress.update_seconds,
            "time/evaluation_seconds": self.progress.evaluation_seconds,
        }
        episodes = self.rollout.episodes
        if len(episodes):
            scalars["charts/episodic_return"] = float(episodes["ret"].mean())
            scalars["charts/episodic_length"] = float(episodes["length"].mean())
        self.writer.scalars(scalars, self.step)
        return scalars

    def _state(self, with_envs: bool = True) -> dict[str, Any]:
        """Everything that decides how the run goes on; taken between iterations."""
        return {
            "config": self.config.to_dict(),
            "mode": self.mode,
            "step": self.step,
            "iteration": self.progress.iteration,
            "engines": {
                "collector": self.collector.name,
                "learner": self.learner.name,
                "inference": self.collector.policy.device.type,
            },
            "versions": package_versions(),
            "policy": self.policy.state_dict(),
            "identity_actions": self.action_map.identity,
            "learner": self.learner.state_dict(),
            "obs_normalizer": self.obs_normalizer.state_dict(),
            "reward_normalizer": self.reward_normalizer.state_dict(),
            "collector": self.collector.state_dict(with_envs),
            "episodes": {"returns": self.rollout.episode_returns, "lengths": self.rollout.episode_lengths},
            "progress": {**self.progress.state_dict(), "elapsed_seconds": self._elapsed_seconds},
        }

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ConfigError: it belongs to a run with other settings.
            CheckpointError: its contents do not fit this run's network or environments.
        """
        check_same_run(self.config, saved, path)
        try:
            self._load(saved)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ckpt.CheckpointError(f"{path}: does not fit this run: {type(error).__name__}: {reason}") from error
        for aside in ckpt.set_aside_after(self.folders.model_dir, self.step):
            say(f"of a later step, so set aside: {aside}", self.quiet)

    def _load(self, saved: dict[str, Any]) -> None:
        self.policy.load_state_dict(saved["policy"])
        self.learner.load_state_dict(saved["learner"])
        self.obs_normalizer.load_state_dict(saved["obs_normalizer"])
        self.reward_normalizer.load_state_dict(saved["reward_normalizer"])
        self.progress.load_state_dict(saved["progress"])
        if self.collector.load_state_dict(saved["collector"]):
            self.rollout.episode_returns[:] = np.asarray(saved["episodes"]["returns"])
            self.rollout.episode_lengths[:] = np.asarray(saved["episodes"]["lengths"])
        else:
            self.reward_normalizer.returns[:] = 0.0
            seeds = evaluation_seeds(self.config, TEST_RUN + 1 + self.progress.iteration, self.envs.num_envs)
            self.collector.reset(seeds)
            say("the state of these environments is not in the checkpoint: all episodes start anew", self.quiet)

    def _save_checkpoint(self) -> bool:
        saved = self._save(ckpt.checkpoint_path(self.folders.model_dir, self.step).name)
        if saved:
            ckpt.prune_checkpoints(self.folders.model_dir, self.config.keep_checkpoints)
        return saved

    def _save(self, name: str) -> bool:
        """Write a model file; a full disk is reported and does not end the run."""
        try:
            self.save(self.folders.model_dir / name)
        except ckpt.CheckpointError as error:
            say(f"warning: {error}", error=True)
            return False
        return True

    def save(self, path: Path) -> None:
        """Write a checkpoint; in a rollout's middle, or with closed envs, one whose resumption starts new episodes.

        Raises:
            CheckpointError: it cannot be written.
        """
        ckpt.save_checkpoint(path, self._state(with_envs=self.rollout.step == 0 and not self.envs.closed))

    def _save_after_failure(self, error: Exception) -> str:
        """Save the weights from before the failed iteration; returns the sentence to fail with."""
        self.obs_normalizer.discard()
        path = ckpt.checkpoint_path(self.folders.model_dir, self.step)
        message = f"stopped at step {self.step}: {error}"
        if self.progress.iteration == 0:
            return f"{message}\nNothing had been trained yet"
        if path.exists():
            return f"{message}\nThe last good state is in {path}"
        try:
            # The envs have gone on, or failed: a resumed run starts new episodes with these weights.
            ckpt.save_checkpoint(path, self._state(with_envs=False))
        except ckpt.CheckpointError as failure:
            return f"{message}\n{failure}"
        return f"{message}\nThe last good weights are in {path}"

    def _summary(self) -> Summary:
        progress = self.progress
        best = progress.best or {"mean": None, "std": None, "step": None}
        scores = progress.last_scores
        seconds = progress.collection_seconds + progress.update_seconds
        return Summary(
            steps=self.step,
            collection_seconds=progress.collection_seconds,
            update_seconds=progress.update_seconds,
            evaluation_seconds=progress.evaluation_seconds,
            steps_per_second=self.step / seconds if seconds else 0.0,
            best_mean=best["mean"],
            best_std=best["std"],
            best_step=best["step"],
            final_mean=None if scores is None else float(np.mean(scores)),
            final_std=None if scores is None else float(np.std(scores)),
            log_dir=str(self.folders.log_dir),
            model_dir=str(self.folders.model_dir),
            collector_backend=self.collector.name,
            learner_backend=self.learner.name,
        )

    def close(self) -> None:
        """Close the envs that are the run's own, and files, and give torch its threads back; safe to call twice."""
        while self._closers:
            self._closers.pop()()
        torch.set_num_threads(self._threads)
