"""What a run writes down as it goes: curves, result files, and lines on the screen. Rank 0 has one, the others none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xcfast.output.console import say
from xcfast.output.folders import Mode, RunFolders
from xcfast.output.results import ResultFiles
from xcfast.output.writers import make_writer

if TYPE_CHECKING:
    from xcfast.config import Config


class RunLog:
    """The writer of curves and the result files of a run.

    Args:
        config: of the run.
        folders: where to write.
        mode: of the run.
        device: of the weights, for the record.
        resume_step: what was written of later steps is cut off; None in a new run.
        quiet: print nothing.
    """

    def __init__(
        self, config: Config, folders: RunFolders, mode: Mode, device: str, resume_step: int | None, quiet: bool
    ) -> None:
        self._config, self._quiet = config, quiet
        self._writer = make_writer(config, folders.log_dir, resume_step=resume_step)
        self._results = ResultFiles(folders, config, mode, device, resume_step)

    def episodes(self, episodes: np.ndarray, step: int) -> None:
        """XuanCe's two curves per env, at the step at which the episode ended.

        Args:
            episodes: as ``Rollout.episodes``, of all envs.
            step: at which the rollout began.
        """
        for row, env, episode_return, length in episodes.tolist():
            tags = {
                f"Train-Episode-Rewards/rank_0/env-{env}": episode_return,
                f"Episode-Steps/rank_0/env-{env}": float(length),
            }
            self._writer.scalars(tags, step + (row + 1) * self._config.parallels)

    def iteration(
        self, metrics: dict[str, float], *, times: dict[str, float], episodes: np.ndarray, step: int, seconds: float
    ) -> dict[str, float]:
        """What the learner reports, speed and time, and the episodes' means; returns it all.

        Args:
            metrics: of the update.
            progress: of the run, this iteration included.
            episodes: those that ended in it.
            step: after it.
            seconds: it took.
        """
        scalars = {
            **metrics,
            "actor_loss": metrics["losses/policy_loss"],
            "critic_loss": metrics["losses/value_loss"],
            "entropy": metrics["losses/entropy"],
            "clip_ratio": metrics["losses/clipfrac"],
            "charts/SPS": self._config.batch_size / seconds,
            **times,
        }
        if len(episodes):
            scalars["charts/episodic_return"] = float(episodes["ret"].mean())
            scalars["charts/episodic_length"] = float(episodes["length"].mean())
        self._writer.scalars(scalars, step)
        self._writer.flush()
        return scalars

    def evaluation(self, scores: np.ndarray, step: int, elapsed_seconds: float) -> None:
        """The scores of one evaluation, and the run's wall-clock time until then."""
        mean, std = float(scores.mean()), float(scores.std())
        self._results.add_scores(step, scores, elapsed_seconds)
        tags = {"Test-Episode-Rewards/Mean-Score": mean, "Test-Episode-Rewards/Std-Score": std}
        self._writer.scalars(tags, step)
        self._writer.flush()
        say(f"step {step:>9,}  score {mean:10.2f} +- {std:.2f}", self._quiet)

    def new_best(self, scores: np.ndarray, step: int) -> None:
        """A best model was saved."""
        self._results.new_best(float(scores.mean()), float(scores.std()), step)

    def keep_results(self, running_steps: int, eval_interval: int, test_episodes: int) -> None:
        """Begin the result files of benchmark mode, unless they have begun."""
        self._results.keep(running_steps, eval_interval, test_episodes)

    def end(self, elapsed_seconds: float) -> None:
        """Write the time stamps; the seconds are those of all parts of a resumed run."""
        self._results.stamp(elapsed_seconds)

    def close(self) -> None:
        """Close curves and result files."""
        self._results.close()
        self._writer.close()
