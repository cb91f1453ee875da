"""Changed copies of training rows that keep their answer: EDA, AEDA and slips of the keyboard.

Those that a model writes are in rewriting.py.

A copy is a function of the seed, its number and the row alone. The number takes the place of the epoch: every epoch
has the same copies, so that what the frozen part makes of them can be stored. In tagged sentences no span is broken:
its words keep their order and their tags, and what is new between them is O; or spans are put in the place of others of
their type as a whole.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from permafrost.data.fields.by_role import Notes
from permafrost.data.quality.duplicates import asked_texts, normalized
from permafrost.data.quality.examination import ANSWERS
from permafrost.data.rows import WHERE, StoredRows, keep
from permafrost.data.transforms.related_words import related_words
from permafrost.errors import ConfigError

PUNCTUATION = (".", ";", "?", ":", "!", ",")  # Karimi, Rossi and Prati 2021 (arXiv 2108.13230), section 3
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
TEXTS = ("text", "text_pair")
MIN_LETTERS = 4  # of a word that may have a slip: shorter ones become other words


@dataclass(frozen=True)
class Word:
    text: str
    tag: str = "O"
    before: str = " "  # the white space between it and the word before it


Words = list[Word]
Related = Mapping[str, Sequence[str]]
Change = Callable[..., Words]  # (words, random, share, related words)
Rows = list[dict[str, Any]]
Rewrite = Callable[[Rows, int], Rows]  # (rows, number of the copy) -> a changed copy of each


def augmented(
    splits: Mapping[str, StoredRows],
    *,
    kind: str,
    copies: int,
    share: float,
    seed: int,
    notes: Notes,
    rewrite: Rewrite | None = None,
) -> StoredRows:
    """The training rows, and after them their changed copies; without those that came out as they were, or as a row of
    validation or test. Kinds that need a model bring their `rewrite`.

    Raises:
        ConfigError: the rows have nothing that a changed text could keep.
    """
    train = splits["train"]
    if kind == "none":
        return train
    if not {"text", "tokens"} & set(train.column_names) or not set(ANSWERS) & set(train.column_names):
        raise ConfigError(f"augmentation={kind} is for texts and words with labels or numbers; leave it out here")
    if kind == "mentions" and "tags" not in train.column_names:
        raise ConfigError("augmentation=mentions is for words that are tagged: task=ner; take another augmentation")
    texts = {name: [text for part in rows.slices() for text in asked_texts(part)] for name, rows in splits.items()}
    held_out = {normalized(text) for text in (*texts["validation"], *texts["test"])}
    rewrite = rewrite or by_words(kind, share, seed, train, texts["train"])
    origins = list(range(train.num_rows))
    rows = keep(_with_copies(train, rewrite, copies, held_out, origins), train.path.parent)
    if notes.row_quality is not None:
        notes.row_quality = notes.row_quality[origins]
    notes.add(f"augmentation={kind}: {rows.num_rows - train.num_rows:,} changed copies of {train.num_rows:,} rows")
    return rows


def by_words(kind: str, share: float, seed: int, train: StoredRows, texts: Iterable[str]) -> Rewrite:
    """A kind that goes by the words of each row alone; the training rows and their texts tell which words are related,
    and which names there are."""
    related: Related = {}
    if kind in ("eda", "mentions"):
        related = related_words(texts) if kind == "eda" else names_by_type(train)
    change = partial(KINDS[kind], share=share, related=related)
    return lambda rows, copy: [changed_row(row, change, seed, copy) for row in rows]


def _with_copies(
    train: StoredRows, rewrite: Rewrite, copies: int, held_out: set[str], origins: list[int]
) -> Iterator[pa.Table]:
    yield from train.slices()
    for number in range(copies):
        first_row = 0
        for part in train.slices():
            changed = rewrite(part.to_pylist(), number)
            told = asked_texts(pa.Table.from_pylist(changed, part.schema))
            kept = [
                after != before and normalized(after) not in held_out
                for before, after in zip(asked_texts(part), told, strict=True)
            ]
            origins += [first_row + row for row, is_kept in enumerate(kept) if is_kept]
            first_row += part.num_rows
            yield pa.Table.from_pylist(
                [row for row, is_kept in zip(changed, kept, strict=True) if is_kept], part.schema
            )


def changed_row(row: Mapping[str, Any], change: Callable, seed: int, copy: int) -> dict[str, Any]:
    """The row with its texts or its words changed, and its tags with them."""
    made = copy_of(row, copy)
    for field, words in words_by_field(row).items():
        put_words_(made, field, change(words, random_of(seed, copy, row[field])))
    return made


def copy_of(row: Mapping[str, Any], copy: int) -> dict[str, Any]:
    """The row as it is, under a place of its own."""
    return dict(row) | {WHERE: f"{row[WHERE]}, copy {copy + 1}"}


def words_by_field(row: Mapping[str, Any]) -> dict[str, Words]:
    """Of each field that may be changed."""
    if "tokens" in row:
        return {"tokens": [Word(*pair) for pair in zip(row["tokens"], row["tags"], strict=True)]}
    return {field: words_of(row[field]) for field in TEXTS if field in row}


def put_words_(row: dict[str, Any], field: str, words: Words) -> None:
    if field == "tokens":
        row |= {"tokens": [word.text for word in words], "tags": [word.tag for word in words]}
    else:
        row[field] = joined(words)


def random_of(*parts: object) -> random.Random:
    return random.Random(repr(parts))


def words_of(text: str) -> Words:
    words, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        words.append(Word(word, before=text[end:start]))
        end = start + len(word)
    return words


def joined(words: Words) -> str:
    return "".join(word.before + word.text for word in words).strip()


def eda(words: Words, rng: random.Random, share: float, related: Related) -> Words:
    """One of four operations on a share of the words, one word at least (Wei and Zou 2019, arXiv 1901.11196, 2)."""
    operation = rng.choice([replaced, inserted, swapped, deleted])
    times = max(1, int(share * len(words)))
    return operation(words, rng, times, related)


def replaced(words: Words, rng: random.Random, times: int, related: Related) -> Words:
    free = [place for place in _free(words) if words[place].text.lower() in related]
    made = list(words)
    for place in rng.sample(free, min(times, len(free))):
        made[place] = replace(made[place], text=rng.choice(related[made[place].text.lower()]))
    return made


def inserted(words: Words, rng: random.Random, times: int, related: Related) -> Words:
    """A word related to one that is there, somewhere."""
    sources = [word.text.lower() for word in words if word.text.lower() in related]
    made = list(words)
    for _ in range(times if sources else 0):
        _insert(made, rng, rng.choice(related[rng.choice(sources)]))
    return made


def swapped(words: Words, rng: random.Random, times: int, related: Related) -> Words:
    made = list(words)
    for _ in range(times):
        free = _free(made)
        if len(free) > 1:
            first, second = rng.sample(free, 2)
            made[first], made[second] = (
                replace(made[first], text=made[second].text),
                replace(made[second], text=made[first].text),
            )
    return made


def deleted(words: Words, rng: random.Random, times: int, related: Related) -> Words:
    """One word stays at least."""
    free = _free(words)
    gone = set(rng.sample(free, min(times, len(free), len(words) - 1))) if words else set()
    return [word for place, word in enumerate(words) if place not in gone]


def aeda(words: Words, rng: random.Random, share: float, related: Related) -> Words:
    """Punctuation at one to a share of the places."""
    made = list(words)
    for _ in range(rng.randint(1, max(1, int(share * len(words))))):
        _insert(made, rng, rng.choice(PUNCTUATION))
    return made


def typos(words: Words, rng: random.Random, share: float, related: Related) -> Words:
    """A slip in a share of the words, of MIN_LETTERS letters or more."""
    long = [place for place, word in enumerate(words) if len(word.text) >= MIN_LETTERS and word.text.isalpha()]
    made = list(words)
    for place in rng.sample(long, min(len(long), max(1, int(share * len(words))))):
        made[place] = replace(made[place], text=slip(made[place].text, rng))
    return made


def renamed(words: Words, rng: random.Random, share: float, related: Related) -> Words:
    """Other names of their types in place of a share of the spans, one at least: mention replacement (Dai and Adel
    2020, arXiv 2010.11683, section 3.1). `related` has the names of each type."""
    places = spans_in(words)
    chosen = rng.sample(places, min(len(places), max(1, round(share * len(places)))))
    made = list(words)
    for start, stop in sorted(chosen, reverse=True):  # from the end, so that the places before stay where they are
        kind = words[start].tag[2:]
        name = rng.choice(related[kind]).split(" ")
        made[start:stop] = [Word(text, f"{'I' if place else 'B'}-{kind}") for place, text in enumerate(name)]
    return made


def spans_in(words: Words) -> list[tuple[int, int]]:
    """Of each span the place of its first word, and the one after its last, in BIO."""
    starts = [place for place, word in enumerate(words) if word.tag.startswith("B-")]
    ends = [place for place in range(1, len(words) + 1) if place == len(words) or not words[place].tag.startswith("I-")]
    return [(start, next(end for end in ends if end > start)) for start in starts]


def names_by_type(train: StoredRows) -> Related:
    """Type -> the words of each of its spans, joined by blanks, as often as they stand there."""
    found: dict[str, list[str]] = defaultdict(list)
    for part in train.slices():
        for row in part.to_pylist():
            (words,) = words_by_field(row).values()
            for start, stop in spans_in(words):
                found[words[start].tag[2:]].append(" ".join(word.text for word in words[start:stop]))
    return found


def slip(word: str, rng: random.Random) -> str:
    """Two letters change places, or one doubles, goes missing or is a neighbour's; the first one stays."""
    place = rng.randrange(1, len(word) - 1)
    kind = rng.choice(["change", "double", "miss", "neighbour"])
    if kind == "change":
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == "double":
        return word[:place] + word[place] + word[place:]
    if kind == "neighbour" and (near := _keys_beside(word[place])):
        return word[:place] + rng.choice(near) + word[place + 1 :]
    return word[:place] + word[place + 1 :]


def _keys_beside(letter: str) -> list[str]:
    row = next((row for row in KEYBOARD if letter in row), "")
    place = row.find(letter)
    return [row[other] for other in (place - 1, place + 1) if row and 0 <= other < len(row)]


def _free(words: Words) -> list[int]:
    """Places whose words no span holds."""
    return [place for place, word in enumerate(words) if word.tag == "O"]


def _insert(words: Words, rng: random.Random, text: str) -> None:
    """Before any word that does not go on with a span."""
    places = [place for place in range(len(words) + 1) if place == len(words) or not words[place].tag.startswith("I-")]
    place, word = rng.choice(places), Word(text)
    if place == 0 and words:  # a text's first word has no blank before it
        word, words[0] = replace(word, before=words[0].before), replace(words[0], before=word.before)
    words.insert(place, word)


KINDS: Mapping[str, Change] = {"eda": eda, "aeda": aeda, "typos": typos, "mentions": renamed}
