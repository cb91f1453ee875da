"""What stands where a trained model does and gives logits alone: a graph, or a class of Transformers' own."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from permafrost.model.block import take


class LogitsModel:
    """As `GPT2WithHead`, but that its states are logits already: `head` adds nothing.

    `logits` makes (B, K), or (B, T, K) of a head over tokens or the vocabulary, of (B, T) token ids and (B,) lengths;
    `transformer` is what writes, where the task does.
    """

    def __init__(self, logits: Callable[[Tensor, Tensor], Tensor], transformer: Any = None):
        self.logits, self.transformer, self.head = logits, transformer, nn.Identity()

    def __call__(self, input_ids: Tensor, lengths: Tensor, trunk_states: Tensor | None = None) -> Tensor:
        return self.logits(input_ids, lengths)

    def hidden_states(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        trunk_states: Tensor | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, K) logits, or (B, Q, K) at `positions` (B, Q) alone."""
        logits = self.logits(input_ids, lengths)
        return logits if positions is None else take(logits, positions)
