"""A tag for every word, told by spans: named entities. Tags are BIO (data/fields/roles.py brings other schemes to it).

A word's tag sits on its last sub-token, the only one that has seen the whole word in a causal model. Sentences longer
than the window are cut into overlapping windows, and every word is scored in exactly one of them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from permafrost.data.fields.labels import tags_of
from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.data.tokens.windows import windows
from permafrost.model.heads import Initialization, TokenHead
from permafrost.tasks.base import (
    LOSS,
    Encoding,
    LossFunction,
    Mode,
    Outputs,
    Stage,
    Table,
    tokenized_split,
)
from permafrost.tasks.positions import NOT_SCORED, logits_of_scored, loss_sum_of_scored, split_by_row
from permafrost.tasks.spans import SpanF1, best_paths, spans_of

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

# Of a text that comes without word bounds; Chinese and Japanese have none, and each character is taken by itself.
NO_BLANKS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{NO_BLANKS}]|(?:(?![{NO_BLANKS}])\w)+|[^\w\s]")


class Tagging:
    """`tags` in the order of the outputs, O first. `right_context` in tokens, for a model that looks both ways."""

    name = "ner"
    roles = ("tagged",)
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "span_f1": "max", "precision": "max", "recall": "max"}

    def __init__(self, tags: Sequence[str], *, init: Initialization, right_context: int = 0):
        self.tags, self.init, self.right_context = list(tags), init, right_context

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "Tagging":
        return cls(tags_of(splits), init=options["init"], right_context=options["right_context"])

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Tagging":
        return cls(description["tags"], init="normal", right_context=description["right_context"])

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        number, first_row = {tag: index for index, tag in enumerate(self.tags)}, 0
        for rows in slices:
            words = rows["tokens"].to_pylist()
            tags = rows["tags"].to_pylist() if "tags" in rows.column_names else [["O"] * len(row) for row in words]
            labels = [[number[tag] for tag in row] for row in tags]
            yield encode_words(words, labels, encoding, self.right_context, first_row)
            first_row += rows.num_rows

    def build_head(self, backbone: nn.Module) -> nn.Module:
        return TokenHead(backbone.config.n_embd, len(self.tags), init=self.init)  # type: ignore[union-attr, arg-type]

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(words, K), the logits of all scored words of the batch, row by row"""
        return logits_of_scored(model, batch)

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, Tensor]:
        return loss_sum_of_scored(model, batch, loss)

    def build_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MetricCollection

        return MetricCollection([SpanF1(self.tags)])

    def update_metrics(self, metrics: Any, outputs: Tensor, batch: Batch) -> None:
        rows, order = torch.nonzero(batch.labels != NOT_SCORED, as_tuple=True)
        # windows stand in the order of the words, and positions within them
        place = torch.stack([batch.source_rows[rows], batch.row_ids[rows], order], dim=1)
        metrics.update(outputs.float(), batch.labels[rows, order], place)

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        return {}

    def by_row(self, outputs: Tensor, batch: Batch) -> list[Tensor]:
        """(words, K) of each window."""
        return split_by_row(outputs, batch)

    def answers(self, outputs: Outputs, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`{"spans": [{"type", "start", "end", "text"}]}`, characters of the words joined by blanks, or of the text."""
        decoded = best_paths([torch.cat(list(row)).numpy() for row in outputs], self.tags)
        return [{"spans": spans_with_characters(tags, row)} for tags, row in zip(decoded, rows, strict=True)]

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [split_words(text) for text in texts]

    def describe(self) -> dict[str, Any]:
        kind = "tagging.Tagging"
        return {"task": self.name, "kind": kind, "tags": self.tags, "right_context": self.right_context}


def encode_words(
    words: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]],
    encoding: Encoding,
    right_context: int,
    first_row: int = 0,
) -> TokenizedSplit:
    """Windows over each row's words joined by blanks; the label on each word's last sub-token, -100 elsewhere."""
    encoded = encoding.tokenizer(
        [" ".join(row) for row in words], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    parts, window_labels, source_rows = [], [], []
    for row, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        ids = ids or [encoding.tokenizer.eos_token_id]  # a row without words is a row all the same
        of_tokens = np.full(len(ids), NOT_SCORED, np.int32)
        of_tokens[last_tokens(words[row], offsets)] = labels[row]
        for window in windows(len(ids), encoding.max_length, right_context=right_context):
            inside = of_tokens[window.start : window.end].copy()
            inside[: window.scored_from - window.start] = inside[window.scored_to - window.start :] = NOT_SCORED
            parts.append(np.array(ids[window.start : window.end], np.int32))
            window_labels.append(inside)
            source_rows.append(first_row + row)
    targets = np.array([(inside != NOT_SCORED).sum() for inside in window_labels])
    return tokenized_split(parts, targets, window_labels, source_rows=np.array(source_rows))


def last_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """(words,) each word's last sub-token; several may end with the same character, where a character is many bytes."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return np.searchsorted(np.array([end for _, end in offsets]), ends, side="right") - 1


def spans_with_characters(tags: Sequence[str], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Spans with their characters: of `text` where the row has one, with `offsets` of its words; else of its words."""
    words = row["tokens"]
    starts = row.get("offsets") or (np.cumsum([0, *(len(word) + 1 for word in words[:-1])])).tolist()
    text = row.get("text") or " ".join(words)
    found = []
    for kind, first, last in spans_of(tags):
        start, end = starts[first], starts[last] + len(words[last])
        found.append({"type": kind, "start": start, "end": end, "text": text[start:end]})
    return found


def split_words(text: str) -> dict[str, Any]:
    """A text as a row: its words and signs, and where each begins."""
    found = list(WORD.finditer(text))
    return {"text": text, "tokens": [word[0] for word in found], "offsets": [word.start() for word in found]}
