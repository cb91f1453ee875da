"""Rows end to end as one sequence, so that no padding is computed; attention stays within each row.

B rows, T tokens in the longest of them, N tokens in all, C channels.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

# Share of padding. The batches of data/tokens/batching.py have less, `data.batch_size=N` may have much more.
WORTHWHILE = 0.05


@dataclass(frozen=True)
class Packing:
    real: Tensor  # (B, T) bool, false for padding
    mask: BlockMask  # (N, N): what each token sees within its row, nothing between rows

    def pack(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (1, N, C)"""
        return hidden[self.real][None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, C) -> (B, T, C), zeros where padding stood"""
        padded = packed.new_zeros(*self.real.shape, packed.shape[-1])
        return padded.index_put((self.real,), packed[0])


def pack_where_it_pays(
    lengths: Tensor | None, hidden: Tensor, *, attention_dropout: bool, causal: bool = True
) -> Packing | None:
    """On a GPU, where a batch has padding to spare. FlexAttention has no dropout, and no backward pass on a CPU."""
    if lengths is None or attention_dropout or not hidden.is_cuda or torch.compiler.is_compiling():
        return None
    share = 1 - float(lengths.sum()) / hidden[..., 0].numel()
    return make_packing(lengths, hidden.shape[1], causal=causal) if share > WORTHWHILE else None


def make_packing(lengths: Tensor, longest: int, *, causal: bool = True) -> Packing:
    """(B,) lengths, T."""
    row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # (N,)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (row[query] == row[key]) & ((query >= key) | (not causal))

    real = real_tokens(lengths, longest)
    return Packing(real, create_block_mask(sees, None, None, len(row), len(row), device=str(lengths.device)))


def real_tokens(lengths: Tensor, longest: int) -> Tensor:
    """(B,) lengths, T -> (B, T) bool, false for padding."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def attend_packed(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """(1, H, N, D) three times -> (1, H, N, D)"""
    return _flex_attention(query.is_cuda)(query, key, value, block_mask=mask, scale=scale)


@cache
def _flex_attention(compiled: bool) -> Any:
    # N differs from batch to batch: compiled once for all of them
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
