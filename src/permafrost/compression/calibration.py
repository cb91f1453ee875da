"""How much each block, head, neuron and weight matters on some training rows: by this, pruning chooses.

C channels, H heads of D channels, F neurons of an MLP. Each `Seen` is over all real tokens of all batches.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from permafrost.data.tokens.batching import Batch
from permafrost.model.backbone import embed
from permafrost.model.block import attend_everywhere, drop, project, run_block
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.packing import real_tokens
from permafrost.tasks.base import LossFunction, Task

CONV1DS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass
class Seen:
    """Of one block, over all real tokens."""

    tokens: int = 0
    change: float = 0.0  # sum of 1 - cosine of its input and output
    squares: dict[str, Tensor] = field(default_factory=dict)  # of each Conv1D (in,): sums of its squared inputs

    @property
    def influence(self) -> float:
        """Block Influence (Men et al. 2024, arXiv:2403.03853, eq. 1): what is near 0 hardly changes the states."""
        return self.change / self.tokens


@torch.inference_mode()
def seen_by_blocks(model: GPT2WithHead, batches: Iterable[Batch]) -> list[Seen]:
    """What goes through each block, rows cut at the window."""
    seen, mode = [Seen() for _ in model.transformer.h], model.training
    model.eval()
    for batch in batches:
        input_ids, lengths = model.as_run(batch.input_ids, batch.input_ids, batch.lengths)
        input_ids, lengths = input_ids[:, : model.window], lengths.clamp(max=model.window)
        hidden = embed(model.transformer, input_ids)
        real = real_tokens(lengths, hidden.shape[1])
        visible = real[:, None, None] if model.bidirectional else None
        for block, of_block in zip(model.transformer.h, seen, strict=True):
            for name, inputs in conv1d_inputs(block, hidden, visible).items():
                of_block.squares[name] = of_block.squares.get(name, 0) + inputs[real].float().square().sum(0)
            before, hidden = hidden, run_block(block, hidden, visible=visible)
            change = 1 - nn.functional.cosine_similarity(before.float(), hidden.float(), dim=-1)
            of_block.change += float(change[real].sum())
            of_block.tokens += int(lengths.sum())
    model.train(mode)
    return seen


def conv1d_inputs(block: Any, hidden: Tensor, visible: Tensor | None) -> dict[str, Tensor]:
    """(B, T, C) -> what each of the block's four products is given, (B, T, in)"""
    normed = block.ln_1(hidden)
    attended = attend_everywhere(block.attn, normed, visible)
    between = block.ln_2(hidden + drop(project(attended, block.attn.c_proj), block.attn.resid_dropout))
    inner = block.mlp.act(project(between, block.mlp.c_fc))
    return dict(zip(CONV1DS, (normed, attended, between, inner), strict=True))


@dataclass
class Worth:
    """Of one block: (F,) of its neurons and (H,) of its heads."""

    neurons: Tensor
    heads: Tensor


def worth_by_activation(model: GPT2WithHead, batches: Iterable[Batch]) -> list[Worth]:
    """How much each adds to the states."""
    blocks = zip(model.transformer.h, seen_by_blocks(model, batches), strict=True)
    return [Worth(neurons_by_activation(block, of), heads_by_activation(block, of)) for block, of in blocks]


def neurons_by_activation(block: Any, seen: Seen) -> Tensor:
    """(F,): the length of what each neuron adds to the states, over all tokens."""
    return (seen.squares["mlp.c_proj"] * block.mlp.c_proj.weight.detach().square().sum(1)).sqrt()


def heads_by_activation(block: Any, seen: Seen) -> Tensor:
    """(H,): about the length of what each head adds; products of its channels with one another are left out."""
    of_channels = seen.squares["attn.c_proj"] * block.attn.c_proj.weight.detach().square().sum(1)
    return of_channels.unflatten(0, (block.attn.num_heads, -1)).sum(1).sqrt()


def worth_by_taylor(model: GPT2WithHead, task: Task, loss: LossFunction, batches: Iterable[Batch]) -> list[Worth]:
    """To first order, how much the loss would change without each: the square of the sum of weight times gradient,
    over batches (Molchanov et al. 2019, arXiv:1906.10771, eq. 8)."""
    blocks: Any = model.transformer.h
    found = [Worth(torch.zeros(block.mlp.c_fc.nf), torch.zeros(block.attn.num_heads)) for block in blocks]
    mode = model.training
    model.eval()
    for batch in batches:
        model.zero_grad(set_to_none=True)
        loss_sum, _ = task.loss_sum(model, batch, loss)
        (loss_sum / batch.num_targets).backward()
        for block, worth in zip(blocks, found, strict=True):
            worth.neurons += _of_neurons(block.mlp).square().cpu()
            worth.heads += _of_heads(block.attn).square().cpu()
    model.zero_grad(set_to_none=True)
    model.train(mode)
    return found


def _of_neurons(mlp: Any) -> Tensor:
    """(F,): each neuron's weights times their gradients, those into it and those out of it."""
    into, out = _times_gradient(mlp.c_fc.weight), _times_gradient(mlp.c_proj.weight)
    return into.sum(0) + _times_gradient(mlp.c_fc.bias) + out.sum(1)


def _of_heads(attention: Any) -> Tensor:
    """(H,): likewise, its queries, keys, values and what reads them."""
    into = _times_gradient(attention.c_attn.weight).sum(0) + _times_gradient(attention.c_attn.bias)  # (3 H D,)
    out = _times_gradient(attention.c_proj.weight).sum(1)  # (H D,)
    return (into.unflatten(0, (3, -1)).sum(0) + out).unflatten(0, (attention.num_heads, -1)).sum(1)


def _times_gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "what is judged by its gradient is trained"
    return parameter.detach() * parameter.grad
