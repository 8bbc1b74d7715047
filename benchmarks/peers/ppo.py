"""Trains a peer's PPO with given settings; run by the peer's interpreter: ppo.py NAME VECTORIZE SETTINGS.

SETTINGS is XuanCe's YAML as JSON (not every peer's environment has a YAML reader).

Answers {"rollouts": K} with {"steps", "seconds", "collection_seconds", "update_seconds"} of K further rollouts with
their updates, without evaluation.
"""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from typing import Any


class Clock:
    """Adds up the seconds spent in the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def xuance(settings: dict[str, Any], vectorize: str, update: Clock) -> Callable[[int], None]:
    """XuanCe's own agent and vector env, its files in a temporary folder."""
    from xuance.environment import make_envs
    from xuance.torch.agents import PPO_Agent

    names = {"agent": "PPO", "learner": "PPO_Learner", "device": "cpu", "vectorize": vectorize}
    config = Namespace(**{**settings, **names})
    envs = make_envs(config)
    envs.reset()
    agent = PPO_Agent(config, envs)
    agent.train_epochs = update.wrap(agent.train_epochs)
    return lambda rollouts: agent.train(rollouts * config.horizon_size)


def stable_baselines3(settings: dict[str, Any], vectorize: str, update: Clock) -> Callable[[int], None]:
    """Stable-Baselines3 with the same network (a trunk that actor and critic share), normalizers and batches."""
    import gymnasium
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

    class Trunk(BaseFeaturesExtractor):
        def __init__(self, space: gymnasium.Space, width: int) -> None:
            super().__init__(space, width)
            self.net = torch.nn.Sequential(torch.nn.Linear(space.shape[0], width), torch.nn.LeakyReLU())

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return self.net(observations)

    num_envs, num_steps = settings["parallels"], settings["horizon_size"]
    make = SubprocVecEnv if vectorize == "SubprocVecEnv" else DummyVecEnv
    envs = VecMonitor(make([lambda: gymnasium.make(settings["env_id"])] * num_envs))
    model = PPO(
        "MlpPolicy",
        VecNormalize(envs, clip_obs=settings["obsnorm_range"], clip_reward=settings["rewnorm_range"]),
        learning_rate=settings["learning_rate"],
        n_steps=num_steps,
        batch_size=num_steps * num_envs // settings["n_minibatch"],
        n_epochs=settings["n_epochs"],
        vf_coef=settings["vf_coef"],
        ent_coef=settings["ent_coef"],
        max_grad_norm=settings["grad_clip_norm"],
        device="cpu",
        policy_kwargs={
            "activation_fn": torch.nn.LeakyReLU,
            "features_extractor_class": Trunk,
            "features_extractor_kwargs": {"width": settings["representation_hidden_size"][0]},
            "net_arch": {"pi": settings["actor_hidden_size"], "vf": settings["critic_hidden_size"]},
            "log_std_init": -1.0,
        },
    )
    model.train = update.wrap(model.train)
    return lambda rollouts: model.learn(rollouts * num_steps * num_envs, reset_num_timesteps=False)


PEERS = {"xuance": xuance, "stable-baselines3": stable_baselines3}


def main() -> None:
    """Answer requests until standard input ends."""
    name, vectorize = sys.argv[1:3]
    settings = json.loads(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        settings["log_dir"] = settings["model_dir"] = os.path.join(folder, "")
        os.chdir(folder)
        update = Clock()
        train = PEERS[name](settings, vectorize, update)
        for line in sys.stdin:
            rollouts = json.loads(line)["rollouts"]
            update.seconds = 0.0
            start = time.perf_counter()
            train(rollouts)
            seconds = time.perf_counter() - start
            answer = {
                "steps": rollouts * settings["horizon_size"] * settings["parallels"],
                "seconds": seconds,
                "collection_seconds": seconds - update.seconds,
                "update_seconds": update.seconds,
            }
            print("\n" + json.dumps(answer), flush=True)
        os.chdir("/")


if __name__ == "__main__":
    os.setpgrp()
    try:
        main()
    except BaseException:
        traceback.print_exc()
    finally:
        os.killpg(0, signal.SIGKILL)  # XuanCe's workers would outlive this process
