"""Your own MuJoCo tasks: arithmetic in Python, compiled by numba, stepped by C++ threads. See docs/own_tasks.md."""

from xcfast.tasks.env import TaskEnv
from xcfast.tasks.registration import register
from xcfast.tasks.task import GymnasiumTask, MujocoTask

__all__ = ["GymnasiumTask", "MujocoTask", "TaskEnv", "register"]
