"""The records of a run under way: curves, result files, and lines on the screen. Only rank 0 has a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xcfast.output.console import say, score_text
from xcfast.output.folders import Mode, RunFolders
from xcfast.output.results import ResultFiles
from xcfast.output.writers import make_writer

if TYPE_CHECKING:
    from xcfast.config import Config


class RunLog:
    """Writes the curves and the result files of a run.

    Args:
        config: The run's configuration.
        folders: Folders of the run.
        mode: Mode of the run.
        device: Device that trains, for the record.
        resume_step: Step that a resumed run goes on from; records of later steps are cut off. None in a new run.
        quiet: Whether to print nothing.
    """

    def __init__(
        self, config: Config, folders: RunFolders, mode: Mode, device: str, resume_step: int | None, quiet: bool
    ) -> None:
        self._config, self._quiet = config, quiet
        self._writer = make_writer(config, folders.log_dir, resume_step=resume_step)
        self._results = ResultFiles(folders, config, mode, device, resume_step)

    def episodes(self, episodes: np.ndarray, step: int) -> None:
        """Writes XuanCe's two curves of each environment: return and length, at the step at which an episode ended.

        Args:
            episodes: Finished episodes of all environments, as in ``Rollout.episodes``.
            step: Environment steps at which the rollout began.
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
        """Writes the report of an iteration: the learner's metrics, speed, times, means over episodes.

        Args:
            metrics: Metrics of the update, by tag.
            times: Seconds spent so far on collecting, updates and evaluations, by tag.
            episodes: Episodes that ended in the iteration.
            step: Environment steps after the iteration.
            seconds: Duration of the iteration.

        Returns:
            All that was written, by tag.
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
        """Writes the scores of an evaluation, and the run's wall-clock time until then."""
        mean, std = float(scores.mean()), float(scores.std())
        self._results.add_scores(step, scores, elapsed_seconds)
        tags = {"Test-Episode-Rewards/Mean-Score": mean, "Test-Episode-Rewards/Std-Score": std}
        self._writer.scalars(tags, step)
        self._writer.flush()
        say(f"step {step:>9,}  score {score_text(mean):>10} +- {score_text(std)}", self._quiet)

    def new_best(self, scores: np.ndarray, step: int) -> None:
        """Notes that a new best model was saved."""
        self._results.new_best(float(scores.mean()), float(scores.std()), step)

    def keep_results(self, running_steps: int, eval_interval: int, test_episodes: int) -> None:
        """Begins the result files of benchmark mode, unless they have begun."""
        self._results.keep(running_steps, eval_interval, test_episodes)

    def end(self, elapsed_seconds: float) -> None:
        """Writes the time stamps. The seconds are those of all parts of a resumed run."""
        self._results.stamp(elapsed_seconds)

    def close(self) -> None:
        """Closes curves and result files."""
        self._results.close()
        self._writer.close()
