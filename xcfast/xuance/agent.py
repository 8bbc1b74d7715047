"""PPO's agent with XuanCe's constructor and methods, around a ``Trainer``."""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch.distributions import Categorical, Independent, Normal

from xcfast.config import Config, check_policy
from xcfast.envs import VecEnv
from xcfast.evaluation import TEST_RUN, Evaluator
from xcfast.normalize import ObservationNormalizer, RunningMeanStd
from xcfast.policy import ActionMap, ActorCritic, CategoricalActor, build_policy
from xcfast.report import end_table, resolve_device, say
from xcfast.results import Mode, Summary
from xcfast.testing import playing, rendering
from xcfast.trainer import Parts, Trainer
from xcfast.xuance.arguments import set_device, to_config
from xcfast.xuance.environment import XuanCeVecEnv, plain
from xcfast.xuance.models import SavedModel, check_fits, find_model_file, read_model
from xcfast.xuance.networks import check_optimizer, check_spaces, keys_describing

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.parts import RunParts

# What a model was trained with and cannot do without; the rest of its configuration may differ from the agent's.
_OF_THE_MODEL = ("activation", "activation_action", "normalize", "use_obsnorm", "obsnorm_range")


class _Player(NamedTuple):
    """What it takes to act: the part of ``RunParts`` that an agent without environments has."""

    policy: ActorCritic
    obs_normalizer: ObservationNormalizer
    action_map: ActionMap


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

    _names = {"agent": "PPO", "learner": "PPO_Learner"}  # noqa: RUF012

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
        if scheduler is not None and optimizer is None:
            optimizer = scheduler.optimizer
        self.quiet = quiet
        self.train_envs = envs
        vec_env = None if envs is None else plain(envs)
        if vec_env is not None:
            observation_space, action_space = vec_env.single_observation_space, vec_env.single_action_space
        if observation_space is None or action_space is None:
            raise TypeError("without envs, observation_space and action_space must be given")
        self.observation_space, self.action_space = observation_space, action_space
        self.config = self._configure(config, vec_env, policy, device)
        self.model_dir_load = self.config.model_dir
        self.render = self.config.render
        check_policy(self.config, action_space)
        if policy is not None:
            check_spaces(policy, observation_space, action_space)
        if optimizer is not None:
            check_optimizer(optimizer, policy)
        self._trainer: Trainer | None = None
        self._loaded = False
        self._uses = 0
        if vec_env is not None:
            benchmark = not isinstance(config, Config) and bool(getattr(config, "benchmark", False))
            mode: Mode = "benchmark" if benchmark else "train"
            # Scripts put the env id into their folders themselves.
            parts = Parts(vec_env, policy, optimizer, scheduler, below_env=False)
            self._trainer = Trainer(self.config, mode, quiet=quiet, parts=parts)
            self._player: RunParts | _Player = self._trainer.parts
            return
        policy = policy or build_policy(self.config, observation_space, action_space)
        normalizer = ObservationNormalizer(
            observation_space.shape or (), num_envs=1, clip=self.config.obsnorm_range, enabled=self.config.use_obsnorm
        )
        policy.to(resolve_device(self.config))
        self._player = _Player(policy, normalizer, ActionMap(action_space, self.config.activation_action))

    def _configure(
        self,
        config: Namespace | Any,
        envs: VecEnv | None,
        policy: ActorCritic | None,
        device: str | torch.device | None,
    ) -> Config:
        """The configuration, of what is there rather than of what the arguments say where both speak of it."""
        changes: dict[str, Any] = dict(self._names)
        if envs is not None:
            changes["parallels"] = envs.num_envs
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
        """Number of training environments."""
        return self.config.parallels

    @property
    def policy(self) -> ActorCritic:
        """The network."""
        return self._player.policy

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.policy.device

    @property
    def obs_rms(self) -> RunningMeanStd:
        """The statistics of the observations."""
        return self._player.obs_normalizer.rms

    @property
    def ret_rms(self) -> RunningMeanStd:
        """The statistics of the discounted returns, by which rewards are scaled."""
        return self._training().parts.reward_normalizer.rms

    @property
    def memory(self) -> Any:
        """The rollout."""
        return self._training().parts.rollout

    @property
    def learner(self) -> Any:
        """What updates the weights; its ``optimizer`` is the one that was passed in, where one was."""
        return self._training().parts.learner

    @property
    def current_step(self) -> int:
        """Env steps so far, over all envs."""
        if self._trainer is None:
            return 0
        return self._trainer.step + self._trainer.parts.rollout.step * self.n_envs

    @property
    def current_episode(self) -> np.ndarray:
        """int64 [N], episodes that each env has finished."""
        trainer = self._training()
        running = np.bincount(trainer.parts.rollout.episodes["env"], minlength=self.n_envs)
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

        Every tenth of the run a checkpoint is written, from which ``python -m xcfast.train --resume`` goes on.

        Args:
            train_steps: steps of each env, any number.

        Returns:
            What the last update logged, by tag; nothing where there was none.

        Raises:
            RunFailed: something broke; the last good weights are saved.
        """
        trainer = self._begin()
        uses = getattr(self.train_envs, "uses", 0)
        if uses != self._uses:
            say("the environments were used elsewhere: all episodes start anew", self.quiet)
            trainer.parts.restart_episodes()
            self._uses = uses
        return trainer.advance(train_steps)

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
        episodes = self.config.test_episode if test_episodes is None else int(test_episodes)
        config = dataclasses.replace(self.config, test_episode=episodes, notices=(), render=self.render)
        if self._trainer is not None and not self._loaded:
            self._begin()  # so that the statistics have their start, as in a run by the command line
        start = time.perf_counter()
        given = env_fn() if env_fn is not None else test_envs
        assert given is not None
        envs = plain(given)
        try:
            scores = self._show(config) if self.render else None
            if scores is None:
                if isinstance(given, XuanCeVecEnv):
                    given.uses += 1
                evaluator = Evaluator(config, *self._acting(), envs=envs)
                scores = evaluator(self._evaluation_number())
        finally:
            if env_fn is not None or close_envs:
                envs.close()
        trainer = self._trainer
        if trainer is not None:
            best = trainer.add_scores(scores, self.current_step, time.perf_counter() - start)
            if best and trainer.mode == "benchmark" and trainer.log is not None:
                trainer.log.new_best(scores, self.current_step)
        return [float(score) for score in scores]

    def save_model(self, model_name: str, model_path: str | Path | None = None) -> None:
        """Writes one file with everything: weights, optimizer, statistics, configuration.

        Args:
            model_name: the file's name.
            model_path: its folder; None: ``model_dir_save``.

        Raises:
            CheckpointError: it cannot be written.
        """
        folder = Path(self.model_dir_save if model_path is None else model_path)
        folder.mkdir(parents=True, exist_ok=True)
        self._training().saver.save(folder / model_name)

    def load_model(self, path: str | Path, model: str | int | None = None) -> None:
        """Takes weights, optimizer state and statistics from a model of xcfast or of XuanCe; counters stay.

        A policy from XuanCe goes on sending its actions to the environment as they are. The steps of a rollout that is
        not full are dropped, since other weights collected them, and all episodes start anew.

        Args:
            path: a model file, the folder of a run, or a folder of runs.
            model: a file's name such as ``best_model.pth``, or the seed of the run. None: the best model, or else the
                final one, of the newest run with this agent's seed.

        Raises:
            CheckpointError: there is none, or it is of another network: what was found and what was expected.
        """
        saved = read_model(find_model_file(path, model, self.config.seed), self.config.use_obsnorm)
        keys = {key: getattr(self.config, key) for key in _OF_THE_MODEL}
        check_fits(saved, self.policy.state_dict(), keys, self.observation_space.shape or ())
        with torch.no_grad():
            for name, value in self.policy.state_dict().items():
                value.copy_(saved.policy[name])
        if self._trainer is not None:
            self._trainer.parts.adopt_weights()
        if saved.obs_rms is not None:
            self.obs_rms.load_state_dict(saved.obs_rms)
        if self._trainer is not None:
            self._trainer.parts.use_identity_actions(saved.identity_actions)
            _load_training(self._trainer, saved)
            if self._trainer.begun:  # what other weights have collected must not be learned from
                self._trainer.parts.restart_episodes()
        else:
            action_map = ActionMap(self.action_space, self.config.activation_action, saved.identity_actions)
            self._player = _Player(self.policy, self._player.obs_normalizer, action_map)
        self._loaded = True
        say(f"loaded {saved.path}", self.quiet)

    @torch.no_grad()
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
        policy, normalizer, action_map = self._acting()
        obs = torch.from_numpy(normalizer.normalize(np.asarray(observations))).to(policy.device)
        masks = None
        if action_masks is not None:
            if not isinstance(policy.actor, CategoricalActor):
                raise ValueError("action_masks are for a Categorical policy; this one is Gaussian")
            masks = torch.from_numpy(np.asarray(action_masks, np.bool_)).to(policy.device)
        output = policy.act(obs, masks)
        dists: Any
        if isinstance(policy.actor, CategoricalActor):
            dists = Categorical(logits=output)
        else:
            dists = Independent(Normal(output, policy.actor.logstd.exp().expand_as(output)), 1)
        raw = policy.actor.mode(output) if deterministic else dists.sample()
        return {
            "actions": action_map(raw.cpu().numpy()),
            "values": policy.value(obs).cpu().numpy(),
            "dists": dists if return_dists else None,
            "log_pi": policy.actor.log_prob(output, raw).cpu().numpy() if return_logpi else None,
        }

    def action(self, observations: np.ndarray, **kwargs: Any) -> dict[str, Any]:
        """The name that ``get_actions`` had until XuanCe 1.4.3."""
        return self.get_actions(observations, **kwargs)

    def finish(self) -> Summary | None:
        """Ends the run: saves the last weights, writes the summary, closes the log; returns what was achieved."""
        if self._trainer is None:
            return None
        trainer = self._trainer
        summary = trainer.finish()
        if summary.steps and not self.quiet:
            say(end_table(summary, None))
        trainer.close()
        folder = trainer.folders.model_dir
        if not trainer.begun and [path.name for path in folder.glob("*")] == ["run.json"]:
            (folder / "run.json").unlink()  # a test trained nothing, so it leaves no folder of models
            folder.rmdir()
        return summary

    def _begin(self) -> Trainer:
        trainer = self._training()
        if not trainer.begun:
            self._uses = getattr(self.train_envs, "uses", 0)
            trainer.start()
        return trainer

    def _training(self) -> Trainer:
        if self._trainer is None:
            raise RuntimeError("this agent was made without envs: it can load a model, act and test, but not train")
        return self._trainer

    def _acting(self) -> tuple[ActorCritic, ObservationNormalizer, ActionMap]:
        player = self._player
        return player.policy, player.obs_normalizer, player.action_map

    def _evaluation_number(self) -> int:
        """It decides the seeds: those of the command line's test for a model that was loaded and not trained."""
        if self._trainer is None or (self._loaded and self.current_step == 0):
            return TEST_RUN
        return self._trainer.progress.evaluations

    def _show(self, config: Config) -> np.ndarray | None:
        """The scores of episodes that are shown, or None where nothing can be shown."""
        folder = Path(config.log_dir) if self._trainer is None else self._trainer.folders.log_dir
        with rendering(config) as able:
            if not able:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            with playing(config, *self._acting(), folder, self.quiet) as evaluator:
                return evaluator(self._evaluation_number())


