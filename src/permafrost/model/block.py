"""One GPT-2 block on Transformers' own weights: at every position, or only at those that are read.

B rows, T tokens, C channels, H heads of D channels, Q positions read in each row. Padding stands on the right and
attention is causal, so no real token ever sees padding and no mask is needed for it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from permafrost.model.flat_rows import FlatRows, filled_up, is_to_fill_up
from permafrost.model.onednn import is_inference_by_onednn, onednn_linear
from permafrost.model.packing import attend_packed

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    Visible = Tensor | BlockMask | FlatRows | None

SHORT_ROW = 512  # tokens; up to it a CPU trains attention in bfloat16 faster where it is written out
DROPOUT_STEPS = 2**16  # the fast dropout draws 16 random bits an element


def run_block(block: Any, hidden: Tensor, positions: Tensor | None = None, visible: "Visible" = None) -> Tensor:
    """(B, T, C) -> (B, T, C), or (B, Q, C) at `positions` (B, Q) alone.

    Exact in both cases: keys and values come from all positions, while queries, attention's output and the MLP, five
    sixths of the work, are computed where they are read. Attention is causal where `visible` is not given: (B, 1, 1, T)
    for the keys that all positions of a row see, or how the rows lie in a packed (1, N, C).
    """
    normed = block.ln_1(hidden)
    if positions is None:
        attended = attend_everywhere(block.attn, normed, visible)
    else:
        assert visible is None or isinstance(visible, Tensor), "rows are unpacked before single positions are read"
        attended = attend_at(block.attn, normed, positions, visible)
        hidden = take(hidden, positions)
    hidden = hidden + drop(project(attended, block.attn.c_proj), block.attn.resid_dropout)
    return hidden + drop(feed_forward(block.mlp, block.ln_2(hidden)), block.mlp.dropout)


def take(hidden: Tensor, positions: Tensor) -> Tensor:
    """(B, T, C), (B, Q) -> (B, Q, C)"""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def attend_everywhere(attention: "GPT2Attention", normed: Tensor, visible: "Visible" = None) -> Tensor:
    """(B, T, C) -> (B, T, H D), heads side by side, before the output projection. H D is C, but where heads were taken
    out (model/surgery.py)."""
    projected = project(normed, attention.c_attn)
    if isinstance(visible, FlatRows):
        return visible.pack(_attend_within(attention, visible.unpack(projected), visible.visible))
    return _attend_within(attention, projected, visible)


def _attend_within(attention: "GPT2Attention", projected: Tensor, visible: "Tensor | BlockMask | None") -> Tensor:
    """(B, T, 3 H D) -> (B, T, H D)"""
    query, key, value = (_heads(part, attention) for part in projected.chunk(3, dim=-1))
    if visible is not None and not isinstance(visible, Tensor):
        return _side_by_side(attend_packed(query, key, value, visible, attention.scaling))
    return _side_by_side(_attend(attention, query, key, value, visible))


def attend_at(attention: "GPT2Attention", normed: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
    """(B, T, C), (B, Q) -> (B, Q, H D)"""
    if visible is None:
        visible = torch.arange(normed.shape[1], device=normed.device) <= positions[..., None]  # (B, Q, T)
    else:
        visible = visible[:, 0].expand(-1, positions.shape[1], -1)
    if positions.shape[1] == 1:
        with _as_it_is():  # its small products, of another shape in each batch, keep to MKL
            return _attend_once(attention, normed, take(normed, positions), visible)
    weight, bias = attention.c_attn.weight, attention.c_attn.bias
    width = len(bias) // 3
    query = _affine(take(normed, positions), weight[:, :width], bias[:width])
    key, value = _affine(normed, weight[:, width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (_heads(part, attention) for part in (query, key, value))
    return _side_by_side(_attend(attention, query, key, value, visible[:, None]))


def feed_forward(mlp: Any, normed: Tensor) -> Tensor:
    # Transformers writes GPT-2's own activation in seven operations; "tanh" is the same function in one
    is_tanh_gelu = type(mlp.act).__name__ in ("NewGELUActivation", "GELUTanh")
    if is_tanh_gelu and is_inference_by_onednn(normed):
        return project(onednn_linear(normed, mlp.c_fc.weight, mlp.c_fc.bias, gelu=True), mlp.c_proj)
    inner = project(normed, mlp.c_fc)
    return project(functional.gelu(inner, approximate="tanh") if is_tanh_gelu else mlp.act(inner), mlp.c_proj)


def project(hidden: Tensor, conv1d: Any) -> Tensor:
    """Conv1D keeps its weight as (in, out)."""
    return _affine(hidden, conv1d.weight, conv1d.bias)


def drop(hidden: Tensor, dropout: torch.nn.Dropout) -> Tensor:
    return random_zeros(hidden, dropout.p) if dropout.training and dropout.p else hidden


def random_zeros(hidden: Tensor, p: float) -> Tensor:
    """Dropout (Srivastava et al. 2014); `p` is rounded to 1/65,536.

    On a CPU torch draws one number of a serial generator for each element, which takes as long as a block's matrix
    products at small widths; here four elements share 64 random bits of the same generator.
    """
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(hidden, p)
    dropped = min(round(p * DROPOUT_STEPS), DROPOUT_STEPS - 1)
    words = torch.empty((hidden.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: hidden.numel()] >= dropped - DROPOUT_STEPS // 2
    return hidden * kept.view(hidden.shape).to(hidden.dtype).mul_(DROPOUT_STEPS / (DROPOUT_STEPS - dropped))


def _attend_once(attention: "GPT2Attention", normed: Tensor, read: Tensor, visible: Tensor) -> Tensor:
    """One position a row: (B, T, C), its state (B, 1, C), (B, 1, T) -> (B, 1, H D), without a key or a value.

    `q . (x Wk)` is `(Wk q) . x`, and the mean of `x Wv` is the mean of `x` times `Wv`: with one query a row, folding
    the weights into it takes T x H x C products where keys and values take T x C x C. A key's bias adds the same to
    all scores, which softmax does not see.
    """
    weight, bias, heads = attention.c_attn.weight, attention.c_attn.bias, attention.num_heads
    width = len(bias) // 3
    query = _affine(read[:, 0], weight[:, :width], bias[:width]).unflatten(-1, (heads, -1))  # (B, H, D)
    to_key, to_value = weight[:, width:].unflatten(-1, (2, heads, -1)).unbind(1)  # (C, H, D)
    folded = torch.einsum("bhd,chd->bhc", query, to_key)
    scores = torch.matmul(folded, normed.transpose(1, 2)) * attention.scaling  # (B, H, T)
    shares = scores.float().masked_fill(~visible, float("-inf")).softmax(-1)
    shares = drop(shares, attention.attn_dropout).to(normed.dtype)
    mixed = torch.einsum("bhc,chd->bhd", torch.matmul(shares, normed), to_value)
    # the value's bias, times the sum of the shares: 1 but for dropout
    biased = mixed + shares.sum(-1, keepdim=True) * bias[2 * width :].unflatten(0, (heads, -1))
    return biased.flatten(1)[:, None]


def _attend(attention: "GPT2Attention", query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """(B, H, Q, D), (B, H, T, D) twice -> (B, H, Q, D); causal where `visible` is not given."""
    p = attention.attn_dropout.p if attention.attn_dropout.training else 0.0
    if query.device.type == "cpu" and not torch.compiler.is_compiling() and (p or _fused_is_slow(query, key)):
        return attend_written_out(attention, query, key, value, visible)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, dropout_p=p, is_causal=visible is None, scale=attention.scaling
    )


def _fused_is_slow(query: Tensor, key: Tensor) -> bool:
    """In the backward pass in bfloat16, up to rows of some hundred tokens (benchmarks/results/attention_types.md)."""
    return query.requires_grad and query.dtype == torch.bfloat16 and key.shape[-2] <= SHORT_ROW


def attend_written_out(
    attention: "GPT2Attention", query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None
) -> Tensor:
    """On a CPU torch has no fused attention with dropout either; the mask comes with the product."""
    if visible is None:
        visible = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    hidden_from = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(~visible, float("-inf"))
    masks = hidden_from.expand(*query.shape[:2], -1, -1).flatten(0, 1)
    query, key, values = (part.flatten(0, 1) for part in (query, key, value))
    scores = torch.baddbmm(masks, query, key.transpose(1, 2), alpha=attention.scaling)
    with _as_it_is():  # else bfloat16 goes to float32 and back; softmax sums in float32 anyway
        shares = scores.softmax(-1)
    return torch.bmm(drop(shares, attention.attn_dropout), values).unflatten(0, value.shape[:2])


def _as_it_is() -> AbstractContextManager[Any]:
    """Without autocast on a CPU; nothing where there is none, as an exported graph has no word for it."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def _affine(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., in), (in, out), (out,) -> (..., out)"""
    if is_inference_by_onednn(hidden):
        return onednn_linear(hidden, weight, bias)
    flat = hidden.flatten(0, -2)
    if is_to_fill_up(flat):
        return torch.addmm(bias, filled_up(flat), weight)[: len(flat)].unflatten(0, hidden.shape[:-1])
    return torch.addmm(bias, flat, weight).unflatten(0, hidden.shape[:-1])


def _heads(part: Tensor, attention: "GPT2Attention") -> Tensor:
    """(B, T, H D) -> (B, H, T, D)"""
    return part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _side_by_side(attended: Tensor) -> Tensor:
    """(B, H, Q, D) -> (B, Q, H D)"""
    return attended.transpose(1, 2).flatten(2)
