"""Which rows stand in which batch, in which order: a function of the row lengths, the seed and the epoch alone.

B rows in a batch, T tokens in the longest of them. Padding stands on the right and is told by length, never by token
identity, since GPT-2 has no pad token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.data.transforms.balance import drawn_rows
from permafrost.errors import DataError
from permafrost.storage.ragged import RaggedArray

CHUNK_BATCHES = 256  # rows are sorted by length within about this many batches: little padding, still shuffled


class Batch(NamedTuple):
    """One padded batch. `loss_scale` turns a sum of target losses into this batch's share of its step's mean loss."""

    input_ids: Tensor  # (B, T) int64
    lengths: Tensor  # (B,) int64, at least 1
    labels: Tensor  # (B,) one label a row, (B, K) several, (B, T) one for each token with -100 where there is none
    num_targets: Tensor  # () int64, losses in the sum
    row_ids: Tensor  # (B,) int64, position in the split
    source_rows: Tensor  # (B,) int64, position in the source: several windows may be of one row
    loss_scale: Tensor  # () float32
    trunk_states: Tensor | None = None  # (B, T, C), what the frozen part makes of the tokens, where that is stored
    teacher_states: Tensor | None = None  # (B, T, C), likewise of the model that is learned from
    part: str = ""  # which of several tasks its rows are of


@dataclass(frozen=True, kw_only=True)
class TokenBatching:
    """As many rows as fit `max_tokens`, padding counted: rows x longest row."""

    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class RowBatching:
    """Always `batch_size` rows, however long."""

    batch_size: int


Batching = TokenBatching | RowBatching


def shuffled_batches(
    lengths: np.ndarray, batching: Batching, *, seed: int, epoch: int, weights: np.ndarray | None = None
) -> list[np.ndarray]:
    """Row positions of each batch of one epoch, rows of like length together: every row once, or as often as its weight
    says."""
    generator = np.random.default_rng([seed, epoch])
    if weights is None:
        order = generator.permutation(len(lengths))
    else:
        order = generator.permutation(drawn_rows(weights, seed=seed, epoch=epoch))
    chunk_rows = max(1, CHUNK_BATCHES * _typical_rows(lengths, batching))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), chunk_rows):
        chunk = order[start : start + chunk_rows]
        batches += _cut(chunk[np.argsort(lengths[chunk], kind="stable")], lengths, batching)
    return [batches[i] for i in generator.permutation(len(batches))]


def ordered_batches(lengths: np.ndarray, batching: Batching) -> list[np.ndarray]:
    """Row positions of each evaluation batch: every row once, longest first, so that memory peaks at the start."""
    return _cut(np.argsort(lengths, kind="stable"), lengths, batching)[::-1]


def padding_share(batches: Sequence[np.ndarray], lengths: np.ndarray) -> float:
    """Share of the computed tokens that are padding, 0 to 1."""
    computed = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1 - float(lengths.sum()) / computed if computed else 0.0


def loss_scales(per_batch: np.ndarray, accumulate: int, world_size: int) -> np.ndarray:
    """Per batch, of its number of targets: `accumulate * world_size / targets of its optimizer step`.

    The trainer divides each loss by `accumulate` and averages gradients over processes; with these factors on loss
    *sums*, the step's gradient is the plain mean over all its targets, however unequal the batches are.
    """
    step = np.arange(len(per_batch)) // accumulate
    per_step = np.bincount(step, weights=per_batch)
    return accumulate * world_size / np.maximum(per_step[step], 1)


def padded_batch(split: TokenizedSplit, rows: np.ndarray, loss_scale: float = 1.0) -> Batch:
    """The rows as one batch; where the split has no labels, the tokens themselves are."""
    ids = [split.input_ids[row] for row in rows]
    labels = split.input_ids if split.labels is None else split.labels
    return Batch(
        input_ids=pad_right(ids),
        lengths=torch.tensor([len(row) for row in ids]),
        labels=_labels_of(labels, rows),
        num_targets=torch.tensor(int(split.num_targets[rows].sum())),
        row_ids=torch.from_numpy(rows),
        source_rows=torch.from_numpy(rows if split.source_rows is None else split.source_rows[rows]),
        loss_scale=torch.tensor(loss_scale, dtype=torch.float32),
    )


def _labels_of(labels: np.ndarray | RaggedArray, rows: np.ndarray) -> Tensor:
    if isinstance(labels, RaggedArray):
        return pad_right([labels[row] for row in rows], fill=-100)
    return torch.from_numpy(labels[rows])


class PlannedBatch(NamedTuple):
    rows: np.ndarray  # (B,) int64, positions in the split
    loss_scale: float
    part: str = ""


def in_parts(batches: Sequence[PlannedBatch], parts: int) -> list[PlannedBatch]:
    """Each batch as `parts` batches, whose losses make up its own where as many more are accumulated.

    A part without rows repeats the batch's first one at no weight, so that every batch has as many parts.
    """
    if parts == 1:
        return list(batches)
    cut: list[PlannedBatch] = []
    for batch in batches:
        for rows in np.array_split(batch.rows, parts):
            has_rows = len(rows) > 0
            scale = parts * batch.loss_scale if has_rows else 0.0
            cut.append(batch._replace(rows=rows if has_rows else batch.rows[:1], loss_scale=scale))
    return cut


def at_least(number: int, batches: Sequence[PlannedBatch]) -> list[PlannedBatch]:
    """So many batches, for as many processes: the ones with most rows are cut in two.

    Raises:
        DataError: there are fewer rows.
    """
    cut = list(batches)
    while len(cut) < number:
        largest = max(range(len(cut)), key=lambda place: len(cut[place].rows))
        halves = in_parts([cut[largest]], 2)
        if not halves[1].loss_scale:
            raise DataError(f"a split of {len(cut)} rows is too small for {number} processes; lower trainer.devices")
        cut[largest : largest + 1] = [half._replace(loss_scale=cut[largest].loss_scale) for half in halves]
    return cut


class PlannedBatches(Sampler[PlannedBatch]):
    """Batches drawn up beforehand, from the `start`-th on, each cut to one process's share.

    Its length is the whole epoch's, as Lightning adds the batches done before a resume to those it draws.
    """

    def __init__(self, batches: Sequence[PlannedBatch], *, start: int = 0, rank: int = 0, world_size: int = 1):
        self.batches, self.start, self.rank, self.world_size = batches, start, rank, world_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PlannedBatch]:
        for batch in self.batches[self.start :]:
            share = batch.rows[self.rank :: self.world_size]
            # A process left without a row repeats the first one at no weight, so that all take part in every step.
            if len(share):
                yield batch._replace(rows=share)
            else:
                yield batch._replace(rows=batch.rows[:1], loss_scale=0.0)


def pad_right(sequences: Sequence[np.ndarray], fill: int = 0) -> Tensor:
    """(B, T) int64 with `fill` to the right of the shorter sequences."""
    padded = np.full((len(sequences), max(len(sequence) for sequence in sequences)), fill, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)


def _typical_rows(lengths: np.ndarray, batching: Batching) -> int:
    if isinstance(batching, RowBatching):
        return batching.batch_size
    return int(batching.max_tokens / max(1.0, float(lengths.mean()))) if len(lengths) else 1


def _cut(order: np.ndarray, lengths: np.ndarray, batching: Batching) -> list[np.ndarray]:
    """Cut rows sorted by rising length into consecutive batches within the budget, of one row at least."""
    if isinstance(batching, RowBatching):
        return [order[start : start + batching.batch_size] for start in range(0, len(order), batching.batch_size)]
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end - start > 1 and (end - start) * lengths[order[end - 1]] > batching.max_tokens:
            batches.append(order[start : end - 1])
            start = end - 1
    return [*batches, order[start:]] if start < len(order) else batches
