"""A label for every turn of a dialogue: what it does (an act, an intent) or how it feels.

It sits on the turn's end-of-text token, which in a causal model has seen the turn and all before it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from permafrost.data.fields.labels import labels_of
from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.errors import ConfigError
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
from permafrost.tasks.classification import label_metrics
from permafrost.tasks.positions import NOT_SCORED, logits_of_scored, loss_sum_of_scored, split_by_row
from permafrost.tasks.turns import TURN, Turn, encode_turns, turn_windows

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class Acts:
    """`labels` in the order of the outputs. No turn is left out: of one longer than the window the end is cut, and
    counted as unread."""

    name = "acts"
    roles = ("turns", "acts")
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "accuracy": "max", "f1_macro": "max"}

    def __init__(self, labels: Sequence[str], *, init: Initialization, turn: str = TURN):
        self.labels, self.init, self.turn = list(labels), init, turn

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "Acts":
        return cls(labels_of(splits), init=options["init"], turn=options["turn"])

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Acts":
        return cls(description["labels"], init="normal", turn=description.get("turn", TURN))

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        number, first_row = {label: index for index, label in enumerate(self.labels)}, 0
        for rows in slices:
            dialogues = rows.to_pylist()
            whole = [encode_turns(row, encoding.tokenizer, [False] * len(row["turns"]), self.turn) for row in dialogues]
            # rows to be answered have no labels, and their turns are marked all the same
            acts = [row.get("acts", self.labels[:1] * len(row["turns"])) for row in dialogues]
            labels = [[number[act] for act in of_row] for of_row in acts]
            yield encode_dialogues(whole, labels, encoding.max_length, first_row)
            first_row += rows.num_rows

    def build_head(self, backbone: nn.Module) -> nn.Module:
        return TokenHead(backbone.config.n_embd, len(self.labels), init=self.init)  # type: ignore[union-attr, arg-type]

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(turns, K), of all turns of the batch, row by row"""
        return logits_of_scored(model, batch)

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, Tensor]:
        return loss_sum_of_scored(model, batch, loss)

    def build_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MetricCollection

        return MetricCollection(label_metrics(self.labels), compute_groups=False)

    def update_metrics(self, metrics: Any, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs.float(), batch.labels[batch.labels != NOT_SCORED])

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        return {}

    def by_row(self, outputs: Tensor, batch: Batch) -> list[Tensor]:
        """(turns, K) of each window."""
        return split_by_row(outputs, batch)

    def answers(self, outputs: Outputs, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`{"acts"}`: the likeliest label of each turn."""
        return [{"acts": [self.labels[i] for i in torch.cat(list(row)).argmax(-1).tolist()]} for row in outputs]

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """A text is a dialogue of one turn."""
        return [{"speakers": ["A"], "turns": [text]} for text in texts]

    def describe(self) -> dict[str, Any]:
        return {"task": self.name, "kind": "acts.Acts", "labels": self.labels, "turn": self.turn}


def encode_dialogues(
    dialogues: Sequence[Sequence[Turn]], labels: Sequence[Sequence[int]], max_length: int, first_row: int = 0
) -> TokenizedSplit:
    """Windows of whole turns: a turn's label on its last token, in exactly one window, -100 elsewhere."""
    rows, of_rows, source_rows = [], [], []
    for row, (whole, of_turns) in enumerate(zip(dialogues, labels, strict=True), first_row):
        turns = [within(turn, max_length) for turn in whole]
        for start, scored, end in turn_windows([len(turn) for turn in turns], max_length):
            ids = [token for turn in turns[start:end] for token in (*turn.marker, *turn.text)]
            of_tokens = np.full(len(ids), NOT_SCORED, np.int32)
            ends = np.cumsum([len(turn) for turn in turns[start:end]]) - 1
            of_tokens[ends[scored - start :]] = of_turns[scored:end]
            rows.append(np.array(ids, np.int32))
            of_rows.append(of_tokens)
            source_rows.append(row)
    return tokenized_split(
        rows,
        np.array([(of_tokens != NOT_SCORED).sum() for of_tokens in of_rows]),
        of_rows,
        source_rows=np.array(source_rows, np.int64),
        unread=[sum(max(0, len(turn) - max_length) for turn in whole) for whole in dialogues],
    )


def within(turn: Turn, limit: int) -> Turn:
    """The turn with the end of its text cut, but for the end-of-text token, to `limit` tokens.

    Raises:
        ConfigError: what stands before the text leaves no room for it.
    """
    room = limit - len(turn.marker)
    if room < 2:
        raise ConfigError(
            f"what stands before a turn has {len(turn.marker)} tokens, of the {limit} of a window; give a shorter "
            "task.turn, or a larger data.max_length"
        )
    return turn if len(turn) <= limit else replace(turn, text=[*turn.text[: room - 1], turn.text[-1]])
