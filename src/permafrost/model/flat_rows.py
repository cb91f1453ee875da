"""Rows end to end, padding and all, and then filled up to a round number of tokens, so that products keep their shape.

On a CPU oneDNN writes machine code for each new shape of a product and keeps it: with batches of ever other lengths,
that takes time and memory (benchmarks/results/speed.md). B rows, T tokens in the longest, N tokens in all, C channels.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

MULTIPLE = 64  # tokens; of batches of 2,048 less than 2 % are filled up, and three or four shapes are left


@dataclass(frozen=True)
class FlatRows:
    rows: int  # B
    longest: int  # T
    visible: Tensor | None  # (B, 1, 1, T) keys that all positions of a row see; causal where there is none

    @property
    def mask(self) -> "FlatRows":
        """What the blocks are told, as by model/packing.py."""
        return self

    def pack(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (1, N, C), zeros at the end"""
        return filled_up(hidden.flatten(0, 1))[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, C) -> (B, T, C), of the same memory"""
        return packed[0, : self.rows * self.longest].unflatten(0, (self.rows, self.longest))


def flat_where_it_pays(hidden: Tensor, visible: Tensor | None) -> FlatRows | None:
    return FlatRows(hidden.shape[0], hidden.shape[1], visible) if keeps_code_by_shape(hidden) else None


def filled_up(flat: Tensor) -> Tensor:
    """(M, C) -> (N, C), zeros at the end"""
    missing = -len(flat) % MULTIPLE
    return functional.pad(flat, (0, 0, 0, missing)) if missing else flat  # by 0 it would copy


def num_computed(input_ids: Tensor, *, is_compiled: bool) -> int:
    """(B, T): the positions of a batch, and what they are filled up with."""
    positions = input_ids.numel()
    is_filled_up = keeps_code_by_shape(input_ids) and not is_compiled
    return positions + -positions % MULTIPLE if is_filled_up else positions


def is_to_fill_up(flat: Tensor) -> bool:
    """(M, C)"""
    return len(flat) % MULTIPLE != 0 and keeps_code_by_shape(flat)


def keeps_code_by_shape(hidden: Tensor) -> bool:
    """Where oneDNN multiplies: bfloat16 on a CPU. Its float32 goes to MKL, which keeps nothing by shape."""
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    is_bfloat16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_bfloat16 and onednn_has_bfloat16()


@cache
def onednn_has_bfloat16() -> bool:
    """Not on a CPU without AVX-512: there torch multiplies bfloat16 by itself (benchmarks/results/speed.md)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
