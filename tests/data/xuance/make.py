"""Trains three tiny models with XuanCe and saves them with what their agents do: python make.py OUTPUT_FOLDER

To be run with the interpreter of an environment that has XuanCe.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from xuance.environment import make_envs
from xuance.torch.agents import PPO_Agent
from xuance.torch.utils import set_seed

KEYS = {
    "dl_toolbox": "torch",
    "project_name": "test data",
    "logger": "tensorboard",
    "wandb_user_name": "nobody",
    "render": False,
    "render_mode": "rgb_array",
    "fps": 50,
    "device": "cpu",
    "distributed_training": False,
    "agent": "PPO",
    "learner": "PPO_Learner",
    "env_seed": 1,
    "vectorize": "DummyVecEnv",
    "representation": "Basic_MLP",
    "representation_hidden_size": [16],
    "actor_hidden_size": [16],
    "critic_hidden_size": [16],
    "activation": "leaky_relu",
    "activation_action": "tanh",
    "seed": 7,
    "parallels": 4,
    "running_steps": 4096,
    "horizon_size": 64,
    "n_epochs": 2,
    "n_minibatch": 4,
    "learning_rate": 1e-3,
    "vf_coef": 0.25,
    "ent_coef": 0.0,
    "clip_range": 0.2,
    "gamma": 0.99,
    "use_gae": True,
    "gae_lambda": 0.95,
    "use_advnorm": True,
    "use_grad_clip": True,
    "grad_clip_norm": 0.5,
    "use_obsnorm": True,
    "use_rewnorm": True,
    "obsnorm_range": 5,
    "rewnorm_range": 5,
    "test_episode": 3,
}


def make(folder, bare, **keys):
    config = argparse.Namespace(**{**KEYS, **keys, "log_dir": f"{folder}/logs", "model_dir": f"{folder}/models"})
    set_seed(config.seed)
    envs = make_envs(config)
    agent = PPO_Agent(config, envs)
    agent.train(config.running_steps // config.parallels)
    agent.save_model("final_train_model.pth", model_path=str(folder))
    if bare:  # as it was until 1.4.2
        torch.save(agent.policy.state_dict(), folder / "final_train_model.pth")
    test_envs = make_envs(argparse.Namespace(**{**vars(config), "env_seed": 100}))
    obs, _ = test_envs.reset()
    seen = []
    for _ in range(8):
        seen.append(obs.copy())
        obs, *_ = test_envs.step(agent.get_actions(agent._process_observation(obs), deterministic=True)["actions"])
    observations = np.concatenate(seen).astype(np.float32)
    out = agent.get_actions(agent._process_observation(observations), deterministic=True)
    rms = agent.obs_rms
    np.savez(
        folder / "expected.npz",
        observations=observations,
        actions=out["actions"],
        values=out["values"],
        mean=rms.mean,
        var=rms.var,
        count=rms.count,
    )
    agent.finish()
    envs.close()
    test_envs.close()
    for below in ("logs", "models"):
        shutil.rmtree(folder / below, ignore_errors=True)


if __name__ == "__main__":
    out = Path(sys.argv[1]).resolve()
    for name in ("pendulum_dict", "inverted_pendulum_bare", "cartpole_dict"):
        (out / name).mkdir(parents=True, exist_ok=True)
    classic = {"env_name": "Classic Control"}
    make(out / "pendulum_dict", False, **classic, env_id="Pendulum-v1", policy="Gaussian_AC")
    make(out / "inverted_pendulum_bare", True, env_name="MuJoCo", env_id="InvertedPendulum-v4", policy="Gaussian_AC")
    no_trunk = {"representation": "Basic_Identical", "representation_hidden_size": None}
    make(out / "cartpole_dict", False, **classic, **no_trunk, env_id="CartPole-v1", policy="Categorical_AC")
