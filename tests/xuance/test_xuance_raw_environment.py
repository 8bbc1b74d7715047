"""XuanCe's route for environments of one's own: RawEnvironment and REGISTRY_ENV."""

import os
import re
import subprocess
import sys
from argparse import Namespace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from xcfast.errors import ConfigError, EnvError
from xcfast.xuance import (
    REGISTRY_ENV,
    PPO_Agent,
    RawEnvironment,
    get_runner,
    load_yaml,
    make_envs,
)

SCRIPT = """
import argparse
import numpy as np
from copy import deepcopy
from gymnasium.spaces import Box
from xcfast.xuance import PPOCLIP_Agent, RawEnvironment, REGISTRY_ENV
from xcfast.xuance import get_configs, make_envs, recursive_dict_update, set_seed


class MyNewEnv(RawEnvironment):
    def __init__(self, env_config):
        super(MyNewEnv, self).__init__()
        self.env_id = env_config.env_id
        self.goal = env_config.goal
        self.observation_space = Box(-np.inf, np.inf, shape=[18, ])
        self.action_space = Box(-1.0, 1.0, shape=[5, ])
        self.max_episode_steps = 32
        self.rng = np.random.default_rng(env_config.env_seed)
        self._current_step = 0

    def reset(self, **kwargs):
        self._current_step = 0
        return self.rng.normal(size=18), {}

    def step(self, action):
        self._current_step += 1
        truncated = False if self._current_step < self.max_episode_steps else True
        return self.rng.normal(size=18), -abs(action[0] - self.goal), False, truncated, {}

    def render(self, *args, **kwargs):
        return np.full([64, 64, 3], 200, np.uint8)

    def close(self):
        return


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--env-id", type=str, default="new_env_id")
    parser.add_argument("--vectorize", type=str, default="DummyVecEnv")
    parser = parser.parse_args()
    configs_dict = get_configs(file_dir="new_env.yaml")
    configs_dict = recursive_dict_update(configs_dict, parser.__dict__)
    configs = argparse.Namespace(**configs_dict)

    REGISTRY_ENV[configs.env_name] = MyNewEnv
    set_seed(configs.seed)
    envs = make_envs(configs)
    Agent = PPOCLIP_Agent(config=configs, envs=envs)

    def env_fn():
        configs_test = deepcopy(configs)
        configs_test.parallels = configs_test.test_episode
        return make_envs(configs_test)

    Agent.train(configs.running_steps // configs.parallels)
    scores = Agent.test(env_fn, configs.test_episode)
    Agent.render = True
    shown = Agent.test(env_fn, configs.test_episode)
    print("scores", scores, shown)
    print("limit", envs.max_episode_steps, "shape", envs.observation_space.shape)
    Agent.save_model("final_train_model.pth")
    Agent.finish()
    envs.close()
"""
YAML = """
agent: "PPO_Clip"
env_name: "MyNewEnv"
env_id: "new_env_id"
vectorize: "DummyVecEnv"
device: "cpu"
env_seed: 1
seed: 79811
goal: 0.5
fps: 50
horizon_size: 32
parallels: 4
running_steps: 512
n_epochs: 2
n_minibatch: 4
test_episode: 2
representation_hidden_size: [8,]
actor_hidden_size: [8,]
critic_hidden_size: [8,]
log_dir: "logs/"
model_dir: "models/"
"""


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "SubprocVecEnv"])
def test_a_script_like_the_documentations(vectorize, tmp_path):
    """The class is in the script itself, so that worker processes cannot import it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "new_env.yaml").write_text(YAML)
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py", "--vectorize", vectorize],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "keys that only MyNewEnv reads: goal" in done.stderr
    assert "limit 32 shape (18,)" in done.stdout
    scores, shown = re.search(r"scores \[(.*)\] \[(.*)\]", done.stdout).groups()
    assert len({float(score) for score in scores.split(",")}) == 2  # envs of different seeds
    assert len(shown.split(",")) == 2
    assert list((tmp_path / "models").rglob("final_train_model.pth"))
    assert list((tmp_path / "logs").rglob("*.mp4"))


class Counter(RawEnvironment):
    """Observes its seed and its step; each reset draws from a generator that the constructor has seeded."""

    made = 0

    def __init__(self, config):
        super().__init__()
        self.observation_space = Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = Discrete(2)
        self.max_episode_steps = getattr(config, "limit", 5)
        self.seed, self.scale = config.env_seed, getattr(config, "scale", 1.0)
        self.rng = np.random.default_rng(config.env_seed)
        type(self).made += 1

    def reset(self):
        self.count, self.draw = 0, self.rng.random()
        return [self.seed, self.count, self.draw]

    def step(self, action):
        self.count += 1
        return [self.seed, self.count, self.draw], np.array([self.scale]), self.count == 7, False, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)

    def close(self):
        pass


@pytest.fixture
def registry(monkeypatch):
    """The registries of environments, which a test may change."""
    before = dict(gymnasium.registry)
    for name in REGISTRY_ENV:
        monkeypatch.delitem(REGISTRY_ENV, name)
    yield REGISTRY_ENV
    REGISTRY_ENV.clear()
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture
def arguments(small, registry):
    """A script's arguments, with ``Counter`` as the environment."""
    registry["Counting"] = Counter
    values = {**small().to_dict(), "env_name": "Counting", "env_id": "Pendulum-v1", "policy": "Categorical_AC"}
    return Namespace(**{**values, "env_seed": 10, "parallels": 3})


