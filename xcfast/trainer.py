"""The run: builds the parts, owns the loop (collect, update, log, evaluate, save), and the three modes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcfast import checkpoint as ckpt
from xcfast.collector import check_finite
from xcfast.collector_native import make_collector
from xcfast.config import Config, ConfigError
from xcfast.distributed import ALONE, RankError, RankLostError, Ranks, launched
from xcfast.envs import EnvError, MujocoVecEnv, SimulationError, WorkerError, make_envs
from xcfast.evaluation import EvaluationStopped, Evaluator
from xcfast.learner_cuda import CudaLearner, pinned
from xcfast.learner_native import make_learner
from xcfast.normalize import NonFiniteError, ObservationNormalizer, RewardNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.progress import Progress, check_same_run
from xcfast.report import ProgressBar, describe, end_table, num_threads, resolve_device, say, say_warnings, start_table
from xcfast.results import Mode, RunFolders, Summary, write_json
from xcfast.rollout import Rollout
from xcfast.run_log import RunLog, gathered_episodes
from xcfast.run_state import RunState
from xcfast.signals import StopRequest

__all__ = ["RunFailed", "Summary", "Trainer", "describe", "run"]


class RunFailed(RuntimeError):
    """The run cannot go on; the message says at which step, why, and what was saved.

    Attributes:
        expected: whether the message tells all there is to know; otherwise the cause's traceback does.
        known: whether all ranks have failed with it, if there are several.
    """

    def __init__(self, message: str, expected: bool = True, known: bool = True) -> None:
        super().__init__(message)
        self.expected, self.known = expected, known


def run(config: Config, mode: Mode | None = None, resume: str | Path | None = None, quiet: bool = False) -> Summary:
    """Do what the command line does; starts further processes where the configuration asks for several ranks.

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
    if not launched() and (config.distributed_training or config.num_ranks > 1):
        from xcfast.launch import launch, ranks_to_start

        num_ranks = ranks_to_start(config)
        if num_ranks > 1:
            return launch(config, mode, resume, quiet, num_ranks)
    ranks = Ranks.start(cuda=resolve_device(config).type == "cuda")
    try:
        trainer = Trainer(config, mode, resume, quiet, ranks)
        try:
            summary = trainer.run()
        finally:
            trainer.close()
    except RankError as error:  # before the first iteration
        ranks.close()
        if isinstance(error.__cause__, ConfigError | EnvError | ckpt.CheckpointError):
            raise error.__cause__ from None
        raise RunFailed(str(error), expected=error.__cause__ is None) from error.__cause__
    except BaseException as error:
        known = isinstance(error, RunFailed) and error.known
        with suppress(RuntimeError):  # this error is the one to report
            ranks.close(None if known else f"{type(error).__name__}: {error}")
        raise
    ranks.close()
    return summary


