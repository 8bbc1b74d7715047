"""XuanCe's runner, which trains, tests or runs a benchmark with a script's arguments."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xcfast.config.keys import keys_of
from xcfast.config.schema import Config
from xcfast.envs.vec_env import VecEnv
from xcfast.errors import ConfigError
from xcfast.output.console import say
from xcfast.output.folders import Mode
from xcfast.output.summary import Summary
from xcfast.resources import launched
from xcfast.runs.run import run, train_to_the_end
from xcfast.runs.trainer import Trainer
from xcfast.xuance.agent import PPO_Agent, PPOKL_Agent
from xcfast.xuance.arguments import get_arguments, to_config
from xcfast.xuance.checks import known_arguments, whole
from xcfast.xuance.environment import XuanCeVecEnv, make_envs, plain, total_envs
from xcfast.xuance.names import Names
from xcfast.xuance.script_ranks import script_ranks, undivided

#: XuanCe's name of the algorithm -> class of its agent. Older names are known too.
REGISTRY_Agents: Names[type[PPO_Agent]] = Names(
    {"PPO": PPO_Agent, "PPO_KL": PPOKL_Agent}, keys_of(Config)["agent"].aliases
)
# The arguments of each mode, and which of them are whole numbers.
_ARGUMENTS = {
    "train": ("running_steps",),
    "benchmark": ("running_steps", "eval_interval", "test_episodes", "benchmark_result_path"),
    "test": ("n_envs", "render", "render_mode", "model_path", "model_name", "test_episodes"),
}
_NUMBERS = ("running_steps", "eval_interval", "test_episodes", "n_envs")


class RunnerDRL:
    """Runs in one of three modes.

    Without ``agent``, training and benchmark are those of the command line: checkpoints, exact resume, evaluations
    after the iterations that pass a multiple of ``eval_interval``, result files. An ``agent`` that is passed in is
    trained and tested in rounds of ``eval_interval``, as in XuanCe.

    Args:
        config: The script's arguments.
        envs: Environments from ``make_envs``; None makes them when they are needed.
        agent: An agent on these environments; None makes one when it is needed.
        manage_resources: Whether ``run`` closes environments and agent at its end. None closes them if the runner has
            made at least one of the two.

    Raises:
        ConfigError: The arguments cannot be run.
    """

    def __init__(
        self,
        config: Namespace | Any,
        envs: XuanCeVecEnv | VecEnv | None = None,
        agent: PPO_Agent | None = None,
        manage_resources: bool | None = None,
    ) -> None:
        self.config = config
        self.manage_resources = (envs is None or agent is None) if manage_resources is None else manage_resources
        self._settings = to_config(config)
        self._ranks = script_ranks(self._settings.device)
        self._envs = envs if envs is not None or agent is None else agent.train_envs
        self._agent = agent

    @property
    def envs(self) -> XuanCeVecEnv | VecEnv:
        """The training environments, which are made at the first use."""
        if self._envs is None:
            self._envs = make_envs(self.config)
        return self._envs

    @property
    def n_envs(self) -> int:
        """Number of training environments, over all processes."""
        return self._settings.parallels if self._envs is None else total_envs(plain(self._envs), self._ranks)

    @property
    def agent(self) -> PPO_Agent:
        """The agent, which is made at the first use."""
        if self._agent is None:
            self._agent = REGISTRY_Agents[self._settings.agent](self.config, self.envs)
        return self._agent

    def run(self, mode: str | None = None, **kwargs: Any) -> Any:
        """Trains, tests or runs a benchmark.

        Args:
            mode: ``train``, ``test`` or ``benchmark``. None means ``train``, or ``test`` if the arguments say
                ``is_test``.
            **kwargs: For ``train``: ``running_steps``. For ``benchmark``: ``running_steps``, ``eval_interval``,
                ``test_episodes`` and ``benchmark_result_path``, a folder that gets a copy of the result files. For
                ``test``: ``n_envs``, ``render``, ``render_mode``, ``model_path``, ``model_name``, ``test_episodes``.

        Returns:
            A ``Summary``, or the list of scores of a test.

        Raises:
            ValueError: There is no such mode, or a number is out of range.
            TypeError: The mode does not have an argument, or an argument is not a number.
        """
        if mode is None:
            mode = "test" if self._settings.test_mode else "train"
        modes: dict[str, Callable[..., Any]] = {"train": self._train, "test": self._test, "benchmark": self._benchmark}
        if mode not in modes:
            raise ValueError(f"mode must be one of {', '.join(modes)}; got {mode!r}")
        known_arguments(f"run({mode!r})", kwargs, _ARGUMENTS[mode])
        for name in _NUMBERS:
            if kwargs.get(name) is not None:
                kwargs[name] = whole(name, kwargs[name])
        try:
            return modes[mode](**kwargs)
        finally:
            if self.manage_resources:
                self._finalize()

    def benchmark(self, **kwargs: Any) -> Any:
        """Runs a benchmark; this was the name of ``run("benchmark")`` until XuanCe 1.4.2."""
        return self.run("benchmark", **kwargs)

    def _train(self, running_steps: int | None = None) -> Summary:
        if self._agent is None:
            return self._train_as_command_line("train", {"running_steps": running_steps})
        self.agent.train(max(1, (running_steps or self._settings.running_steps) // self.n_envs))
        self.agent.save_model("final_train_model.pth")
        say("Finish training.", not self._ranks.is_main)
        return self.agent.summarize()

    def _benchmark(
        self,
        running_steps: int | None = None,
        eval_interval: int | None = None,
        test_episodes: int | None = None,
        benchmark_result_path: str | os.PathLike[str] | None = None,
    ) -> Summary:
        if self._agent is None:
            changes = {"running_steps": running_steps, "eval_interval": eval_interval, "test_episode": test_episodes}
            summary = self._train_as_command_line("benchmark", changes)
        else:
            summary = self._benchmark_agent(running_steps, eval_interval, test_episodes)
        if benchmark_result_path is not None and self._ranks.is_main:
            Path(benchmark_result_path).mkdir(parents=True, exist_ok=True)
            for path in (*Path(summary.log_dir).glob("*.csv"), *Path(summary.log_dir).glob("*.json")):
                shutil.copy2(path, benchmark_result_path)
        return summary

    def _train_as_command_line(self, mode: Mode, changes: dict[str, Any]) -> Summary:
        envs = None if self._envs is None else plain(self._envs)
        given = {name: value for name, value in changes.items() if value is not None}
        config = to_config(self.config, **{**given, "parallels": self.n_envs})
        for line in config.notices:
            say(line, not self._ranks.is_main, error=True)
        if envs is None and not launched():
            return run(config, mode, below_env=False)
        trainer = Trainer(config, mode, ranks=self._ranks, envs=envs, below_env=False)
        try:
            return train_to_the_end(trainer)
        finally:
            trainer.close()

    def _benchmark_agent(
        self, running_steps: int | None, eval_interval: int | None, test_episodes: int | None
    ) -> Summary:
        agent, settings = self.agent, self._settings
        steps, interval = running_steps or settings.running_steps, eval_interval or settings.eval_interval
        episodes = test_episodes or settings.test_episode
        per_round, left = max(1, interval // self.n_envs), max(1, steps // self.n_envs)
        agent.keep_results(steps, interval, episodes)
        test_envs = self._make_envs(episodes)
        try:
            best = float("-inf")
            for begun in (False, *[True] * -(-left // per_round)):
                if begun:
                    agent.train(min(per_round, left))
                    left -= per_round
                scores = agent.test(test_episodes=episodes, test_envs=test_envs, close_envs=False)
                if np.mean(scores) > best:
                    best = float(np.mean(scores))
                    agent.save_model("best_model.pth")
        finally:
            test_envs.close()
        agent.save_model("final_train_model.pth")
        say(f"Best Model Score: {best:.2f}", not self._ranks.is_main)
        return agent.summarize()

    def _test(
        self,
        n_envs: int = 1,
        render: bool | None = None,
        render_mode: str | None = None,
        model_path: str | os.PathLike[str] | None = None,
        model_name: str | int | None = None,
        test_episodes: int | None = None,
    ) -> list[float]:
        test_envs = self._make_envs(n_envs)
        agent = self._agent
        if agent is None:
            changes = {} if render_mode is None else {"render_mode": render_mode}
            agent = REGISTRY_Agents[self._settings.agent](
                to_config(self.config, **changes),
                observation_space=test_envs.observation_space,
                action_space=test_envs.action_space,
            )
        elif render_mode not in (None, agent.config.render_mode):
            raise ConfigError(
                "differs from the render_mode of the agent that was passed in",
                key="render_mode",
                given=render_mode,
                allowed=agent.config.render_mode,
            )
        if render is not None:
            agent.render = render
        agent.load_model(agent.model_dir_load if model_path is None else Path(model_path), model_name)
        scores = agent.test(test_episodes=test_episodes, test_envs=test_envs)
        quiet = not self._ranks.is_main
        say(f"Test Episode Scores: {np.array2string(np.array(scores), precision=2)}", quiet)
        say(f"Mean Score: {np.mean(scores):.2f}, Std: {np.std(scores):.2f}, Best Score: {max(scores):.2f}", quiet)
        return scores

    def _make_envs(self, num_envs: int) -> XuanCeVecEnv:
        """Makes the environments of a test, which one process plays alone."""
        with undivided():
            return make_envs(Namespace(**{**self._settings.to_dict(), "parallels": num_envs}))

    def _finalize(self) -> None:
        if self._agent is not None:
            self._agent.finish()
        if self._envs is not None:
            self._envs.close()
        self._agent = self._envs = None


def get_runner(
    algo: str | None = None,
    env: str | None = None,
    env_id: str | None = None,
    config_path: str | os.PathLike[str] | None = None,
    parser_args: Namespace | Mapping[str, Any] | None = None,
    is_test: bool = False,
    *,
    method: str | None = None,
) -> RunnerDRL:
    """Returns the runner of an algorithm and an environment. Logs and models get a subfolder ``<env_id>``.

    The arguments are those of ``get_arguments``.
    """
    args = get_arguments(algo, env, env_id, config_path, parser_args, is_test, method=method)
    args.log_dir = os.path.join(args.log_dir, args.env_id)
    args.model_dir = os.path.join(args.model_dir, args.env_id)
    return RunnerDRL(args)
