"""Which engine serves, and where it computes."""

import copy

import pytest

from xcfast.config import ConfigError
from xcfast.envs import DummyVecEnv, make_env_fn
from xcfast.normalize import ObservationNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.runs.engines import inference_device, make_collector


@pytest.mark.parametrize(
    "wanted, size, before, device",
    [
        ("auto", 4_000_000, None, "cpu"),
        ("auto", 4_000_001, None, "cuda"),
        ("auto", 1, "cuda", "cuda"),
        ("auto", 10**9, "cpu", "cpu"),
        ("cpu", 10**9, None, "cpu"),
        ("cpu", 10**9, "cuda", "cpu"),
        ("cuda", 1, None, "cuda"),
        ("cuda", 1, "cpu", "cuda"),
    ],
)
def test_where_actions_are_computed(wanted, size, before, device):
    assert inference_device(wanted, size, before) == device


def make(config, num_envs=2, on_device=True, before=None):
    """The collector's reason, and whether it acts with the policy of the device (here a copy on the CPU)."""
    envs = DummyVecEnv([make_env_fn(config.env_id)] * num_envs, copy=False)
    spaces = envs.single_observation_space, envs.single_action_space
    policy = build_policy(config, *spaces)
    device_policy = copy.deepcopy(policy) if on_device else None
    normalizer = ObservationNormalizer(spaces[0].shape, num_envs=num_envs)
    action_map = ActionMap(spaces[1], config.activation_action)
    collector, reason = make_collector(
        config, envs, policy, normalizer, action_map, device_policy=device_policy, inference=before
    )
    return reason, collector.policy is device_policy


def test_the_rule_decides(small):
    reason, on_device = make(small())
    assert "inference on the CPU, parameters times environments being " in reason and not on_device
    large = small(representation_hidden_size=[1500, 1500])  # 2,259,000 parameters and a few more
    reason, on_device = make(large)
    assert "inference on the GPU, parameters times environments being " in reason and on_device
    assert not make(large, num_envs=1)[1]
    reason, on_device = make(large, before="cpu")
    assert reason.endswith("inference on the CPU as before") and not on_device


def test_the_key_decides(small):
    reason, on_device = make(small(inference_device="cuda"), before="cpu")
    assert reason.endswith("; inference on the GPU") and on_device
    assert not make(small(inference_device="cpu"), before="cuda")[1]


def test_the_gpu_where_there_is_none(small):
    with pytest.raises(ConfigError, match="inference_device: only where the update runs on CUDA.*allowed: auto, cpu"):
        make(small(inference_device="cuda"), on_device=False)
    assert "inference" not in make(small(), on_device=False)[0]
