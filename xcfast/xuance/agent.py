"""PPO's agent with XuanCe's constructor and methods, around a ``Trainer``."""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from xcfast.config import Config
from xcfast.envs import VecEnv
from xcfast.errors import CheckpointError, RunFailed
from xcfast.moments import RunningMeanStd
from xcfast.output.console import end_table, say
from xcfast.output.folders import Mode, RunFolders
from xcfast.output.summary import Summary
from xcfast.policy import ActionMap, ActorCritic
from xcfast.policy.build import resolve_policy
from xcfast.runs.evaluation import TEST_RUN
from xcfast.runs.player import Player
from xcfast.runs.trainer import Trainer
from xcfast.xuance.acting import actions_of
from xcfast.xuance.agent_config import agent_config, lone_player
from xcfast.xuance.checks import check_optimizer, check_scheduler, check_spaces, observations_for, values_of, whole
from xcfast.xuance.environment import XuanCeVecEnv, plain, total_envs
from xcfast.xuance.finding import find_model_file
from xcfast.xuance.loading import load_into, load_training
from xcfast.xuance.models import read_model
from xcfast.xuance.script_ranks import script_ranks
from xcfast.xuance.testing import play_test
from xcfast.xuance.training import saving, warn_of_the_end

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler


class PPO_Agent:
    """Trains, tests, saves and loads a policy.

    Args:
        config: The script's arguments, with the keys of the YAML file.
        envs: Environments from ``make_envs``. None: the agent only acts and tests.
        policy: A policy from ``Gaussian_AC_Policy`` or ``Categorical_AC_Policy``. None: built from the arguments.
        optimizer: Any torch optimizer of the policy's parameters. None: Adam, with the arguments' settings.
        scheduler: A scheduler of that optimizer, stepped once after each gradient step. None: a given optimizer keeps
            its learning rate; the default Adam follows the arguments' learning-rate schedule.
        device: The device, instead of the arguments' one.
        observation_space: Space of one environment's observations; needed without ``envs``.
        action_space: Space of one environment's actions; needed without ``envs``.
        callback: Not supported.
        quiet: Whether to print nothing but warnings.

    Attributes:
        config: The configuration, with all keys.
        render: Whether ``test`` shows the policy, in a video or a window as ``render_mode`` says.
        model_dir_load: Folder in which ``load_model`` looks by default.

    Raises:
        ConfigError: The arguments cannot be run, or do not fit the environment.
        TypeError: An argument has a wrong type.
        ValueError: The policy is for another environment, or the scheduler belongs to another optimizer.
    """

    _agent: str | None = None  # the algorithm that the class stands for; None: the arguments decide

    def __init__(
        self,
        config: Namespace | Any,
        envs: XuanCeVecEnv | VecEnv | None = None,
        policy: ActorCritic | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        device: str | torch.device | None = None,
        *,
        observation_space: gymnasium.Space[Any] | None = None,
        action_space: gymnasium.Space[Any] | None = None,
        callback: Any = None,
        quiet: bool = False,
    ) -> None:
        if callback is not None:
            raise TypeError("callback is not supported; train(steps) returns after any number of steps instead")
        if policy is not None and not isinstance(policy, ActorCritic):
            raise TypeError(
                f"policy must come from Gaussian_AC_Policy or Categorical_AC_Policy; got {type(policy).__name__}"
            )
        vec_env = None if envs is None else plain(envs)
        self._ranks = script_ranks(values_of("config", config).get("device") if device is None else device)
        self.quiet = quiet or not self._ranks.is_main
        self.train_envs = envs
        num_envs = None if vec_env is None else total_envs(vec_env, self._ranks)
        self.config = agent_config(self._agent, config, num_envs, policy, device, self.quiet)
        if scheduler is not None:
            check_scheduler(scheduler, self.config.num_updates)
            optimizer = getattr(scheduler, "optimizer", None) if optimizer is None else optimizer
        self._own_rates = optimizer is None
        if vec_env is not None:
            observation_space, action_space = vec_env.single_observation_space, vec_env.single_action_space
        if observation_space is None or action_space is None:
            raise TypeError("without envs, observation_space and action_space must be given")
        self.observation_space, self.action_space = observation_space, action_space
        self.model_dir_load = self.config.model_dir
        self.render = self.config.render
        self.config = resolve_policy(self.config, action_space)
        if policy is not None:
            check_spaces(policy, observation_space, action_space)
        if optimizer is not None:
            check_optimizer(optimizer, policy)
        self._trainer: Trainer | None = None
        self._loaded: Path | None = None  # the model file
        self._unlogged: list[tuple[np.ndarray, int, float]] = []
        self._warned = False
        self._uses = 0
        if vec_env is not None:
            benchmark = not isinstance(config, Config) and values_of("config", config).get("benchmark")
            mode: Mode = "benchmark" if benchmark else "train"
            # Scripts put the env id into their folders themselves.
            self._trainer = Trainer(
                self.config,
                mode,
                None,
                self.quiet,
                self._ranks,
                envs=vec_env,
                policy=policy,
                optimizer=optimizer,
                scheduler=scheduler,
                below_env=False,
            )
            if self._ranks.world_size > 1:  # else whichever rank needs the folders first would create them alone
                self._trainer.create_folders()
            return
        self._alone = lone_player(self.config, policy, observation_space, action_space)

    @property
    def envs(self) -> XuanCeVecEnv | VecEnv | None:
        """The training environments, under their older name."""
        return self.train_envs

    @property
    def n_envs(self) -> int:
        """Number of training environments in all processes."""
        return self.config.parallels

    @property
    def policy(self) -> ActorCritic:
        """The actor-critic network."""
        return self._acting().policy

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.policy.device

    @property
    def obs_rms(self) -> RunningMeanStd:
        """Running mean and variance of the observations."""
        return self._acting().obs_normalizer.rms

    @property
    def ret_rms(self) -> RunningMeanStd:
        """Running variance of the discounted returns, by which rewards are scaled."""
        return self._training().components.reward_normalizer.rms

    @property
    def memory(self) -> Any:
        """The rollout buffer."""
        return self._training().components.rollout

    @property
    def learner(self) -> Any:
        """The learner that updates the weights. Its ``optimizer`` is the one that was passed in, if any."""
        return self._training().components.learner

    @property
    def current_step(self) -> int:
        """Environment steps so far, over all environments."""
        if self._trainer is None:
            return 0
        return self._trainer.step + self._trainer.components.rollout.step * self.n_envs

    @property
    def current_episode(self) -> np.ndarray:
        """Number of episodes that each environment of this process has finished, int64 [N]."""
        trainer = self._training()
        running = np.bincount(trainer.components.rollout.episodes["env"], minlength=trainer.components.envs.num_envs)
        return trainer.episodes_done + running

    @property
    def log_dir(self) -> str:
        """Folder of the run's logs."""
        return str(self._training().folders.log_dir)

    @property
    def model_dir_save(self) -> str:
        """Folder that ``save_model`` writes to."""
        return str(self._training().folders.model_dir)

    def train(self, train_steps: int) -> dict[str, float]:
        """Trains for a number of vector steps. The next call continues a rollout that is not full.

        The agent writes a checkpoint every ``checkpoint_interval`` environment steps, by default after each tenth of
        the run. ``python -m xcfast.train --resume`` continues from it.
        The first SIGINT (Ctrl-C), SIGTERM or SIGHUP lets the iteration end, saves a checkpoint, and then has its usual
        effect.

        Args:
            train_steps: Number of steps of each environment.

        Returns:
            The metrics of the last update, by tag; empty if there was no update.

        Raises:
            RunFailed: Training failed. The last good weights are saved.
        """
        steps = whole("train_steps", train_steps, low=0)
        self._ranks.agree(f"train({steps})")
        trainer = self._begin()
        envs = trainer.components.envs
        if self._ranks.any_(envs.uses != self._uses):  # all ranks drop their rows, or none
            say("other code has reset or stepped the environments: all episodes start anew", self.quiet)
            trainer.components.restart_episodes()
        if self._own_rates and not self._warned:
            self._warned = warn_of_the_end(trainer, steps)
        with saving(trainer) as stop:
            self._loaded = self._loaded if steps == 0 else None
            try:
                logged = trainer.advance(steps, lambda: self._ranks.any_(stop.requested))
            finally:
                self._uses = envs.uses
        return logged

    def test(
        self,
        env_fn: Callable[[], XuanCeVecEnv | VecEnv] | None = None,
        test_episodes: int | None = None,
        *,
        test_envs: XuanCeVecEnv | VecEnv | None = None,
        close_envs: bool = True,
    ) -> list[float]:
        """Plays episodes with the policy's most likely actions. No statistics change.

        Every environment plays the same number of episodes. If ``render`` is True, a single environment that renders
        plays all of them instead.

        Args:
            env_fn: Makes the environments. They are closed afterwards.
            test_episodes: Number of episodes. None: the configuration's ``test_episode``.
            test_envs: Environments, instead of ``env_fn``.
            close_envs: Whether to close ``test_envs`` afterwards.

        Returns:
            The returns of the episodes.
        """
        if (env_fn is None) == (test_envs is None):
            raise TypeError("test() needs either env_fn or test_envs")
        self._ranks.agree("test()")
        episodes = self.config.test_episode if test_episodes is None else whole("test_episodes", test_episodes)
        config = dataclasses.replace(self.config, test_episode=episodes, notices=(), render=self.render)
        if self._trainer is not None and self._loaded is None:
            self._begin()  # so that the statistics have their start, as in a run by the command line
        start, scores = time.perf_counter(), None
        try:
            with saving(self._trainer) as stop:
                folder = self._video_dir() if self.render else None
                where = (env_fn, test_envs, self._evaluation_number(), folder, self.quiet)
                scores = self._ranks.from_main(
                    lambda: play_test(config, self._acting(), *where, lambda: stop.requested)
                )
        finally:
            if test_envs is not None and close_envs:
                plain(test_envs).close()
        if scores is None:  # stopped by a signal that the script handles itself
            return []
        self._log(scores, self.current_step, time.perf_counter() - start)
        return [float(score) for score in scores]

    def save_model(self, model_name: str, model_path: str | Path | None = None) -> None:
        """Writes one file with everything: weights, optimizer, statistics, configuration.

        Args:
            model_name: Name of the file.
            model_path: Folder of the file. None: ``model_dir_save``.

        Raises:
            CheckpointError: The file cannot be written.
        """
        self._ranks.agree(f"save_model({model_name!r})")
        folder = Path(self.model_dir_save if model_path is None else model_path)
        self._training().saver.save(folder / model_name)

    def load_model(self, path: str | Path, model: str | int | None = None) -> None:
        """Loads weights, optimizer state and statistics from a model of xcfast or of XuanCe. Counters stay.

        A policy from XuanCe keeps sending its actions to the environment as they are. A rollout that is not full is
        dropped, since other weights collected it, and all episodes start anew.

        Args:
            path: A model file, the folder of a run, or a folder of runs.
            model: Name of a file such as ``best_model.pth``, name of a run's folder, or seed of a run. None: the newest
                run with this agent's seed; its best model, or else its final one, or else its latest checkpoint.

        Raises:
            CheckpointError: There is no such model, it is damaged, or it belongs to another network. The agent is
                unchanged.
        """
        self._ranks.agree("load_model()")
        saved = read_model(find_model_file(path, model, self.config.seed), self.config.use_obsnorm)
        load_into(saved, self._acting(), self.config, self.observation_space.shape or ())
        if self._trainer is None:
            action_map = ActionMap(self.action_space, self.config.activation_action, saved.identity_actions)
            self._alone = self._alone._replace(action_map=action_map)
        else:
            load_training(self._trainer, saved)
            self._uses = self._trainer.components.envs.uses
        self._loaded = saved.path
        say(f"loaded {saved.path}", self.quiet)

    def get_actions(
        self,
        observations: np.ndarray,
        deterministic: bool = False,
        return_dists: bool = False,
        return_logpi: bool = False,
        *,
        action_masks: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Returns actions for a batch of observations.

        Args:
            observations: Raw observations float [B, *obs_shape]; they are normalized here.
            deterministic: Whether to return the most likely actions, instead of samples by torch's global generator.
            return_dists: Whether to return the distributions.
            return_logpi: Whether to return the log-probabilities.
            action_masks: Allowed actions bool [B, n], for a Categorical policy. None: all are allowed.

        Returns:
            ``actions`` [B, *action_shape] for the environment, within its bounds; ``values`` float32 [B]; ``dists``, a
            ``torch.distributions`` object of the policy's own actions, and their ``log_pi`` float32 [B], or None.
        """
        batch = observations_for(self.observation_space, observations)
        return actions_of(self._acting(), batch, deterministic, return_dists, return_logpi, action_masks)

    def action(self, observations: np.ndarray, **kwargs: Any) -> dict[str, Any]:
        """Does the same as ``get_actions``, under its name until XuanCe 1.4.3."""
        return self.get_actions(observations, **kwargs)

    def finish(self) -> Summary | None:
        """Ends the run: saves the last weights, writes the summary, closes the log.

        Returns:
            The summary of the run. None if the run never began, which leaves no folder, or if an error is ending one of
            several processes.
        """
        trainer, error = self._trainer, sys.exc_info()[1]
        if trainer is None:
            return None
        if error is not None and self._ranks.world_size > 1 and not (isinstance(error, RunFailed) and error.known):
            # An error is ending this process, perhaps only this one: do not wait for the others, but tell them.
            trainer.close()
            self._ranks.close(f"{type(error).__name__}: {error}")
            return None
        self._ranks.agree("finish()")
        summary = trainer.finish() if trainer.begun else None
        if summary is not None and summary.steps and not self.quiet:
            say(end_table(summary, None))
        trainer.close()
        return summary

    def keep_results(self, running_steps: int, eval_interval: int, test_episodes: int) -> None:
        """Begins the result files of a benchmark. From now on, each ``test`` is one of its evaluations.

        Args:
            running_steps: Length of the benchmark in environment steps, for the record.
            eval_interval: Environment steps between two evaluations, for the record.
            test_episodes: Number of episodes of each evaluation.
        """
        self._begin().keep_results(running_steps, eval_interval, test_episodes)

    def summarize(self) -> Summary:
        """Returns the summary so far, and writes it to ``summary.json``."""
        return self._training().summarize()

    def _begin(self) -> Trainer:
        trainer = self._training()
        if not trainer.begun:
            trainer.start()
            self._uses = trainer.components.envs.uses
            for scores in self._unlogged:
                self._log(*scores)
        return trainer

    def _log(self, scores: np.ndarray, step: int, seconds: float) -> None:
        """Records an evaluation in the run, or keeps it until the run begins.

        Evaluations of a model that was loaded in the middle of the run do not count.
        """
        trainer = self._trainer
        if trainer is None or (self._loaded is not None and step > 0):
            return
        if not trainer.begun:
            self._unlogged.append((scores, step, seconds))
            return
        best = trainer.add_scores(scores, step, seconds)
        with self._ranks.deferred():
            if best and trainer.mode == "benchmark" and trainer.log is not None:
                trainer.log.new_best(scores, step)

    def _training(self) -> Trainer:
        if self._trainer is None:
            raise RuntimeError("this agent was made without envs: it can load a model, act and test, but not train")
        return self._trainer

    def _acting(self) -> Player:
        return self._alone if self._trainer is None else self._trainer.components.player

    def _evaluation_number(self) -> int:
        """Number of the next evaluation, which decides its seeds. A loaded model gets those of test mode."""
        if self._trainer is None or (self._loaded is not None and self.current_step == 0):
            return TEST_RUN
        return self._trainer.progress.evaluations

    def _video_dir(self) -> Path:
        """Folder for videos: that of the run's logs, or of the run whose model was loaded."""
        if self._trainer is not None and self._trainer.begun:
            return self._trainer.folders.log_dir
        if self._loaded is not None:
            with suppress(CheckpointError):  # a model file outside of a run
                return RunFolders.find(self._loaded).log_dir
        return Path(self.config.log_dir)


class PPOCLIP_Agent(PPO_Agent):
    """A ``PPO_Agent`` with ``agent: PPO`` (``PPO_Clip``), under its name until XuanCe 1.4.3."""

    _agent = "PPO"


class PPOKL_Agent(PPO_Agent):
    """A ``PPO_Agent`` with ``agent: PPO_KL``."""

    _agent = "PPO_KL"
