"""A module's parameters in one flat float32 array, for native code and for CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


class FlatParameters:
    """A module's parameters as views of one flat float32 array, in the module's order; the module works as before.

    A second object for the same module finds the first one's array.
    """

    def __init__(self, module: nn.Module, allocate: Callable[..., np.ndarray] = np.empty) -> None:
        self._parameters = list(module.parameters())
        sizes = [p.numel() for p in self._parameters]
        ends = np.cumsum(sizes).tolist()
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        first = self._parameters[0].detach()
        if len(first.untyped_storage()) == 4 * ends[-1]:
            self.array = first.as_strided((ends[-1],), (1,), 0).numpy()
        else:
            self.array = allocate(ends[-1], np.float32)
        self.adopt()

    @torch.no_grad()
    def adopt(self) -> None:
        """Take in parameters whose memory was replaced, as ``module.to`` does; nothing to do for the others."""
        for parameter, view in zip(self._parameters, self.split(torch.from_numpy(self.array)), strict=True):
            if parameter.data_ptr() != view.data_ptr():
                parameter.data = view.copy_(parameter)

    def split(self, flat: Tensor) -> list[Tensor]:
        """One view for each parameter, of its shape, of a tensor laid out like ``array``."""
        return [flat[s].view(p.shape) for s, p in zip(self.slices, self._parameters, strict=True)]

    def place(self, parameter: Tensor) -> int:
        """Where in the array a parameter begins."""
        return next(s.start for s, p in zip(self.slices, self._parameters, strict=True) if p is parameter)


class MirroredParameters:
    """A copy of a module's parameters in one flat float32 array on the CPU, in the module's order."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = list(module.parameters())
        self.array = np.empty(sum(p.numel() for p in self._parameters), np.float32)
        self._parts = torch.from_numpy(self.array).split([p.numel() for p in self._parameters])

    def place(self, parameter: Tensor) -> int:
        """Where in the array a parameter begins."""
        index = next(i for i, p in enumerate(self._parameters) if p is parameter)
        return self._parts[index].storage_offset()

    def refresh(self) -> None:
        """Copy the parameters as they are now."""
        for part, parameter in zip(self._parts, self._parameters, strict=True):
            part.copy_(parameter.detach().reshape(-1))
