"""Replies in a dialogue. A turn is `SPEAKER: text` and end of text; the loss is on the text and end of replies alone.

Where a dialogue is longer than the window, its oldest turns are left out, never half of one, and every reply is scored
in exactly one window.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from permafrost.data.batching import Batch
from permafrost.data.tokenization import TokenizedSplit
from permafrost.errors import ConfigError, nearest
from permafrost.model.decoding import Decoding, generate
from permafrost.model.heads import TiedHead
from permafrost.tasks.base import (
    LOSS,
    Encoding,
    LossFunction,
    Mode,
    Stage,
    Table,
    references_of,
    tokenized_split,
    with_column,
)
from permafrost.tasks.next_token import next_token_loss_sum
from permafrost.tasks.positions import NOT_SCORED
from permafrost.tasks.text_scores import SCORES, text_scores
from permafrost.tasks.turns import Turn, encode_turns, oldest_that_fits, turn_windows

ALL = "all"


class Dialogue:
    """`replies` is the speaker whose turns are learned, or all: every turn but the first; `speakers` are all there are.

    `perplexity` is exp of the mean loss per token of the replies, their ends included. Texts are scored on each
    dialogue's last turn.
    """

    name = "dialogue"
    roles = ("turns",)
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "perplexity": "min", **SCORES}

    def __init__(self, replies: str, decoding: Decoding, speakers: Sequence[str] = ("A", "B")):
        self.replies, self.decoding, self.speakers = replies, decoding, list(speakers)

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "Dialogue":
        speakers = speakers_of(splits, options["replies"])
        return cls(options["replies"], Decoding(**options["decoding"]), speakers)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Dialogue":
        return cls(description["replies"], Decoding(**description["decoding"]), description["speakers"])

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        first_row = 0
        for rows in slices:
            dialogues = [self.turns_of(row, encoding) for row in rows.to_pylist()]
            yield encode_dialogues(dialogues, encoding.max_length, first_row)
            first_row += rows.num_rows

    def turns_of(self, row: Mapping[str, Any], encoding: Encoding) -> list[Turn]:
        is_reply = [
            number > 0 if self.replies == ALL else speaker == self.replies
            for number, speaker in enumerate(row["speakers"])
        ]
        return encode_turns(row, encoding.tokenizer, is_reply)

    def build_head(self, backbone: nn.Module) -> nn.Module:
        return TiedHead(backbone.get_submodule("wte"))  # type: ignore[arg-type]

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, None]:
        return next_token_loss_sum(model, batch, loss), None

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        return {"perplexity": loss.exp()}

    def write(self, backbone: Any, rows: Sequence[Mapping[str, Any]], encoding: Encoding) -> list[str]:
        """Each dialogue's last turn, whatever stands there, from those before it."""
        limit = encoding.max_length - self.decoding.max_new_tokens
        prompts = [reply_prompt(self.turns_of(row, encoding), limit) for row in rows]
        written = generate(backbone, prompts, self.decoding, end_token_id=encoding.tokenizer.eos_token_id)
        return [str(encoding.tokenizer.decode(tokens)).strip() for tokens in written]

    def score(self, written: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return text_scores(written, [references_of(row) for row in rows])

    def with_answers(self, rows: pa.Table, written: Sequence[str]) -> pa.Table:
        """In place of each dialogue's last turn."""
        dialogues = zip(rows["turns"].to_pylist(), written, strict=True)
        return with_column(rows, "turns", [[*turns[:-1], text or turns[-1]] for turns, text in dialogues])

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [self.to_answer([self.person()], [text]) for text in texts]

    def person(self) -> str:
        """The speaker that a person is, who talks with the model."""
        return next(speaker for speaker in self.speakers if speaker != self.replies)

    def to_answer(self, speakers: Sequence[str], turns: Sequence[str]) -> dict[str, Any]:
        """A dialogue so far, as a row whose last turn is to be written: by who replies, or who spoke last but one."""
        others = [speaker for speaker in (*self.speakers[::-1], *speakers) if speaker != speakers[-1]]
        next_speaker = others[-1] if self.replies == ALL else self.replies
        return {"speakers": [*speakers, next_speaker], "turns": [*turns, ""]}

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "kind": "dialogue.Dialogue",
            "replies": self.replies,
            "decoding": asdict(self.decoding),
            "speakers": self.speakers,
        }


def speakers_of(splits: Mapping[str, Table], replies: str) -> list[str]:
    """Those of the training rows, sorted.

    Raises:
        ConfigError: `replies` is none of them, nor all.
    """
    speakers = sorted({speaker for row in splits["train"]["speakers"].to_pylist() for speaker in row})
    if replies not in (ALL, *speakers):
        raise ConfigError(f"task.replies={replies}: no turn has this speaker{nearest(replies, [ALL, *speakers])}")
    return speakers


def encode_dialogues(dialogues: Sequence[Sequence[Turn]], max_length: int, first_row: int = 0) -> TokenizedSplit:
    """Windows of whole turns; labels are the tokens of the replies that the window scores, elsewhere -100."""
    rows, labels, source_rows, unread = [], [], [], list[int]()
    for row, turns in enumerate(dialogues, first_row):
        for start, scored, end in turn_windows([len(turn) for turn in turns], max_length):
            ids = [token for turn in turns[start:end] for token in (*turn.marker, *turn.text)]
            of_tokens = [NOT_SCORED] * sum(len(turn) for turn in turns[start:scored])
            of_tokens += [label for turn in turns[scored:end] for label in turn.labels]
            unread.append(max(0, len(ids) - max_length))
            if any(label != NOT_SCORED for label in of_tokens[1:max_length]):
                rows.append(np.array(ids[:max_length], np.int32))
                labels.append(np.array(of_tokens[:max_length], np.int32))
                source_rows.append(row)
    return tokenized_split(
        rows,
        np.array([(label[1:] != NOT_SCORED).sum() for label in labels]),
        labels,
        source_rows=np.array(source_rows, np.int64),
        unread=unread,
    )


def reply_prompt(turns: Sequence[Turn], limit: int) -> list[int]:
    """All turns but the last as far back as they fit, and the marker of the last; of one that is too long, its end."""
    *before, last = turns
    room = limit - len(last.marker)
    first = oldest_that_fits([len(turn) for turn in before], room)
    history = [token for turn in before[first:] for token in (*turn.marker, *turn.text)]
    if first == len(before) and before:
        history = before[-1].text[-room:]
    return [*history, *last.marker]
