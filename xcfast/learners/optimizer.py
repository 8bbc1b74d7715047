"""The optimizer of a learner: Adam, or a script's own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from xcfast.config.schema import Config
    from xcfast.policy.networks import ActorCritic

ADAM_EPS = 1e-5

_ADDED = ("weight_decay", "amsgrad", "maximize", "differentiable", "decoupled_weight_decay", "capturable")


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, of which making one, reading and restoring its state does not import torch's compiler.

    torch decorates these methods so that ``torch.compile`` leaves them out. The first call of any of them imports the
    compiler, with sympy and Triton, which takes about as long as importing torch. Here they are not decorated, because
    nothing compiles them.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)


def make_optimizer(
    policy: ActorCritic, config: Config, given: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    """Returns Adam for all of the policy's parameters, or the script's optimizer, ``given``, after checking it.

    Raises:
        ValueError: The script's optimizer has parameters that are not the policy's.
    """
    if given is not None:
        check_optimizer(given, policy)
        return given
    betas = (config.adam_beta1, config.adam_beta2)
    return Adam(policy.parameters(), lr=config.learning_rate, betas=betas, eps=ADAM_EPS, fused=True)


def check_optimizer(optimizer: torch.optim.Optimizer, policy: ActorCritic) -> None:
    """Checks that all parameters of an optimizer are a policy's. It need not have all of the policy's parameters.

    Raises:
        ValueError: It has a parameter that is not the policy's. A learner could neither compute its gradient nor undo
            a step on it.
    """
    own = set(map(id, policy.parameters()))
    found = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = sum(id(p) not in own for p in found)
    if foreign:
        which = "none of its parameters is" if foreign == len(found) else f"{foreign} of its parameters are not"
        raise ValueError(
            f"optimizer: {which} of the policy that learns; make it with the policy's parameters(), after the policy "
            "has its final layers"
        )


def reason_not_flat_adam(policy: ActorCritic, optimizer: torch.optim.Optimizer | None) -> str | None:
    """Returns why ``FlatAdam`` cannot replace the optimizer of a policy, as the end of a sentence; None if it can.

    Args:
        policy: The policy that learns.
        optimizer: The script's optimizer, or None for Adam with the configuration's learning rates.
    """
    parameters = list(policy.parameters())
    if not all(p.requires_grad for p in parameters):
        return "some of the policy's parameters do not require gradients"
    return None if optimizer is None else reason_not_plain_adam(optimizer, parameters)


def reason_not_plain_adam(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> str | None:
    """Returns why an optimizer is not plain Adam for exactly these parameters, as the end of a sentence; None if it is.

    Plain Adam has one learning rate for all parameters and no additions such as weight decay.
    """
    if type(optimizer) not in (torch.optim.Adam, Adam):
        return f"the optimizer is {type(optimizer).__name__}, not Adam"
    if len(optimizer.param_groups) != 1:
        return "the optimizer has several parameter groups"
    group = optimizer.param_groups[0]
    if set(map(id, group["params"])) != set(map(id, parameters)):
        return "the optimizer does not have all of the policy's parameters"
    for name in _ADDED:
        if group.get(name):
            return f"the optimizer's {name} is {group[name]}, so it is not plain Adam"
    if "base_momentum" in group:
        return "the scheduler changes Adam's beta1, which must be constant (cycle_momentum=False keeps it constant)"
    if not all(isinstance(value, float | int) for value in (group["lr"], group["eps"], *group["betas"])):
        return "the optimizer's settings are tensors"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has hooks"
    return None
