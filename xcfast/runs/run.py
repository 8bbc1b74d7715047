"""``xcfast.run``: one run from a configuration to its summary, in this process or in several."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xcfast.config.trust import allow_modules as allow
from xcfast.envs import MujocoVecEnv
from xcfast.envs.sending import registration_of
from xcfast.errors import CheckpointError, ConfigError, EnvError, RankError, RankLostError, RunFailed
from xcfast.output.checkpoint import FINAL_MODEL
from xcfast.output.console import ProgressBar, end_table, say, say_warnings
from xcfast.output.files import user_path
from xcfast.output.folders import Mode
from xcfast.output.summary import Summary
from xcfast.ranks.group import Ranks
from xcfast.ranks.launch import launch, ranks_to_start
from xcfast.resources import launched, training_device
from xcfast.runs.trainer import Trainer

if TYPE_CHECKING:
    from xcfast.config.schema import Config


def run(
    config: Config,
    mode: Mode | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    *,
    below_env: bool = True,
    allow_modules: Collection[str] = (),
) -> Summary:
    """Does what the command line does. Starts further processes if the configuration asks for several ranks.

    Args:
        config: A configuration from ``load_config``.
        mode: ``benchmark`` trains and evaluates, ``train`` only trains, ``test`` evaluates a saved model. None: the
            mode of the run that is resumed, else ``benchmark``.
        resume: A run folder or a checkpoint file to continue (in ``test`` mode: to take the model from).
        quiet: Whether to print nothing but warnings.
        below_env: Whether the folders of a new run are in one ``<env_id>`` below ``log_dir`` and ``model_dir``.
        allow_modules: Names of modules that the environment may import with ``resume``, besides those of an
            ``env_id`` or ``env_wrappers`` that the script itself gives: a run's ``config.json`` may be a stranger's.

    Raises:
        CheckpointError: The run or the model cannot be read.
        ConfigError: The configuration does not fit the environment, or names a module that is not allowed.
        RunFailed: Training stopped on a failure. A checkpoint was saved where possible.
    """
    resume = None if resume is None else user_path(resume)
    if resume is not None:
        config = allow(config, allow_modules)
    if mode == "test":
        from xcfast.runs.testing import run_test

        return run_test(config, resume, quiet)
    if not launched() and (config.distributed_training or config.num_ranks > 1):
        num_ranks = ranks_to_start(config)
        if num_ranks > 1:
            return _run_in_processes(config, mode, resume, quiet, num_ranks, below_env)
    try:
        ranks = Ranks.start(cuda=training_device(config).type == "cuda")
    except RankLostError as error:
        raise RunFailed(str(error)) from None
    try:
        trainer = Trainer(config, mode, resume, quiet, ranks, below_env=below_env)
        try:
            summary = train_to_the_end(trainer)
        finally:
            trainer.close()
    except RankError as error:  # outside of the loop, which makes a RunFailed of it
        ranks.close()
        if isinstance(error.__cause__, ConfigError | EnvError | CheckpointError):
            raise error.__cause__ from None
        raise RunFailed(str(error), expected=error.__cause__ is None) from error.__cause__
    except BaseException as error:
        known = isinstance(error, RunFailed) and error.known
        cause = (isinstance(error, RunFailed) and error.__cause__) or error
        with suppress(RuntimeError):  # this error is the one to report
            ranks.close(None if known else f"{type(cause).__name__}: {cause}")
        if isinstance(error, RankLostError):
            raise RunFailed(str(error), known=False) from None
        raise
    ranks.close()
    return summary


def train_to_the_end(trainer: Trainer) -> Summary:
    """Trains until ``running_steps``, or until SIGINT, SIGTERM or SIGHUP, with evaluations and checkpoints in between.

    Returns:
        What was achieved.

    Raises:
        ConfigError: The run's folders cannot be made.
        RunFailed: Training failed, or the final files could not be saved.
    """
    trainer.progress.start_clock()
    with trainer.stop:
        try:
            _loop(trainer)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, RankError) else error
            if isinstance(cause, ConfigError):  # the folders cannot be made: nothing has begun
                raise
            raise trainer.saver.after_failure(error) from cause
        finally:
            with trainer.ranks.deferred():
                if trainer.log is not None:
                    trainer.log.end(trainer.progress.total_seconds)
        return _finish(trainer)


def _loop(trainer: Trainer) -> None:
    """Trains until the end or a signal, and returns between two iterations. An evaluation may still be due then."""
    config, progress = trainer.config, trainer.progress
    if not trainer.begun:
        progress.evaluation_due = trainer.mode == "benchmark"
    trainer.start()
    total = config.num_iterations * config.batch_size
    with ProgressBar(total, trainer.step, enabled=not trainer.quiet) as bar:
        trainer.components.evaluator.report = bar.evaluation
        while True:
            if progress.evaluation_due and not _stopping(trainer):
                trainer.evaluate()
            if trainer.finished or _stopping(trainer):
                break
            if trainer.passed(config.checkpoint_every):
                trainer.saver.save_checkpoint()
            trainer.iterate()
            progress.evaluation_due = trainer.mode == "benchmark" and (
                trainer.finished or trainer.passed(config.eval_interval)
            )
            bar.update(trainer.step, progress.recent_returns)
    trainer.tell_deferred()


def _finish(trainer: Trainer) -> Summary:
    """Saves the files that resuming and testing need, and prints the summary."""
    saved = trainer.saver.save_checkpoint()
    if trainer.finished:
        saved = trainer.saver.save_model(FINAL_MODEL) and saved
    summary = trainer.write_summary()
    if not saved:
        raise RunFailed(f"step {trainer.step} was reached but could not be saved; see the warnings above")
    envs = trainer.components.envs
    say_warnings(trainer.ranks.gather(envs.warning_counts if isinstance(envs, MujocoVecEnv) else {}) or [])
    say(end_table(summary, trainer.stop.signal_name), trainer.quiet)
    return summary


def _stopping(trainer: Trainer) -> bool:
    """Returns whether a signal has reached any rank, so that all of them stop after the same iteration."""
    stop = trainer.stop
    stopping = trainer.ranks.any_(stop.requested)
    if stopping and not stop.requested:
        stop.signal_name = "a signal to another rank"
    return stopping


def _run_in_processes(
    config: Config, mode: Mode | None, resume: Path | None, quiet: bool, num_ranks: int, below_env: bool
) -> Summary:
    """Runs the same configuration in that many processes on this machine."""
    job = {
        "config": config.to_dict(),
        "mode": mode,
        "resume": None if resume is None else str(resume),
        "quiet": quiet,
        "below_env": below_env,
        "registration": registration_of(config.env_id),
    }
    outcome = launch("xcfast.runs.rank", job, num_ranks)
    if "error" not in outcome:
        return Summary(**outcome)
    known: dict[str, type[Exception]] = {one.__name__: one for one in (ConfigError, CheckpointError, EnvError)}
    raise known.get(outcome["error"], RunFailed)(outcome["message"])
