"""Parameter groups, and the one optimizer that torch does not bring ready-made: Muon with AdamW beside it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from permafrost.model.freezing import depth_of, trainable

Group = dict[str, Any]


def parameter_groups(
    model: nn.Module, num_blocks: int, *, lr: float, weight_decay: float, layer_lr_decay: float
) -> list[Group]:
    """Every trainable parameter in exactly one group, by depth and by whether it is a matrix.

    Matrices decay, vectors (norms, biases) do not: told by `ndim`, since GPT-2's norms do not have the names that
    name filters look for. With `layer_lr_decay` d, a block n blocks below the top learns at `lr * d**n`
    (ELECTRA, Clark et al. 2020, appendix).
    """
    groups: dict[tuple[int, bool, bool], Group] = {}
    for name, parameter in trainable(model):
        depth, is_matrix = depth_of(name, num_blocks), parameter.ndim >= 2
        in_block = 1 <= depth <= num_blocks
        level = depth if layer_lr_decay != 1 else 0  # one rate for all needs no groups by depth
        group = groups.setdefault((level, in_block, is_matrix), {"params": []})
        group["params"].append(parameter)
        group["name"] = _group_name(in_block, is_matrix, depth if layer_lr_decay != 1 else None)
        group["lr"] = lr * layer_lr_decay ** (num_blocks + 1 - depth)
        group["weight_decay"] = weight_decay if is_matrix else 0.0
        group["muon"] = in_block and is_matrix  # lookup tables and heads are no rotations
    return [groups[key] for key in sorted(groups)]


def _group_name(in_block: bool, is_matrix: bool, depth: int | None) -> str:
    part = "blocks" if in_block else "embeddings_and_head"
    return f"{part}/{'matrices' if is_matrix else 'vectors'}" + ("" if depth is None else f"/depth_{depth}")


def clippable_(optimizer: Optimizer) -> Optimizer:
    """Let Lightning clip a fused optimizer's gradients.

    It refuses because a fused step can undo a gradient scaler's factor by itself, after the clipping; told that this
    one does not, the scaler (there is one in 16-mixed alone) does so before.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def muon(
    params: Iterable[Group], *, lr: float, weight_decay: float, momentum: float, betas: tuple[float, float]
) -> Optimizer:
    """Muon for the blocks' matrices, AdamW for embeddings, head, norms and biases (Jordan et al. 2024).

    Both take the same `lr`: Muon's update is scaled to AdamW's usual size (Liu et al. 2025, section 2.2).
    """
    return MuonWithAdamW(list(params), lr=lr, weight_decay=weight_decay, momentum=momentum, betas=tuple(betas))


class MuonWithAdamW(Optimizer):
    """Two torch optimizers that share one list of groups and one state, so schedulers and checkpoints see one."""

    def __init__(self, groups: list[Group], *, lr: float, weight_decay: float, momentum: float, betas: tuple):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas})
        self.momentum, self.betas = momentum, betas
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "betas"):  # absent while the base class is still setting up
            self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def _share(self) -> None:
        matrices = [group for group in self.param_groups if group["muon"]]
        others = [group for group in self.param_groups if not group["muon"]]
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, momentum=self.momentum, adjust_lr_fn="match_rms_adamw"))
        if others:
            self.parts.append(AdamW(others, betas=self.betas, fused=True))
        for part in self.parts:
            part.state = self.state  # their groups already are the very dictionaries that schedulers change
