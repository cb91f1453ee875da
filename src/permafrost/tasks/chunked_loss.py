"""The loss over a vocabulary without its logits: they exist for a few positions at a time, in both directions.

N positions, C channels, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from permafrost.model.flat_rows import filled_up, keeps_code_by_shape
from permafrost.tasks.positions import NOT_SCORED

CHUNK_TOKENS = 1024


def vocabulary_loss_sum(hidden: Tensor, weight: Tensor, labels: Tensor, loss: nn.Module, *more: Tensor) -> Tensor:
    """(N, C), (V, C), (N,) -> (): the sum of `loss` over the positions whose label is not -100.

    Ignored positions never meet the vocabulary. The gradient is computed with the loss, chunk by chunk, as in Liger
    (Hsu et al. 2024, arXiv:2410.10989): one chunk's logits are all that is ever held, and none is computed twice.
    `more` (N, ...) is given to the loss after the labels, and has no gradient.
    """
    kept = labels != NOT_SCORED
    hidden, targets = hidden[kept], [target[kept] for target in (labels, *more)]
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _ChunkedLoss.apply(hidden, weight, loss, *targets)
    return torch.stack([_chunk_loss(part, weight, loss, target) for part, target in _chunks(hidden, targets)]).sum()


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, loss: nn.Module, *targets: Tensor) -> Tensor:
        inputs = [hidden.detach(), weight.detach().requires_grad_(weight.requires_grad)]
        total, to_hidden, to_weight = hidden.new_zeros((), dtype=torch.float32), [], None
        if weight.requires_grad:
            to_weight = torch.zeros_like(weight)
        for part, target in _chunks(inputs[0], targets):
            with torch.enable_grad():
                part = part.requires_grad_()
                summed = _chunk_loss(part, inputs[1], loss, target)
                wanted = [part, inputs[1]] if weight.requires_grad else [part]
                gradients = torch.autograd.grad(summed, wanted)
            total += summed.detach()
            to_hidden.append(gradients[0])
            if to_weight is not None:
                to_weight += gradients[1]
        ctx.save_for_backward(torch.cat(to_hidden), to_weight)
        ctx.without_gradient = 1 + len(targets)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight = ctx.saved_tensors
        of_weight = None if to_weight is None else to_weight * upstream[0]
        return to_hidden * upstream[0], of_weight, *([None] * ctx.without_gradient)


def _chunks(hidden: Tensor, targets: Sequence[Tensor]) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    hidden_parts, *parts = (each.split(CHUNK_TOKENS) for each in (hidden, *targets))
    return zip(hidden_parts, zip(*parts, strict=True), strict=True)


def _chunk_loss(hidden: Tensor, weight: Tensor, loss: nn.Module, targets: Sequence[Tensor]) -> Tensor:
    filled = filled_up(hidden) if keeps_code_by_shape(hidden) else hidden
    return loss(nn.functional.linear(filled, weight)[: len(hidden)], *targets).sum()
