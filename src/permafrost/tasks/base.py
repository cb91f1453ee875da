"""What a task is: how a row becomes tokens, which head and loss it takes, how it is scored and answered."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from permafrost.data.rows import Table
from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.data.tokens.windows import OVERLAP, windows
from permafrost.errors import ConfigError
from permafrost.model.decoding import Decoding
from permafrost.model.heads import Pooling
from permafrost.storage.ragged import RaggedArray

if TYPE_CHECKING:
    from torchmetrics import MetricCollection
    from transformers import PreTrainedTokenizerBase

Mode = Literal["min", "max"]
Stage = Literal["validation", "test"]
LossFunction = nn.Module  # (logits, labels) -> one loss per target, unreduced
LossSum = Callable[[nn.Module, Batch, LossFunction], tuple[Tensor, Tensor | None]]  # as Task.loss_sum
Outputs = Sequence[Sequence[Tensor]]  # of each source row, what by_row gave of its windows, in their order
LOSS = "loss"  # the metric that every task logs
NO_PAIR = (
    "head=pair compares the two texts of a row, and these rows have one: give two columns "
    "('data.columns.text=[ONE, OTHER]'; of a trained run, the other text with --pair), or head=last"
)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How texts become token ids."""

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int  # tokens; longer rows are cut on the right, counted and said
    max_windows: int = 1  # of so many tokens, for tasks that pool a long row's windows
    evaluates: bool = False  # rows that are scored and not trained on
    cleaning: Mapping[str, Any] = field(default_factory=dict)  # steps that its rows have gone through


