"""Language modelling: each token from those before it, over texts joined end to end and cut into windows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from permafrost.data.batching import Batch
from permafrost.data.tokenization import TokenizedSplit
from permafrost.model.heads import TiedHead
from permafrost.tasks.base import LOSS, Encoding, LossFunction, Mode, tokenized_split

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

CHUNK_TOKENS = 1024


class LanguageModeling:
    """Rows are windows of up to `max_length` tokens; texts are separated by the end-of-text token.

    `perplexity` is exp of the mean loss per token over non-overlapping windows: comparable between runs of one
    tokenizer and window, and with nothing else.
    """

    name = "language_modeling"
    columns = ("text",)
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "perplexity": "min"}
    num_outputs = 0  # the head is the embedding

    def encode(self, rows: pa.Table, encoding: Encoding) -> TokenizedSplit:
        tokenizer = encoding.tokenizer
        ids = tokenizer(rows["text"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
        ends = np.cumsum([len(text) + 1 for text in ids]) - 1
        stream = np.full(int(ends[-1]) + 1 if len(ends) else 0, tokenizer.eos_token_id, dtype=np.int32)
        for end, text in zip(ends, ids, strict=True):
            stream[end - len(text) : end] = text
        windows = [stream[start : start + encoding.max_length] for start in range(0, len(stream), encoding.max_length)]
        windows = [window for window in windows if len(window) > 1]  # one token alone predicts nothing
        return tokenized_split(windows, np.array([len(window) - 1 for window in windows]), None, 0)

    def build_head(self, backbone: nn.Module) -> nn.Module:
        return TiedHead(backbone.get_submodule("wte"))  # type: ignore[arg-type]

    def target_losses(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, None]:
        """Position t is scored on token t + 1. The vocabulary's logits exist for `CHUNK_TOKENS` tokens at a time."""
        hidden = model.hidden_states(batch.input_ids)[:, :-1].flatten(0, 1)  # type: ignore[operator]
        labels = batch.labels[:, 1:].flatten()
        chunks = zip(hidden.split(CHUNK_TOKENS), labels.split(CHUNK_TOKENS), strict=True)
        return torch.cat([loss(model.head(part, None), target) for part, target in chunks]), None  # type: ignore[operator]

    def build_metrics(self) -> "MetricCollection":
        from torchmetrics import MetricCollection

        return MetricCollection({})

    def update_metrics(self, metrics: Any, logits: Tensor | None, batch: Batch) -> None:
        """All there is follows from the loss."""

    def metrics_of_loss(self, loss: Tensor) -> dict[str, Tensor]:
        return {"perplexity": loss.exp()}

    def answers(self, logits: Tensor) -> list[dict[str, Any]]:
        return []

    def describe(self) -> dict[str, Any]:
        return {"task": self.name}