class Trainer:
    """One training run. ``run()`` trains to the end, or until it is asked to stop; ``close()`` frees what it holds.

    Of several ranks, each has its share of the envs and holds the same networks, statistics and counters. Rank 0
    evaluates, logs and saves.
    """

    def __init__(
        self,
        config: Config,
        mode: Mode | None = None,
        resume: Path | None = None,
        quiet: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.ranks = config, ranks
        self.quiet = quiet or not ranks.is_main
        self.rows = ranks.rows(config.parallels)  # global indices of this rank's envs
        self.mode: Mode = mode or "benchmark"
        self._given_mode = mode
        self.progress = Progress()
        self._stop = StopRequest()
        self._resumed = resume is not None
        self._threads = torch.get_num_threads()
        self._closers: list[Callable[[], object]] = []

        try:
            with ranks.together():
                checkpoint_file, saved = self._read(resume) if ranks.is_main and resume is not None else (None, None)
            checkpoint_file, saved = ranks.broadcast((checkpoint_file, saved))
            with ranks.together():
                self._build({} if saved is None else saved["engines"])
                if ranks.is_main and saved is None:
                    self.folders = RunFolders.create(config, self.mode)
            self.folders = ranks.broadcast(self.folders if ranks.is_main else None)
            self.mode = ranks.broadcast(self.mode)
            with ranks.together():
                resume_step = None if saved is None else int(saved["step"])
                self.log = None
                if ranks.is_main:
                    self.log = RunLog(config, self.folders, self.mode, str(self.device), resume_step, self.quiet)
                    self._closers.append(self.log.close)
                    collector, learner = (f"{one.name} ({why})" for one, why in self._engines)
                    parts = (self.policy, self.action_map, self.device, self.envs, self.folders)
                    say(start_table(config, self.mode, *parts, collector, learner, ranks), self.quiet)
                if saved is not None and checkpoint_file is not None:
                    self._restore(saved, checkpoint_file)
            for tensor in (*self.policy.parameters(), *self.policy.buffers()):  # equal by their seed; to be sure
                ranks.broadcast_(tensor.detach())
            if isinstance(self.learner, CudaLearner):
                self.learner.adopt()
        except BaseException:
            self.close()
            raise

    def _read(self, resume: Path) -> tuple[Path, dict[str, Any]]:
        self.folders = RunFolders.find(resume)
        if self._given_mode is None:
            self.mode = self.folders.mode
        path = resume if resume.suffix == ".pth" else self.folders.newest_checkpoint()
        return path, ckpt.load_checkpoint(path)

    @property
    def step(self) -> int:
        """Env steps trained on so far, over all envs."""
        return self.progress.iteration * self.config.batch_size

    def _build(self, engines: dict[str, Any]) -> None:
        config = self.config
        self.device = resolve_device(config, self.ranks)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.envs = make_envs(config, num_envs=len(self.rows), sharing=self.ranks.sharing)
        self._closers.append(self.envs.close)
        observation_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        self.policy = build_policy(config, observation_space, action_space)
        self.action_map = ActionMap(action_space, config.activation_action)
        num_envs, obs_shape = self.envs.num_envs, observation_space.shape or ()
        join = None if self.ranks.world_size == 1 else self._all_envs
        self.obs_normalizer = ObservationNormalizer(
            obs_shape, num_envs=num_envs, clip=config.obsnorm_range, enabled=config.use_obsnorm, join=join
        )
        self.reward_normalizer = RewardNormalizer(
            num_envs, gamma=config.gamma, clip=config.rewnorm_range, enabled=config.use_rewnorm, join=join
        )
        discrete = self.action_map.discrete
        self.rollout = Rollout(
            config.num_steps,
            num_envs,
            obs_shape,
            () if discrete else (math.prod(action_space.shape or ()),),
            np.int64 if discrete else np.float32,
            allocate=pinned if self.device.type == "cuda" else np.zeros,
        )
        threads = num_threads(config, self.ranks.sharing)
        self.learner, why_learner = make_learner(
            config, self.policy, self.rollout, self.reward_normalizer, threads, self.ranks, self.device
        )
        device_policy = self.learner.device_policy if isinstance(self.learner, CudaLearner) else None
        parts = (config, self.envs, self.policy, self.obs_normalizer, self.action_map, self.ranks)
        self.collector, why_collector = make_collector(*parts, device_policy, engines.get("inference"))
        self._engines = ((self.collector, why_collector), (self.learner, why_learner))
        normalizers = (self.obs_normalizer, self.reward_normalizer)
        self._parts = RunState(
            config, self.ranks, self.policy, self.learner, *normalizers, self.collector, self.rollout, self.progress
        )
        self.evaluator = Evaluator(
            config, self.policy, self.obs_normalizer, self.action_map, should_stop=lambda: self._stop.requested
        )
        self._closers.append(self.evaluator.close)
        torch.set_num_threads(1)  # the env loop's inference; the learner takes all of them for the update

    def _all_envs(self, rows: np.ndarray) -> np.ndarray:
        return self.ranks.join(rows, self.rows, self.config.parallels)

    def _start(self) -> None:
        with self.ranks.together():
            self.collector.reset([self.config.env_seed + i for i in self.rows])
        if self.config.use_obsnorm:
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
                known = self.ranks.world_size == 1 or isinstance(error, RankError | NonFiniteError)
                cause = error.__cause__ if isinstance(error, RankError) else error
                expected = isinstance(cause, NonFiniteError | SimulationError | WorkerError | RankLostError | None)
                raise RunFailed(self._save_after_failure(error, known), expected, known) from (cause or error)
            finally:
                if self.log is not None:
                    self.log.end(self._elapsed_seconds)
            return self._finish()

    def _train(self) -> None:
        """The loop. It ends between two iterations, where a checkpoint can be taken, perhaps with an evaluation due."""
        config = self.config
        if not self._resumed:
            self._start()
            self.progress.evaluation_due = self.mode == "benchmark"
        with ProgressBar(config.num_iterations * config.batch_size, self.step, enabled=not self.quiet) as bar:
            while True:
                if self.progress.evaluation_due and not self._stopping():
                    self._evaluate()
                if self._finished or self._stopping():
                    break
                if self._passed(config.checkpoint_every):
                    self._save_checkpoint()
                self._iterate()
                due = self._finished or self._passed(config.eval_interval)
                self.progress.evaluation_due = due and self.mode == "benchmark"
                bar.update(self.step, self.progress.recent_returns)

    def _stopping(self) -> bool:
        """Whether a signal has come to any rank: all of them stop after the same iteration."""
        stopping = self.ranks.any_(self._stop.requested)
        if stopping and not self._stop.requested:
            self._stop.signal_name = "a signal to another rank"
        return stopping

    @property
    def _finished(self) -> bool:
        return self.progress.iteration == self.config.num_iterations

    @property
    def _elapsed_seconds(self) -> float:
        """Wall-clock seconds of this run, with those of the parts before it was resumed."""
        return time.perf_counter() - self._started

    def _finish(self) -> Summary:
        """Save what resuming or testing needs, and report."""
        saved = self._save_checkpoint()
        if self._finished:
            saved = self._save(ckpt.FINAL_MODEL) and saved
        summary = self.progress.summary(self.step, self.folders, self.collector.name, self.learner.name)
        if self.ranks.is_main:
            write_json(self.folders.log_dir / "summary.json", summary.to_dict())
        if not saved:
            raise RunFailed(f"step {self.step} was reached but could not be saved; see the warnings above")
        say_warnings(self.ranks.gather(self.envs.warning_counts if isinstance(self.envs, MujocoVecEnv) else {}) or [])
        if not self.quiet:
            say(end_table(summary, self._stop.signal_name))
        return summary

    def _iterate(self) -> None:
        """One PPO iteration: collect, update, log."""
        start = time.perf_counter()
        self.collector.collect(self.rollout)
        with self.ranks.together():
            check_finite(self.rollout, self.rows.start)
        collected = time.perf_counter()
        metrics = self.learner.update(self.rollout, self.progress.iteration)
        updated = time.perf_counter()
        self.progress.collection_seconds += collected - start
        self.progress.update_seconds += updated - collected
        episodes, step = gathered_episodes(self.rollout, self.ranks, self.rows.start), self.step
        self.progress.recent_returns.extend(episodes["ret"].tolist())
        self.progress.iteration += 1
        if self.log is not None:
            self.log.episodes(episodes, step)
            self.log.iteration(metrics, self.progress, episodes, self.step, updated - start)
        self.rollout.clear()

    def _passed(self, interval: int) -> bool:
        """Whether the last iteration took the step counter past a multiple of ``interval``."""
        return self.progress.iteration > 0 and self.step // interval > (self.step - self.config.batch_size) // interval

    def _evaluate(self) -> None:
        start, scores = time.perf_counter(), None
        with self.ranks.together():
            if self.ranks.is_main:
                with suppress(EvaluationStopped):  # it stays due, and a resumed run begins with it
                    scores = self.evaluator(self.progress.evaluations)
        scores = self.ranks.broadcast(scores)
        if scores is None:
            return
        is_best = self.progress.add_evaluation(scores, self.step, time.perf_counter() - start)
        if self.log is not None:
            self.log.evaluation(scores, self.step, self._elapsed_seconds)
        if is_best:
            self._save(ckpt.BEST_MODEL)
            if self.log is not None:
                self.log.new_best(scores, self.step)

    def _state(self, with_envs: bool = True) -> dict[str, Any] | None:
        """What a checkpoint holds; None on other ranks than 0."""
        state = self._parts.gather(self._elapsed_seconds, with_envs)
        return None if state is None else {**state, "mode": self.mode}

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ConfigError: it belongs to a run with other settings.
            CheckpointError: its contents do not fit this run's network or environments.
        """
        if self.ranks.is_main:
            check_same_run(self.config, saved, path)
        try:
            with_envs = self._parts.load(saved)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ckpt.CheckpointError(f"{path}: does not fit this run: {type(error).__name__}: {reason}") from error
        if self.ranks.is_main:
            for aside in ckpt.set_aside_after(self.folders.model_dir, self.step):
                say(f"of a later step, so set aside: {aside}", self.quiet)
        if not with_envs:
            say("the state of these environments is not in the checkpoint: all episodes start anew", self.quiet)
        say(f"resuming {path} at step {self.step}", self.quiet)

    def _save_checkpoint(self) -> bool:
        saved = self._save(ckpt.checkpoint_path(self.folders.model_dir, self.step).name)
        if saved and self.ranks.is_main:
            ckpt.prune_checkpoints(self.folders.model_dir, self.config.keep_checkpoints)
        return saved

    def _save(self, name: str) -> bool:
        """Write a model file; a full disk is reported and does not end the run."""
        state, saved = self._state(), True
        try:
            if state is not None:
                ckpt.save_checkpoint(self.folders.model_dir / name, state)
        except ckpt.CheckpointError as error:
            say(f"warning: {error}", error=True)
            saved = False
        return bool(self.ranks.broadcast(saved))

    def _save_after_failure(self, error: Exception, known: bool) -> str:
        """Save the weights from before the failed iteration; returns the sentence to fail with."""
        self.obs_normalizer.discard()
        path = ckpt.checkpoint_path(self.folders.model_dir, self.step)
        message = f"stopped at step {self.step}: {error}"
        if not known:  # other ranks wait for something else, or have ended: their part of the state is out of reach
            return f"rank {self.ranks.rank} {message}\nThe last checkpoint is in {self.folders.model_dir}"
        if self.progress.iteration == 0:
            return f"{message}\nNothing had been trained yet"
        if path.exists():
            return f"{message}\nThe last good state is in {path}"
        # The envs have gone on, or failed: a resumed run starts new episodes with these weights.
        state = self._state(with_envs=False)
        try:
            if state is not None:
                ckpt.save_checkpoint(path, state)
        except ckpt.CheckpointError as failure:
            return f"{message}\n{failure}"
        return f"{message}\nThe last good weights are in {path}"

    def close(self) -> None:
        """Close envs and files and give torch its threads back; safe to call twice."""
        while self._closers:
            self._closers.pop()()
        torch.set_num_threads(self._threads)
