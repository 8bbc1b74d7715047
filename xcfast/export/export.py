"""Exports a policy as one file, from the environment's raw observation to the environment's action.

The file holds everything between the two: normalizer, network, most likely action, map to the bounds. Its input ``obs``
is float32 [B, *obs_shape] for any B. Its output ``action`` is [B, *action_shape], of the action space's dtype. A policy
with action masks has a second input, ``action_mask``, bool [B, number of actions].

Observations are normalized in float64, as in training: float32 would lose digits where a mean is large beside its
deviation. The network is float32. The file is run and compared with the policy before it gets its name.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from xcfast import __version__
from xcfast.export.check import Call, round_trip
from xcfast.output.files import user_path
from xcfast.output.folders import model_file
from xcfast.runs.player import SavedPlayer, load_player

Format = Literal["onnx", "torch"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        path: The file.
        difference: Largest difference between the actions of file and policy; None if they were not compared.
        allowed: Largest difference that rounding explains.
    """

    path: Path
    difference: float | None
    allowed: float | None


def export_policy(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    format: Format = "onnx",
    check: bool = True,
) -> Exported:
    """Writes the policy of a run as one file.

    Args:
        run: A run folder, whose best model (or else the final one) is exported; or a model file.
        output: The file to write. None: beside the model, with the format's suffix (.onnx, .pt2).
        format: ``onnx``, or ``torch`` for ``torch.export.load(path).module()``.
        check: Whether to compare the file's actions with the policy's before it gets its name.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
        ExportError: File and policy differ by more than rounding explains. No file is left.
        ImportError: A package of the extra ``export`` is missing.
    """
    model = model_file(user_path(run))
    path = model.with_suffix(SUFFIXES[format]) if output is None else user_path(output)
    saved = load_player(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{SUFFIXES[format]}")
    try:
        function = PolicyFunction(saved).eval()
        call = {"onnx": _write_onnx, "torch": _write_torch}[format](function, _metadata(saved), temporary)
        difference = allowed = None
        if check:
            difference, allowed = round_trip(saved, call)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path, difference, allowed)


class PolicyFunction(nn.Module):
    """Maps raw observations float32 [B, ...] to environment actions [B, ...], in operations that can be exported."""

    mean: Tensor
    std: Tensor
    scale: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, saved: SavedPlayer) -> None:
        super().__init__()
        policy, normalizer, map_ = saved.player
        self.policy = copy.deepcopy(policy).requires_grad_(False)
        self.normalizes, self.clip, rms = normalizer.enabled, normalizer.clip, normalizer.rms
        self.discrete, self.rescales = map_.discrete, map_.rescales
        self.mask_size = saved.mask_size
        constants: dict[str, np.ndarray] = {"mean": rms.mean, "std": rms.deviation}
        space = saved.action_space
        if isinstance(space, gym.spaces.Discrete):
            self.start = int(space.start)
        else:
            self.shape = tuple(space.shape or ())
            constants |= {"low": map_.low, "high": map_.high}
            if self.rescales:
                constants |= {"scale": map_.scale, "offset": map_.offset}
        for name, value in constants.items():
            self.register_buffer(name, torch.from_numpy(np.array(value)))

    def forward(self, obs: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Returns the actions of observations, among those that a mask bool [B, n] allows."""
        if self.normalizes:
            obs = ((obs.double() - self.mean) / self.std).clamp(-self.clip, self.clip).float()
        action = self.policy.actor.mode(self.policy.act(obs, action_mask))
        if self.discrete:
            return action + self.start
        action = action.reshape(-1, *self.shape)
        if self.rescales:
            action = action * self.scale + self.offset
        return torch.minimum(torch.maximum(action, self.low), self.high).to(self.low.dtype)


def _metadata(saved: SavedPlayer) -> dict[str, str]:
    """Returns what the exported file says about itsaved."""
    mask = {"name": "action_mask", "dtype": "bool", "shape": ["B", saved.mask_size]}
    masked = {} if saved.mask_size is None else {"mask_input": json.dumps(mask)}
    return {
        **masked,
        "producer": f"xcfast {__version__}",
        "env_id": saved.config.env_id,
        "step": str(saved.step),
        "observation_space": str(saved.observation_space),
        "action_space": str(saved.action_space),
        "input": json.dumps(
            {"name": "obs", "dtype": "float32", "shape": ["B", *(saved.observation_space.shape or ())]}
        ),
        "output": json.dumps(
            {
                "name": "action",
                "dtype": str(saved.action_space.dtype),
                "shape": ["B", *(saved.action_space.shape or ())],
            }
        ),
        "mode": "most likely action, mapped to the bounds",
    }


def _write_torch(function: PolicyFunction, metadata: dict[str, str], path: Path) -> Call:
    inputs = _example(function)
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    program = torch.export.export(function, tuple(inputs.values()), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
    module = torch.export.load(path).module()
    return lambda *arrays: module(*map(torch.from_numpy, arrays)).numpy()


def _write_onnx(function: PolicyFunction, metadata: dict[str, str], path: Path) -> Call:
    import onnxruntime
    import onnxscript  # noqa: F401  torch.onnx needs it, and would say so in many lines

    inputs = _example(function)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports that torchvision is missing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch about its own use of torch
            program: Any = torch.onnx.export(
                function,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=["action"],
                dynamic_shapes={name: {0: "batch"} for name in inputs},
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda *arrays: session.run(["action"], dict(zip(inputs, arrays, strict=True)))[0]


def _example(function: PolicyFunction) -> dict[str, Tensor]:
    inputs = {"obs": torch.zeros(2, *function.mean.shape)}
    if function.mask_size is not None:
        inputs["action_mask"] = torch.ones(2, function.mask_size, dtype=torch.bool)
    return inputs
