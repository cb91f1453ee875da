"""What a task asks of a row: each role, the columns that may fill it, and how its values are read and checked.

A role fills one or more fields of the stored row; a value that cannot be used is an error that names its line.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from permafrost.data.problems import Problem, fault
from permafrost.data.rows import word_place
from permafrost.errors import DataError

Row = Mapping[str, Any]  # as a reader gives it; `where` says file:line
Names = Sequence[str]  # of the columns that fill a role
Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Role:
    fields: Mapping[str, pa.DataType]
    column: tuple[str, ...]  # keys of data.columns that name its columns
    common: Sequence[Names]  # names found by themselves, best first; one for each key, or several for a pair
    read: Callable[[Row, Names], Fields]


def read_text(row: Row, names: Names) -> Fields:
    return dict(zip(("text", "text_pair"), (_text(row, name) for name in names), strict=False))


def read_label(row: Row, names: Names) -> Fields:
    value = row.get(names[0])
    if not as_text(value).strip():
        raise fault("E401", row["where"], f"no label in column {names[0]!r}", "fill it in or remove the row")
    if isinstance(value, (list, Mapping)):
        found = f"no single label in column {names[0]!r}, but several in one value"
        raise fault("E401", row["where"], found, "give one; task=multi_label is for rows with a list of them", value)
    return {"label": _checked(str(value).strip(), row, names[0])}


def read_labels(row: Row, names: Names) -> Fields:
    """A list of labels, or one text that holds them between `|`, `;` or `,`; none is no fault."""
    value = row.get(names[0])
    given = value if isinstance(value, list) else re.split(r"[|;,]", as_text(value))
    return {"labels": sorted({_checked(as_text(label).strip(), row, names[0]) for label in given} - {""})}


def read_number(row: Row, names: Names) -> Fields:
    try:
        value = float(row.get(names[0]))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        found = f"{row.get(names[0])!r} in column {names[0]!r} is not a number"
        raise fault("E402", row["where"], found, "write it as 3 or 0.25, or remove the row")
    return {"target": value}


def read_source(row: Row, names: Names) -> Fields:
    return {"source": _text(row, names[0])}


def read_references(row: Row, names: Names) -> Fields:
    """One text, or a list of texts that are equally right."""
    value = row.get(names[0])
    given = [_text_of(one, row, names[0]) for one in (value if isinstance(value, list) else [value])]
    references = [text for text in given if text.strip()]
    if not references:
        found = f"column {names[0]!r} is empty: nothing to write"
        raise fault("E404", row["where"], found, "fill it in or remove the row")
    return {"references": references}


def read_turns(row: Row, names: Names, least: int = 2) -> Fields:
    """A list of texts whose speakers take turns, or of objects with `speaker` (or `role`) and `text` (or `content`).

    `least` is how many there must be: two to learn from, and one to be answered."""
    value = row.get(names[0])
    if not isinstance(value, list) or len(value) < least:
        count = len(value) if isinstance(value, list) else 0
        fix = f"a dialogue needs {'two' if least > 1 else 'one'} or more"
        raise fault("E405", row["where"], f"{count} turns in column {names[0]!r}", fix)
    turns = [_turn(turn, number) for number, turn in enumerate(value)]
    if empty := [number for number, (_, text) in enumerate(turns, 1) if not text.strip()]:
        are = f"turn {empty[0]} of column {names[0]!r} is empty"
        if len(empty) > 1:
            are = f"turns {', '.join(map(str, empty))} of column {names[0]!r} are empty"
        raise fault("E405", row["where"], are, "fill it in or remove it")
    return {
        "speakers": [_checked(speaker, row, names[0]) for speaker, _ in turns],
        "turns": [_checked(text, row, names[0]) for _, text in turns],
    }


def read_acts(row: Row, names: Names) -> Fields:
    """One label for each turn; whether there are as many as turns is asked where both are read."""
    value = row.get(names[0])
    if not isinstance(value, list):
        found = f"column {names[0]!r} holds no list"
        raise fault("E406", row["where"], found, "it has to hold a label for each turn", value)
    acts = [_checked(as_text(act).strip(), row, names[0]) for act in value]
    if bare := [str(number) for number, act in enumerate(acts, 1) if not act]:
        found = f"no label in column {names[0]!r} for turn {', '.join(bare)}"
        raise fault("E406", row["where"], found, "fill it in")
    return {"acts": acts}


def read_tagged(row: Row, names: Names) -> Fields:
    """Words and their tags, brought to BIO whatever the scheme."""
    tokens, tags = (row.get(name) for name in names)
    if not isinstance(tokens, list) or not isinstance(tags, list) or len(tokens) != len(tags):
        counts = [len(value) if isinstance(value, list) else 0 for value in (tokens, tags)]
        found = f"{counts[0]} words in {names[0]!r} and {counts[1]} tags in {names[1]!r}"
        raise fault("E407", row["where"], found, "give each word a tag")
    if problems := [*_blank_words(row, tokens), *_no_tags(row, tokens, tags)]:
        raise DataError(*problems)
    words = [_checked(str(token), row, names[0]) for token in tokens]
    return {"tokens": words, "tags": [_checked(tag, row, names[1]) for tag in to_bio(tags)]}


def read_words(row: Row, names: Names) -> Fields:
    """Those of a sentence that is to be tagged."""
    tokens = row.get(names[0])
    if not isinstance(tokens, list):
        raise fault("E407", row["where"], f"column {names[0]!r} holds no list", "it has to hold words", tokens)
    if problems := list(_blank_words(row, tokens)):
        raise DataError(*problems)
    return {"tokens": [_checked(str(token), row, names[0]) for token in tokens]}


def _blank_words(row: Row, tokens: Sequence[Any]) -> Iterator[Problem]:
    """They have no sub-token that a tag could sit on."""
    for number, token in enumerate(tokens):
        if not as_text(token).strip():
            yield Problem(
                code="E407", where=place_of(row, number), message="a blank word", fix="remove it, and its tag with it"
            )


def _no_tags(row: Row, tokens: Sequence[Any], tags: Sequence[Any]) -> Iterator[Problem]:
    fix = "known are O and B-, I-, E- or S- with a type"
    for number, (token, tag) in enumerate(zip(tokens, tags, strict=True)):
        if not TAG.fullmatch(str(tag)):
            place = place_of(row, number)
            yield Problem(code="E407", where=place, message=f"{tag!r} is no tag", fix=fix, text=str(token))


TAG = re.compile(r"O|[BIESLU]-\S+")
TEXTS, TEXT = pa.list_(pa.string()), pa.string()
WORDS = (("tokens",), ("words",))
TURNS = (("turns",), ("messages",), ("dialog",), ("dialogue",), ("conversations",))
ROLES: Mapping[str, Role] = {
    "text": Role(
        fields={"text": TEXT, "text_pair": TEXT},
        column=("text",),
        # pairs come before single texts
        common=(
            *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2")),
            *(("text",), ("sentence",), ("content",), ("review",), ("document",), ("question",), ("body",)),
            *(("clause",), ("utterance",), ("title",)),
        ),
        read=read_text,
    ),
    "label": Role(
        fields={"label": TEXT},
        column=("label",),
        common=(("label",), ("labels",), ("class",), ("category",), ("sentiment",), ("intent",)),
        read=read_label,
    ),
    "labels": Role(
        fields={"labels": TEXTS},
        column=("label",),
        common=(("labels",), ("label",), ("categories",), ("tags",)),
        read=read_labels,
    ),
    "number": Role(
        fields={"target": pa.float64()},
        column=("target",),
        common=(("target",), ("score",), ("value",), ("rating",), ("similarity",), ("label",)),
        read=read_number,
    ),
    "source": Role(
        fields={"source": TEXT},
        column=("source",),
        common=tuple((name,) for name in ("source", "prompt", "input", "instruction", "intent", "question", "text")),
        read=read_source,
    ),
    "references": Role(
        fields={"references": TEXTS},
        column=("target",),
        common=tuple((name,) for name in ("target", "refs", "references", "completion", "output", "summary", "code")),
        read=read_references,
    ),
    "turns": Role(
        fields={"speakers": TEXTS, "turns": TEXTS},
        column=("turns",),
        common=TURNS,
        read=read_turns,
    ),
    "history": Role(  # turns that are to be answered
        fields={"speakers": TEXTS, "turns": TEXTS},
        column=("turns",),
        common=TURNS,
        read=partial(read_turns, least=1),
    ),
    "acts": Role(
        fields={"acts": TEXTS},
        column=("act",),
        common=(("acts",), ("act",), ("dialog_act",), ("intents",)),
        read=read_acts,
    ),
    "tagged": Role(
        fields={"tokens": TEXTS, "tags": TEXTS},
        column=("token", "tag"),
        common=(("tokens", "tags"), ("tokens", "ner_tags"), ("words", "tags"), ("words", "labels")),
        read=read_tagged,
    ),
    "words": Role(fields={"tokens": TEXTS}, column=("token",), common=WORDS, read=read_words),
}


def as_text(value: Any) -> str:
    """A text as it is; a list joined by blanks; a list of lists, such as triples, as `a | b | c; d | e | f`."""
    if isinstance(value, list) and value and all(isinstance(member, list) for member in value):
        return "; ".join(" | ".join(str(part) for part in member) for member in value)
    if isinstance(value, list):
        return " ".join(str(member) for member in value)
    return "" if value is None or value != value else str(value)  # NaN is how tables write that there is nothing


def to_bio(tags: Sequence[str]) -> list[str]:
    """Tags of IOB1, BIO, BIOES or BILOU as BIO, where every span begins with B (Tjong Kim Sang and Buchholz 2000)."""
    converted, before = [], "O"
    for tag in tags:
        if tag == "O":
            converted.append("O")
        else:
            goes_on = tag[0] in "IEL" and before[0] in "BI" and before[1:] == tag[1:]
            converted.append(("I" if goes_on else "B") + tag[1:])
        before = tag
    return converted


def place_of(row: Row, token: int) -> str:
    """file:line of a word; a column file has one line for each."""
    if "first_line" not in row:
        return word_place(row["where"], token)
    return f"{row['where'].rpartition(':')[0]}:{row['first_line'] + token}"


def _text(row: Row, name: str) -> str:
    return _text_of(row.get(name), row, name)


def _text_of(value: Any, row: Row, name: str) -> str:
    if isinstance(value, Mapping):
        raise fault("E408", row["where"], f"column {name!r} holds an object, not a text", "give a text", value)
    return _checked(as_text(value), row, name)


def _checked(text: str, row: Row, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"column {name!r} holds half a character at position {error.start}"
        excerpt = text.encode("utf-8", "backslashreplace").decode()
        raise fault("E403", row["where"], found, "remove or mend it", excerpt) from None
    return text


def _turn(turn: Any, number: int) -> tuple[str, str]:
    if isinstance(turn, Mapping):
        speaker = _first_given(turn, ("speaker", "role", "from"))
        text = _first_given(turn, ("text", "content", "value"))
        return str("AB"[number % 2] if speaker is None else speaker), as_text(text)
    return "AB"[number % 2], as_text(turn)


def _first_given(turn: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((turn[name] for name in names if turn.get(name) not in (None, "")), None)
