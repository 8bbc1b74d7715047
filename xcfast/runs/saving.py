"""The model files of a run: when and how its state is written, and how a run resumes from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xcfast.config import RESUMABLE_KEYS, Config
from xcfast.errors import (
    CheckpointError,
    ConfigError,
    EnvError,
    NonFiniteError,
    RankError,
    RankLostError,
    RunFailed,
    SimulationError,
    WorkerError,
)
from xcfast.output import checkpoint as ckpt
from xcfast.output.console import say
from xcfast.output.files import package_versions
from xcfast.output.folders import RunFolders
from xcfast.resources import shortage

if TYPE_CHECKING:
    from xcfast.runs.state import RunState

# Failures whose message says everything; None: a failure of another rank, which reports it.
_EXPECTED = EnvError | NonFiniteError | SimulationError | WorkerError | RankLostError | None


class Resumed(NamedTuple):
    """A run to resume.

    Attributes:
        folders: Folders of the run.
        path: Checkpoint to resume from.
        saved: Contents of the checkpoint.
    """

    folders: RunFolders
    path: Path
    saved: dict[str, Any]


def find_run(config: Config, resume: Path) -> Resumed:
    """Finds the run to resume, and reads its checkpoint.

    Args:
        config: The configuration of the resumed run.
        resume: The run's folder, whose newest checkpoint is taken, or a checkpoint file.

    Raises:
        CheckpointError: There is no such run, or its checkpoint cannot be read.
        ConfigError: The checkpoint belongs to a run with other settings.
    """
    folders = RunFolders.find(resume)
    path = resume if resume.suffix == ".pth" else folders.newest_checkpoint()
    saved = ckpt.load_checkpoint(path)
    check_same_run(config, saved, path)
    return Resumed(folders, path, saved)


def check_same_run(config: Config, saved: dict[str, Any], path: Path) -> None:
    """Checks that a run may resume from a checkpoint. Warns if other package versions wrote it.

    Raises:
        ConfigError: A setting differs that cannot change in the middle of a run, or the run would end before the
            checkpoint's step.
    """
    mine, theirs = config.to_dict(), {**Config().to_dict(), **saved["config"]}  # older checkpoints have fewer keys
    if mine["policy"] == "auto":  # the run's own fits its environments
        mine["policy"] = theirs["policy"]
        if mine["policy"] == "Categorical_AC":  # it has no mean for an activation to act on
            mine["activation_action"] = None
    changed = [key for key in mine if key not in RESUMABLE_KEYS and mine[key] != theirs.get(key)]
    if changed:
        listed = ", ".join(f"{key} {theirs.get(key)!r} -> {mine[key]!r}" for key in changed)
        raise ConfigError(f"{path} belongs to a run with other settings, which cannot change: {listed}")
    if config.num_iterations < saved["iteration"]:
        raise ConfigError(
            f"the run has already reached step {saved['step']:,} in {path}",
            key="running_steps",
            given=config.running_steps,
            allowed=f"at least {saved['step']}",
        )
    versions = package_versions()
    others = {name: then for name, then in saved.get("versions", {}).items() if then != versions.get(name)}
    if others:
        listed = ", ".join(f"{name} {then} then, {versions.get(name)} now" for name, then in others.items())
        say(f"warning: package versions differ from the checkpoint's, so results may differ: {listed}", error=True)


class Saver:
    """Writes the state of a run, on rank 0. All ranks must make the same calls.

    Args:
        state: The run's state.
        folders: Returns the run's folders.
        quiet: Whether to print nothing but warnings.
    """

    def __init__(self, state: RunState, folders: Callable[[], RunFolders], quiet: bool) -> None:
        self._state, self._get_folders, self._quiet = state, folders, quiet
        self._ranks = state.ranks

    def save(self, path: Path) -> None:
        """Writes a checkpoint.

        In the middle of a rollout, or with closed environments, it holds no state of environments: a run that
        resumes from it starts new episodes.

        Raises:
            CheckpointError: It cannot be written.
        """
        contents = self._state.gather(self._with_envs)

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            ckpt.save_checkpoint(path, contents or {})

        self._ranks.from_main(write)

    def save_model(self, name: str) -> bool:
        """Writes a model file into the run's folder. A full disk is reported and does not end the run.

        Returns:
            Whether the file was written.
        """
        contents = self._state.gather(self._with_envs)

        def written() -> bool:
            try:
                ckpt.save_checkpoint(self._folders.model_dir / name, contents or {})
            except CheckpointError as error:
                say(f"warning: {error}", error=True)
                return False
            return True

        return self._ranks.from_main(written)

    def save_checkpoint(self) -> bool:
        """Writes the periodic checkpoint of this step, and deletes old ones; returns whether it was written."""
        saved = self.save_model(self._path.name)
        with self._ranks.deferred():
            if saved and self._ranks.is_main:
                ckpt.prune_checkpoints(self._folders.model_dir, self._state.config.keep_checkpoints)
        return saved

    def after_failure(self, error: Exception) -> RunFailed:
        """Saves the weights from before the failed iteration, if all ranks know of the failure.

        Args:
            error: The failure.

        Returns:
            The error to raise: what happened, at which step, and what was saved.
        """
        known = self._ranks.world_size == 1 or isinstance(error, RankError | NonFiniteError)
        cause = error.__cause__ if isinstance(error, RankError) else error
        short = shortage(cause or error)
        expected = isinstance(cause, _EXPECTED) or short is not None
        return RunFailed(self._save_after_failure(short or str(error), known), expected, known)

    def _save_after_failure(self, error: str, known: bool) -> str:
        state, ranks = self._state, self._ranks
        state.components.obs_normalizer.discard()
        message = f"stopped at step {state.step}: {error}"
        if not known:  # other ranks wait for something else, or have ended: their part of the state is out of reach
            folder = self._folders.model_dir
            return f"rank {ranks.rank} {message}\nCheckpoints, if one was saved: {folder}"
        if state.progress.iteration == 0:
            return f"{message}\nNothing had been trained yet"
        path = self._path
        if ranks.broadcast(path.exists()):  # the others may not see rank 0's files
            return f"{message}\nThe last good state is in {path}"
        # The environments have moved on, or failed: a resumed run starts new episodes with these weights.
        contents = state.gather(with_envs=False)
        try:
            if contents is not None:
                ckpt.save_checkpoint(path, contents)
        except CheckpointError as failure:
            return f"{message}\n{failure}"
        return f"{message}\nThe last good weights are in {path}"

    def restore(self, resumed: Resumed) -> None:
        """Restores the state of a checkpoint.

        Raises:
            CheckpointError: It does not fit this run's network or environments.
        """
        path = resumed.path
        try:
            with_envs = self._state.load(resumed.saved)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"{path}: does not fit this run: {type(error).__name__}: {reason}") from error
        if self._ranks.is_main:
            for aside in ckpt.set_aside_after(self._folders.model_dir, self._state.step):
                say(f"renamed, because it belongs to a later step: {aside}", self._quiet)
        if not with_envs:
            say("the state of these environments is not in the checkpoint: all episodes start anew", self._quiet)
        say(f"resuming {path} at step {self._state.step}", self._quiet)
        if self._state.progress.iteration == self._state.config.num_iterations:
            more = self._state.step + self._state.config.running_steps
            say(f"this run is finished; to train on, set a larger running_steps, such as {more}", self._quiet)

    @property
    def saved(self) -> Path | None:
        """Returns the checkpoint of this step, or None if there is none."""
        return self._path if self._path.exists() else None

    @property
    def _folders(self) -> RunFolders:
        return self._get_folders()

    @property
    def _path(self) -> Path:
        return ckpt.checkpoint_path(self._folders.model_dir, self._state.step)

    @property
    def _with_envs(self) -> bool:
        """Returns whether a checkpoint can hold the environments: between two rollouts, or if the spare one is full."""
        parts = self._state.components
        between = parts.rollout.step == 0 or parts.spare is not None
        return between and parts.envs.running
