"""What a run works with: what its caller brings, and what is made as the configuration says."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from xcfast.envs import make_envs
from xcfast.errors import ConfigError
from xcfast.learners.cuda import CudaLearner
from xcfast.normalize import ObservationNormalizer, RewardNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.resources import page_locked, training_device, update_threads
from xcfast.rollout import Rollout
from xcfast.runs.engines import make_collector, make_learner
from xcfast.runs.evaluation import Evaluator

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from xcfast.config import Config
    from xcfast.envs import VecEnv
    from xcfast.policy import ActorCritic
    from xcfast.ranks.group import Ranks


@dataclass(frozen=True)
class Parts:
    """What the caller of a ``Trainer`` brings; what is None is made as the configuration says.

    Attributes:
        envs: ``config.parallels`` of them; they stay the caller's to close.
        policy: of the form that ``config`` describes; its weights are trained in place.
        optimizer: of the policy's parameters.
        scheduler: of that optimizer; stepped once after each update, it decides the learning rates.
        below_env: whether the run's folders are in one ``<env_id>``.
        late: whether folders, log and start table wait until training begins or somebody asks for the folders.
    """

    envs: VecEnv | None = None
    policy: ActorCritic | None = None
    optimizer: torch.optim.Optimizer | None = None
    scheduler: LRScheduler | None = None
    below_env: bool = True
    late: bool = False


class RunParts:
    """All parts of a run, made and connected. Of several ranks, each has its share of the envs and the rest whole.

    Args:
        config: of the run.
        given: what is not to be made.
        ranks: those that train together.
        saved: the checkpoint that the run goes on from, or empty; read here is only what decides how parts are made.
        should_stop: asked by the evaluation.
        closers: gets the ends of what is made here.

    Attributes:
        device: where the learner trains.
        envs: this rank's.
        policy: the source of the weights, on the CPU unless the caller brought it on another device.
        action_map: from the policy's samples to the envs' actions.
        obs_normalizer: of this rank's envs; its statistics are those of all.
        reward_normalizer: likewise.
        rollout: what is collected and learned from.
        spare: with ``overlap``, what is collected meanwhile; else None.
        learner: turns a full rollout into new weights.
        learner_reason: why it is this one.
        collector: fills a rollout.
        collector_reason: why it is this one.
        evaluator: plays evaluation episodes.

    Raises:
        ConfigError: the configuration does not fit the environment, or what it asks for cannot serve.
    """

    def __init__(
        self,
        config: Config,
        given: Parts,
        ranks: Ranks,
        saved: dict[str, Any],
        should_stop: Callable[[], bool],
        closers: ExitStack,
    ) -> None:
        self._config, self._ranks, self._should_stop = config, ranks, should_stop
        self._inference = saved.get("engines", {}).get("inference")
        self.device = training_device(config, None if ranks.world_size == 1 else ranks.local_rank)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if given.envs is None:
            self.envs = make_envs(config, num_envs=len(ranks.rows(config.parallels)), sharing=ranks.sharing)
            closers.callback(self.envs.close)
        else:
            self.envs = given.envs
        observation_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        self.policy = given.policy or build_policy(config, observation_space, action_space)
        self._make_normalizers()
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
            given.optimizer,
            given.scheduler,
        )
        self.spare = self._make_spare() if config.overlap else None
        self._connect(identity=bool(saved.get("identity_actions")))
        closers.callback(lambda: self.evaluator.close())

    def _make_normalizers(self) -> None:
        config, ranks, num_envs = self._config, self._ranks, self.envs.num_envs

        def all_envs(rows: np.ndarray) -> np.ndarray:
            return ranks.join(rows, ranks.rows(config.parallels), config.parallels)

        join = None if ranks.world_size == 1 else all_envs
        self.obs_normalizer = ObservationNormalizer(
            self.envs.single_observation_space.shape or (),
            num_envs=num_envs,
            clip=config.obsnorm_range,
            enabled=config.use_obsnorm,
            join=join,
        )
        self.reward_normalizer = RewardNormalizer(
            num_envs, gamma=config.gamma, clip=config.rewnorm_range, enabled=config.use_rewnorm, join=join
        )

    def _make_rollout(self) -> Rollout:
        observation_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        num_actions = int(action_space.n) if isinstance(action_space, gymnasium.spaces.Discrete) else None
        return Rollout(
            self._config.horizon_size,
            self.envs.num_envs,
            observation_space.shape or (),
            (math.prod(action_space.shape or ()),) if num_actions is None else (),
            np.float32 if num_actions is None else np.int64,
            num_actions=num_actions if self._config.use_actions_mask else None,
            allocate=page_locked if self.device.type == "cuda" else np.zeros,
        )

    def _make_spare(self) -> Rollout:
        if not isinstance(self.learner, CudaLearner) or self._ranks.world_size > 1:
            raise ConfigError(
                "collection and update can overlap where the update runs on one CUDA device",
                key="overlap",
                given=True,
                allowed="False",
            )
        return self.rollout.spare()

    def _connect(self, identity: bool) -> None:
        """Make what applies the action map."""
        config = self._config
        self.action_map = ActionMap(self.envs.single_action_space, config.activation_action, identity)
        acting = (self.policy, self.obs_normalizer, self.action_map)
        on_device = None
        if isinstance(self.learner, CudaLearner) and not config.overlap:  # its weights change while others collect
            on_device = self.learner.device_policy
        self.collector, self.collector_reason = make_collector(
            config, self.envs, *acting, self._ranks, on_device, self._inference
        )
        self.evaluator = Evaluator(config, *acting, should_stop=self._should_stop)

    def use_identity_actions(self, identity: bool) -> None:
        """Whether actions go to the envs as the policy makes them; see ``ActionMap``. Episodes must then start anew."""
        if identity == self.action_map.identity:
            return
        noise = self.collector.state_dict(with_envs=False)
        self.evaluator.close()
        self._connect(identity)
        self.collector.load_state_dict(noise)

    def adopt_weights(self) -> None:
        """Tell the learner that others have written into the policy."""
        if isinstance(self.learner, CudaLearner):
            self.learner.adopt()

    def restart_episodes(self) -> None:
        """Start new episodes in every env, after others used them; rows of an unfinished rollout are dropped."""
        self.rollout.clear()
        self.rollout.episode_returns[:] = 0.0
        self.rollout.episode_lengths[:] = 0
        self.reward_normalizer.returns[:] = 0.0
        self.obs_normalizer.discard()
        self.collector.reset(None)
