"""The model that is trained: a GPT-2 backbone, cut at the frozen depth, under one head."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from permafrost.model.backbone import branch, trunk
from permafrost.model.freezing import Freezing, freeze_

if TYPE_CHECKING:
    from transformers import GPT2Model


class GPT2WithHead(nn.Module):
    """`transformer` (a Hugging Face GPT2Model) and `head`; what `freezing` names has no gradient and stays in eval.

    `bidirectional` takes the causal mask off the blocks that are trained: each token sees its whole row there.
    """

    def __init__(self, transformer: "GPT2Model", head: nn.Module, freezing: Freezing, *, bidirectional: bool = False):
        super().__init__()
        self.transformer, self.freezing, self.bidirectional = transformer, freezing, bidirectional
        self.head: Any = head
        freeze_(self, len(transformer.h), freezing)
        self.train()  # Transformers loads in eval mode, and Lightning trains in the mode that it finds

    def forward(self, input_ids: Tensor, lengths: Tensor, trunk_states: Tensor | None = None) -> Tensor:
        """(B, T) token ids and (B,) lengths -> logits: (B, K) from a pooled head, (B, T, V) from the tied one.

        `trunk_states` (B, T, C) are what the frozen part makes of these tokens, where that is known already.
        """
        positions = self.head.reads(lengths)
        return self.head(self.hidden_states(input_ids, lengths, positions, trunk_states), lengths)

    def hidden_states(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        trunk_states: Tensor | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, C) after the final norm, or (B, Q, C) at `positions` (B, Q) alone."""
        depth = self.freezing.blocks
        if trunk_states is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freezing.embeddings):
                trunk_states = trunk(self.transformer, input_ids, depth, lengths)
        else:
            trunk_states = trunk_states.to(self.transformer.ln_f.weight.dtype)
        return branch(self.transformer, trunk_states, depth, positions, lengths, bidirectional=self.bidirectional)

    def train(self, mode: bool = True) -> "GPT2WithHead":
        """Training mode for what is trained; the frozen part keeps its dropout off, so that it is one function."""
        super().train(mode)
        if self.freezing.embeddings:
            self.transformer.drop.eval()
        for block in self.transformer.h[: self.freezing.blocks]:
            block.eval()
        if self.freezing.final_norm:
            self.transformer.ln_f.eval()
        return self
