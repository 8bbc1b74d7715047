"""Times an environment in every way in which it can be stepped: ``python -m xcfast.speed my_tasks:RunBackwards-v0``."""

import argparse
import contextlib
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from xcfast.config import Config
from xcfast.envs import DummyVecEnv, SubprocVecEnv, available_cpus, make_env_fn
from xcfast.envs.make import native_kind
from xcfast.errors import ConfigError, EnvError, NotNativeError
from xcfast.normalize import ObservationNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.rollout import Rollout
from xcfast.runs.engines import make_collector

_ROUNDS = 5
Run = Callable[[int], None]  # takes the number of vector steps


def measure(env_id: str, num_envs: int, num_threads: int, seconds: float) -> dict[str, float | str]:
    """Measures steps per second of each way to step an environment, one after the other in several rounds.

    Args:
        env_id: The id, or "module:id".
        num_envs: The number of environments, N.
        num_threads: The number of threads or processes.
        seconds: The time that each way gets in each round.

    Returns:
        By the name of the way, the median of the rounds in steps of one environment per second; or a sentence that says
        why there is none.

    Raises:
        EnvError: The environment cannot be made.
    """
    found: dict[str, float | str] = {}
    with contextlib.ExitStack() as stack:
        runs: dict[str, Run] = {}
        for name, make in _ways(env_id, num_envs, num_threads).items():
            try:
                runs[name] = stack.enter_context(make())
            except NotNativeError as error:
                found[name] = f"none: {error}"
        counts = {name: _steps_in(run, seconds) for name, run in runs.items()}
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(_ROUNDS):
            for name, run in runs.items():
                begin = perf_counter()
                run(counts[name])
                rates[name].append(counts[name] * num_envs / (perf_counter() - begin))
        found.update({name: statistics.median(series) for name, series in rates.items()})
    return found


def _ways(env_id: str, num_envs: int, num_threads: int) -> dict[str, Callable[[], Any]]:
    constructor = make_env_fn(env_id)
    kind = native_kind(env_id)

    def native() -> Any:
        if kind is None:
            raise NotNativeError("the native engine steps Gymnasium's tasks and tasks of one's own")
        return kind(env_id, num_envs, num_threads, copy=False)

    def workers() -> Any:
        return SubprocVecEnv([constructor] * num_envs, num_threads, copy=False)

    def asynchronous() -> Any:
        from gymnasium.vector import AsyncVectorEnv

        return AsyncVectorEnv([constructor] * num_envs)

    return {
        "native collector": lambda: _collecting(native(), "native"),
        "native environments": lambda: _stepping(native()),
        "torch collector, SubprocVecEnv": lambda: _collecting(workers(), "torch"),
        "SubprocVecEnv": lambda: _stepping(workers()),
        "DummyVecEnv": lambda: _stepping(DummyVecEnv([constructor] * num_envs, copy=False)),
        "Gymnasium's AsyncVectorEnv": lambda: _stepping(asynchronous()),
    }


@contextlib.contextmanager
def _stepping(envs: Any) -> Iterator[Run]:
    """Yields a function that steps environments with random actions."""
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(32)]
    envs.reset(seed=0)

    def run(steps: int) -> None:
        for step in range(steps):
            envs.step(actions[step % len(actions)])

    try:
        yield run
    finally:
        envs.close()


@contextlib.contextmanager
def _collecting(envs: Any, backend: str) -> Iterator[Run]:
    """Yields a function that collects rollouts with a new policy of the default configuration."""
    import torch

    torch.set_num_threads(1)
    keys: Any = {"parallels": envs.num_envs, "collector_backend": backend, "device": "cpu", "seed": 1, "env_seed": 1}
    config = Config(**keys)
    obs, action = envs.single_observation_space, envs.single_action_space
    policy, action_map = build_policy(config, obs, action), ActionMap(action, config.activation_action)
    normalizer = ObservationNormalizer(obs.shape, num_envs=envs.num_envs, clip=config.obsnorm_range)
    collector, _ = make_collector(config, envs, policy, normalizer, action_map)
    collector.reset(0)

    def run(steps: int) -> None:
        rollout = Rollout(steps, envs.num_envs, obs.shape, action.shape, action.dtype)
        collector.collect(rollout)

    try:
        yield run
    finally:
        envs.close()


def _steps_in(run: Run, seconds: float) -> int:
    """Returns the number of vector steps that take about that long, after a warm-up."""
    run(2)
    steps = 4
    while True:
        begin = perf_counter()
        run(steps)
        passed = perf_counter() - begin
        if passed > seconds / 4:
            return max(1, round(steps * seconds / passed))
        steps *= 2


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m xcfast.speed", description=__doc__)
    parser.add_argument("env_id", metavar="ID", help="an environment's id, or module:id")
    parser.add_argument("--envs", type=int, default=16, metavar="N", help="number of environments (16)")
    parser.add_argument("--threads", type=int, default=available_cpus(), metavar="N", help="of all CPUs by default")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="for each way in each round (0.5)")
    given = parser.parse_args(arguments)
    if given.envs < 1 or given.threads < 1 or not given.seconds > 0:
        parser.error("--envs, --threads and --seconds must be greater than 0")
    warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")
    sys.path.insert(0, "")  # a task's module lies in the working folder, for the installed command too
    try:
        found = measure(given.env_id, given.envs, given.threads, given.seconds)
    except (EnvError, ConfigError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    base = found.get("SubprocVecEnv")
    print(f"{given.env_id}, {given.envs} environments, {given.threads} threads or processes:")
    for name, rate in found.items():
        if isinstance(rate, str):
            print(f"  {name:<32} {rate}")
        else:
            ratio = f"{rate / base:8.2f} x SubprocVecEnv" if isinstance(base, float) else ""
            print(f"  {name:<32} {rate:>12,.0f} steps/s {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
