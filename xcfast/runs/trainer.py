"""The training loop: collect, update, log; evaluate and save in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from xcfast.collectors.collector import warm_up
from xcfast.config import Config, ConfigError
from xcfast.envs import MujocoVecEnv
from xcfast.errors import RankError, RunFailed
from xcfast.learners.cuda import CudaLearner
from xcfast.output import checkpoint as ckpt
from xcfast.output.console import ProgressBar, end_table, say, say_warnings
from xcfast.output.files import write_json
from xcfast.output.folders import Mode, RunFolders
from xcfast.output.run_log import RunLog
from xcfast.output.summary import Summary
from xcfast.ranks.group import ALONE, Ranks
from xcfast.ranks.launch import check_alone
from xcfast.rollout import Rollout
from xcfast.runs.components import Parts, RunParts
from xcfast.runs.evaluation import EvaluationStopped
from xcfast.runs.progress import Progress
from xcfast.runs.saving import Saver, find_run
from xcfast.runs.signals import StopRequest
from xcfast.runs.start_table import start_table
from xcfast.runs.state import RunState

__all__ = ["Parts", "RunFailed", "Trainer"]


class Trainer:
    """One training run; ``close()`` frees what it holds.

    ``run()`` trains to the end, or until it is asked to stop. Whoever has a loop of their own calls ``advance()`` for
    some steps at a time instead, ``add_scores()`` after evaluations, and ``finish()``.

    Of several ranks, each has its share of the envs and holds the same networks, statistics and counters. Rank 0
    evaluates, logs and saves.

    Args:
        config: of the run.
        mode: ``benchmark`` or ``train``; None: that of the run that is resumed, else ``benchmark``.
        resume: a run folder or a checkpoint file to go on from.
        quiet: print nothing but warnings.
        parts: what is not to be made as the configuration says.
        ranks: those that train together.

    Attributes:
        parts: what it works with.
        progress: how far it has come.
        folders: where it writes.
        log: what writes the curves; None on other ranks than 0.
        saver: what writes the models.
        begun: whether the envs' first episodes have begun.
        episodes_done: int64 [N], episodes that each env has finished in rollouts that were learned from.

    Raises:
        CheckpointError: what is to be resumed cannot be read, or does not fit.
        ConfigError: the configuration fits neither the environment nor what is to be resumed.
        RankError: one of these on another rank.
    """

    def __init__(
        self,
        config: Config,
        mode: Mode | None = None,
        resume: Path | None = None,
        quiet: bool = False,
        parts: Parts | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        given = parts or Parts()
        if ranks.world_size == 1:
            check_alone(config)
        else:
            given = replace(given, late=False)  # who asks for the folders first would not be the same on all ranks
        self.config, self.ranks = config, ranks
        self.quiet = quiet or not ranks.is_main
        self.rows = ranks.rows(config.parallels)  # global indices of this rank's envs
        self.progress = Progress()
        self.begun = resume is not None
        self._stop = StopRequest()
        self._rollout_seconds = 0.0
        self._threads = torch.get_num_threads()
        self._closers = ExitStack()
        self._folders: RunFolders | None = None
        self.log: RunLog | None = None
        try:
            self._prepare(mode, resume, given)
        except BaseException:
            self.close()
            raise

    def _prepare(self, mode: Mode | None, resume: Path | None, given: Parts) -> None:
        """Make everything, or go on from a checkpoint, which rank 0 reads."""
        config, ranks = self.config, self.ranks
        with ranks.together():
            resumed = find_run(config, resume) if resume is not None and ranks.is_main else None
        resumed = ranks.broadcast(resumed)
        saved = {} if resumed is None else resumed.saved
        folders = None if resumed is None else resumed.folders
        self.mode: Mode = mode or ("benchmark" if folders is None else folders.mode)
        with ranks.together():
            self.parts = RunParts(config, given, ranks, saved, lambda: self._stop.requested, self._closers)
            if ranks.is_main and folders is None and not given.late:
                folders = RunFolders.create(config, self.mode, given.below_env)
        self._given, self._folders = given, ranks.broadcast(folders)
        policy = self.parts.policy
        for tensor in (*policy.parameters(), *policy.buffers()):  # equal by their seed; to be sure
            ranks.broadcast_(tensor.detach())
        self.parts.adopt_weights()
        self.episodes_done = np.zeros(self.parts.envs.num_envs, np.int64)
        self._state = RunState(config, self.mode, ranks, self.parts, self.progress)
        self.saver = Saver(self._state, lambda: self.folders, self.quiet)
        self._background: ThreadPoolExecutor | None = None
        if self.parts.spare is not None:
            self._background = ThreadPoolExecutor(1, thread_name_prefix="xcfast-collect")
            self._closers.callback(self._background.shutdown)
        with ranks.together():
            if ranks.is_main and not given.late:
                self._open(saved.get("step"))
            if resumed is not None:
                self.saver.restore(resumed)

    @property
    def folders(self) -> RunFolders:
        """Where the run writes."""
        if self._folders is None:
            self._folders = RunFolders.create(self.config, self.mode, self._given.below_env)
        return self._folders

    def _open(self, resume_step: int | None = None) -> None:
        """Begin the log, and say what will run."""
        device = str(self.parts.device)
        self.log = RunLog(self.config, self.folders, self.mode, device, resume_step, self.quiet)
        self._closers.callback(self.log.close)
        say(start_table(self.config, self.mode, self.parts, self.folders, self.ranks), self.quiet)

    @property
    def step(self) -> int:
        """Env steps trained on so far, over all envs."""
        return self._state.step

    def start(self) -> None:
        """Begin the first episodes, and give the observation statistics a start unless they have one; only once."""
        if self.begun:
            return
        with self.ranks.together():
            self.parts.collector.reset([self.config.env_seed + i for i in self.rows])
        if self.config.use_obsnorm and self.parts.obs_normalizer.rms.count == 0:
            warm_up(self.parts.collector, self.parts.rollout)
        if self._given.late:
            self._open()
        self.begun = True

    def run(self) -> Summary:
        """Train until ``running_steps``, or until SIGINT, SIGTERM or SIGHUP; returns what was achieved.

        Raises:
            RunFailed: something broke, or what had to be saved at the end could not be.
        """
        self.progress.start_clock()
        with self._stop:
            try:
                self._train()
            except Exception as error:
                raise self.saver.after_failure(error) from (error.__cause__ if isinstance(error, RankError) else error)
            finally:
                with self.ranks.deferred():
                    if self.log is not None:
                        self.log.end(self.progress.total_seconds)
            return self._finish()

    def _train(self) -> None:
        """The loop. It ends between two iterations, where a checkpoint can be taken, perhaps with an evaluation due."""
        config = self.config
        if not self.begun:
            self.start()
            self.progress.evaluation_due = self.mode == "benchmark"
        with ProgressBar(config.num_iterations * config.batch_size, self.step, enabled=not self.quiet) as bar:
            while True:
                if self.progress.evaluation_due and not self._stopping():
                    self._evaluate()
                if self._finished or self._stopping():
                    break
                if self._passed(config.checkpoint_every):
                    self.saver.save_checkpoint()
                self._iterate()
                due = self._finished or self._passed(config.eval_interval)
                self.progress.evaluation_due = due and self.mode == "benchmark"
                bar.update(self.step, self.progress.recent_returns)
        with self.ranks.together():
            pass  # what rank 0 could not log is known to all from here on

    def _iterate(self, num_steps: int | None = None) -> dict[str, float]:
        """One PPO iteration: collect, update, log; returns what is logged.

        With ``num_steps`` that do not fill the rollout, only their collection, and nothing is returned.
        """
        parts = self.parts
        start = time.perf_counter()
        if not parts.rollout.full:  # with overlap, it was collected during the last update
            parts.collector.collect(parts.rollout, num_steps)
        self._rollout_seconds += time.perf_counter() - start
        if not parts.rollout.full:
            return {}
        with self.ranks.together():
            parts.rollout.check_finite(self.rows.start)
        start = time.perf_counter()
        ahead = self._collect_ahead()
        try:
            metrics = parts.learner.update(parts.rollout, self.progress.iteration)
            update_seconds = time.perf_counter() - start
        finally:
            if ahead is not None:
                wait([ahead])
        if isinstance(parts.learner, CudaLearner) and parts.spare is not None:
            parts.learner.publish()
            self._rollout_seconds += time.perf_counter() - start - update_seconds
        logged = self._record(metrics, update_seconds)
        parts.rollout.clear()
        if ahead is not None and parts.spare is not None:
            parts.rollout, parts.spare = parts.spare, parts.rollout
            ahead.result()  # its error, if it failed
        return logged

    def _collect_ahead(self) -> Future[None] | None:
        """With overlap, begin the next rollout, if there is to be one."""
        spare, last = self.parts.spare, self.progress.iteration + 1 == self.config.num_iterations
        if self._background is None or spare is None or last:
            return None
        return self._background.submit(self.parts.collector.collect, spare)

    def _record(self, metrics: dict[str, float], update_seconds: float) -> dict[str, float]:
        """Count and log an iteration; returns what is logged."""
        progress, rollout, step = self.progress, self.parts.rollout, self.step
        seconds, self._rollout_seconds = self._rollout_seconds + update_seconds, 0.0
        progress.collection_seconds += seconds - update_seconds
        progress.update_seconds += update_seconds
        episodes = gathered_episodes(rollout, self.ranks, self.rows.start)
        progress.recent_returns.extend(episodes["ret"].tolist())
        progress.iteration += 1
        self.episodes_done += np.bincount(rollout.episodes["env"], minlength=rollout.num_envs)
        logged = metrics
        with self.ranks.deferred():
            if self.log is not None:
                self.log.episodes(episodes, step)
                logged = self.log.iteration(metrics, progress, episodes, self.step, seconds)
        return logged

    def _evaluate(self) -> None:
        start, scores = time.perf_counter(), None
        with self.ranks.together():
            if self.ranks.is_main:
                with suppress(EvaluationStopped):  # it stays due, and a resumed run begins with it
                    scores = self.parts.evaluator(self.progress.evaluations)
        scores = self.ranks.broadcast(scores)
        if scores is None:
            return
        if self.add_scores(scores, self.step, time.perf_counter() - start):
            self.saver.save_model(ckpt.BEST_MODEL)
            with self.ranks.deferred():
                if self.log is not None:
                    self.log.new_best(scores, self.step)

    def add_scores(self, scores: np.ndarray, step: int, seconds: float) -> bool:
        """Log an evaluation, in benchmark mode to the result files too; returns whether it is the best so far.

        Args:
            scores: float64 [episodes], episode returns.
            step: env steps, over all envs, after which it took place.
            seconds: how long it took.
        """
        is_best = self.progress.add_evaluation(scores, step, seconds)
        with self.ranks.deferred():
            if self.log is not None:
                self.log.evaluation(scores, step, self.progress.total_seconds)
        return is_best

    def advance(self, num_steps: int, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Train for ``num_steps`` steps of each env; a rollout that is not full then waits for the next call.

        Args:
            num_steps: of each env.
            should_stop: asked after each iteration.

        Returns:
            What the last update logged; nothing where there was none.

        Raises:
            RunFailed: something broke.
        """
        if self._background is not None:
            raise ConfigError("overlap is for whole runs", key="overlap", given=True, allowed="False")
        rollout, num_envs = self.parts.rollout, self.parts.envs.num_envs
        begin = self.step + rollout.step * num_envs
        logged: dict[str, float] = {}
        try:
            self.start()
            with ProgressBar(begin + num_steps * num_envs, begin, enabled=not self.quiet) as bar:
                while num_steps > 0 and not should_stop():
                    part = min(num_steps, rollout.num_steps - rollout.step)
                    num_steps -= part
                    logged = self._iterate(part) or logged
                    if rollout.step == 0 and self._passed(self.config.checkpoint_every):
                        self.saver.save_checkpoint()
                    bar.update(self.step + rollout.step * num_envs, self.progress.recent_returns)
            with self.ranks.together():
                pass  # what rank 0 could not log is known to all from here on
        except Exception as error:
            raise self.saver.after_failure(error) from error
        return logged

    def finish(self) -> Summary:
        """The end of a run by ``advance``: the last weights in a checkpoint, the results' end, the summary."""
        self.save_last()
        return self.summarize()

    def save_last(self) -> Path | None:
        """A checkpoint of the last update, unless there is one; its path, or None where there is none to be had."""
        if self.progress.iteration > 0 and not self.ranks.broadcast(self.saver.saved):
            self.saver.save_checkpoint()
        return self.saver.saved

    def summarize(self) -> Summary:
        """Write the summary and the results' time stamps; the run may go on."""
        with self.ranks.together():
            if self.log is not None:
                self.log.end(self.progress.total_seconds)
        return self._summarize()

    def keep_results(self, running_steps: int, eval_interval: int, test_episodes: int) -> None:
        """Begin the result files of benchmark mode, for whoever has a loop of their own and only now says so."""
        self.start()
        self.mode = "benchmark"
        with self.ranks.together():
            if self.ranks.is_main:
                self._folders = self.folders.in_mode(self.mode)
            if self.log is not None:
                self.log.keep_results(running_steps, eval_interval, test_episodes)

    def _finish(self) -> Summary:
        """Save what resuming or testing needs, and report."""
        saved = self.saver.save_checkpoint()
        if self._finished:
            saved = self.saver.save_model(ckpt.FINAL_MODEL) and saved
        summary = self._summarize()
        if not saved:
            raise RunFailed(f"step {self.step} was reached but could not be saved; see the warnings above")
        envs = self.parts.envs
        say_warnings(self.ranks.gather(envs.warning_counts if isinstance(envs, MujocoVecEnv) else {}) or [])
        if not self.quiet:
            say(end_table(summary, self._stop.signal_name))
        return summary

    def _summarize(self) -> Summary:
        engines = self.parts.collector.name, self.parts.learner.name
        summary = self.progress.summary(self.step, self.folders, *engines)
        if self.ranks.is_main:
            write_json(self.folders.log_dir / "summary.json", summary.to_dict())
        return summary

    @property
    def _finished(self) -> bool:
        return self.progress.iteration == self.config.num_iterations

    def _passed(self, interval: int) -> bool:
        """Whether the last iteration took the step counter past a multiple of ``interval``."""
        return self.progress.iteration > 0 and self.step // interval > (self.step - self.config.batch_size) // interval

    def _stopping(self) -> bool:
        """Whether a signal has come to any rank: all of them stop after the same iteration."""
        stopping = self.ranks.any_(self._stop.requested)
        if stopping and not self._stop.requested:
            self._stop.signal_name = "a signal to another rank"
        return stopping

    def close(self) -> None:
        """Close the envs that are the run's own, and files, and give torch its threads back; safe to call twice."""
        try:
            self._closers.close()
            if self._folders is not None and not self.begun and self.ranks.is_main:
                self._folders.discard_unused()
        finally:
            torch.set_num_threads(self._threads)


def gathered_episodes(rollout: Rollout, ranks: Ranks, env_offset: int) -> np.ndarray:
    """Episodes that ended in this rollout, of all envs, in time, then env order; on other ranks than 0: their own.

    Args:
        rollout: of this rank's envs.
        ranks: those that collect together.
        env_offset: global index of this rank's first env.
    """
    episodes = rollout.episodes
    if ranks.world_size > 1:
        episodes = episodes.copy()
        episodes["env"] += env_offset
        episodes = np.concatenate(ranks.gather(episodes) or [episodes])
        episodes.sort(order=("step", "env"))
    return episodes