def test_each_environment_has_its_own_seed(arguments):
    envs = make_envs(arguments)
    obs, _ = envs.reset()
    assert obs[:, 0].tolist() == [10, 11, 12]
    assert obs[:, 2].tolist() == [np.random.default_rng(seed).random() for seed in (10, 11, 12)]
    assert arguments.env_seed == 10 and arguments.env_id == "Pendulum-v1"  # the script's own are unchanged
    envs.close()


def test_a_seed_gives_the_same_episodes_again_and_no_needless_environment(arguments):
    env = gymnasium.make(make_envs(arguments).vec_env.spec.id)
    made = Counter.made
    first = [env.reset(seed=10)[0].tolist(), env.reset()[0].tolist()]
    assert Counter.made == made  # the one that the constructor has made
    assert [env.reset(seed=10)[0].tolist(), env.reset()[0].tolist()] == first
    assert env.reset(seed=3)[0][0] == 3
    assert Counter.made == made + 2


def test_an_episode_is_cut_at_max_episode_steps(arguments):
    envs = make_envs(arguments)
    assert envs.max_episode_steps == 5
    envs.reset()
    for step in range(1, 6):
        obs, rewards, terminated, truncated, infos = envs.step([0, 0, 0])
        assert rewards.tolist() == [1, 1, 1] and not terminated.any()
        assert truncated.all() == (step == 5)
    assert obs[:, 1].tolist() == [5, 5, 5] and infos[0]["reset_obs"][1] == 0
    envs.close()


def test_own_keys_arrive_and_a_longer_limit_does_not_cut(arguments):
    envs = make_envs(Namespace(**{**vars(arguments), "scale": 2.5, "limit": None}))
    assert envs.max_episode_steps is None
    envs.reset()
    for _ in range(7):
        _, rewards, terminated, truncated, _ = envs.step([0, 0, 0])
    assert rewards.tolist() == [2.5] * 3 and terminated.all() and not truncated.any()
    envs.close()


def test_the_runner_trains_and_tests_it(registry, small, tmp_path):
    registry["Counting"] = Counter
    values = {**small().to_dict(), "env_name": "Counting", "env_id": "mine", "policy": "Categorical_AC", "scale": 3.0}
    runner = get_runner("ppo", env_id="mine", parser_args=values)
    summary = runner.run("benchmark")
    assert summary.steps == 512 and summary.final_mean == 15.0
    assert "mine" in summary.log_dir
    scores = get_runner("ppo", env_id="mine", parser_args=values).run("test", test_episodes=3)
    assert scores == [15.0] * 3


def test_the_policy_fits_its_actions_where_nobody_chose_one(registry):
    registry["Counting"] = Counter
    args = get_runner("ppo", env_id="mine", parser_args={"env_name": "Counting"}).config
    assert args.policy == "Categorical_AC" and args.env_id == "mine"
    args = get_runner("ppo", "Counting", "Pendulum-v1").config  # not the shipped file of Gymnasium's Pendulum
    assert (args.policy, args.env_name, args.env_id) == ("Categorical_AC", "Counting", "Pendulum-v1")


