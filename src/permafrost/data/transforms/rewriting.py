"""Changed copies that a model writes: a span of words filled from what stands before it, or a text that has been to
another language and back. What writes is given: this module knows no model.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from permafrost.data.transforms.augmentation import (
    TEXTS,
    Rows,
    Word,
    Words,
    copy_of,
    joined,
    put_words_,
    random_of,
    words_by_field,
)
from permafrost.errors import ConfigError

MAX_WORDS = 8  # of a span: with more of its words new it would be another text
# (texts, words wanted, a source of randomness for each) -> what may come after each text
Continue = Callable[[Sequence[str], int, Sequence[random.Random]], list[str]]
RoundTrip = Callable[[Sequence[str], int], list[str]]  # (texts, number of the copy) -> each as it comes back


@dataclass(frozen=True)
class Gap:
    """The words from `start` on that are written anew, in one field of a row."""

    row: dict[str, Any]
    field: str
    words: Words
    start: int
    count: int
    rng: random.Random

    @property
    def text_before(self) -> str:
        return joined(self.words[: self.start])

    def fill_(self, texts: Sequence[str]) -> None:
        """Nothing changes where nothing was written, or what stood there before."""
        old = self.words[self.start : self.start + self.count]
        if not texts or [text.casefold() for text in texts] == [word.text.casefold() for word in old]:
            return
        new = [Word(text) for text in texts]
        new[0] = replace(new[0], before=old[0].before)
        put_words_(self.row, self.field, [*self.words[: self.start], *new, *self.words[self.start + self.count :]])


def filled(rows: Rows, copy: int, *, share: float, seed: int, continued: Continue) -> Rows:
    """Copies in which a share of the words, one span of them, is what a model writes after those before it.

    What follows the span stays: a causal model does not see it, so that a fill may not lead to it. No word of a tagged
    span is written anew.
    """
    made = [copy_of(row, copy) for row in rows]
    gaps = [
        gap
        for row in made
        for field, words in words_by_field(row).items()
        if (gap := gap_in(row, field, words, share, random_of(seed, copy, row[field])))
    ]
    for count in sorted({gap.count for gap in gaps}):  # so that a text is continued alike whatever else is asked
        alike = [gap for gap in gaps if gap.count == count]
        written = continued([gap.text_before for gap in alike], count, [gap.rng for gap in alike])
        for gap, text in zip(alike, written, strict=True):
            gap.fill_(whole_words(text, count))
    return made


def gap_in(row: dict[str, Any], field: str, words: Words, share: float, rng: random.Random) -> Gap | None:
    """Anywhere but at the beginning, where there is nothing to go on from; None where there is no room for it."""
    count = min(MAX_WORDS, max(1, int(share * len(words))))
    is_free = [word.tag == "O" for word in words]
    starts = [start for start in range(1, len(words) - count + 1) if all(is_free[start : start + count])]
    return Gap(row, field, words, rng.choice(starts), count, rng) if starts else None


def whole_words(text: str, count: int) -> list[str]:
    """The first `count`; without a beginning that goes on with the word before, and a last one that may be cut off."""
    words = text.split() if text[:1].isspace() else text.split()[1:]
    return words[:count] if len(words) > count else words[:-1]


def translated_back(rows: Rows, copy: int, *, round_trip: RoundTrip) -> Rows:
    """Copies whose texts have been to another language and back; a text that is lost on the way stays as it was.

    Raises:
        ConfigError: the rows are words with tags, which would not come back with them.
    """
    made = [copy_of(row, copy) for row in rows]
    if made and "tokens" in made[0]:
        raise ConfigError(
            "augmentation=back_translation would lose the tags of the words; take augmentation=contextual"
        )
    for field in TEXTS:
        having = [row for row in made if field in row]
        for row, text in zip(having, round_trip([row[field] for row in having], copy) if having else [], strict=True):
            row[field] = text or row[field]
    return made
