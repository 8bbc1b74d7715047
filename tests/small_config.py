"""A small configuration that trains in a second or two."""

SMALL = {
    "env_id": "InvertedPendulum-v4",
    "vectorize": "DummyVecEnv",
    "native_envs": "off",
    "device": "cpu",
    "parallels": 4,
    "horizon_size": 32,
    "running_steps": 512,
    "n_epochs": 2,
    "n_minibatch": 4,
    "eval_interval": 256,
    "test_episode": 2,
    "representation_hidden_size": [16],
    "actor_hidden_size": [16],
    "critic_hidden_size": [16],
    "logger": "tensorboard",
    "num_threads": 1,
}