class PPOKL_Agent(PPO_Agent):
    """As ``PPO_Agent``, with ``agent: PPO_KL``."""

    _names = {"agent": "PPO_KL", "learner": "PPOKL_Learner"}  # noqa: RUF012


#: The name that ``PPO_Agent`` had until XuanCe 1.4.3.
PPOCLIP_Agent = PPO_Agent


def _load_training(trainer: Trainer, saved: SavedModel) -> None:
    """The optimizer's moments, where they are of the same parameters in the same order, and the reward statistics."""
    optimizer = trainer.parts.learner.optimizer
    parameters = list(trainer.parts.policy.parameters())
    state = {} if saved.optimizer is None else saved.optimizer["state"]
    moments = [state.get(i, {}).get("exp_avg") for i in range(len(parameters))]
    if (
        isinstance(optimizer, torch.optim.Adam)
        and len(optimizer.param_groups) == 1
        and all(m is not None and m.shape == p.shape for m, p in zip(moments, parameters, strict=True))
    ):
        learner, settings = trainer.parts.learner, optimizer.state_dict()["param_groups"]
        own = learner.state_dict()  # of which the settings and the scheduler's place stay
        learner.load_state_dict({**own, "optimizer": {"state": state, "param_groups": settings}})
    if saved.reward_normalizer is not None:
        trainer.parts.reward_normalizer.rms.load_state_dict(saved.reward_normalizer["rms"])
