"""A run's model files: when and how its state is written, and how a run goes on from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xcfast.envs import EnvError, SimulationError, WorkerError
from xcfast.errors import NonFiniteError, RankError, RankLostError, RunFailed
from xcfast.output import checkpoint as ckpt
from xcfast.output.console import say
from xcfast.output.folders import RunFolders
from xcfast.runs.progress import check_same_run
from xcfast.runs.state import RunState

if TYPE_CHECKING:
    from xcfast.config import Config

# Failures whose message says it all; None: another rank's, which tells of it.
_EXPECTED = EnvError | NonFiniteError | SimulationError | WorkerError | RankLostError | None


class Resumed(NamedTuple):
    """A run to go on with, and the contents of its checkpoint."""

    folders: RunFolders
    path: Path
    saved: dict[str, Any]


def find_run(config: Config, resume: Path) -> Resumed:
    """The run to go on with.

    Args:
        config: what it is to go on with.
        resume: the run's folder, whose newest checkpoint it is then, or a checkpoint file.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ConfigError: it belongs to a run with other settings.
    """
    folders = RunFolders.find(resume)
    path = resume if resume.suffix == ".pth" else folders.newest_checkpoint()
    saved = ckpt.load_checkpoint(path)
    check_same_run(config, saved, path)
    return Resumed(folders, path, saved)


class Saver:
    """Writes the state of a run, on rank 0; all ranks must make the same calls.

    Args:
        state: of the run.
        folders: of the run, made at the first call.
        quiet: print nothing but warnings.
    """

    def __init__(self, state: RunState, folders: Callable[[], RunFolders], quiet: bool) -> None:
        self._state, self._make_folders, self._quiet = state, folders, quiet
        self._ranks = state.ranks

    def save(self, path: Path) -> None:
        """Write a checkpoint; in a rollout's middle, or with closed envs, one whose resumption starts new episodes.

        Raises:
            CheckpointError: it cannot be written.
        """
        contents = self._state.gather(self._with_envs)
        with self._ranks.together():
            if contents is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                ckpt.save_checkpoint(path, contents)

    def save_model(self, name: str) -> bool:
        """Write a model file into the run's folder; a full disk is reported and does not end the run.

        Returns:
            Whether it was written.
        """
        contents, saved = self._state.gather(self._with_envs), True
        with self._ranks.together():  # there may be more wrong than the disk
            if contents is not None:
                try:
                    ckpt.save_checkpoint(self._folders.model_dir / name, contents)
                except ckpt.CheckpointError as error:
                    say(f"warning: {error}", error=True)
                    saved = False
        return bool(self._ranks.broadcast(saved))

    def save_checkpoint(self) -> bool:
        """Write the periodic checkpoint of this step, and delete old ones; returns whether it was written."""
        saved = self.save_model(self._path.name)
        with self._ranks.deferred():
            if saved and self._ranks.is_main:
                ckpt.prune_checkpoints(self._folders.model_dir, self._state.config.keep_checkpoints)
        return saved

    def after_failure(self, error: Exception) -> RunFailed:
        """Save the weights from before the failed iteration, where all ranks know of the failure.

        Args:
            error: what has failed.

        Returns:
            What to fail with.
        """
        known = self._ranks.world_size == 1 or isinstance(error, RankError | NonFiniteError)
        cause = error.__cause__ if isinstance(error, RankError) else error
        return RunFailed(self._save_after_failure(error, known), isinstance(cause, _EXPECTED), known)

    def _save_after_failure(self, error: Exception, known: bool) -> str:
        state, ranks = self._state, self._ranks
        state.parts.obs_normalizer.discard()
        message = f"stopped at step {state.step}: {error}"
        if not known:  # other ranks wait for something else, or have ended: their part of the state is out of reach
            folder = self._folders.model_dir
            return f"rank {ranks.rank} {message}\nCheckpoints, if there was time for one: {folder}"
        if state.progress.iteration == 0:
            return f"{message}\nNothing had been trained yet"
        path = self._path
        if ranks.broadcast(path.exists()):  # the others may not see rank 0's files
            return f"{message}\nThe last good state is in {path}"
        # The envs have gone on, or failed: a resumed run starts new episodes with these weights.
        contents = state.gather(with_envs=False)
        try:
            if contents is not None:
                ckpt.save_checkpoint(path, contents)
        except ckpt.CheckpointError as failure:
            return f"{message}\n{failure}"
        return f"{message}\nThe last good weights are in {path}"

    def restore(self, resumed: Resumed) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it does not fit this run's network or environments.
        """
        path = resumed.path
        try:
            with_envs = self._state.load(resumed.saved)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ckpt.CheckpointError(f"{path}: does not fit this run: {type(error).__name__}: {reason}") from error
        if self._ranks.is_main:
            for aside in ckpt.set_aside_after(self._folders.model_dir, self._state.step):
                say(f"of a later step, so set aside: {aside}", self._quiet)
        if not with_envs:
            say("the state of these environments is not in the checkpoint: all episodes start anew", self._quiet)
        say(f"resuming {path} at step {self._state.step}", self._quiet)

    @property
    def saved(self) -> Path | None:
        """The checkpoint of this step, or None where there is none."""
        return self._path if self._path.exists() else None

    @property
    def _folders(self) -> RunFolders:
        return self._make_folders()

    @property
    def _path(self) -> Path:
        return ckpt.checkpoint_path(self._folders.model_dir, self._state.step)

    @property
    def _with_envs(self) -> bool:
        parts = self._state.parts
        between = parts.rollout.step == 0 or parts.spare is not None  # with a spare, a filled one is part of the state
        return between and parts.envs.running
