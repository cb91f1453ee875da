"""The turns of a dialogue as tokens, and the windows over them: whole turns, cut from the oldest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from permafrost.errors import ConfigError
from permafrost.tasks.positions import NOT_SCORED
from permafrost.tasks.prompts import token_ids

SPEAKER, TEXT = "{speaker}", "{text}"
TURN = SPEAKER + ":" + TEXT  # a blank stands before the text, and end of text after it


@dataclass(frozen=True)
class Turn:
    marker: list[int]  # token ids of what stands before the text, as `SPEAKER:`
    text: list[int]  # and of what is said, with end of text
    is_reply: bool

    def __len__(self) -> int:
        return len(self.marker) + len(self.text)

    @property
    def labels(self) -> list[int]:
        return [NOT_SCORED] * len(self.marker) + (self.text if self.is_reply else [NOT_SCORED] * len(self.text))


def check_turn(turn: str) -> None:
    """Raises ConfigError where it does not hold {speaker} and then, at its end, {text}."""
    marker, found, after = turn.partition(TEXT)
    if SPEAKER not in marker or not found or after:
        raise ConfigError(
            f"task.turn={turn!r}: it must hold {SPEAKER} and end with {TEXT}; for example '{SPEAKER} says:{TEXT}'"
        )


def marker_of(turn: str, speaker: str) -> str:
    """What stands before the text of a turn."""
    return turn.removesuffix(TEXT).replace(SPEAKER, speaker)


def encode_turns(row: Mapping[str, Any], tokenizer: Any, is_reply: Sequence[bool], turn: str = TURN) -> list[Turn]:
    texts = tokenizer([f" {text}" for text in row["turns"]], add_special_tokens=False, verbose=False)["input_ids"]
    return [
        Turn(token_ids(tokenizer, marker_of(turn, speaker)), [*ids, tokenizer.eos_token_id], is_reply=reply)
        for speaker, ids, reply in zip(row["speakers"], texts, is_reply, strict=True)
    ]


def turn_windows(lengths: Sequence[int], limit: int) -> list[tuple[int, int, int]]:
    """(first turn, first scored turn, end) of each window of at most `limit` tokens, one turn at least.

    What stands before the scored turns has half the window at most, and is cut from the oldest turn.
    """
    found, scored = [], 0
    while scored < len(lengths):
        start = oldest_that_fits(lengths[:scored], min(limit // 2, limit - lengths[scored]))
        end = scored + 1
        while end < len(lengths) and sum(lengths[start : end + 1]) <= limit:
            end += 1
        found.append((start, scored, end))
        scored = end
    return found


def oldest_that_fits(lengths: Sequence[int], room: int) -> int:
    """The first of the turns that, with all after it, take no more than `room` tokens."""
    first, taken = len(lengths), 0
    while first > 0 and taken + lengths[first - 1] <= room:
        first -= 1
        taken += lengths[first]
    return first
