"""The model that is trained: a GPT-2 backbone, cut at the frozen depth, under one head."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from permafrost.model.backbone import branch, trunk
from permafrost.model.freezing import Freezing, freeze_
from permafrost.model.long_rows import fold, unfold, window_lengths, within_windows
from permafrost.model.pairs import apart, first_lengths, text_lengths, together

if TYPE_CHECKING:
    from transformers import GPT2Model


class GPT2WithHead(nn.Module):
    """`transformer` (a Hugging Face GPT2Model) and `head`; what `freezing` names has no gradient and stays in eval.

    `bidirectional` takes the causal mask off the blocks that are trained: each token sees its whole row there. Rows
    longer than `window` tokens, else the model's own positions, are run as windows that begin anew. A head for pairs
    has the two texts of a row run as rows of their own.
    """

    def __init__(
        self,
        transformer: "GPT2Model",
        head: nn.Module,
        freezing: Freezing,
        *,
        bidirectional: bool = False,
        window: int | None = None,
    ):
        super().__init__()
        self.transformer, self.freezing, self.bidirectional = transformer, freezing, bidirectional
        self.window = window or transformer.config.n_positions
        self.head: Any = head
        self.reads_apart = getattr(head, "pooling", None) == "pair"
        freeze_(self, len(transformer.h), freezing)
        self.train()  # Transformers loads in eval mode, and Lightning trains in the mode that it finds

    def forward(self, input_ids: Tensor, lengths: Tensor, trunk_states: Tensor | None = None) -> Tensor:
        """(B, T) token ids and (B,) lengths -> logits: (B, K) from a pooled head, (B, T, V) from the tied one.

        `trunk_states` (B, T, C) are what the frozen part makes of these tokens, where that is known already.
        """
        if trunk_states is not None:
            trunk_states, _ = self.as_run(trunk_states, input_ids, lengths)
        input_ids, lengths = self.as_run(input_ids, input_ids, lengths)
        positions = self.head.reads(lengths)
        return self.head(self.hidden_states(input_ids, lengths, positions, trunk_states), lengths)

    def as_run(self, rows: Tensor, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, ...) of these tokens, (B,) -> what the blocks see as rows, and their lengths: the same, or of pairs
        (2 B, S, ...), (2 B,) texts."""
        if not self.reads_apart:
            return rows, lengths
        firsts = self._firsts(input_ids, lengths)
        return apart(rows, firsts, lengths), text_lengths(firsts, lengths)

    def frozen_states(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) -> (B, T, C): what `forward` takes as `trunk_states`."""
        states = self.below_the_cut(*self.as_run(input_ids, input_ids, lengths))
        return together(states, self._firsts(input_ids, lengths), input_ids.shape[1]) if self.reads_apart else states

    def _firsts(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        end: Any = self.transformer.config.eos_token_id
        return first_lengths(input_ids, lengths, end)

    def hidden_states(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        trunk_states: Tensor | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, C) after the final norm, or (B, Q, C) at `positions` (B, Q) alone."""
        if trunk_states is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freezing.embeddings):
                trunk_states = self.below_the_cut(input_ids, lengths)
        else:
            trunk_states = trunk_states.to(self.transformer.ln_f.weight.dtype)
        return self.above_the_cut(trunk_states, lengths, positions)

    def below_the_cut(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)"""
        rows, longest = input_ids.shape
        if longest <= self.window:
            return trunk(self.transformer, input_ids, self.freezing.blocks, lengths)
        windows, lengths = self._folded(input_ids, lengths)
        return unfold(trunk(self.transformer, windows, self.freezing.blocks, lengths), rows)[:, :longest]

    def above_the_cut(self, states: Tensor, lengths: Tensor, positions: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C), or (B, Q, C) at `positions` (B, Q) alone: of long rows one of each window."""
        rows, longest = states.shape[:2]
        depth, bidirectional = self.freezing.blocks, self.bidirectional
        if longest <= self.window:
            return branch(self.transformer, states, depth, positions, lengths, bidirectional=bidirectional)
        windows, lengths = self._folded(states, lengths)
        within = None if positions is None else within_windows(positions, self.window)
        hidden = branch(self.transformer, windows, depth, within, lengths, bidirectional=bidirectional)
        return unfold(hidden, rows)[:, :longest]

    def _folded(self, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        count = -(-rows.shape[1] // self.window)
        return fold(rows, self.window), window_lengths(lengths, self.window, count)

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
