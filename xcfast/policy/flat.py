"""A module's parameters in one flat float32 array, for native code and for CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


class FlatParameters:
    """A copy of a module's parameters in one flat float32 array on the CPU, in the module's order.

    The array and the module never share memory: ``read`` and ``write`` copy from one to the other. So the module may
    be on any device, and its owner may replace the memory of its parameters, as ``module.to`` does.

    Args:
        module: The module, whose parameters stay the same objects.
        allocate: Function of a size and a dtype that makes the array.

    Attributes:
        array: float32 [number of parameters], the values of the parameters at the last ``read``.
    """

    def __init__(self, module: nn.Module, allocate: Callable[..., np.ndarray] = np.empty) -> None:
        self._parameters = list(module.parameters())
        ends = np.cumsum([p.numel() for p in self._parameters]).tolist()
        self._slices = [slice(end - p.numel(), end) for end, p in zip(ends, self._parameters, strict=True)]
        self.array = allocate(ends[-1], np.float32)
        self._views = self.split(torch.from_numpy(self.array))
        self.read()

    @torch.no_grad()
    def read(self) -> None:
        """Copies the module's parameters into the array."""
        for view, parameter in zip(self._views, self._parameters, strict=True):
            view.copy_(parameter)

    @torch.no_grad()
    def write(self) -> None:
        """Copies the array into the module's parameters."""
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.copy_(view)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Returns one view for each parameter, of its shape, of a tensor that is laid out like ``array``."""
        return [flat[s].view(p.shape) for s, p in zip(self._slices, self._parameters, strict=True)]

    def place(self, parameter: Tensor) -> int:
        """Returns the index in the array at which a parameter begins."""
        return next(s.start for s, p in zip(self._slices, self._parameters, strict=True) if p is parameter)
