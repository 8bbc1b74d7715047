"""``xcfast.run``: one run from a configuration to its summary, in this process or in several."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xcfast.envs import EnvError
from xcfast.errors import CheckpointError, ConfigError, RankError, RunFailed
from xcfast.output.folders import Mode
from xcfast.output.summary import Summary
from xcfast.ranks.group import Ranks, launched
from xcfast.ranks.launch import free_port, launch, ranks_to_start
from xcfast.resources import training_device
from xcfast.runs.components import Parts
from xcfast.runs.trainer import Trainer

if TYPE_CHECKING:
    from xcfast.config import Config


def run(
    config: Config,
    mode: Mode | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    *,
    below_env: bool = True,
) -> Summary:
    """Do what the command line does; starts further processes where the configuration asks for several ranks.

    Args:
        config: from ``load_config``.
        mode: ``benchmark`` trains and evaluates, ``train`` only trains, ``test`` evaluates a saved model. None: that of
            the run that is resumed, else ``benchmark``.
        resume: a run folder or a checkpoint file to continue (in ``test`` mode: to take the model from).
        quiet: print nothing but warnings.
        below_env: whether the folders of a new run are in one ``<env_id>`` below ``log_dir`` and ``model_dir``.

    Raises:
        CheckpointError: the run or model asked for cannot be read.
        ConfigError: the configuration does not fit the environment.
        RunFailed: training stopped on a failure; a checkpoint was saved where possible.
    """
    resume = None if resume is None else Path(resume)
    if mode == "test":
        from xcfast.runs.testing import run_test

        return run_test(config, resume, quiet)
    if not launched() and (config.distributed_training or config.num_ranks > 1):
        num_ranks = ranks_to_start(config)
        if num_ranks > 1:
            return _run_in_ranks(config, mode, resume, quiet, num_ranks, below_env)
    ranks = Ranks.start(cuda=training_device(config).type == "cuda")
    try:
        trainer = Trainer(config, mode, resume, quiet, Parts(below_env=below_env), ranks)
        try:
            summary = trainer.run()
        finally:
            trainer.close()
    except RankError as error:  # outside of the loop, which makes a RunFailed of it
        ranks.close()
        if isinstance(error.__cause__, ConfigError | EnvError | CheckpointError):
            raise error.__cause__ from None
        raise RunFailed(str(error), expected=error.__cause__ is None) from error.__cause__
    except BaseException as error:
        known = isinstance(error, RunFailed) and error.known
        with suppress(RuntimeError):  # this error is the one to report
            ranks.close(None if known else f"{type(error).__name__}: {error}")
        raise
    ranks.close()
    return summary


def _run_in_ranks(
    config: Config, mode: Mode | None, resume: Path | None, quiet: bool, num_ranks: int, below_env: bool
) -> Summary:
    """Does the same in that many processes on this machine."""
    job = {
        "config": config.to_dict(),
        "mode": mode,
        "resume": None if resume is None else str(resume),
        "quiet": quiet,
        "below_env": below_env,
    }
    outcome = launch("xcfast.runs.rank", job, num_ranks, free_port(config.master_port, quiet))
    if "error" not in outcome:
        return Summary(**outcome)
    known: dict[str, type[Exception]] = {one.__name__: one for one in (ConfigError, CheckpointError, EnvError)}
    raise known.get(outcome["error"], RunFailed)(outcome["message"])