@runtime_checkable
class Answers(Protocol):
    """A task whose answers are read off the model's outputs, and scored by them."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What metrics and answers need; no label is read but for which tokens have one."""
        ...

    def build_metrics(self, stage: Stage) -> "MetricCollection": ...

    def update_metrics(self, metrics: Any, outputs: Tensor, batch: Batch) -> None: ...

    def by_row(self, outputs: Tensor, batch: Batch) -> list[Tensor]:
        """What answers need of each row of the batch."""
        ...

    def answers(self, outputs: Outputs, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One answer a source row, in the user's words and units."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What leads to each row's text, and how that is written."""

    ids: Sequence[Sequence[int]]
    unread: Sequence[int]  # tokens of each row that there was no room for
    decoding: Decoding

    @property
    def truncated_rows(self) -> int:
        return sum(count > 0 for count in self.unread)

    @property
    def share_read(self) -> float:
        read = sum(map(len, self.ids))
        return read / max(1, read + sum(self.unread))


@runtime_checkable
class Writes(Protocol):
    """A task whose model writes texts (tasks/writing.py), by its `decoding`."""

    def prompts(self, rows: Sequence[Mapping[str, Any]], encoding: Encoding) -> Prompts: ...

    def asked(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row without what comes after what is written."""
        ...


@runtime_checkable
class WritesAnswers(Writes, Protocol):
    """A task whose answers are texts: rows have others, which these are scored by."""

    def score(self, written: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]: ...

    def with_answers(self, rows: pa.Table, written: Sequence[str]) -> pa.Table:
        """The rows with these texts in place of their own answers; where a text is empty, the row keeps its own."""
        ...


class Task(Protocol):
    """One instance is bound to its data: it knows the labels or the target's scale, read from the training rows.

    It may answer, as `Answers` or as `WritesAnswers` has it.
    """

    @property
    def name(self) -> str: ...

    @property
    def roles(self) -> Sequence[str]:
        """What its rows must fill (data/fields/roles.py)."""
        ...

    @property
    def metrics_logged(self) -> Mapping[str, Mode]:
        """Metric -> whether less or more is better."""
        ...

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "Task":
        """Bound to the labels, the scale or the like of the training rows. `options` are what conf/task and conf/head
        say, and `right_context`, of which each task takes what is its own."""
        ...

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Task": ...

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        """Rows as tokens, part by part: a tokenizer's own lists are many times the token ids."""
        ...

    def build_head(self, backbone: nn.Module) -> nn.Module: ...

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, Tensor | None]:
        """(): the losses of all targets, summed; and the outputs of a task that answers by them."""
        ...

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        """Metrics that are functions of the mean loss over so many targets."""
        ...

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Texts that come without a file, as rows of its roles but for what it answers."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values, `kind` among them, from which and `max_length`, the encoding's, `from_description` makes the
        same task again."""
        ...


def classes_of(task: Task) -> list[str]:
    """The labels or tags that its outputs stand for, in their order; none of a number or a text."""
    described = task.describe()
    return described.get("tags") or described.get("labels") or []


def in_part(part: str, name: str) -> str:
    """`PART/NAME` of a metric or the like, or as it is in a run of one task, whose part has no name."""
    return f"{part}/{name}" if part else name


def encode_texts(
    rows: pa.Table, encoding: Encoding, *, pooling: Pooling = "last"
) -> tuple[list[np.ndarray], list[int], list[int]]:
    """Token ids of each row's `text` and, for pairs, `text_pair`; how many tokens of each were left out; and how many
    stand there more than once, or for the end of a window that is not the last.

    Every row ends with the end-of-text token, and the two texts of a pair have one between them. It is the one place
    that a `last` head reads: always the same token, always the last, so that no padding can be taken for it. A long
    row's windows stand end to end, each with an end of its own, and overlap by an eighth.

    Raises:
        ConfigError: the head compares the texts of pairs, and these are single ones.
    """
    check_pairs(rows, pooling)
    tokenizer, limit, end = encoding.tokenizer, encoding.max_length - 1, encoding.tokenizer.eos_token_id
    ids = tokenizer(rows["text"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
    if "text_pair" in rows.column_names:
        seconds = tokenizer(rows["text_pair"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
        if pooling == "pair":  # the first one ends where it is told to: an end that is written in it is none
            ids = [[token for token in first if token != end] for first in ids]
        ids = [[*first, end, *second] for first, second in zip(ids, seconds, strict=True)]
    written, unread, repeated = [], [], []
    for row in ids:
        parts = windows(len(row), limit, left_context=limit // OVERLAP)[: encoding.max_windows]
        written.append(np.array([token for part in parts for token in (*row[part.start : part.end], end)], np.int32))
        unread.append(len(row) - parts[-1].scored_to)
        repeated.append(len(written[-1]) - parts[-1].scored_to - 1)
    return written, unread, repeated


def check_pairs(rows: Table, pooling: Pooling) -> None:
    """Raises ConfigError where the head compares the texts of pairs, and these are single ones."""
    if pooling == "pair" and "text_pair" not in rows.column_names:
        raise ConfigError(NO_PAIR)


def tokenized_split(
    ids: Sequence[np.ndarray],
    num_targets: np.ndarray,
    labels: np.ndarray | Sequence[np.ndarray] | None,
    *,
    unread: Sequence[int] = (),
    repeated: Sequence[int] = (),
    source_rows: np.ndarray | None = None,
) -> TokenizedSplit:
    """`labels` is an array with an entry for each row, or for each row an array with an entry for each token; `unread`
    the tokens of each row that there was no room for, `repeated` those that its windows have more than once."""
    offsets = np.cumsum([0, *(len(row) for row in ids)], dtype=np.int64)
    return TokenizedSplit(
        input_ids=RaggedArray(_end_to_end(ids), offsets),
        num_targets=num_targets.astype(np.int32),
        labels=labels
        if labels is None or isinstance(labels, np.ndarray)
        else RaggedArray(_end_to_end(labels), offsets),
        source_rows=source_rows,
        truncated_rows=sum(count > 0 for count in unread),
        unread_tokens=sum(unread),
        repeated_tokens=sum(repeated),
    )


def question_of(row: Mapping[str, Any]) -> str:
    """What a row asks, in words for people."""
    if "turns" in row:  # the last one is the answer, but where each has a label
        return " / ".join(row["turns"] if "acts" in row else row["turns"][:-1])
    return row.get("text") or row.get("source") or " ".join(row["tokens"])


def references_of(row: Mapping[str, Any]) -> list[str]:
    """The texts that a row may be answered with: its references, or the last turn."""
    return row["references"] if "references" in row else row["turns"][-1:]


def asked_rows(task: Task, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Texts without a file, each with the second one of its pair, as rows of the task's roles.

    Raises:
        ConfigError: there are pairs, and the task reads single texts; or a text is none.
    """
    for text in (*texts, *(pairs or ())):
        check_text(text)
    rows = task.rows_of(texts)
    if pairs is None:
        return rows
    if "text" not in task.roles or len(task.roles) == 1:  # a text that is no question stands alone
        raise ConfigError(f"task={task.name} reads one text, not a pair: leave the second out")
    return [row | {"text_pair": pair} for row, pair in zip(rows, pairs, strict=True)]


def check_text(text: str) -> None:
    """Raises ConfigError for half a character, which JSON and a terminal of another encoding can give."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the text has half a character at its place {error.start}: give it in UTF-8") from None


def text_rows(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts]


def with_column(rows: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """The rows with these values in place of a column's own."""
    position = rows.column_names.index(name)
    return rows.set_column(position, rows.schema.field(position), pa.array(values, rows.schema.field(position).type))


def by_source_row(found: Iterable[tuple[int, int, Tensor]]) -> Outputs:
    """Source row, row of the split and output of each -> of each source row its windows' outputs, in order."""
    ordered = sorted(found, key=lambda part: part[:2])
    return [[output for *_, output in windows] for _, windows in groupby(ordered, key=lambda part: part[0])]


def stacked(outputs: Outputs) -> Tensor:
    """(rows, K), of tasks with one window a row"""
    return torch.stack([window for (window,) in outputs]).float()


def _end_to_end(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows).astype(np.int32) if len(rows) else np.empty(0, np.int32)
