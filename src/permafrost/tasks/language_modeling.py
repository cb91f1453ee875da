"""Language modelling: each token from those before it, over texts joined end to end and cut into windows."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn
from torch.nn import functional

from permafrost.data.batching import Batch
from permafrost.data.tokenization import TokenizedSplit
from permafrost.model.heads import TiedHead
from permafrost.tasks.base import LOSS, Encoding, LossFunction, Mode, tokenized_split
from permafrost.tasks.chunked_loss import IGNORED, vocabulary_loss_sum

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

WORTH_CHOOSING = 0.75  # of the positions; where more are scored than this, all are computed


class LanguageModeling:
    """Rows are windows of up to `max_length` tokens; texts are separated by the end-of-text token.

    `perplexity` is exp of the mean loss per token over non-overlapping windows: comparable between runs of one
    tokenizer and window, and with nothing else.
    """

    name = "language_modeling"
    columns = ("text",)
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "perplexity": "min"}
    num_outputs = 0  # the head is the embedding

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        """A window that a slice begins is filled by the next one."""
        left = np.empty(0, np.int32)
        for rows in slices:
            stream = np.concatenate([left, token_stream(rows, encoding)])
            whole = len(stream) // encoding.max_length * encoding.max_length
            yield cut_windows(stream[:whole], encoding.max_length)
            left = stream[whole:]
        yield cut_windows(left, encoding.max_length)

    def build_head(self, backbone: nn.Module) -> nn.Module:
        return TiedHead(backbone.get_submodule("wte"))  # type: ignore[arg-type]

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, None]:
        """Position t is scored on token t + 1, and only positions that are scored are computed to the end."""
        labels = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        positions = positions_scored(labels)
        hidden = model.hidden_states(batch.input_ids, positions, batch.trunk_states)  # type: ignore[operator]
        if positions is not None:
            labels = labels.gather(1, positions)
        embedding = model.head.tied[0].weight  # type: ignore[union-attr, index]
        return vocabulary_loss_sum(hidden.flatten(0, 1), embedding, labels.flatten(), loss), None

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


def token_stream(rows: pa.Table, encoding: Encoding) -> np.ndarray:
    """(tokens,) int32: the texts end to end, each followed by end of text."""
    ids = encoding.tokenizer(rows["text"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
    ends = np.cumsum([len(text) + 1 for text in ids]) - 1
    stream = np.full(int(ends[-1]) + 1 if len(ends) else 0, encoding.tokenizer.eos_token_id, dtype=np.int32)
    for end, text in zip(ends, ids, strict=True):
        stream[end - len(text) : end] = text
    return stream


def cut_windows(stream: np.ndarray, max_length: int) -> TokenizedSplit:
    windows = [stream[start : start + max_length] for start in range(0, len(stream), max_length)]
    windows = [window for window in windows if len(window) > 1]  # one token alone predicts nothing
    return tokenized_split(windows, np.array([len(window) - 1 for window in windows]), None, 0)


def positions_scored(labels: Tensor) -> Tensor | None:
    """(B, T) labels, -100 where there is none -> (B, Q) positions that hold all the others; None where most do.

    Q is the largest count of a row; rows with fewer are filled up with positions that have no label.
    """
    scored = labels != IGNORED
    most = int(scored.sum(1).max())
    if most > WORTH_CHOOSING * labels.shape[1]:
        return None
    return (~scored).int().argsort(dim=1, stable=True)[:, : max(1, most)]
