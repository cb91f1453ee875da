"""What a task is: how a row becomes tokens, which head and loss it takes, how it is scored and answered."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from permafrost.data.batching import Batch
from permafrost.data.tokenization import TokenizedSplit
from permafrost.ragged import RaggedArray

if TYPE_CHECKING:
    from torchmetrics import MetricCollection
    from transformers import PreTrainedTokenizerBase

Mode = Literal["min", "max"]
LossFunction = nn.Module  # (logits, labels) -> one loss per target, unreduced
LOSS = "loss"  # the metric that every task logs


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How texts become token ids."""

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int  # tokens; longer rows are cut on the right, counted and said


class Columns(Protocol):
    """Rows of which single columns are asked for: a table, or rows kept on disk."""

    def __getitem__(self, name: str, /) -> pa.ChunkedArray: ...


class Task(Protocol):
    """One instance is bound to its data: it knows the labels or the target's scale, read from the training rows."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> Sequence[str]:
        """The roles that its rows must fill."""
        ...

    @property
    def metrics_logged(self) -> Mapping[str, Mode]:
        """Metric -> whether less or more is better."""
        ...

    @property
    def num_outputs(self) -> int:
        """Outputs of its head; 0 where the head is the embedding."""
        ...

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        """Rows as tokens, part by part: a tokenizer's own lists are many times the token ids."""
        ...

    def build_head(self, backbone: nn.Module) -> nn.Module: ...

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, Tensor | None]:
        """(): the losses of all targets, summed; and the logits, where answers need them."""
        ...

    def build_metrics(self) -> "MetricCollection": ...

    def update_metrics(self, metrics: Any, logits: Tensor | None, batch: Batch) -> None: ...

    def metrics_of_loss(self, loss: Tensor) -> dict[str, Tensor]:
        """Metrics that are functions of the mean loss."""
        ...

    def answers(self, logits: Tensor) -> list[dict[str, Any]]:
        """One answer a row, in the user's words and units."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values from which `bind_described` makes the same task again."""
        ...


def encode_texts(rows: pa.Table, encoding: Encoding) -> tuple[list[np.ndarray], int]:
    """Token ids of each row's `text` and, for pairs, `text_pair`; and how many rows were cut.

    Every row ends with the end-of-text token, and the two texts of a pair have one between them. It is the one place
    that a `last` head reads: always the same token, always the last, so that no padding can be taken for it.
    """
    tokenizer, limit, end = encoding.tokenizer, encoding.max_length - 1, encoding.tokenizer.eos_token_id
    ids = tokenizer(rows["text"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
    if "text_pair" in rows.column_names:
        seconds = tokenizer(rows["text_pair"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
        ids = [[*first, end, *second] for first, second in zip(ids, seconds, strict=True)]
    truncated = sum(len(row) > limit for row in ids)
    return [np.array([*row[:limit], end], dtype=np.int32) for row in ids], truncated


def tokenized_split(
    ids: Sequence[np.ndarray], num_targets: np.ndarray, labels: np.ndarray | None, truncated_rows: int
) -> TokenizedSplit:
    offsets = np.cumsum([0, *(len(row) for row in ids)], dtype=np.int64)
    values = np.concatenate(ids).astype(np.int32) if len(ids) else np.empty(0, np.int32)
    return TokenizedSplit(
        input_ids=RaggedArray(values, offsets),
        num_targets=num_targets.astype(np.int32),
        labels=labels,
        truncated_rows=truncated_rows,
    )
