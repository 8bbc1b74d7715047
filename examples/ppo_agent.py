"""PPO with the names of XuanCe 1.4.4: an agent that makes its own policy, or a runner. Run it in this folder:

python ppo_agent.py --env-id Hopper-v5                        # benchmark, the default
python ppo_agent.py --env-id Hopper-v5 --benchmark 0          # train
python ppo_agent.py --env-id Hopper-v5 --benchmark 0 --test 1 # test the newest model
python ppo_agent.py --env-id Hopper-v5 --runner 1             # the same modes with RunnerDRL
"""

import argparse

import numpy as np

from xcfast.xuance import PPO_Agent, RunnerDRL, load_yaml, make_envs, recursive_dict_update, set_seed


def parse_args():
    parser = argparse.ArgumentParser("PPO for MuJoCo")
    parser.add_argument("--env-id", default="InvertedPendulum-v4")
    parser.add_argument("--test", type=int, default=0)
    parser.add_argument("--benchmark", type=int, default=1)
    parser.add_argument("--runner", type=int, default=0)
    return parser.parse_args()


def benchmark(agent, configs):
    """Trains in rounds, tests after each round and saves the best model."""
    test_envs = make_envs(argparse.Namespace(**{**vars(configs), "parallels": configs.test_episode}))
    steps_per_round = configs.eval_interval // configs.parallels
    best = -np.inf
    for done in range(0, configs.running_steps // configs.parallels + 1, steps_per_round):
        if done:
            agent.train(steps_per_round)
        scores = agent.test(test_episodes=configs.test_episode, test_envs=test_envs, close_envs=False)
        if np.mean(scores) > best:
            best = np.mean(scores)
            agent.save_model(model_name="best_model.pth")
    test_envs.close()
    print(f"Best Model Score: {best:.2f}")


def main():
    args = parse_args()
    configs = argparse.Namespace(
        **recursive_dict_update(load_yaml("ppo_configs/ppo_mujoco_config.yaml"), vars(args)),
    )
    mode = "benchmark" if configs.benchmark else "test" if configs.test else "train"
    set_seed(configs.seed)
    if configs.runner:
        RunnerDRL(configs).run(mode)
        return

    envs = make_envs(configs)
    agent = PPO_Agent(configs, envs)
    if mode == "benchmark":
        benchmark(agent, configs)
    elif mode == "train":
        agent.train(configs.running_steps // configs.parallels)
        agent.save_model("final_train_model.pth")
    else:
        test_envs = make_envs(argparse.Namespace(**{**vars(configs), "parallels": configs.test_episode}))
        agent.load_model(path=agent.model_dir_load)
        scores = agent.test(test_episodes=configs.test_episode, test_envs=test_envs)
        print(f"Mean Score: {np.mean(scores):.2f}, Std: {np.std(scores):.2f}")
    agent.finish()
    envs.close()


if __name__ == "__main__":
    main()
