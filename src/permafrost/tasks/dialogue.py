"""Replies in a dialogue. A turn is `SPEAKER: text` (task.turn) and end of text; the loss is on the text and end of
replies alone.

Where a dialogue is longer than the window, its oldest turns are left out, never half of one, and every reply is scored
in exactly one window.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.errors import ConfigError, DataError, nearest
from permafrost.model.decoding import Decoding
from permafrost.model.heads import TiedHead
from permafrost.tasks.base import (
    LOSS,
    Encoding,
    LossFunction,
    Mode,
    Prompts,
    Stage,
    Table,
    references_of,
    tokenized_split,
    with_column,
)
from permafrost.tasks.next_token import next_token_loss_sum
from permafrost.tasks.positions import NOT_SCORED
from permafrost.tasks.prompts import token_ids
from permafrost.tasks.text_scores import SCORES, text_scores
from permafrost.tasks.turns import TURN, Turn, encode_turns, marker_of, oldest_that_fits, turn_windows

ALL = "all"


class Dialogue:
    """`replies` is the speaker whose turns are learned, or all: every turn but the first. Of `speakers` the
    first asks and the second answers.

    `perplexity` is exp of the mean loss per token of the replies, their ends included. Texts are scored on each
    dialogue's last reply.
    """

    name = "dialogue"
    roles = ("turns",)
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "perplexity": "min", **SCORES}

    def __init__(self, replies: str, decoding: Decoding, speakers: Sequence[str] = ("A", "B"), turn: str = TURN):
        self.replies, self.decoding, self.speakers, self.turn = replies, decoding, list(speakers), turn

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "Dialogue":
        speakers = speakers_of(splits, options["replies"])
        return cls(options["replies"], Decoding(**options["decoding"]), speakers, options["turn"])

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Dialogue":
        decoding = Decoding(**description["decoding"])
        return cls(description["replies"], decoding, description["speakers"], description.get("turn", TURN))

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        """
        Raises:
            ConfigError: there is no room for what is answered.
            DataError: nobody replies.
        """
        self.room(encoding)  # to be told before training that there is none
        first_row, speakers = 0, set[str]()
        for part in slices:
            rows = part.to_pylist()
            yield encode_dialogues([self.turns_of(row, encoding) for row in rows], encoding.max_length, first_row)
            first_row += len(rows)
            speakers.update(speaker for row in rows for speaker in row["speakers"])
        if self.replies not in (ALL, *speakers):
            there = ", ".join(map(repr, sorted(speakers)))
            raise DataError(f"no turn is by {self.replies!r}, who replies (task.replies); there are turns by {there}")

    def turns_of(self, row: Mapping[str, Any], encoding: Encoding) -> list[Turn]:
        return encode_turns(row, encoding.tokenizer, self.are_replies(row), self.turn)

    def are_replies(self, row: Mapping[str, Any]) -> list[bool]:
        return [
            number > 0 if self.replies == ALL else speaker == self.replies
            for number, speaker in enumerate(row["speakers"])
        ]

    def asked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Up to its last reply; all of a dialogue that has none, which is not scored."""
        replies = [number for number, is_reply in enumerate(self.are_replies(row)) if is_reply]
        end = replies[-1] + 1 if replies else len(row["turns"])
        return {**row, "speakers": row["speakers"][:end], "turns": row["turns"][:end]}

    def room(self, encoding: Encoding) -> int:
        """Tokens for what is answered, and for the marker of who answers.

        Raises:
            ConfigError: there are none.
        """
        room = encoding.max_length - self.decoding.max_new_tokens
        markers = [token_ids(encoding.tokenizer, marker_of(self.turn, speaker)) for speaker in self.speakers]
        if room < 2 + max(map(len, markers)):
            raise ConfigError(
                f"task.decoding.max_new_tokens={self.decoding.max_new_tokens} leaves no room for what is answered in a "
                f"window of {encoding.max_length} tokens: give fewer, or a larger data.max_length"
            )
        return room

    def build_head(self, backbone: nn.Module) -> nn.Module:
        return TiedHead(backbone.get_submodule("wte"))  # type: ignore[arg-type]

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, None]:
        return next_token_loss_sum(model, batch, loss), None

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        return {"perplexity": loss.exp()}

    def prompts(self, rows: Sequence[Mapping[str, Any]], encoding: Encoding) -> Prompts:
        """The turns before each dialogue's last reply, whatever stands there."""
        limit = self.room(encoding)
        dialogues = [self.turns_of(self.asked(row), encoding) for row in rows]
        ids = [reply_prompt(turns, limit) for turns in dialogues]
        whole = [sum(map(len, turns)) - len(turns[-1].text) for turns in dialogues]
        unread = [tokens - len(read) for tokens, read in zip(whole, ids, strict=True)]
        return Prompts(ids=ids, unread=unread, decoding=self.decoding)

    def score(self, written: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Of the dialogues in which somebody replies; 0 where there are none."""
        replied = [(text, row) for text, row in zip(written, rows, strict=True) if any(self.are_replies(row))]
        if not replied:
            return dict.fromkeys(SCORES, 0.0)
        return text_scores([text for text, _ in replied], [references_of(self.asked(row)) for _, row in replied])

    def with_answers(self, rows: pa.Table, written: Sequence[str]) -> pa.Table:
        """In place of each dialogue's last reply."""
        given, taught = rows.to_pylist(), []
        for row, text in zip(given, written, strict=True):
            last = len(self.asked(row)["turns"]) - 1
            taught.append([*row["turns"][:last], text or row["turns"][last], *row["turns"][last + 1 :]])
        return with_column(rows, "turns", taught)

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [self.to_answer([self.person()], [text]) for text in texts]

    def person(self) -> str:
        """The speaker that a person is, who talks with the model."""
        return next((speaker for speaker in self.speakers if speaker != self.replies), self.speakers[0])

    def to_answer(self, speakers: Sequence[str], turns: Sequence[str]) -> dict[str, Any]:
        """A dialogue so far, as a row whose last turn is to be written: by who replies, or who spoke last but one."""
        others = [speaker for speaker in (*self.speakers[::-1], *speakers) if speaker != speakers[-1]] or speakers
        next_speaker = others[-1] if self.replies == ALL else self.replies
        return {"speakers": [*speakers, next_speaker], "turns": [*turns, ""]}

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "kind": "dialogue.Dialogue",
            "replies": self.replies,
            "decoding": asdict(self.decoding),
            "speakers": self.speakers,
            "turn": self.turn,
        }


def speakers_of(splits: Mapping[str, Table], replies: str) -> list[str]:
    """Those of the training rows: who most often speaks before who answers, who answers, and the others as they come.

    Who answers is `replies`, or of all the second one of the commonest two in a row.

    Raises:
        ConfigError: `replies` is none of them, nor all.
    """
    dialogues = splits["train"]["speakers"].to_pylist()
    speakers = list(dict.fromkeys(speaker for row in dialogues for speaker in row))
    if replies not in (ALL, *speakers):
        raise ConfigError(f"task.replies={replies}: no turn has this speaker{nearest(replies, [ALL, *speakers])}")
    changes = Counter(two for row in dialogues for two in pairwise(row) if two[0] != two[1])
    answered = [two for two, _ in changes.most_common() if replies in (ALL, two[1])]
    return list(dict.fromkeys([*(answered[0] if answered else ()), *speakers]))


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
        history = before[-1].text[-max(1, room) :]
    return [*history, *last.marker]
