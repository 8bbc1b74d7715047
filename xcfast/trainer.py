"""The run: builds the parts, owns the loop (collect, update, log, evaluate, save), and the three modes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.envs import VecEnv
    from xcfast.policy import ActorCritic

__all__ = ["Parts", "RunFailed", "Summary", "Trainer", "describe", "run"]


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
        trainer = Trainer(config, mode, resume, quiet, ranks=ranks)
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


@dataclass(frozen=True)
class Parts:
    """What the caller of a ``Trainer`` brings; what is None is made as the configuration says.

    Attributes:
        envs: ``config.parallels`` of them; they stay the caller's to close.
        policy: of the form that ``config`` describes; its weights are trained in place.
        optimizer: of the policy's parameters.
        scheduler: of that optimizer; stepped once after each update, it decides the learning rates.
        below_env: whether the run's folders are in one ``<env_id>``.
        late: whether folders, log and start table wait until training begins or somebody asks for the folders.
    """

    envs: VecEnv | None = None
    policy: ActorCritic | None = None
    optimizer: torch.optim.Optimizer | None = None
    scheduler: LRScheduler | None = None
    below_env: bool = True
    late: bool = False


class Trainer:
    """One training run; ``close()`` frees what it holds.

    ``run()`` trains to the end, or until it is asked to stop. Whoever has a loop of their own calls ``advance()`` for
    some steps at a time instead, ``add_scores()`` after evaluations, and ``finish()``.

    Of several ranks, each has its share of the envs and holds the same networks, statistics and counters. Rank 0
    evaluates, logs and saves.

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
        ranks: Ranks = ALONE,
    ) -> None:
        several = ranks.world_size > 1 or config.num_ranks > 1 or config.distributed_training or launched()
        if several and parts != Parts():
            raise ConfigError(
                "envs, policy and optimizer that a script makes serve one process; "
                "several are started by python -m xcfast.train, or by torchrun in front of it",
                key="num_ranks" if config.num_ranks > 1 else "distributed_training",
            )
        self.config, self.ranks, self._parts = config, ranks, parts
        self.quiet = quiet or not ranks.is_main
        self.rows = ranks.rows(config.parallels)  # global indices of this rank's envs
        self.mode: Mode = mode or "benchmark"
        self._given_mode = mode
        self.progress = Progress()
        self._stop = StopRequest()
        self.begun = resume is not None
        self._started = time.perf_counter()
        self._rollout_seconds = 0.0
        self._threads = torch.get_num_threads()
        self._closers = ExitStack()
        self._collected: dict[str, Any] | None = None
        self._folders: RunFolders | None = None
        self.log: RunLog | None = None

        try:
            with ranks.together():
                checkpoint_file, saved = self._read(resume) if ranks.is_main and resume is not None else (None, None)
            checkpoint_file, saved = ranks.broadcast((checkpoint_file, saved))
            with ranks.together():
                self._build(saved or {})
                if ranks.is_main and saved is None and not parts.late:
                    self._folders = RunFolders.create(config, self.mode, parts.below_env)
            self._folders = ranks.broadcast(self._folders)
            self.mode = ranks.broadcast(self.mode)
            with ranks.together():
                resume_step = None if saved is None else int(saved["step"])
                if ranks.is_main and not parts.late:
                    self._open(resume_step)
                if saved is not None and checkpoint_file is not None:
                    self._restore(saved, checkpoint_file)
            for tensor in (*self.policy.parameters(), *self.policy.buffers()):  # equal by their seed; to be sure
                ranks.broadcast_(tensor.detach())
            self.adopt_weights()
            if self._collected is not None and isinstance(self.learner, CudaLearner):
                self.learner.behaviour = self._collected["weights"]
        except BaseException:
            self.close()
            raise

    @property
    def folders(self) -> RunFolders:
        """Where the run writes."""
        if self._folders is None:
            self._folders = RunFolders.create(self.config, self.mode, self._parts.below_env)
        return self._folders

    def _open(self, resume_step: int | None = None) -> None:
        """Begin the log, and say what will run."""
        self.log = RunLog(self.config, self.folders, self.mode, str(self.device), resume_step, self.quiet)
        self._closers.callback(self.log.close)
        shown = (self.policy, self.action_map, self.device, self.envs, self.folders)
        collector = f"{self.collector.name} ({self.collector_reason})"
        learner = f"{self.learner.name} ({self.learner_reason})"
        say(start_table(self.config, self.mode, *shown, collector, learner, self.ranks), self.quiet)

    def _read(self, resume: Path) -> tuple[Path, dict[str, Any]]:
        self._folders = RunFolders.find(resume)
        if self._given_mode is None:
            self.mode = self._folders.mode
        path = resume if resume.suffix == ".pth" else self._folders.newest_checkpoint()
        return path, ckpt.load_checkpoint(path)

    @property
    def step(self) -> int:
        """Env steps trained on so far, over all envs."""
        return self.progress.iteration * self.config.batch_size

    def _build(self, saved: dict[str, Any]) -> None:
        config, parts = self.config, self._parts
        self.device = resolve_device(config, self.ranks)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if parts.envs is None:
            self.envs = make_envs(config, num_envs=len(self.rows), sharing=self.ranks.sharing)
            self._closers.callback(self.envs.close)
        else:
            self.envs = parts.envs
        observation_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        self.policy = parts.policy or build_policy(config, observation_space, action_space)
        self.action_map = ActionMap(action_space, config.activation_action, bool(saved.get("identity_actions")))
        self._inference = saved.get("engines", {}).get("inference")
        num_envs, obs_shape = self.envs.num_envs, observation_space.shape or ()
        join = None if self.ranks.world_size == 1 else self._all_envs
        self.obs_normalizer = ObservationNormalizer(
            obs_shape, num_envs=num_envs, clip=config.obsnorm_range, enabled=config.use_obsnorm, join=join
        )
        self.reward_normalizer = RewardNormalizer(
            num_envs, gamma=config.gamma, clip=config.rewnorm_range, enabled=config.use_rewnorm, join=join
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
        torch.set_num_threads(1)  # the env loop's inference, and what is compiled; the update sets its own
        self.learner, self.learner_reason = make_learner(
            config,
            self.policy,
            self.rollout,
            self.reward_normalizer,
            num_threads(config, self.ranks.sharing),
            self.ranks,
            self.device,
            parts.optimizer,
            parts.scheduler,
        )
        self._connect()
        self._closers.callback(lambda: self.evaluator.close())
        self._background: ThreadPoolExecutor | None = None
        if config.overlap:
            self._overlap()

    def _overlap(self) -> None:
        """Make what collects while the update runs: a thread, and a second rollout with the same running episodes."""
        if not isinstance(self.learner, CudaLearner) or self.ranks.world_size > 1:
            raise ConfigError(
                "collection and update can overlap where the update runs on one CUDA device",
                key="overlap",
                given=True,
                allowed="False",
            )
        first = self.rollout
        shape = (first.num_steps, first.num_envs, first.obs_shape, first.action_shape, first.actions.dtype)
        self._spare = Rollout(*shape, allocate=pinned if self.device.type == "cuda" else np.zeros)
        self._spare.episode_returns, self._spare.episode_lengths = first.episode_returns, first.episode_lengths
        self._background = ThreadPoolExecutor(1, thread_name_prefix="xcfast-collect")
        self._closers.callback(self._background.shutdown)

    def _connect(self) -> None:
        """Make what applies the action map."""
        config, parts = self.config, (self.policy, self.obs_normalizer, self.action_map)
        on_device = None
        if isinstance(self.learner, CudaLearner) and not config.overlap:  # its weights change while others collect
            on_device = self.learner.device_policy
        self.collector, self.collector_reason = make_collector(
            config, self.envs, *parts, self.ranks, on_device, self._inference
        )
        self.evaluator = Evaluator(config, *parts, should_stop=lambda: self._stop.requested)
        self._run_state = RunState(
            config,
            self.ranks,
            self.policy,
            self.learner,
            self.obs_normalizer,
            self.reward_normalizer,
            self.collector,
            self.rollout,
            self.progress,
        )

    def _all_envs(self, rows: np.ndarray) -> np.ndarray:
        return self.ranks.join(rows, self.rows, self.config.parallels)

    def start(self) -> None:
        """Begin the first episodes, and give the observation statistics a start unless they have one; only once."""
        if self.begun:
            return
        self.begun = True
        if self._parts.late:
            self._open()
        with self.ranks.together():
            self.collector.reset([self.config.env_seed + i for i in self.rows])
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
                raise self._failure(error) from (error.__cause__ if isinstance(error, RankError) else error)
            finally:
                if self.log is not None:
                    self.log.end(self._elapsed_seconds)
            return self._finish()

    def _failure(self, error: Exception) -> RunFailed:
        known = self.ranks.world_size == 1 or isinstance(error, RankError | NonFiniteError)
        cause = error.__cause__ if isinstance(error, RankError) else error
        expected = isinstance(cause, EnvError | NonFiniteError | SimulationError | WorkerError | RankLostError | None)
        return RunFailed(self._save_after_failure(error, known), expected, known)

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

    def advance(self, num_steps: int, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Train for ``num_steps`` steps of each env; a rollout that is not full then waits for the next call.

        Args:
            num_steps: of each env.
            should_stop: asked after each iteration, and after a part of one with which the steps end.

        Returns:
            What the last update logged; nothing where there was none.

        Raises:
            RunFailed: something broke.
        """
        if self._background is not None:
            raise ConfigError("overlap is for whole runs", key="overlap", given=True, allowed="False")
        num_envs = self.envs.num_envs
        begin = self.step + self.rollout.step * num_envs
        logged: dict[str, float] = {}
        try:
            self.start()
            with ProgressBar(begin + num_steps * num_envs, begin, enabled=not self.quiet) as bar:
                while num_steps > 0 and not should_stop():
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

    def adopt_weights(self) -> None:
        """Tell the learner that others have written into the policy."""
        if isinstance(self.learner, CudaLearner):
            self.learner.adopt()

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
        self.save_last()
        return self.summarize()

    def save_last(self) -> Path | None:
        """A checkpoint of the last update, unless there is one; its path, or None where nothing was trained, or saved."""
        path = ckpt.checkpoint_path(self.folders.model_dir, self.step)
        if self.progress.iteration > 0 and not path.exists():
            self._save_checkpoint()
        return path if path.exists() else None

    def summarize(self) -> Summary:
        """Write the summary and the results' time stamps; the run may go on."""
        if self.log is not None:
            self.log.end(self._elapsed_seconds)
        summary = self.progress.summary(self.step, self.folders, self.collector.name, self.learner.name)
        write_json(self.folders.log_dir / "summary.json", summary.to_dict())
        return summary

    def keep_results(self, running_steps: int, eval_interval: int, test_episodes: int) -> None:
        """Begin the result files of benchmark mode, for whoever has a loop of their own and only now says so."""
        self.start()
        self.mode = "benchmark"
        self._folders = self.folders.in_mode(self.mode)
        if self.log is not None:
            self.log.keep_results(running_steps, eval_interval, test_episodes)

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

    def _iterate(self, num_steps: int | None = None) -> dict[str, float]:
        """One PPO iteration: collect, update, log; returns what is logged.

        With ``num_steps`` that do not fill the rollout, only their collection, and nothing is returned.
        """
        start = time.perf_counter()
        if not self.rollout.full:  # with overlap, it was collected during the last update
            self.collector.collect(self.rollout, num_steps)
        self._rollout_seconds += time.perf_counter() - start
        if not self.rollout.full:
            return {}
        with self.ranks.together():
            check_finite(self.rollout, self.rows.start)
        collected = time.perf_counter()
        collecting = None
        if self._background is not None and self.progress.iteration + 1 < self.config.num_iterations:
            collecting = self._background.submit(self.collector.collect, self._spare)
        try:
            metrics = self.learner.update(self.rollout, self.progress.iteration)
            updated = time.perf_counter()
        finally:
            if collecting is not None:
                wait([collecting])
        if isinstance(self.learner, CudaLearner) and self._background is not None:
            self.learner.publish()
            self._rollout_seconds += time.perf_counter() - updated
        self.progress.collection_seconds += self._rollout_seconds
        self.progress.update_seconds += updated - collected
        episodes, step = gathered_episodes(self.rollout, self.ranks, self.rows.start), self.step
        self.progress.recent_returns.extend(episodes["ret"].tolist())
        self.progress.iteration += 1
        self.episodes_done += np.bincount(self.rollout.episodes["env"], minlength=self.envs.num_envs)
        scalars = metrics
        if self.log is not None:
            self.log.episodes(episodes, step)
            seconds = self._rollout_seconds + updated - collected
            scalars = self.log.iteration(metrics, self.progress, episodes, self.step, seconds)
        self.rollout.clear()
        self._rollout_seconds = 0.0
        if collecting is not None:
            self.rollout, self._spare = self._spare, self.rollout
            collecting.result()  # its error, if it failed
        return scalars

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
        if self.add_scores(scores, self.step, time.perf_counter() - start):
            self._save(ckpt.BEST_MODEL)
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
        if self.log is not None:
            self.log.evaluation(scores, step, self._elapsed_seconds)
        return is_best

    def _state(self, with_envs: bool = True) -> dict[str, Any] | None:
        """What a checkpoint holds; None on other ranks than 0."""
        state = self._run_state.gather(self._elapsed_seconds, with_envs)
        if state is None:
            return None
        own: dict[str, Any] = {"mode": self.mode, "identity_actions": self.action_map.identity}
        if (
            with_envs and self.rollout.full and isinstance(self.learner, CudaLearner)
        ):  # collected during the last update
            own["collected"] = {"rollout": self.rollout.state_dict(), "weights": self.learner.behaviour}
        return {**state, **own}

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ConfigError: it belongs to a run with other settings.
            CheckpointError: its contents do not fit this run's network or environments.
        """
        if self.ranks.is_main:
            check_same_run(self.config, saved, path)
        try:
            with_envs = self._run_state.load(saved)
            self._collected = saved.get("collected") if with_envs else None
            if self._collected is not None:
                self.rollout.load_state_dict(self._collected["rollout"])
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
        saved = True
        try:
            self.save(self.folders.model_dir / name)
        except ckpt.CheckpointError as error:
            say(f"warning: {error}", error=True)
            saved = False
        return bool(self.ranks.broadcast(saved))

    def save(self, path: Path) -> None:
        """Write a checkpoint; in a rollout's middle, or with closed envs, one whose resumption starts new episodes.

        Raises:
            CheckpointError: it cannot be written.
        """
        whole = self.rollout.step == 0 or self._background is not None
        state = self._state(with_envs=whole and not self.envs.closed)
        if state is not None:
            ckpt.save_checkpoint(path, state)

    def _save_after_failure(self, error: Exception, known: bool) -> str:
        """Save the weights from before the failed iteration; returns the sentence to fail with."""
        self.obs_normalizer.discard()
        path = ckpt.checkpoint_path(self.folders.model_dir, self.step)
        message = f"stopped at step {self.step}: {error}"
        if not known:  # other ranks wait for something else, or have ended: their part of the state is out of reach
            return f"rank {self.ranks.rank} {message}\nCheckpoints, if there was time for one: {self.folders.model_dir}"
        if self.progress.iteration == 0:
            return f"{message}\nNothing had been trained yet"
        if self.ranks.broadcast(path.exists()):  # the others may not see rank 0's files
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
        """Close the envs that are the run's own, and files, and give torch its threads back; safe to call twice."""
        try:
            self._closers.close()
            if self._folders is not None and not self.begun:
                self._folders.discard_unused()
        finally:
            torch.set_num_threads(self._threads)
