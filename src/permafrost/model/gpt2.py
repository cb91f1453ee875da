"""The model that is trained: a GPT-2 backbone, cut at the frozen depth, under one head."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from permafrost.model.backbone import branch, trunk
from permafrost.model.freezing import Freezing, freeze_

if TYPE_CHECKING:
    from transformers import GPT2Model


class GPT2WithHead(nn.Module):
    """`transformer` (a Hugging Face GPT2Model) and `head`; what `freezing` names has no gradient and stays in eval."""

    def __init__(self, transformer: "GPT2Model", head: nn.Module, freezing: Freezing):
        super().__init__()
        self.transformer, self.head, self.freezing = transformer, head, freezing
        freeze_(self, len(transformer.h), freezing)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) token ids and (B,) lengths -> logits: (B, K) from a pooled head, (B, T, V) from the tied one."""
        return self.head(self.hidden_states(input_ids), lengths)

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), after the final norm."""
        depth = self.freezing.blocks
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freezing.embeddings):
            hidden = trunk(self.transformer, input_ids, depth)
        return branch(self.transformer, hidden, depth)

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
