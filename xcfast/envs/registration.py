"""Gymnasium ids of the native vector environments: `gymnasium.make_vec("xcfast.envs:xcfast/Ant-v5", num_envs=64)`."""

import gymnasium

MUJOCO_IDS = tuple(
    f"{name}-v{version}"
    for name in (
        *("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum"),
        *("InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d"),
    )
    for version in (4, 5)
)
CLASSIC_IDS = ("Acrobot-v1", "CartPole-v0", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
NATIVE_IDS = (*MUJOCO_IDS, *CLASSIC_IDS)


def register() -> None:
    """Adds "xcfast/<id>" for every native id to Gymnasium's registry, for `gymnasium.make_vec`."""
    for env_id in NATIVE_IDS:
        gymnasium.register(
            f"xcfast/{env_id}",
            vector_entry_point="xcfast.envs.make:make_native_or_subproc",
            kwargs={"env_id": env_id},
        )
