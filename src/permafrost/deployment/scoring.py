"""A model's score on labelled rows, and how sure it is: answers are made once, and scored on any part of the rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from permafrost.compression.measure import bootstrap
from permafrost.data.batching import Batch
from permafrost.data.tokenization import TokenizedSplit
from permafrost.deployment.predictor import Predictor, batches
from permafrost.tasks.base import LOSS, Answers, Writes
from permafrost.tasks.preparation import encode_table

GROUPS = 100  # of rows, that are drawn together


class Scored:
    """The answers to `table`, in groups of rows: `score(groups)` is the metric over those groups."""

    def __init__(self, predictor: Predictor, table: pa.Table, metric: str):
        self.task, self.metric = predictor.task, metric
        self.groups = grouped(table.num_rows)
        of_written = {*getattr(self.task, "metrics_logged", {})} - {LOSS, "perplexity", "word_perplexity"}
        self.rows = table.to_pylist() if isinstance(self.task, Writes) and metric in of_written else []
        self.written = (
            predictor.task.write(predictor.model.transformer, self.rows, predictor.encoding) if self.rows else []
        )  # type: ignore[attr-defined]
        self.outputs = [] if self.rows else list(self._outputs(predictor, table))
        self.units = len(self.groups) if self.rows else len(self.outputs)

    @property
    def value(self) -> float:
        return self.score(np.arange(self.units))

    def interval(self) -> tuple[float, float]:
        return bootstrap(self.score, self.units)

    def score(self, groups: np.ndarray) -> float:
        if self.rows:
            chosen = np.concatenate([self.groups[group] for group in groups])
            return float(
                self.task.score([self.written[i] for i in chosen], [self.rows[i] for i in chosen])[self.metric]
            )  # type: ignore[attr-defined]
        return float(self._values(groups)[self.metric])

    def _values(self, groups: Sequence[int] | np.ndarray) -> dict[str, Any]:
        metrics = self.task.build_metrics("test") if isinstance(self.task, Answers) else None
        total, count = torch.tensor(0.0), 0
        for copy, group in enumerate(groups):
            for loss_sum, outputs, batch in self.outputs[group]:
                total, count = total + loss_sum, count + int(batch.num_targets)
                if metrics is not None:  # a group that is drawn twice has rows of its own each time
                    self.task.update_metrics(metrics, outputs, _renumbered(batch, copy))  # type: ignore[attr-defined]
        mean = total / count
        of_loss = self.task.metrics_of_loss(mean, torch.tensor(count), "test")
        return {LOSS: mean, **of_loss, **(metrics.compute() if metrics else {})}

    @torch.inference_mode()
    def _outputs(self, predictor: Predictor, table: pa.Table) -> Iterator[list[tuple[Tensor, Any, Batch]]]:
        split = encode_table(self.task, table, predictor.encoding)
        for rows in windows_of(split, self.groups):
            found = [
                (self.task.loss_sum(predictor.model, batch, predictor.loss), batch) for batch in batches(split, rows)
            ]
            yield [(loss_sum, outputs, batch) for (loss_sum, outputs), batch in found]


def grouped(rows: int, seed: int = 0) -> list[np.ndarray]:
    """Row positions, shuffled, in at most GROUPS parts of about equal size."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.array_split(order, min(GROUPS, rows))


def windows_of(split: TokenizedSplit, groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of each group of source rows the rows of the split: a long one has several, and a source without a target none.

    A task that joins texts end to end has no rows of its own, and its windows are grouped."""
    if split.source_rows is None:
        return list(groups) if sum(map(len, groups)) == len(split) else grouped(len(split))
    return [np.flatnonzero(np.isin(split.source_rows, group)) for group in groups]


def _renumbered(batch: Batch, copy: int) -> Batch:
    offset = copy * 2**32
    return batch._replace(source_rows=batch.source_rows + offset, row_ids=batch.row_ids + offset)