def test_an_agent_without_environments_of_training(arguments):
    envs = make_envs(arguments)
    agent = PPO_Agent(arguments, observation_space=envs.observation_space, action_space=envs.action_space, quiet=True)
    assert agent.test(test_envs=envs, test_episodes=3) == [5.0] * 3


def test_a_file_with_keys_of_the_environment(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("env_name: MyNewEnv\ngoal: 3\nseed: 1\n")
    assert load_yaml(path) == {"env_name": "MyNewEnv", "goal": 3, "seed": 1}
    path.write_text("env_name: MuJoCo\ngoal: 3\n")
    with pytest.raises(ConfigError, match=r"mine.yaml, line 2: goal: unknown key"):
        load_yaml(path)


def test_an_unknown_name_is_one_sentence(registry, small):
    values = {**small().to_dict(), "env_name": "MyNewEnv"}
    message = "env_name: unknown environment; given: MyNewEnv; allowed: MuJoCo, .*, or a name in xcfast.xuance.REGISTRY"
    with pytest.raises(ConfigError, match=message):
        make_envs(values)
    registry["MyEnv"] = Counter
    with pytest.raises(ConfigError, match=r"REGISTRY_ENV, which has MyEnv; did you mean MyEnv\?"):
        make_envs(values)
    registry["MyNewEnv"] = 3
    with pytest.raises(ConfigError, match=r"REGISTRY_ENV\['MyNewEnv'\]: cannot make an environment; given: 3; allowed"):
        make_envs(values)
    with pytest.raises(ConfigError, match="env_name: not supported"):
        make_envs({**values, "env_name": "Atari"})


class NoSpaces(Counter):
    def __init__(self, config):
        super().__init__(config)
        self.observation_space = None


class OddLimit(Counter):
    def __init__(self, config):
        super().__init__(config)
        self.max_episode_steps = "long"


class NoMethods:
    def __init__(self, config):
        self.observation_space = self.action_space = Discrete(2)


class WrongShape(Counter):
    def reset(self):
        return np.zeros(2), {}


class WrongKind(Counter):
    def reset(self):
        return ["a", "b", "c"], {}


class FourValues(Counter):
    def step(self, action):
        return super().step(action)[:4]


class TextReward(Counter):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, "much", *rest


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (NoSpaces, "NoSpaces: its constructor must set self.observation_space to a Box or Discrete .*; got None"),
        (OddLimit, "OddLimit: max_episode_steps must be a positive integer or None; got 'long'"),
        (NoMethods, r"NoMethods must have a method reset\(\)"),
        (WrongShape, r"WrongShape: reset\(\) must return observations float64 \[3\], .*; got float64 \[2\]"),
        (WrongKind, r"WrongKind: reset\(\) must return observations float64 \[3\], .*; got <U1 \[3\]"),
        (FourValues, r"FourValues: step\(\) must return \(observation, .* info\); got 4 values"),
        (TextReward, r"TextReward: step\(\) must return a number as reward; got 'much'"),
    ],
)
def test_what_is_wrong_with_an_environment_is_one_sentence(env, message, arguments, registry):
    registry["Counting"] = env
    with pytest.raises(EnvError, match=message) as caught:
        envs = make_envs(arguments)
        envs.reset()
        envs.step([0, 0, 0])
    assert "\n" not in str(caught.value)


class Allows(Counter):
    """Has masks as XuanCe's environments have them."""

    def avail_actions(self):
        return np.array([self.count % 2 == 0, True])


def test_masks_come_from_avail_actions(arguments, registry):
    registry["Counting"] = Allows
    envs = make_envs(Namespace(**{**vars(arguments), "use_actions_mask": True}))
    envs.reset()
    assert envs.vec_env.action_masks.tolist() == [[True, True]] * 3
    envs.step([1, 1, 1])
    assert envs.vec_env.action_masks.tolist() == [[False, True]] * 3
    envs.close()


def test_the_base_class_loads_no_torch():
    """A worker process unpickles the environment's class, and with it this base class."""
    code = "import sys; from xcfast.xuance import RawEnvironment; print('torch' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environ, text=True) == "False\n"
