"""The configuration: one YAML file, one frozen dataclass.

`python -m xcfast.config` prints every key with its type, default and meaning.
"""

from xcfast.config.loading import load_config
from xcfast.config.schema import RESUMABLE_KEYS, Config
from xcfast.config.shipped import shipped_config, shipped_configs
from xcfast.config.table import config_table
from xcfast.errors import ConfigError

__all__ = [
    "RESUMABLE_KEYS",
    "Config",
    "ConfigError",
    "config_table",
    "load_config",
    "shipped_config",
    "shipped_configs",
]
