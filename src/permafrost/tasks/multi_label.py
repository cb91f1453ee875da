"""Several labels, or none, out of K for each row: legal clauses that are unfair in more than one way."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from permafrost.data.fields.labels import all_labels_of
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


class MultiLabel:
    """A label is given where its probability reaches its threshold: the one with the best F1 on validation."""

    name = "multi_label"
    roles = ("text", "labels")
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "f1_macro": "max", "f1_micro": "max", "exact_match": "max"}

    def __init__(
        self,
        labels: Sequence[str],
        *,
        pooling: Pooling,
        init: Initialization,
        window: int | None = None,
        thresholds: Sequence[float] | None = None,
    ):
        self.labels, self.pooling, self.init, self.window = list(labels), pooling, init, window
        self.thresholds = torch.tensor(thresholds or [0.5] * len(self.labels))

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "MultiLabel":
        pooling, init, window = options["pooling"], options["init"], options["window"]
        check_pairs(splits["train"], pooling)
        return cls(all_labels_of(splits), pooling=pooling, init=init, window=window)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "MultiLabel":
        labels, pooling, window = description["labels"], description["pooling"], description["max_length"]
        return cls(labels, pooling=pooling, init="normal", window=window, thresholds=description["thresholds"])

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        number = {label: index for index, label in enumerate(self.labels)}
        for rows in slices:
            ids, unread, repeated = encode_texts(rows, encoding, pooling=self.pooling)
            labels = None
            if "labels" in rows.column_names:
                labels = np.zeros((len(ids), len(number)), np.float32)
                for row, given in zip(labels, rows["labels"].to_pylist(), strict=True):
                    row[[number[label] for label in given]] = 1
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

        return MetricCollection([ThresholdedF1(self, chooses=stage == "validation")])

    def update_metrics(self, metrics: Any, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs.float().sigmoid(), batch.labels)

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        return {}

    def by_row(self, outputs: Tensor, batch: Batch) -> list[Tensor]:
        return list(outputs)

    def answers(self, outputs: Outputs, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`{"labels", "scores"}`: those at or above their threshold, and the probability of each of them."""
        probabilities = stacked(outputs).sigmoid()
        chosen = [row.nonzero()[:, 0].tolist() for row in probabilities >= self.thresholds]
        return [
            {"labels": [self.labels[i] for i in indices], "scores": [float(row[i]) for i in indices]}
            for row, indices in zip(probabilities, chosen, strict=True)
        ]

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return text_rows(texts)

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "kind": "multi_label.MultiLabel",
            "labels": self.labels,
            "pooling": self.pooling,
            "thresholds": self.thresholds.tolist(),
        }


class ThresholdedF1(Metric):
    """F1 of each label, their mean and that of all decisions together; and the share of rows without an error.

    The one that `chooses`, on validation, sets the task's thresholds; the other takes them as they are.
    """

    full_state_update = False
    probabilities: list[Tensor]
    labels: list[Tensor]

    def __init__(self, task: MultiLabel, *, chooses: bool):
        super().__init__()
        self.task, self.chooses = task, chooses
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """(B, K) twice"""
        self.probabilities.append(probabilities)
        self.labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        probabilities, labels = (_joined(state) for state in (self.probabilities, self.labels))
        if self.chooses:
            self.task.thresholds = best_thresholds(probabilities, labels)
        predicted = probabilities >= self.task.thresholds
        scores = label_scores(predicted.numpy(), labels.numpy() > 0, self.task.labels)
        return {name: torch.tensor(value) for name, value in scores.items()}


def best_thresholds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(N, K) twice -> (K,): halfway between the two probabilities where cutting gives the best F1; 0.5 without rows."""
    thresholds = torch.full((labels.shape[1],), 0.5)
    for column in range(labels.shape[1]):
        scores, order = probabilities[:, column].sort(descending=True)
        true = labels[order, column].cumsum(0)
        if true[-1] == 0:
            continue
        f1 = 2 * true / (torch.arange(1, len(scores) + 1) + true[-1])
        f1[:-1][scores[:-1] == scores[1:]] = 0  # equal probabilities cannot be told apart
        cut = int(f1.argmax())
        below = scores[cut + 1] if cut + 1 < len(scores) else scores[cut] * 0
        thresholds[column] = (scores[cut] + below) / 2
    return thresholds


def label_scores(predicted: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """(N, K) bool twice; by scikit-learn, 0 for a label that is neither there nor given."""
    from sklearn.metrics import f1_score

    # column by column, as scikit-learn takes a single one for two classes
    by_label = [f1_score(*columns, zero_division=0) for columns in zip(true.T, predicted.T, strict=True)]
    return {
        "f1_macro": float(np.mean(by_label)),
        "f1_micro": float(f1_score(true.ravel(), predicted.ravel(), zero_division=0)),
        "exact_match": float((predicted == true).all(1).mean()),
        **{f"f1/{label}": float(score) for label, score in zip(labels, by_label, strict=True)},
    }


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    return (torch.cat(state) if isinstance(state, list) else state).cpu()
