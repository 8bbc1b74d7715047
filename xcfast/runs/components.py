"""The components of a run: environments, policy, normalizers, rollout, collector, learner, evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
import torch

from xcfast.envs import make_envs
from xcfast.errors import ConfigError
from xcfast.learners.precision import resolve_precision
from xcfast.normalize import ObservationNormalizer, RewardNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.policy.build import resolve_policy
from xcfast.resources import page_locked, training_device, update_threads
from xcfast.rollout import Rollout
from xcfast.runs.engines import make_collector, make_learner
from xcfast.runs.evaluation import Evaluator
from xcfast.runs.player import Player

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config.schema import Config
    from xcfast.envs import VecEnv
    from xcfast.policy import ActorCritic
    from xcfast.ranks.group import Ranks


class Components:
    """All components of a run, made and connected.

    If several ranks train, each one steps its share of the environments and holds a full copy of everything else.

    Args:
        config: The run's configuration.
        ranks: The ranks that train together.
        should_stop: Called during evaluations; True ends one early.
        envs: Environments to train in, ``config.parallels`` over all ranks. The caller closes them. None: they are made
            as the configuration says. The same holds for the next three.
        policy: A policy to train in place.
        optimizer: An optimizer of the policy's parameters.
        scheduler: A scheduler of that optimizer, stepped after each gradient step. It sets the learning rates.
        identity_actions: Whether the policy's samples are the actions, neither mapped nor clipped; see ``ActionMap``.
        inference: Type of device that computed the actions before a resume; see ``make_collector``.

    Attributes:
        config: The configuration, with the policy that fits the environments' actions.
        device: Device that trains.
        envs: Environments of this rank.
        policy: Source of the weights, on the CPU unless the caller passed a policy on another device.
        action_map: Map from the policy's samples to the environments' actions.
        obs_normalizer: Normalizer of this rank's observations; its statistics are those of all ranks.
        reward_normalizer: Normalizer of this rank's rewards, likewise.
        rollout: Rollout that is collected and learned from.
        spare: With ``overlap``, the rollout that is collected during an update; else None.
        learner: Engine that turns a full rollout into new weights.
        learner_reason: Why this learner was chosen.
        collector: Engine that fills a rollout.
        collector_reason: Why this collector was chosen.
        evaluator: Plays evaluation episodes.

    Raises:
        ConfigError: The configuration does not fit the environment, or forces an engine that cannot be used.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        *,
        should_stop: Callable[[], bool],
        envs: VecEnv | None = None,
        policy: ActorCritic | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        identity_actions: bool = False,
        inference: str | None = None,
    ) -> None:
        self.config, self._ranks, self._should_stop = config, ranks, should_stop
        self._inference = inference
        self.device = training_device(config, None if ranks.world_size == 1 else ranks.local_rank)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._owns_envs = envs is None
        self.envs = envs or make_envs(config, num_envs=len(ranks.rows(config.parallels)), sharing=ranks.sharing)
        try:
            config = resolve_policy(config, self.envs.single_action_space)
            config = self.config = resolve_precision(config, self.device.type)
            self.policy = policy or build_policy(
                config, self.envs.single_observation_space, self.envs.single_action_space
            )
            self.obs_normalizer, self.reward_normalizer = self._make_normalizers()
            self.rollout = self._make_rollout()
            torch.set_num_threads(1)  # the env loop's inference, and what is compiled; the update sets its own
            self.learner, self.learner_reason = make_learner(
                config,
                self.policy,
                self.rollout,
                self.reward_normalizer,
                update_threads(config, ranks.sharing),
                ranks,
                self.device,
                optimizer,
                scheduler,
            )
            if optimizer is not None:  # the start table shows the reason
                self.learner_reason += "; the script's optimizer decides learning rates and betas, not the keys"
            self.spare = self._make_spare() if config.overlap else None
            self._connect(identity_actions)
        except BaseException:
            if self._owns_envs:
                self.envs.close()
            raise

    def _make_normalizers(self) -> tuple[ObservationNormalizer, RewardNormalizer]:
        config, ranks, num_envs = self.config, self._ranks, self.envs.num_envs

        def rows_of_all_envs(rows: np.ndarray) -> np.ndarray:
            return ranks.join(rows, ranks.rows(config.parallels), config.parallels)

        join = None if ranks.world_size == 1 else rows_of_all_envs
        observations = ObservationNormalizer(
            self.envs.single_observation_space.shape or (),
            num_envs=num_envs,
            clip=config.obsnorm_range,
            enabled=config.use_obsnorm,
            join=join,
        )
        rewards = RewardNormalizer(
            num_envs, gamma=config.gamma, clip=config.rewnorm_range, enabled=config.use_rewnorm, join=join
        )
        return observations, rewards

    def _make_rollout(self) -> Rollout:
        observation_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        num_actions = int(action_space.n) if isinstance(action_space, gymnasium.spaces.Discrete) else None
        return Rollout(
            self.config.horizon_size,
            self.envs.num_envs,
            observation_space.shape or (),
            (math.prod(action_space.shape or ()),) if num_actions is None else (),
            np.float32 if num_actions is None else np.int64,
            num_actions=num_actions if self.config.use_actions_mask else None,
            allocate=page_locked if self.device.type == "cuda" else np.zeros,
        )

    def _make_spare(self) -> Rollout:
        if not self.learner.overlaps or self._ranks.world_size > 1:
            raise ConfigError(
                "collection and update can overlap only if the update runs on one CUDA device",
                key="overlap",
                given=True,
                allowed="False",
            )
        return self.rollout.spare()

    def _connect(self, identity_actions: bool) -> None:
        """Makes the collector and the evaluator, which apply the action map."""
        config = self.config
        self.action_map = ActionMap(self.envs.single_action_space, config.activation_action, identity_actions)
        # With overlap, the weights on the device change while the collector acts.
        on_device = None if config.overlap else self.learner.device_policy
        self.collector, self.collector_reason = make_collector(
            config,
            self.envs,
            self.policy,
            self.obs_normalizer,
            self.action_map,
            self._ranks,
            on_device,
            self._inference,
        )
        self.evaluator = Evaluator(config, self.player, should_stop=self._should_stop)

    @property
    def player(self) -> Player:
        """The policy with its current statistics and action map."""
        return Player(self.policy, self.obs_normalizer, self.action_map)

    def use_identity_actions(self, identity: bool) -> None:
        """Sets whether the policy's samples are the actions, see ``ActionMap``. Episodes must then start anew."""
        if identity == self.action_map.identity:
            return
        noise = self.collector.state_dict(with_envs=False)
        self.evaluator.close()
        self._connect(identity)
        self.collector.load_state_dict(noise)

    def restart_episodes(self, seeds: list[int] | None = None) -> None:
        """Starts new episodes in every environment, and drops the rows of an unfinished rollout.

        Needed if other code has used the environments, or if other weights have collected the rows.

        Args:
            seeds: Reset seeds of this rank's environments. None: their generators continue.
        """
        self.rollout.clear()
        self.rollout.episode_returns[:] = 0.0
        self.rollout.episode_lengths[:] = 0
        self.reward_normalizer.returns[:] = 0.0
        self.obs_normalizer.discard()
        self.collector.reset(seeds)

    def close(self) -> None:
        """Closes the evaluator, and the environments unless the caller passed them in. A second call does nothing."""
        try:
            self.evaluator.close()
        finally:
            if self._owns_envs:
                self.envs.close()
