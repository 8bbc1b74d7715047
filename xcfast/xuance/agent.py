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
from xcfast.normalize import ObservationNormalizer, RunningMeanStd
from xcfast.output.console import end_table, say
from xcfast.output.folders import Mode, RunFolders
from xcfast.output.summary import Summary
from xcfast.policy import ActionMap, ActorCritic, build_policy
from xcfast.policy.build import check_policy
from xcfast.resources import training_device
from xcfast.runs.evaluation import TEST_RUN
from xcfast.runs.player import Player
from xcfast.runs.trainer import Trainer
from xcfast.xuance.acting import actions_of
from xcfast.xuance.arguments import keys_of_class, set_device, to_config
from xcfast.xuance.checks import check_optimizer, check_scheduler, check_spaces, observations_for, values_of, whole
from xcfast.xuance.environment import XuanCeVecEnv, plain, total_envs
from xcfast.xuance.finding import find_model_file
from xcfast.xuance.loading import check_fits, load_training
from xcfast.xuance.models import read_model
from xcfast.xuance.networks import keys_describing
from xcfast.xuance.script_ranks import script_ranks
from xcfast.xuance.testing import play_test
from xcfast.xuance.training import saving, warn_of_the_end

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

# What a model was trained with and cannot do without; the rest of its configuration may differ from the agent's.
_OF_THE_MODEL = ("activation", "activation_action", "normalize", "use_obsnorm", "obsnorm_range")


