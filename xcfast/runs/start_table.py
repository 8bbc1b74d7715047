"""The table that says what will run, with which engines and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xcfast.envs import NativeVecEnv, SubprocVecEnv
from xcfast.envs.construct import configured_env_fn
from xcfast.envs.make import native_kind
from xcfast.learners.precision import how_computed, resolve_precision
from xcfast.output.console import table
from xcfast.policy import ActionMap, ActorCritic, build_policy
from xcfast.policy.build import resolve_policy
from xcfast.ranks.group import ALONE, Ranks
from xcfast.resources import available_cpus, enough_of_all, training_device, update_threads
from xcfast.runs.evaluation import has_time_limit

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.output.folders import RunFolders
    from xcfast.runs.components import Components


def describe(config: Config, mode: str) -> str:
    """Returns the start table without starting: makes one environment and the network, and nothing else.

    Raises:
        ConfigError: The configuration does not fit the environment.
    """
    env = configured_env_fn(config)()
    try:
        config = resolve_precision(resolve_policy(config, env.action_space), training_device(config).type)
        with enough_of_all():
            policy = build_policy(config, env.observation_space, env.action_space)
        action_map = ActionMap(env.action_space, config.activation_action)
        shapes = f"observation {env.observation_space.shape}, action {_space(env.action_space)}"
        limited = env.spec is not None and env.spec.max_episode_steps is not None
    finally:
        env.close()
    device, undecided = training_device(config), "native if possible, else torch"
    collector = undecided if config.collector_backend == "auto" else config.collector_backend
    learner = undecided if config.learner_backend == "auto" else config.learner_backend
    if device.type == "cuda" and config.learner_backend != "native":
        learner = f"cuda, compile: {config.compile}"
    engines = (_kind_of_envs(config), collector, learner)
    return table(_rows(config, mode, policy, action_map, device, shapes, limited, engines))


def _kind_of_envs(config: Config) -> str:
    """Returns how the environments of a configuration would be stepped."""
    cpus = available_cpus()
    kind, threads = native_kind(config.env_id), f"{config.num_threads or cpus} threads"
    if config.vectorize in ("MujocoVecEnv", "ClassicControlVecEnv"):
        return f"{config.vectorize}, {threads}"
    workers = f", {min(config.num_workers or cpus, config.parallels)} worker processes"
    named = config.vectorize + (workers if config.vectorize == "SubprocVecEnv" else "")
    native = kind is not None and config.native_envs == "auto" and not config.use_actions_mask
    return f"{kind.__name__}, {threads}, if possible, else {named}" if native and kind is not None else named


def start_table(config: Config, mode: str, parts: Components, ranks: Ranks = ALONE) -> str:
    """Returns the table of what will run, with which engines and why."""
    envs = parts.envs
    shapes = f"observation {envs.single_observation_space.shape}, action {_space(envs.single_action_space)}"
    kind = type(envs).__name__
    if isinstance(envs, SubprocVecEnv):
        kind += f", {envs.num_workers} worker processes"
    elif isinstance(envs, NativeVecEnv):
        kind += f", {envs.num_threads} threads"
    collector = f"{parts.collector.name} ({parts.collector_reason})"
    learner = f"{parts.learner.name} ({parts.learner_reason})"
    networks = (parts.policy, parts.action_map, parts.device, shapes, has_time_limit(envs))
    return table(_rows(config, mode, *networks, (kind, collector, learner), ranks))


def folder_table(folders: RunFolders) -> str:
    """Returns the rows that say where the output goes."""
    return table([("logs", str(folders.log_dir)), ("models", str(folders.model_dir))])


def _rows(
    config: Config,
    mode: str,
    policy: ActorCritic,
    action_map: ActionMap,
    device: torch.device,
    shapes: str,
    limited: bool,
    engines: tuple[str, str, str],
    ranks: Ranks = ALONE,
) -> list[tuple[str, str]]:
    vectorize, collector, learner = engines
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    batch = f"{config.parallels} envs x {config.horizon_size} steps = {config.batch_size:,}"
    small, rest = divmod(config.batch_size, config.n_minibatch)
    sizes = f"{small}-{small + 1}" if rest else f"{small}"
    updates = f"{config.n_epochs} epochs x {config.n_minibatch} minibatches of {sizes}"
    trained = config.num_iterations * config.batch_size
    evaluation = f"{config.test_episode} episodes" + (f" every {config.eval_interval:,} steps" * (mode == "benchmark"))
    if not limited:
        evaluation += f"; the task has no time limit: cut after {config.test_step_limit:,} steps (test_step_limit)"
    several = []
    if ranks.world_size > 1:
        nodes = "" if ranks.local_world_size == ranks.world_size else f", {ranks.local_world_size} on this node"
        some = len(ranks.rows(config.parallels))
        several = [("ranks", f"{ranks.world_size}{nodes}; {some} envs and the threads below on this one, rank 0")]
    return [
        ("mode", mode),
        *several,
        ("env", f"{config.env_id}: {shapes} ({action_map.describe()})"),
        ("envs", f"{config.parallels} x {vectorize}"),
        ("collector", collector),
        ("learner", learner),
        ("device", f"{device}, {update_threads(config, ranks.sharing)} threads for the update, 1 for inference"),
        ("precision", _precision(config, device)),
        ("network", f"{parameters:,} parameters: {_network(policy)}"),
        ("rollout", f"{batch} env steps, {updates}"),
        ("run", f"{config.num_iterations} iterations = {trained:,} steps, {config.num_updates:,} gradient steps"),
        ("evaluation", "none" if mode == "train" else evaluation),
        ("seeds", f"seed {config.seed}, env_seed {config.env_seed}"),
    ]


def _precision(config: Config, device: torch.device) -> str:
    how = how_computed(config.precision) if device.type == "cpu" else None
    return f"{config.precision} in the matrix products of the update" + (f", {how}" if how else "")


def _space(space: object) -> str:
    n = getattr(space, "n", None)
    return f"one of {n}" if n is not None else str(getattr(space, "shape", space))


def _network(policy: ActorCritic) -> str:
    def widths(module: torch.nn.Module) -> str:
        layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
        return (
            "-".join(str(n) for n in ([layers[0].in_features] + [layer.out_features for layer in layers]))
            if layers
            else "identity"
        )

    trunk = "shared trunk" if policy.critic_representation is None else "one trunk each"
    return f"{trunk} {widths(policy.representation)}, actor {widths(policy.actor)}, critic {widths(policy.critic)}"
