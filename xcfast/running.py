"""``xcfast.run``: one run from a configuration to its summary, in this process or in several."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xcfast.config_keys import ConfigError
from xcfast.distributed import RankError, Ranks, launched
from xcfast.envs import EnvError
from xcfast.errors import CheckpointError, RunFailed
from xcfast.parts import Parts
from xcfast.report import resolve_device
from xcfast.results import Mode, Summary
from xcfast.trainer import Trainer

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
        from xcfast.testing import run_test

        return run_test(config, resume, quiet)
    if not launched() and (config.distributed_training or config.num_ranks > 1):
        from xcfast.launch import launch, ranks_to_start

        num_ranks = ranks_to_start(config)
        if num_ranks > 1:
            return launch(config, mode, resume, quiet, num_ranks, below_env)
    ranks = Ranks.start(cuda=resolve_device(config).type == "cuda")
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
