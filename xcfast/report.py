"""What a run tells the person who started it: the start table, the progress bar, the end table."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from xcfast.distributed import ALONE, Ranks
from xcfast.envs import NativeVecEnv, SubprocVecEnv, available_cpus, make_env_fn
from xcfast.policy import ActionMap, ActorCritic, build_policy

if TYPE_CHECKING:
    from xcfast.config import Config
    from xcfast.parts import RunParts
    from xcfast.results import RunFolders, Summary


def num_threads(config: Config, sharing: int = 1) -> int:
    """Threads of the update: ``num_threads``, or this process's part of its CPUs, up to OMP_NUM_THREADS.

    Args:
        config: of the run.
        sharing: number of processes that share the CPUs.
    """
    if config.num_threads:
        return config.num_threads
    cpus = max(1, available_cpus() // sharing)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit == "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        return cpus  # torchrun sets it where nobody did
    return min(cpus, int(limit) if limit.isdigit() and int(limit) > 0 else cpus)


def resolve_device(config: Config, ranks: Ranks = ALONE) -> torch.device:
    """The device of the weights; ``auto`` is CUDA where there is one, and each of several ranks has its own."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if ranks.world_size > 1:
        return torch.device("cuda", ranks.local_rank)
    return torch.device("cuda", int(config.device.partition(":")[2] or 0))


def say(text: str, quiet: bool = False, error: bool = False) -> None:
    """Print without tearing a progress bar."""
    if not quiet:
        with suppress(OSError):  # the reader of a pipe may be gone; the run goes on
            tqdm.write(text, file=sys.stderr if error else sys.stdout)
            sys.stdout.flush()


def say_warnings(counts: Iterable[Mapping[str, int]]) -> None:
    """Report MuJoCo's warnings, by name and number, those of several processes together."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    if total:
        listed = ", ".join(f"{name} {count} times" for name, count in total.items())
        say(f"warning: MuJoCo reported in training: {listed}", error=True)


class ProgressBar:
    """Env steps done, steps/s, time left and recent returns; silent when stdout is no terminal."""

    def __init__(self, total: int, initial: int, enabled: bool = True) -> None:
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=" steps",
            unit_scale=True,
            file=sys.stdout,
            disable=not (enabled and sys.stdout.isatty()),
            dynamic_ncols=True,
        )

    def update(self, step: int, recent_returns: Collection[float]) -> None:
        """Move to ``step`` and show the mean of the recent returns."""
        if self._bar.disable:
            return
        if recent_returns:
            self._bar.set_postfix_str(f"return {sum(recent_returns) / len(recent_returns):.1f}", refresh=False)
        self._bar.update(step - self._bar.n)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def describe(config: Config, mode: str) -> str:
    """The start table without starting: builds one env and the network, and nothing else.

    Raises:
        ConfigError: the configuration does not fit the environment.
    """
    env = make_env_fn(config.env_id)()
    try:
        policy = build_policy(config, env.observation_space, env.action_space)
        action_map = ActionMap(env.action_space, config.activation_action)
        shapes = f"observation {env.observation_space.shape}, action {_space(env.action_space)}"
    finally:
        env.close()
    chosen = {"auto": "native where it can serve, else torch"}
    collector = chosen.get(config.collector_backend, config.collector_backend)
    learner = chosen.get(config.learner_backend, config.learner_backend)
    native = f", {config.num_threads or available_cpus()} threads"
    workers = {
        "SubprocVecEnv": f", {min(config.num_workers or available_cpus(), config.parallels)} worker processes",
        "MujocoVecEnv": native,
        "ClassicControlVecEnv": native,
    }
    engines = (config.vectorize + workers.get(config.vectorize, ""), collector, learner)
    return _table(_rows(config, mode, policy, action_map, resolve_device(config), shapes, engines))


def start_table(config: Config, mode: str, parts: RunParts, folders: RunFolders, ranks: Ranks = ALONE) -> str:
    """What will run, with which engines and why, and where the output goes."""
    envs = parts.envs
    shapes = f"observation {envs.single_observation_space.shape}, action {_space(envs.single_action_space)}"
    kind = type(envs).__name__
    if isinstance(envs, SubprocVecEnv):
        kind += f", {envs.num_workers} worker processes"
    elif isinstance(envs, NativeVecEnv):
        kind += f", {envs.num_threads} threads"
    collector = f"{parts.collector.name} ({parts.collector_reason})"
    learner = f"{parts.learner.name} ({parts.learner_reason})"
    rows = _rows(config, mode, parts.policy, parts.action_map, parts.device, shapes, (kind, collector, learner), ranks)
    rows += [("logs", str(folders.log_dir)), ("models", str(folders.model_dir))]
    return _table(rows)


def end_table(summary: Summary, stopped_by: str | None) -> str:
    """Scores, where the time went, and where the files are."""
    rows = [("stopped by", f"{stopped_by}; continue with --resume {summary.log_dir}")] if stopped_by else []
    rows.append(("steps", f"{summary.steps:,} ({summary.steps_per_second:,.0f} per second of training)"))
    if summary.best_mean is not None:
        rows.append(("best score", f"{summary.best_mean:.2f} +- {summary.best_std:.2f} at step {summary.best_step:,}"))
        rows.append(("final score", f"{summary.final_mean:.2f} +- {summary.final_std:.2f}"))
    seconds = (summary.collection_seconds, summary.update_seconds, summary.evaluation_seconds)
    rows.append(("time", "collection {:.1f} s, update {:.1f} s, evaluation {:.1f} s".format(*seconds)))
    rows += [("logs", summary.log_dir), ("models", summary.model_dir)]
    return _table(rows)


def _rows(
    config: Config,
    mode: str,
    policy: ActorCritic,
    action_map: ActionMap,
    device: torch.device,
    shapes: str,
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
    evaluation = f"{config.test_episode} episodes every {config.eval_interval:,} steps"
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
        ("device", f"{device}, {num_threads(config, ranks.sharing)} threads for the update, 1 for inference"),
        ("network", f"{parameters:,} parameters: {_network(policy)}"),
        ("rollout", f"{batch} env steps, {updates}"),
        ("run", f"{config.num_iterations} iterations = {trained:,} steps, {config.num_updates:,} updates"),
        (
            "evaluation",
            evaluation if mode == "benchmark" else "none" if mode == "train" else f"{config.test_episode} episodes",
        ),
        ("seeds", f"seed {config.seed}, env_seed {config.env_seed}"),
    ]


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


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)
