"""Transformers' own class where a trained model stands: ours cannot read what its quantizers make of a block."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from permafrost.deployment.logits_model import LogitsModel
from permafrost.errors import ConfigError
from permafrost.model.block import take
from permafrost.model.packing import real_tokens


def load_stock_model(directory: Path) -> LogitsModel:
    """Raises ConfigError where the quantizer's package is missing."""
    import transformers

    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(directory).architectures[0])
    try:
        stock = kind.from_pretrained(directory, device_map="cpu").eval()
    except ImportError as error:
        raise ConfigError(f"{directory} needs bitsandbytes; pip install -e '.[nf4]'") from error
    return LogitsModel(partial(stock_logits, stock), stock if hasattr(stock, "lm_head") else None)


def stock_logits(stock: Any, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """(B, T) token ids, (B,) lengths -> (B, K) at each row's last token, or (B, T, K) of a head over tokens or the
    vocabulary; by length, as no token's identity says where a row ends."""
    real = real_tokens(lengths, input_ids.shape[1])
    states = stock.transformer(input_ids, attention_mask=real.long()).last_hidden_state
    if hasattr(stock, "score"):
        return stock.score(take(states, lengths[:, None] - 1)[:, 0])
    return (stock.lm_head if hasattr(stock, "lm_head") else stock.classifier)(states)
