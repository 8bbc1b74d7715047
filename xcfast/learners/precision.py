"""The key ``precision``: the arithmetic of the update's matrix products, and where each kind of it can be used."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from xcfast.errors import ConfigError

if TYPE_CHECKING:
    from xcfast.config.schema import Config

#: The values for each type of device, besides ``auto``.
PRECISIONS = {"cuda": ("fp32", "tf32", "bf16"), "cpu": ("fp32", "bf16x3", "bf16")}
#: If this variable is 1, a CPU without the unit for bf16 or bf16x3 computes them in software, more slowly than float32.
#: Operands are rounded alike, but the order of additions differs. It serves tests, studies, and runs that move to such
#: a CPU.
EMULATE = "XCFAST_EMULATE_PRECISION"


def resolve_precision(config: Config, device: str) -> Config:
    """Returns the configuration with the precision that ``precision: auto`` stands for, which is ``fp32`` everywhere.

    Others are faster. They will not be chosen for anybody before learning curves show that they learn as much.

    Args:
        config: The run's configuration.
        device: Type of the device that trains, "cpu" or "cuda".

    Raises:
        ConfigError: The device cannot compute with the precision.
    """
    if config.precision == "auto":
        return replace(config, precision="fp32")
    if config.precision not in PRECISIONS[device]:
        allowed = f"one of {', '.join(PRECISIONS[device])}, auto on this device"
        raise ConfigError(f"does not exist on {device}", key="precision", given=config.precision, allowed=allowed)
    if device == "cpu" and (reason := reason_not_on_this_cpu(config.precision)) is not None:
        raise ConfigError(reason, key="precision", given=config.precision, allowed="fp32 or auto on this machine")
    return config


def reason_not_on_this_cpu(precision: str) -> str | None:
    """Returns why this machine cannot compute with a precision on the CPU; None if it can."""
    if precision == "fp32":
        return None
    try:
        from xcfast import _core
    except ImportError as error:
        return f"only compiled code has it, and the compiled core is missing ({error})"
    if _core.nn_hardware(precision) is None and os.environ.get(EMULATE) != "1":
        units = "AMX tiles or AVX512_BF16" if precision == "bf16" else "AMX tiles"
        return f"needs {units}, which this process cannot use; {EMULATE}=1 computes it in software, slowly"
    return None


def unit_of(precision: str) -> str | None:
    """Returns the name of the kernels that compute with a precision on this CPU; None: those for float32."""
    if precision == "fp32":
        return None
    from xcfast import _core

    return _core.nn_hardware(precision) or _core.nn_variants(precision)[-1]


def how_computed(precision: str) -> str | None:
    """Returns how this CPU computes with a precision, such as "computed by amx"; None for float32."""
    unit = unit_of(precision)
    if unit is None:
        return None
    from xcfast import _core

    return f"emulated with {unit}" if _core.nn_hardware(precision) is None else f"computed by {unit}"
