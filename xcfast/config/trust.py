"""Which modules of a run that is continued may be imported: those that this call names, and no others."""

from collections.abc import Callable, Collection
from dataclasses import replace

from xcfast.config.schema import Config
from xcfast.errors import ConfigError


def allow_modules(
    config: Config,
    allowed: Collection[str],
    spell: Callable[[list[str]], str] = lambda modules: f"allow_modules={modules}",
) -> Config:
    """Allows an environment to run code of modules that a file alone names.

    Args:
        config: The configuration of the run to continue.
        allowed: Names of the modules that the caller trusts.
        spell: How the caller allows these modules.

    Returns:
        The configuration, of whose modules all are allowed.

    Raises:
        ConfigError: The configuration's file names another module, or `allowed` is no collection of names.
    """
    if isinstance(allowed, str) or not all(isinstance(name, str) for name in allowed):
        raise ConfigError("no list of module names", key="allow_modules", given=allowed, allowed="a list of texts")
    strange = [module for module in config.file_modules if module not in allowed]
    if strange:
        raise ConfigError(
            f"its environment runs code of {', '.join(strange)}; if you trust that code, add {spell(strange)}",
            where=config.source,
        )
    return replace(config, file_modules=())
