"""The trainer: collects rollouts, updates the policy and logs. ``run.py`` or a script's own loop drives it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcfast.collectors.collector import warm_up
from xcfast.config.trust import allow_modules as allow
from xcfast.envs import MujocoVecEnv
from xcfast.errors import ConfigError
from xcfast.output.checkpoint import BEST_MODEL
from xcfast.output.console import ProgressBar, say
from xcfast.output.files import write_json
from xcfast.output.folders import Mode, RunFolders
from xcfast.output.run_log import RunLog
from xcfast.ranks.group import ALONE, Ranks
from xcfast.ranks.launch import check_alone
from xcfast.resources import enough_of_all
from xcfast.runs.components import Components
from xcfast.runs.evaluation import EvaluationStopped
from xcfast.runs.progress import Progress
from xcfast.runs.saving import Resumed, Saver, find_run
from xcfast.runs.signals import StopRequest
from xcfast.runs.start_table import folder_table, start_table
from xcfast.runs.state import RunState

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config.schema import Config
    from xcfast.envs import VecEnv
    from xcfast.output.summary import Summary
    from xcfast.policy import ActorCritic
    from xcfast.rollout import Rollout


class Trainer:
    """Trains a policy, in pieces of any size.

    A script's own loop calls ``advance()`` for some steps at a time, ``evaluate()`` or ``add_scores()`` for its
    evaluations, and ``finish()`` at its end. ``close()`` frees the trainer's resources.

    With several ranks, each one has its share of the environments and the same networks, statistics and counters. Rank
    0 evaluates, logs and saves. All ranks must make the same calls.

    Args:
        config: The run's configuration.
        mode: ``benchmark`` or ``train``. None: the mode of the run that is resumed, else ``benchmark``.
        resume: A run folder or a checkpoint file to resume from.
        quiet: Whether to print nothing but warnings.
        ranks: The ranks that train together.
        envs: Environments to train in, ``config.parallels`` of them over all ranks. The caller closes them. None: they
            are made as the configuration says. The same holds for the next three.
        policy: A policy of the form that ``config`` describes, trained in place.
        optimizer: An optimizer of the policy's parameters.
        scheduler: A scheduler of that optimizer, stepped after each gradient step. It sets the learning rates.
        below_env: Whether the run's folders are in one ``<env_id>``.
        allow_modules: Names of modules that the environment may import with ``resume``, see ``xcfast.run``.

    Attributes:
        components: Environments, policy, collector, learner and the other components.
        progress: Counters, seconds and scores so far.
        log: Writer of the curves and result files; None before ``start``, and on ranks other than 0.
        saver: Writer of the model files.
        stop: Request to stop; signals set it while it is active.
        begun: Whether the first episodes have begun.
        episodes_done: int64 [N], the number of episodes that each environment of this rank has finished, in rollouts
            that were learned from.

    Raises:
        CheckpointError: The run to resume cannot be read, or does not fit.
        ConfigError: The configuration fits neither the environment nor the run to resume.
        RankError: One of these happened on another rank.
    """

    def __init__(
        self,
        config: Config,
        mode: Mode | None = None,
        resume: Path | None = None,
        quiet: bool = False,
        ranks: Ranks = ALONE,
        *,
        envs: VecEnv | None = None,
        policy: ActorCritic | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        below_env: bool = True,
        allow_modules: Collection[str] = (),
    ) -> None:
        if resume is not None:
            config = allow(config, allow_modules)
        if ranks.world_size == 1:
            check_alone(config)
        self.config, self.ranks, self.quiet = config, ranks, quiet or not ranks.is_main
        self.rows = ranks.rows(config.parallels)  # global indices of this rank's environments
        self.progress, self.stop = Progress(), StopRequest()
        self.log: RunLog | None = None
        self.begun, self._started = resume is not None, False
        self._below_env = below_env
        self._resumed: Resumed | None = ranks.from_main(lambda: None if resume is None else find_run(config, resume))
        self._folders = None if self._resumed is None else self._resumed.folders
        self.mode: Mode = mode or ("benchmark" if self._folders is None else self._folders.mode)
        self._rollout_seconds = 0.0
        self._threads = torch.get_num_threads()
        self._components: Components | None = None
        self._background: ThreadPoolExecutor | None = None
        try:
            self._prepare({"envs": envs, "policy": policy, "optimizer": optimizer, "scheduler": scheduler})
        except BaseException:
            self.close()
            raise

    def _prepare(self, given: dict[str, Any]) -> None:
        """Makes the components, and restores the checkpoint if there is one."""
        config, ranks, saved = self.config, self.ranks, {} if self._resumed is None else self._resumed.saved
        if config.precision == "auto" and saved:
            config = replace(config, precision=saved["config"].get("precision", "fp32"))
        with ranks.together(), enough_of_all():
            self._components = Components(
                config,
                ranks,
                should_stop=lambda: self.stop.requested,
                identity_actions=bool(saved.get("identity_actions")),
                inference=saved.get("engines", {}).get("inference"),
                **given,
            )
        self.config = self.components.config
        for tensor in (*self.components.policy.parameters(), *self.components.policy.buffers()):
            ranks.broadcast_(tensor.detach())  # they are equal already, by their seed; this makes sure
        self.components.learner.adopt()
        self.episodes_done = np.zeros(self.components.envs.num_envs, np.int64)
        self._state = RunState(self.config, ranks, self.components, self.progress)
        self.saver = Saver(self._state, lambda: self.folders, self.quiet)
        if self.components.spare is not None:
            self._background = ThreadPoolExecutor(1, thread_name_prefix="xcfast-collect")
        with ranks.together():
            if self._resumed is not None:
                self.saver.restore(self._resumed)

    @property
    def components(self) -> Components:
        """Environments, policy, collector, learner and the other components."""
        assert self._components is not None  # made in the constructor
        return self._components

    @property
    def step(self) -> int:
        """Environment steps trained on so far, over all environments."""
        return self._state.step

    @property
    def finished(self) -> bool:
        """Whether the run has reached ``running_steps``."""
        return self.progress.iteration >= self.config.num_iterations

    @property
    def folders(self) -> RunFolders:
        """The run's folders. A single rank creates them at first use; several ranks call ``create_folders`` first."""
        if self._folders is None:
            self.create_folders()
        assert self._folders is not None
        return self._folders

    def create_folders(self) -> None:
        """Creates the run's folders, unless it has them; rank 0 chooses their names."""
        if self._folders is None:
            self._folders = self.ranks.from_main(lambda: RunFolders.create(self.config, self.mode, self._below_env))

    def start(self) -> None:
        """Begins the run: prints the start table, starts episodes and statistics, makes folders and log. Only once.

        Folders come last, so that a run which fails before it has begun leaves none.
        """
        if self._started:
            return
        parts = self.components
        say(start_table(self.config, self.mode, parts, self.ranks), self.quiet)
        if not self.begun:
            with self.ranks.together():
                parts.collector.reset([self.config.env_seed + i for i in self.rows])
            if self.config.use_obsnorm and parts.obs_normalizer.rms.count == 0:
                warm_up(parts.collector, parts.rollout)
        self.create_folders()
        if self.ranks.is_main:
            with self.ranks.deferred():
                step = None if self._resumed is None else self.step
                self.log = RunLog(self.config, self.folders, self.mode, str(parts.device), step, self.quiet)
                say(folder_table(self.folders), self.quiet)
        self.begun = self._started = True

    def iterate(self, num_steps: int | None = None) -> dict[str, float]:
        """Does one PPO iteration: collects a rollout, updates the weights, logs.

        Args:
            num_steps: Steps of each environment to collect. If they do not fill the rollout, nothing else happens, and
                the next call continues it. None: as many as the rollout lacks.

        Returns:
            The logged metrics; an empty dict if there was no update.
        """
        parts = self.components
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
        if parts.spare is not None:
            parts.learner.publish()
            self._rollout_seconds += time.perf_counter() - start - update_seconds
        logged = self._record(metrics, update_seconds)
        parts.rollout.clear()
        if ahead is not None and parts.spare is not None:
            parts.rollout, parts.spare = parts.spare, parts.rollout
            ahead.result()  # raises what the collector raised
        return logged

    def _collect_ahead(self) -> Future[None] | None:
        """With overlap, begins to collect the next rollout, unless this is the last one."""
        spare, last = self.components.spare, self.progress.iteration + 1 == self.config.num_iterations
        if self._background is None or spare is None or last:
            return None
        return self._background.submit(self.components.collector.collect, spare)

    def _record(self, metrics: dict[str, float], update_seconds: float) -> dict[str, float]:
        """Counts and logs an iteration; returns the logged metrics."""
        progress, rollout, step = self.progress, self.components.rollout, self.step
        seconds, self._rollout_seconds = self._rollout_seconds + update_seconds, 0.0
        progress.collection_seconds += seconds - update_seconds
        progress.update_seconds += update_seconds
        episodes = _episodes_of_all_ranks(rollout, self.ranks, self.rows.start)
        progress.recent_returns.extend(episodes["ret"].tolist())
        progress.iteration += 1
        self.episodes_done += np.bincount(rollout.episodes["env"], minlength=rollout.num_envs)
        logged = metrics
        with self.ranks.deferred():
            if self.log is not None:
                self.log.episodes(episodes, step)
                envs = self.components.envs
                terms = envs.take_reward_terms() if isinstance(envs, MujocoVecEnv) else {}
                logged = self.log.iteration(
                    {**metrics, **{f"reward_terms/{name}": mean for name, mean in terms.items()}},
                    times=progress.times,
                    episodes=episodes,
                    step=self.step,
                    seconds=seconds,
                )
        return logged

    def advance(self, num_steps: int, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Trains for some steps. A rollout that is not full then waits for the next call.

        Args:
            num_steps: Steps of each environment.
            should_stop: Called after each iteration; True ends the call early.

        Returns:
            The metrics that the last update logged; an empty dict if there was no update.

        Raises:
            RunFailed: Training failed; the last good weights are saved if possible.
        """
        if self._background is not None:
            raise ConfigError("advance() does not support overlap", key="overlap", given=True, allowed="False")
        rollout, num_envs = self.components.rollout, self.components.envs.num_envs
        begin = self.step + rollout.step * num_envs
        logged: dict[str, float] = {}
        try:
            self.start()
            with ProgressBar(begin + num_steps * num_envs, begin, enabled=not self.quiet) as bar:
                while num_steps > 0 and not should_stop():
                    part = min(num_steps, rollout.num_steps - rollout.step)
                    num_steps -= part
                    logged = self.iterate(part) or logged
                    if rollout.step == 0 and self.passed(self.config.checkpoint_every):
                        self.saver.save_checkpoint()
                    bar.update(self.step + rollout.step * num_envs, self.progress.recent_returns)
            self.tell_deferred()
        except Exception as error:
            raise self.saver.after_failure(error) from error
        return logged

    def evaluate(self) -> np.ndarray | None:
        """Evaluates the policy on rank 0, logs the scores, and saves the model if it is the best so far.

        Returns:
            Episode returns float64 [test_episode]; None if a request to stop ended the evaluation. The evaluation then
            stays due, so that a resumed run begins with it.
        """
        start = time.perf_counter()
        scores = self.ranks.from_main(self._scores)
        if scores is not None and self.add_scores(scores, self.step, time.perf_counter() - start):
            self.saver.save_model(BEST_MODEL)
            with self.ranks.deferred():
                if self.log is not None:
                    self.log.new_best(scores, self.step)
        return scores

    def _scores(self) -> np.ndarray | None:
        with suppress(EvaluationStopped):
            return self.components.evaluator(self.progress.evaluations)
        return None

    def add_scores(self, scores: np.ndarray, step: int, seconds: float) -> bool:
        """Logs an evaluation, in benchmark mode to the result files too.

        Args:
            scores: Episode returns, float64 [episodes].
            step: Environment steps, over all environments, after which it took place.
            seconds: Time that it took.

        Returns:
            Whether it is the best evaluation so far.
        """
        is_best = self.progress.add_evaluation(scores, step, seconds)
        with self.ranks.deferred():
            if self.log is not None:
                self.log.evaluation(scores, step, self.progress.total_seconds)
        return is_best

    def passed(self, interval: int) -> bool:
        """Whether the last iteration took the step counter past a multiple of ``interval``."""
        return self.progress.iteration > 0 and self.step // interval > (self.step - self.config.batch_size) // interval

    def tell_deferred(self) -> None:
        """Raises on all ranks a failure that only rank 0 has had since the last call, such as one in its log."""
        with self.ranks.together():
            pass

    def keep_results(self, running_steps: int, eval_interval: int, test_episodes: int) -> None:
        """Begins the result files of benchmark mode, for a script's own loop.

        Args:
            running_steps: Length of the benchmark in environment steps, for the record.
            eval_interval: Environment steps between two evaluations, for the record.
            test_episodes: Episodes of each evaluation.
        """
        self.start()
        self.mode = "benchmark"
        with self.ranks.together():
            if self.ranks.is_main:
                self._folders = self.folders.in_mode(self.mode)
            if self.log is not None:
                self.log.keep_results(running_steps, eval_interval, test_episodes)

    def finish(self) -> Summary:
        """Ends a script's own loop: saves the last weights, completes the result files, returns the summary."""
        self.save_last()
        return self.summarize()

    def save_last(self) -> Path | None:
        """Saves a checkpoint of the last update, unless there is one.

        Returns:
            Its path; None if nothing has been trained, or if it could not be written.
        """
        if self.progress.iteration > 0 and not self.ranks.broadcast(self.saver.saved):
            self.saver.save_checkpoint()
        return self.saver.saved

    def summarize(self) -> Summary:
        """Writes the summary and the time stamps of the results. The run may go on."""
        with self.ranks.together():
            if self.log is not None:
                self.log.end(self.progress.total_seconds)
        return self.write_summary()

    def write_summary(self) -> Summary:
        """Returns the summary so far, and writes it to ``summary.json``."""
        engines = self.components.collector.name, self.components.learner.name
        summary = self.progress.summary(self.step, self.folders, *engines)
        if self.ranks.is_main:
            write_json(self.folders.log_dir / "summary.json", summary.to_dict())
        return summary

    def close(self) -> None:
        """Closes the files, and the environments that the trainer made; restores torch's number of threads.

        Folders in which nothing was written are removed. A second call does nothing.
        """
        try:
            if self._background is not None:
                self._background.shutdown()
            if self._components is not None:
                self._components.close()
        finally:
            if self.log is not None:
                self.log.close()
            if self._folders is not None and not self.begun and self.ranks.is_main:
                self._folders.discard_unused()
            torch.set_num_threads(self._threads)


def _episodes_of_all_ranks(rollout: Rollout, ranks: Ranks, env_offset: int) -> np.ndarray:
    """Returns the episodes that ended in this rollout, of all environments, sorted by time, then environment.

    On ranks other than 0 it returns their own only.

    Args:
        rollout: Rollout of this rank's environments.
        ranks: The ranks that collect together.
        env_offset: Global index of this rank's first environment.
    """
    episodes = rollout.episodes
    if ranks.world_size > 1:
        episodes = episodes.copy()
        episodes["env"] += env_offset
        episodes = np.concatenate(ranks.gather(episodes) or [episodes])
        episodes.sort(order=("step", "env"))
    return episodes
