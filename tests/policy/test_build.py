import os
import subprocess
import sys

import gymnasium as gym
import pytest
import torch
from gymnasium.spaces import Discrete
from test_policy import BOX, OBS, policy_of

from xcfast import load_config
from xcfast.config import ConfigError
from xcfast.policy import build_policy
from xcfast.policy.build import resolve_policy


def test_initialisation_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = policy_of(seed=5).state_dict()
    torch.manual_seed(2)
    again, other = policy_of(seed=5).state_dict(), policy_of(seed=6).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["representation.model.0.weight"], other["representation.model.0.weight"])


HASH_OF_WEIGHTS = """
import hashlib
import numpy as np
import torch
from gymnasium.spaces import Box
from xcfast import load_config
from xcfast.policy import BasicMLP, build_policy

config = load_config(overrides={"env_id": "Ant-v4", "device": "cpu", "shared_representation": False})
threads = torch.get_num_threads()
policy = build_policy(config, Box(-np.inf, np.inf, (27,)), Box(-1.0, 1.0, (8,)))
assert torch.get_num_threads() == threads
torch.manual_seed(1)
alone = BasicMLP(27, [256], "relu")  # as a script makes it
parameters = [*policy.parameters(), *alone.parameters()]
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in parameters)).hexdigest())
"""


def test_initial_weights_do_not_depend_on_the_number_of_threads():
    """In processes of their own, since torch reads the number at its start."""
    hashes = set()
    for threads in (1, 2, 5):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_DYNAMIC": "false"}
        command = [sys.executable, "-c", HASH_OF_WEIGHTS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 1


def test_the_number_of_threads_is_restored_after_an_error():
    torch.set_num_threads(2)
    with pytest.raises(ConfigError):
        policy_of(BOX, policy="Categorical_AC")
    with pytest.raises(AttributeError):
        build_policy(load_config(overrides={"env_id": "Ant-v4", "device": "cpu"}), None, BOX)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("space", "key"),
    [(Discrete(2), "Gaussian_AC"), (BOX, "Categorical_AC"), (gym.spaces.MultiBinary(3), "Gaussian_AC")],
)
def test_policy_must_fit_the_action_space(space, key):
    config = load_config(overrides={"env_id": "Ant-v4", "policy": key})
    for function in (lambda: build_policy(config, OBS, space), lambda: resolve_policy(config, space)):
        with pytest.raises(ConfigError, match=f"policy.*{key}"):
            function()


@pytest.mark.parametrize(("space", "key"), [(BOX, "Gaussian_AC"), (Discrete(2), "Categorical_AC")])
def test_a_policy_that_fits_is_kept(space, key):
    config = load_config(overrides={"env_id": "Ant-v4", "policy": key})
    assert resolve_policy(config, space) is config


@pytest.mark.parametrize(("space", "key"), [(BOX, "Gaussian_AC"), (Discrete(2), "Categorical_AC")])
def test_auto_becomes_the_policy_of_the_action_space(space, key):
    config = load_config(overrides={"env_id": "Ant-v4", "seed": 3})
    object.__setattr__(config, "policy", "auto")
    resolved = resolve_policy(config, space)
    assert (resolved.policy, resolved.seed, config.policy) == (key, 3, "auto")
    assert (resolved.activation_action is None) == (key == "Categorical_AC")
    assert type(build_policy(config, OBS, space).actor).__name__ == key.replace("_AC", "Actor")
    with pytest.raises(ConfigError, match="there is no policy for the action space.*given: auto"):
        resolve_policy(config, gym.spaces.MultiDiscrete([2, 2]))
