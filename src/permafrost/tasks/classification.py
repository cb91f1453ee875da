"""One label out of K for each row. Sentiment analysis is this task on texts that hold opinions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from permafrost.data.fields.labels import labels_of
from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.model.heads import Initialization, PooledHead, Pooling
from permafrost.tasks.base import (
    LOSS,
    Encoding,
    LossFunction,
    Mode,
    Outputs,
    Stage,
    Table,
    check_pairs,
    encode_texts,
    stacked,
    text_rows,
    tokenized_split,
)

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class Classification:
    """`labels` in the order of the outputs; `pooling` and `init` are the head's."""

    name = "classification"
    roles = ("text", "label")
    metrics_logged: Mapping[str, Mode] = {
        LOSS: "min",
        "accuracy": "max",
        "f1_macro": "max",
        "mcc": "max",
        "ece": "min",
    }

    def __init__(self, labels: Sequence[str], *, pooling: Pooling, init: Initialization, window: int | None = None):
        self.labels, self.pooling, self.init, self.window = list(labels), pooling, init, window

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "Classification":
        check_pairs(splits["train"], options["pooling"])
        labels, window = labels_of(splits, options["labels"]), options["window"]
        return cls(labels, pooling=options["pooling"], init=options["init"], window=window)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Classification":
        labels, pooling, window = description["labels"], description["pooling"], description["max_length"]
        return cls(labels, pooling=pooling, init="normal", window=window)

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        number = {label: index for index, label in enumerate(self.labels)}
        for rows in slices:
            ids, unread, repeated = encode_texts(rows, encoding, pooling=self.pooling)
            labels = None
            if "label" in rows.column_names:
                labels = np.array([number[label] for label in rows["label"].to_pylist()], np.int64)
            yield tokenized_split(ids, np.ones(len(ids)), labels, unread=unread, repeated=repeated)

    def build_head(self, backbone: nn.Module) -> nn.Module:
        channels: Any = backbone.config.n_embd  # type: ignore[union-attr]
        return PooledHead(channels, len(self.labels), pooling=self.pooling, init=self.init, window=self.window)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, K) logits"""
        return model(batch.input_ids, batch.lengths, batch.trunk_states)

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, Tensor]:
        logits = self.outputs(model, batch)
        return loss(logits, batch.labels).sum(), logits

    def build_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassCalibrationError, MulticlassMatthewsCorrCoef

        classes = len(self.labels)
        of_probabilities = {
            "mcc": MulticlassMatthewsCorrCoef(classes),
            "ece": MulticlassCalibrationError(classes, n_bins=15),
        }
        return MetricCollection(label_metrics(self.labels) | of_probabilities, compute_groups=False)

    def update_metrics(self, metrics: Any, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs.float().softmax(-1), batch.labels)

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        return {}

    def by_row(self, outputs: Tensor, batch: Batch) -> list[Tensor]:
        return list(outputs)

    def answers(self, outputs: Outputs, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`{"label", "score"}`: the likeliest label and its probability."""
        scores, indices = stacked(outputs).softmax(-1).max(-1)
        return [
            {"label": self.labels[index], "score": score}
            for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return text_rows(texts)

    def describe(self) -> dict[str, Any]:
        kind = "classification.Classification"
        return {"task": self.name, "kind": kind, "labels": self.labels, "pooling": self.pooling}


def label_metrics(labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy and F1, macro and of each label."""
    from torchmetrics import ClasswiseWrapper
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    classes = len(labels)
    return {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "f1_macro": MulticlassF1Score(classes, average="macro"),
        "f1": ClasswiseWrapper(MulticlassF1Score(classes, average=None), labels=list(labels), prefix="f1/"),
    }
