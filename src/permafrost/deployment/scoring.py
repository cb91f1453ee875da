"""A model's score on labelled rows, and how sure it is: answers are made once, and scored on any part of the rows."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from permafrost.compression.measure import bootstrap
from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.deployment.predictor import Predictor, batches
from permafrost.tasks.base import LOSS, Answers, WritesAnswers
from permafrost.tasks.language_modeling import LanguageModeling, count_words
from permafrost.tasks.positions import NOT_SCORED
from permafrost.tasks.preparation import encode_table
from permafrost.tasks.writing import write

GROUPS = 100  # of rows, that are drawn together


class Scored(Protocol):
    """Answers to rows, in groups."""

    units: int  # groups

    def score(self, groups: np.ndarray) -> float:
        """The metric over these groups."""
        ...


def scored(predictor: Predictor, table: pa.Table, metric: str) -> Scored:
    """By the texts that are written where the metric is of those, else by the model's outputs."""
    task = predictor.task
    if isinstance(task, WritesAnswers) and metric not in (LOSS, "perplexity"):
        return ScoredTexts(predictor, table, metric, task)
    return ScoredOutputs(predictor, table, metric)


def value_of(answers: Scored) -> float:
    return answers.score(np.arange(answers.units))


def interval_of(answers: Scored) -> tuple[float, float]:
    return bootstrap(answers.score, answers.units)


class ScoredTexts:
    def __init__(self, predictor: Predictor, table: pa.Table, metric: str, task: WritesAnswers):
        self.task, self.metric, self.rows, self.groups = task, metric, table.to_pylist(), grouped(table.num_rows)
        self.written = write(task, predictor.model.transformer, self.rows, predictor.encoding)
        self.units = len(self.groups)

    def score(self, groups: np.ndarray) -> float:
        chosen = np.concatenate([self.groups[group] for group in groups])
        return self.task.score([self.written[i] for i in chosen], [self.rows[i] for i in chosen])[self.metric]


class ScoredOutputs:
    def __init__(self, predictor: Predictor, table: pa.Table, metric: str):
        self.task, self.metric = predictor.task, metric
        self.answering = predictor.task if isinstance(predictor.task, Answers) else None
        if isinstance(predictor.task, LanguageModeling):
            predictor.task.words = {"test": count_words(table)}
        self.outputs = list(self._outputs(predictor, table))
        self.units = len(self.outputs)
        self.num_targets = sum(batch.num_targets for group in self.outputs for *_, batch in group)

    def score(self, groups: np.ndarray) -> float:
        # a group that is drawn twice has rows of its own each time
        drawn = [
            (loss_sum, outputs, _renumbered(batch, copy))
            for copy, group in enumerate(groups)
            for loss_sum, outputs, batch in self.outputs[group]
        ]
        count = sum(batch.num_targets for _, _, batch in drawn)
        mean = torch.stack([loss_sum for loss_sum, _, _ in drawn]).sum() / count
        # Perplexity per word: how many words drawn windows have is not known; per token they have as many as all rows.
        values = {LOSS: mean, **self.task.metrics_of_loss(mean, torch.as_tensor(self.num_targets), "test")}
        if self.answering:
            metrics = self.answering.build_metrics("test")
            for outputs, batch in joined([(outputs, batch) for _, outputs, batch in drawn]):
                self.answering.update_metrics(metrics, outputs, batch)
            values |= metrics.compute()
        return float(values[self.metric])

    @torch.inference_mode()
    def _outputs(self, predictor: Predictor, table: pa.Table) -> Iterator[list[tuple[Tensor, Any, Batch]]]:
        split = encode_table(self.task, table, predictor.encoding)
        for rows in windows_of(split, grouped(table.num_rows)):
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


def joined(parts: Sequence[tuple[Tensor, Batch]]) -> Sequence[tuple[Tensor, Batch]]:
    """As one, so that a metric is updated once and not for every group; as they are where outputs do not go together.

    What scoring reads of a batch alone is whole in it: labels and which rows they are of."""
    if len({outputs.shape[1:] for outputs, _ in parts}) > 1:
        return parts
    batches = [batch for _, batch in parts]
    longest = max(batch.labels.shape[-1] for batch in batches)
    whole = batches[0]._replace(
        labels=torch.cat([_widened(batch.labels, longest) for batch in batches]),
        row_ids=torch.cat([batch.row_ids for batch in batches]),
        source_rows=torch.cat([batch.source_rows for batch in batches]),
    )
    return [(torch.cat([outputs for outputs, _ in parts]), whole)]


def _widened(labels: Tensor, longest: int) -> Tensor:
    """(B, T) labels of tokens -> (B, longest); others as they are."""
    if labels.dim() == 1:
        return labels
    return functional.pad(labels, (0, longest - labels.shape[1]), value=NOT_SCORED)


def _renumbered(batch: Batch, copy: int) -> Batch:
    offset = copy * 2**32
    return batch._replace(source_rows=batch.source_rows + offset, row_ids=batch.row_ids + offset)