class PPO_Agent:
    """Trains, tests, saves and loads a policy.

    Args:
        config: the script's arguments; keys as in the YAML.
        envs: from ``make_envs``; None for an agent that only acts and tests.
        policy: from ``Gaussian_AC_Policy`` or ``Categorical_AC_Policy``; None: as the arguments have it.
        optimizer: of the policy's parameters, any of torch's; None: Adam as the arguments have it.
        scheduler: of that optimizer, stepped once after each update. None: with an ``optimizer`` its own rate stays,
            without one the rate falls as the arguments have it.
        device: instead of the arguments' device.
        observation_space: of one env, where there are no ``envs``.
        action_space: likewise.
        callback: not supported.
        quiet: print nothing but warnings.

    Attributes:
        config: the configuration, with all keys.
        render: whether ``test`` shows the policy, in a video or a window as ``render_mode`` says.
        model_dir_load: where ``load_model`` looks by default.

    Raises:
        ConfigError: the arguments cannot be run, or do not fit the environment.
        TypeError: a part is of a kind that cannot serve.
        ValueError: the policy is for another environment, or the scheduler belongs to another optimizer.
    """

    _agent: str | None = None  # the configuration's

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
        self.config = self._configure(config, num_envs, policy, device)
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
        check_policy(self.config, action_space)
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
        policy = policy or build_policy(self.config, observation_space, action_space)
        normalizer = ObservationNormalizer(
            observation_space.shape or (), num_envs=1, clip=self.config.obsnorm_range, enabled=self.config.use_obsnorm
        )
        policy.to(training_device(self.config))
        self._alone = Player(policy, normalizer, ActionMap(action_space, self.config.activation_action))

    def _configure(
        self,
        config: Namespace | Any,
        num_envs: int | None,
        policy: ActorCritic | None,
        device: str | torch.device | None,
    ) -> Config:
        """The configuration, of what is there rather than of what the arguments say where both speak of it."""
        changes = {} if self._agent is None else keys_of_class(config, self._agent)
        if num_envs is not None:
            changes["parallels"] = num_envs
        if policy is not None:
            changes |= keys_describing(policy)
        if device is not None:
            changes["device"] = str(set_device(device))
        made = to_config(config, **changes)
        for line in made.notices:
            if not self.quiet:
                print(line, file=sys.stderr)
        return made

    # What there is

    @property
    def envs(self) -> XuanCeVecEnv | VecEnv | None:
        """The training environments, by their older name."""
        return self.train_envs

    @property
    def n_envs(self) -> int:
        """Number of training environments, of all processes."""
        return self.config.parallels

    @property
    def policy(self) -> ActorCritic:
        """The network."""
        return self._acting().policy

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.policy.device

    @property
    def obs_rms(self) -> RunningMeanStd:
        """The statistics of the observations."""
        return self._acting().obs_normalizer.rms

    @property
    def ret_rms(self) -> RunningMeanStd:
        """The statistics of the discounted returns, by which rewards are scaled."""
        return self._training().components.reward_normalizer.rms

    @property
    def memory(self) -> Any:
        """The rollout."""
        return self._training().components.rollout

    @property
    def learner(self) -> Any:
        """What updates the weights; its ``optimizer`` is the one that was passed in, where one was."""
        return self._training().components.learner

    @property
    def current_step(self) -> int:
        """Env steps so far, over all envs."""
        if self._trainer is None:
            return 0
        return self._trainer.step + self._trainer.components.rollout.step * self.n_envs

    @property
    def current_episode(self) -> np.ndarray:
        """int64 [N], episodes that each of this process's envs has finished."""
        trainer = self._training()
        running = np.bincount(trainer.components.rollout.episodes["env"], minlength=trainer.components.envs.num_envs)
        return trainer.episodes_done + running

    @property
    def log_dir(self) -> str:
        """Where the run logs."""
        return str(self._training().folders.log_dir)

    @property
    def model_dir_save(self) -> str:
        """Where ``save_model`` writes."""
        return str(self._training().folders.model_dir)

    # What it does

    def train(self, train_steps: int) -> dict[str, float]:
        """Trains for a number of vector steps. A rollout that is not full then is continued by the next call.

        Every tenth of the run a checkpoint is written, from which ``python -m xcfast.train --resume`` goes on. A first
        SIGINT (Ctrl-C), SIGTERM or SIGHUP ends the iteration, writes one too, and has its usual effect then.

        Args:
            train_steps: steps of each env, any number.

        Returns:
            What the last update logged, by tag; nothing where there was none.

        Raises:
            RunFailed: something broke; the last good weights are saved.
        """
        steps = whole("train_steps", train_steps, low=0)
        self._ranks.agree(f"train({steps})")
        trainer = self._begin()
        envs = trainer.components.envs
        if envs.uses != self._uses:
            say("the environments were used elsewhere: all episodes start anew", self.quiet)
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
        """Plays episodes with the policy's most likely actions; no statistics change.

        Every env plays the same number of episodes. Where ``render`` is True they are played in an environment that
        renders instead.

        Args:
            env_fn: makes the environments, which are closed afterwards.
            test_episodes: how many episodes; None: the configuration's test_episode.
            test_envs: environments instead of ``env_fn``.
            close_envs: whether to close ``test_envs``.

        Returns:
            The episodes' returns.
        """
        if (env_fn is None) == (test_envs is None):
            raise TypeError("test() wants either env_fn or test_envs")
        self._ranks.agree("test()")
        episodes = self.config.test_episode if test_episodes is None else whole("test_episodes", test_episodes)
        config = dataclasses.replace(self.config, test_episode=episodes, notices=(), render=self.render)
        if self._trainer is not None and self._loaded is None:
            self._begin()  # so that the statistics have their start, as in a run by the command line
        start, scores = time.perf_counter(), None
        try:
            with saving(self._trainer) as stop:
                with self._ranks.together():
                    if self._ranks.is_main:
                        folder = self._video_dir() if self.render else None
                        given = (env_fn, test_envs, self._evaluation_number(), folder)
                        scores = play_test(config, self._acting(), *given, self.quiet, lambda: stop.requested)
                scores = self._ranks.broadcast(scores)
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
            model_name: the file's name.
            model_path: its folder; None: ``model_dir_save``.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._ranks.agree(f"save_model({model_name!r})")
        folder = Path(self.model_dir_save if model_path is None else model_path)
        self._training().saver.save(folder / model_name)

    def load_model(self, path: str | Path, model: str | int | None = None) -> None:
        """Takes weights, optimizer state and statistics from a model of xcfast or of XuanCe; counters stay.

        A policy from XuanCe goes on sending its actions to the environment as they are. The steps of a rollout that is
        not full are dropped, since other weights collected them, and all episodes start anew.

        Args:
            path: a model file, the folder of a run, or a folder of runs.
            model: a file's name such as ``best_model.pth``, the name of a run's folder, or the seed of the run. None:
                the best model, or else the final one, of the newest run with this agent's seed.

        Raises:
            CheckpointError: there is none, it is damaged, or of another network: what was found and what was expected.
                Then the agent is as it was.
        """
        self._ranks.agree("load_model()")
        saved = read_model(find_model_file(path, model, self.config.seed), self.config.use_obsnorm)
        keys = {key: getattr(self.config, key) for key in _OF_THE_MODEL}
        weights = self.policy.state_dict()
        check_fits(saved, weights, keys, self.observation_space.shape or ())
        # From here on nothing can fail: an agent is not left with half of a model.
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(saved.policy[name])
        if saved.obs_rms is not None:
            self.obs_rms.load_state_dict(saved.obs_rms)
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
        """Actions for a batch of observations.

        Args:
            observations: float [B, *obs_shape], as the environment delivers them: they are normalised here.
            deterministic: the most likely actions instead of samples, which torch's global generator draws.
            return_dists: whether to return the distributions.
            return_logpi: whether to return the log-probabilities.
            action_masks: bool [B, n], the actions that are allowed, for a Categorical policy; None: all.

        Returns:
            ``actions`` [B, *action_shape] for the environment, within its bounds; ``values`` float32 [B]; ``dists``, a
            ``torch.distributions`` object of the policy's own actions, and their ``log_pi`` float32 [B], or None.
        """
        batch = observations_for(self.observation_space, observations)
        return actions_of(self._acting(), batch, deterministic, return_dists, return_logpi, action_masks)

    def action(self, observations: np.ndarray, **kwargs: Any) -> dict[str, Any]:
        """The name that ``get_actions`` had until XuanCe 1.4.3."""
        return self.get_actions(observations, **kwargs)

    def finish(self) -> Summary | None:
        """Ends the run: saves the last weights, writes the summary, closes the log.

        Returns:
            What was achieved; None where there was no run: an agent that only tested leaves no folder. None too where
            an error is on its way through one of several processes; the others end with it.
        """
        trainer, error = self._trainer, sys.exc_info()[1]
        if trainer is None:
            return None
        if error is not None and self._ranks.world_size > 1 and not (isinstance(error, RunFailed) and error.known):
            # On its way through this process, perhaps alone: the others must not be waited for, but told.
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
        """Begins the result files of a benchmark: from now on each ``test`` is one of its evaluations.

        Args:
            running_steps: of the benchmark, for the record, as is the next one.
            eval_interval: steps between two evaluations.
            test_episodes: of each evaluation.
        """
        self._begin().keep_results(running_steps, eval_interval, test_episodes)

    def summarize(self) -> Summary:
        """What was achieved so far; also written to ``summary.json``."""
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
        """Enters an evaluation into the run; what comes before it, as from a model that was loaded, once it begins.

        A model that is loaded later is not the run's.
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
        """It decides the seeds: those of the command line's test for a model that was loaded and not trained."""
        if self._trainer is None or (self._loaded is not None and self.current_step == 0):
            return TEST_RUN
        return self._trainer.progress.evaluations

    def _video_dir(self) -> Path:
        """The run's log folder; of an agent that only tests, that of the run whose model it has."""
        if self._trainer is not None and self._trainer.begun:
            return self._trainer.folders.log_dir
        if self._loaded is not None:
            with suppress(CheckpointError):  # a model that lies by itself
                return RunFolders.find(self._loaded).log_dir
        return Path(self.config.log_dir)


class PPOCLIP_Agent(PPO_Agent):
    """As ``PPO_Agent``, with ``agent: PPO`` (``PPO_Clip``): the name until XuanCe 1.4.3."""

    _agent = "PPO"


class PPOKL_Agent(PPO_Agent):
    """As ``PPO_Agent``, with ``agent: PPO_KL``."""

    _agent = "PPO_KL"
