"""Transformers' own class where a trained model stands: ours cannot read what its quantizers make of a block."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from permafrost.errors import ConfigError
from permafrost.model.block import take


class StockModel:
    """As `GPT2WithHead`, but that its states are logits already: `head` adds nothing."""

    def __init__(self, stock: Any):
        self.stock, self.head = stock, nn.Identity()
        self.transformer = stock if hasattr(stock, "lm_head") else None

    def __call__(self, input_ids: Tensor, lengths: Tensor, trunk_states: Tensor | None = None) -> Tensor:
        """(B, T) token ids, (B,) lengths -> (B, K), or (B, T, K) of a head over tokens or the vocabulary"""
        real = torch.arange(input_ids.shape[1]) < lengths[:, None]
        states = self.stock.transformer(input_ids, attention_mask=real.long()).last_hidden_state
        if hasattr(self.stock, "score"):
            return self.stock.score(take(states, lengths[:, None] - 1)[:, 0])
        return (self.transformer.lm_head if self.transformer else self.stock.classifier)(states)

    def hidden_states(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        trunk_states: Tensor | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, K) logits, or (B, Q, K) at `positions` (B, Q) alone."""
        logits = self(input_ids, lengths)
        return logits if positions is None else take(logits, positions)


def load_stock_model(directory: Path) -> StockModel:
    """Raises ConfigError where the quantizer's package is missing."""
    import transformers

    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(directory).architectures[0])
    try:
        return StockModel(kind.from_pretrained(directory, device_map="cpu").eval())
    except ImportError as error:
        raise ConfigError(f"{directory} needs bitsandbytes; pip install 'permafrost[nf4]'") from error
