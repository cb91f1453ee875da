"""Blocks, heads and neurons taken out of a GPT-2 for good: what is left is a smaller one, and computes no more.

C channels, L blocks, H heads of D channels, F neurons of an MLP. Transformers' Conv1D keeps its weight as (in, out).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from permafrost.errors import ConfigError

if TYPE_CHECKING:
    from transformers import GPT2Model


def keep_blocks_(backbone: "GPT2Model", kept: Sequence[int]) -> None:
    """These blocks alone, in this order.

    Raises:
        ConfigError: the architecture scales attention by the number of the block, which would change.
    """
    if backbone.config.scale_attn_by_inverse_layer_idx:
        raise ConfigError(
            "a model with scale_attn_by_inverse_layer_idx cannot lose blocks: attention goes by their number; give "
            "compression=mlp_width or compression=quantization, which keep them all"
        )
    backbone.h = nn.ModuleList(backbone.h[index] for index in kept)
    blocks: Any = backbone.h
    for index, block in enumerate(blocks):
        block.attn.layer_idx = index  # where its keys and values lie while text is written
    backbone.config.n_layer = len(kept)


def keep_neurons_(backbone: "GPT2Model", kept: Sequence[Tensor]) -> None:
    """Of each block's MLP the neurons of `kept` (n,): as many in each, as GPT2Config has one width for all."""
    blocks: Any = backbone.h
    for block, neurons in zip(blocks, kept, strict=True):
        block.mlp.c_fc = _part_of(block.mlp.c_fc, columns=neurons)
        block.mlp.c_proj = _part_of(block.mlp.c_proj, rows=neurons)
    backbone.config.n_inner = len(kept[0])


def keep_heads_(backbone: "GPT2Model", kept: Sequence[Tensor]) -> None:
    """Of each block's attention the heads of `kept` (h,), as many in each.

    GPT2Config has no word for it, and plain Transformers refuses such a directory; `kept_heads` in its config is for
    `fewer_heads`.
    """
    blocks: Any = backbone.h
    for block, heads in zip(blocks, kept, strict=True):
        width = block.attn.head_dim  # D
        channels = (heads[:, None] * width + torch.arange(width)).flatten()  # (h D,)
        of_three = torch.cat([channels + part * block.attn.split_size for part in range(3)])  # queries, keys, values
        block.attn.c_attn = _part_of(block.attn.c_attn, columns=of_three)
        block.attn.c_proj = _part_of(block.attn.c_proj, rows=channels)
        block.attn.num_heads, block.attn.split_size = len(heads), len(channels)
    backbone.config.kept_heads = len(kept[0])


def fewer_heads(count: int) -> type["GPT2Model"]:
    """The class whose blocks have so many heads, for `from_pretrained` to fill."""
    from transformers import GPT2Model

    class WithFewerHeads(GPT2Model):
        def __init__(self, config: Any):
            super().__init__(config)
            keep_heads_(self, [torch.arange(count)] * len(self.h))

    return WithFewerHeads


def _part_of(conv1d: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> Any:
    """A Conv1D of some of its inputs or outputs; its bias is of the outputs."""
    from transformers.pytorch_utils import Conv1D

    weight, bias = conv1d.weight.detach(), conv1d.bias.detach()  # on meta, where from_pretrained will fill them
    if rows is not None:
        weight = weight[rows]
    if columns is not None:
        weight, bias = weight[:, columns], bias[columns]
    smaller = Conv1D(weight.shape[1], weight.shape[0])
    smaller.weight, smaller.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return smaller
