"""Training with the weights as they will be shipped, in 4 bits: what rounding does is then learned around.

Each product sees its rounded weights, and the exact ones behind them take the gradient as if nothing had been rounded
(the straight-through estimate: Bengio et al. 2013, arXiv:1308.3432, section 4; Jacob et al. 2018, arXiv:1712.05877,
section 3). torchao's training for 4 bits rounds in a way of its own; this is the way of what ships them
(quantization.quantize_int4), so that what was learned is what is run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from permafrost.compression.calibration import CONV1DS

LOWEST, HIGHEST = -8, 7  # of a signed integer of 4 bits


class RoundedToInt4(nn.Module):
    """(in, out) -> (in, out): `group` inputs of an output share a scale, by which its largest weight becomes -8."""

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (rounded_to_int4(weight.detach(), self.group) - weight.detach())


def rounded_to_int4(weight: Tensor, group: int) -> Tensor:
    """(in, out) -> (in, out), each weight the nearest of its group's sixteen values."""
    grouped = weight.float().unflatten(0, (-1, group))  # (groups, group, out)
    lowest, highest = -grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
    # signed: the largest in size takes the one integer that has no counterpart, as NNCF's INT4_SYM has it
    scale = torch.where(lowest.abs() >= highest, lowest.abs(), -highest) / -LOWEST
    scale = torch.where(scale.abs() < torch.finfo(scale.dtype).eps, torch.finfo(scale.dtype).eps, scale)
    return ((grouped / scale).round().clamp(LOWEST, HIGHEST) * scale).flatten(0, 1).to(weight.dtype)


@contextmanager
def rounded_weights(backbone: Any, group: int) -> Iterator[None]:
    """Every block's four products see rounded weights while the context lasts; after it, the exact ones are there."""
    products = [block.get_submodule(name) for block in backbone.h for name in CONV1DS]
    for product in products:
        parametrize.register_parametrization(product, "weight", RoundedToInt4(group))
    try:
        yield
    finally:
        for product in products:
            parametrize.remove_parametrizations(product, "weight", leave_parametrized=False)
