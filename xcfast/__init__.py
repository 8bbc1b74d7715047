"""Fast PPO for Gymnasium MuJoCo, driven by XuanCe's YAML.

Names are imported on first use: ``from xcfast import compute_gae`` loads numpy and the compiled core only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xcfast.config import Config, load_config
    from xcfast.envs import make_envs
    from xcfast.gae import compute_gae, compute_returns
    from xcfast.moments import RunningMeanStd
    from xcfast.normalize import ObservationNormalizer, RewardNormalizer
    from xcfast.rollout import Rollout
    from xcfast.runs.run import run

__version__ = "0.1.0"

_MODULE_OF = {
    "compute_gae": "gae",
    "compute_returns": "gae",
    "RunningMeanStd": "moments",
    "ObservationNormalizer": "normalize",
    "RewardNormalizer": "normalize",
    "Rollout": "rollout",
    "Config": "config",
    "load_config": "config",
    "make_envs": "envs",
    "run": "runs.run",
}

__all__ = [
    "Config",
    "ObservationNormalizer",
    "RewardNormalizer",
    "Rollout",
    "RunningMeanStd",
    "__version__",
    "compute_gae",
    "compute_returns",
    "load_config",
    "make_envs",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'xcfast' has no attribute {name!r}")
    value = getattr(import_module(f"xcfast.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
