"""LARS on lists of tensors: few kernels a step, and no number for the host to read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["ForeachLARS"]

SETTINGS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "eta")


class ForeachLARS(Optimizer):
    """Layer-wise adaptive rate scaling (https://arxiv.org/abs/1708.03888) of SGD.

    The numbers of mmpretrain's ``LARS``, whose arguments and checkpoints these are: the
    rate, scaled by ``eta |w| / (|g| + weight_decay |w| + eps)`` for each parameter, is
    inside the momentum. There the host reads two norms of every parameter, and waits
    for each; here norms stay on the device, and the parameters of all groups with the
    same settings are updated together.

    A group with ``lars_exclude=True`` (biases, normalisation) is plain SGD.

    Args:
        params: parameters, or groups of them.
        lr: >= 0.
        momentum: >= 0.
        weight_decay: >= 0.
        dampening: of the momentum.
        eta: the trust coefficient, >= 0.
        nesterov: Nesterov's momentum; needs ``momentum`` > 0 and ``dampening`` 0.
        eps: keeps the rate finite where the gradient is 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0,
        weight_decay: float = 0,
        dampening: float = 0,
        eta: float = 0.001,
        nesterov: bool = False,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "eta": eta,
        }
        for name in ("lr", "momentum", "weight_decay", "eta"):
            if not defaults[name] >= 0:
                raise ValueError(f"{name} must be >= 0, got {defaults[name]}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(
                "nesterov needs momentum > 0 and dampening 0, got "
                f"momentum={momentum} and dampening={dampening}"
            )
        self.eps = eps
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient.

        Args:
            closure: computes the loss and the gradients first; its result is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for group in self.param_groups:
            excluded = bool(group.get("lars_exclude", False))
            key = (excluded, *(group[name] for name in SETTINGS))
            alike[key] += [p for p in group["params"] if p.grad is not None]
        for (excluded, *settings), params in alike.items():
            if params:
                named = dict(zip(SETTINGS, settings, strict=True))
                self._update(params, excluded, **named)
        return loss

    def _update(
        self,
        params: list[Tensor],
        excluded: bool,
        *,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
        eta: float,
    ) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        updates = list(torch._foreach_add(grads, params, alpha=weight_decay))
        if excluded:
            torch._foreach_mul_(updates, lr)
        else:
            weight = torch.stack(torch._foreach_norm(params))
            grad = torch.stack(torch._foreach_norm(grads))
            trust = eta * weight / (grad + weight_decay * weight + self.eps)
            trust = trust.masked_fill((weight == 0) | (grad == 0), 1)
            torch._foreach_mul_(updates, list((trust * lr).unbind()))
        if momentum:
            updates = self._accumulate(params, updates, momentum, dampening, nesterov)
        torch._foreach_sub_(params, updates)

    def _accumulate(
        self,
        params: list[Tensor],
        updates: list[Tensor],
        momentum: float,
        dampening: float,
        nesterov: bool,
    ) -> list[Tensor]:
        """Add to the momentum; what is to be subtracted from the parameters."""
        has = ["momentum_buffer" in self.state[p] for p in params]
        old = [i for i, there in enumerate(has) if there]
        for param, update, there in zip(params, updates, has, strict=True):
            if not there:
                self.state[param]["momentum_buffer"] = update.clone()
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        if old:
            moved = [buffers[i] for i in old]
            torch._foreach_mul_(moved, momentum)
            added = [updates[i] for i in old]
            torch._foreach_add_(moved, added, alpha=1 - dampening)
        if nesterov:
            return list(torch._foreach_add(updates, buffers, alpha=momentum))
        return buffers
