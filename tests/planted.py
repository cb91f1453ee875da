"""Files of rows with one fault each, and what is to be said of it: its code, its place, and words of what to do."""

import gzip
import io
import itertools
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as parquet

LABELS = ["warm", "cold"]
SYLLABLES = ["ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo"]
WORDS = ["".join(syllables) for syllables in itertools.product(SYLLABLES, repeat=3)]


class Fault(NamedTuple):
    name: str
    code: str
    place: str  # how the place ends; nothing for what is of no line
    fix: str
    files: dict[str, str | bytes]  # in place of those without a fault; the first is the training file
    task: str = "classification"
    named: str | None = None  # the training file, by a name that is not its own


def texts(count: int, offset: int = 0) -> list[str]:
    """No two alike: eight words each, of 2,744."""
    return [" ".join(random.Random(number).choices(WORDS, k=8)) for number in range(offset, offset + count)]


def as_csv(values: list[tuple[str, Any]], header: str = "text,label") -> str:
    return "\n".join([header, *(f"{text},{value}" for text, value in values)]) + "\n"


def labelled(count: int, offset: int = 0) -> list[tuple[str, str]]:
    return [(text, LABELS[i % 2]) for i, text in enumerate(texts(count, offset))]


def as_jsonl(rows: list[dict]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def with_line(content: str | bytes, number: int, line: str | bytes) -> bytes:
    """The content with its line of that number, from 1, replaced."""
    lines = (content if isinstance(content, bytes) else content.encode()).split(b"\n")
    lines[number - 1] = line if isinstance(line, bytes) else line.encode()
    return b"\n".join(lines)


OFFSETS = {"train": 0, "validation": 100, "test": 200}
COUNT = 12  # rows of a split


def numbered(offset: int = 0) -> str:
    return as_csv([(text, i / 2) for i, text in enumerate(texts(COUNT, offset))], "text,score")


def labels_a_line(offset: int = 0) -> str:
    return as_jsonl([{"text": text, "label": label} for text, label in labelled(COUNT, offset)])


def lists(offset: int = 0) -> str:
    return as_jsonl([{"text": text, "labels": [label]} for text, label in labelled(COUNT, offset)])


def pairs(offset: int = 0) -> str:
    return as_jsonl([{"source": text, "target": f"{text} too"} for text in texts(COUNT, offset)])


def dialogues(offset: int = 0) -> str:
    return as_jsonl([{"turns": [text, f"{text} yes"], "act": ["ask", "tell"]} for text in texts(COUNT, offset)])


def sentences(offset: int = 0) -> str:
    """Four words of a text each, the first two a place."""
    tags = ["B-LOC", "I-LOC", "O", "O"]
    drawn = [text.split()[:4] for text in texts(COUNT, offset)]
    blocks = ["".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)) for words in drawn]
    return "\n".join(blocks)


def words_a_line(offset: int = 0) -> str:
    tags = ["B-LOC", "I-LOC", "O", "O"]
    return as_jsonl([{"tokens": text.split()[:4], "tags": tags} for text in texts(COUNT, offset)])


def as_parquet(offset: int = 0) -> bytes:
    buffer = io.BytesIO()
    rows = [{"text": text, "label": label} for text, label in labelled(COUNT, offset)]
    parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def of_all_splits(suffix: str, make: Callable[[int], str]) -> dict[str, str | bytes]:
    return {f"{name}.{suffix}": make(offset) for name, offset in OFFSETS.items()}


# what a task reads where a fault's files leave it out
WHOLE = {
    "classification": of_all_splits("csv", lambda offset: as_csv(labelled(COUNT, offset))),
    "regression": of_all_splits("csv", numbered),
    "generation": of_all_splits("jsonl", pairs),
    "dialogue": of_all_splits("jsonl", dialogues),
    "acts": of_all_splits("jsonl", dialogues),
    "multi_label": of_all_splits("jsonl", lists),
    "ner": of_all_splits("conll", sentences),
}
CSV, HELD_OUT = as_csv(labelled(COUNT)), as_csv(labelled(COUNT, OFFSETS["test"]))
TARGETS, JSONL, DIALOGUES, PAIRS, LISTS, SENTENCES, TOKENS = (
    make() for make in (numbered, labels_a_line, dialogues, pairs, lists, sentences, words_a_line)
)


def all_warm() -> dict[str, str | bytes]:
    return {name: str(content).replace("cold", "warm") for name, content in WHOLE["classification"].items()}


def unlabelled() -> dict[str, str | bytes]:
    return {"train.jsonl": LISTS.replace('["warm"]', "[]").replace('["cold"]', "[]")}


def csv_with(number: int, line: str | bytes, content: str = CSV) -> dict[str, str | bytes]:
    return {"train.csv": with_line(content, number, line)}


def csv_and(line: str) -> dict[str, str | bytes]:
    return {"train.csv": f"{CSV}{line}\n"}


def jsonl_with(number: int, line: str, content: str = JSONL) -> dict[str, str | bytes]:
    return {"train.jsonl": with_line(content, number, line)}


FILES = [
    Fault("a mistyped name", "E101", "tran.csv", "'trian.csv'", {"trian.csv": CSV}, named="tran.csv"),
    Fault("an unknown format", "E101", "train.xlsx", "data.format=", {"train.xlsx": CSV}),
    Fault("an empty file", "E102", "train.csv", "a header and rows", {"train.csv": ""}),
    Fault("no rows", "E102", "train.csv", "some", {"train.csv": "text,label\n"}),
    Fault("an empty list", "E102", "train.json", "some", {"train.json": "[]"}),
    Fault("empty json", "E102", "train.json", "rows", {"train.json": " "}),
    Fault("half a gzip file", "E103", "train.csv.gz", "copy it", {"train.csv.gz": gzip.compress(CSV.encode())[:80]}),
    Fault("no gzip file", "E103", "train.csv.gz", "copy it", {"train.csv.gz": CSV}),
    Fault("no parquet", "E103", "train.parquet", "data.format", {"train.parquet": b"PAR1 no"}),
    Fault("an object, no list", "E103", "train.json:1", "data.format=jsonl", {"train.json": '{"text": "x"}'}),
]
BYTES = [
    Fault("windows-1252", "E104", "train.csv:4", "iconv -f windows-1252", csv_with(4, b"caf\xe9,warm")),
    Fault("windows-1252 in json", "E104", "train.json:2", "iconv", {"train.json": b'[\n"\xe9"]'}),
    Fault("utf-16", "E104", "train.csv:1", "iconv -f utf-16", {"train.csv": CSV.encode("utf-16")}),
    Fault("utf-16, no mark", "E104", "train.csv:1", "iconv -f utf-16-le", {"train.csv": CSV.encode("utf-16-le")}),
    Fault("windows-1251", "E104", "train.csv:4", "-f windows-1251", csv_with(4, "снег идёт,cold".encode("cp1251"))),
    Fault("shift_jis", "E104", "train.csv:4", "-f shift_jis", csv_with(4, "雪が降りました,cold".encode("shift_jis"))),
    Fault("a NUL", "E105", "train.csv:5", "tr -d", csv_with(5, b"a\0b,warm")),
]
LINES = [
    Fault("a column too many", "E201", "train.csv:3", "quotes", csv_with(3, "a,b,c")),
    Fault("a column too few", "E201", "train.csv:7", "fill in", csv_with(7, "alone")),
    Fault("an open quote", "E202", "train.csv:6", '""', csv_with(6, '"open,warm')),
    Fault("an open quote at the end", "E202", "train.csv:13", '""', csv_with(13, '"open,cold')),
    Fault("a last comma", "E203", "train.jsonl:2", "comma", jsonl_with(2, '{"text": "x",}')),
    Fault("two objects a line", "E203", "train.jsonl:3", "break the line", jsonl_with(3, "{} {}")),
    Fault("apostrophes", "E203", "train.jsonl:4", "double quotes", jsonl_with(4, "{'text': 1}")),
    Fault("half an object", "E203", "train.jsonl:12", "a row is an object", jsonl_with(12, '{"text": "x')),
    Fault("nested", "E203", "train.jsonl:1", "a row is an object", jsonl_with(1, "[" * 99_999)),
    Fault("inside a list", "E203", "train.json:3", "comma", {"train.json": '[\n{"text": "x"},\n{"text": }]'}),
    Fault("a list for a row", "E204", "train.jsonl:5", "a row is an object", jsonl_with(5, "[1]")),
    Fault(
        "a ragged sentence",
        "E201",
        "train.conll:3",
        "all columns",
        {"train.conll": SENTENCES.replace("\tO", "", 1)},
        "ner",
    ),
]
VALUES = [
    Fault("no text column", "E301", "train.csv:2", "did you mean 'txt'", {"train.csv": CSV.replace("text,", "txt,")}),
    Fault("no label column", "E301", "train.csv:2", "columns.label", {"train.csv": as_csv(labelled(9), "text,l")}),
    Fault("semicolons", "E301", "train.csv:1", "with commas", {"train.csv": CSV.replace(",", ";")}),
    Fault("tabs", "E301", "train.csv:1", "data.format=tsv", {"train.csv": CSV.replace(",", "\t")}),
    Fault("two of one name", "E302", "train.csv:1", "a name of its own", {"train.csv": CSV.replace("label", "text")}),
    Fault("no label", "E401", "train.csv:8", "fill it in", csv_with(8, "words,")),
    Fault("a null label", "E401", "train.jsonl:6", "fill it in", jsonl_with(6, '{"text": "x", "label": null}')),
    Fault("a word for a number", "E402", "train.csv:3", "0.25", csv_with(3, "words,high", TARGETS), "regression"),
    Fault("not a number", "E402", "train.csv:4", "0.25", csv_with(4, "words,nan", TARGETS), "regression"),
    Fault("half a character", "E403", ":7", "mend", jsonl_with(7, '{"text": "\\ud83d", "label": "warm"}')),
    Fault("nothing to write", "E404", ":2", "fill it in", jsonl_with(2, '{"source": "x"}', PAIRS), "generation"),
    Fault("an object for a text", "E408", ":4", "a text", jsonl_with(4, '{"text": {"en": "x"}, "label": "warm"}')),
    Fault("one turn", "E405", ":3", "two or more", jsonl_with(3, '{"turns": ["x"]}', DIALOGUES), "dialogue"),
    Fault("an empty turn", "E405", ":4", "fill it in", jsonl_with(4, '{"turns": ["x", ""]}', DIALOGUES), "dialogue"),
    Fault("one act", "E406", ":5", "each turn", jsonl_with(5, '{"turns": ["x", "y"], "act": "a"}', DIALOGUES), "acts"),
    Fault("few acts", "E406", ":6", "each", jsonl_with(6, '{"turns": ["x", "y"], "act": ["ask"]}', DIALOGUES), "acts"),
    Fault("no tag", "E407", "train.conll:2", "B-", {"train.conll": SENTENCES.replace("I-LOC", "ILOC", 1)}, "ner"),
    Fault(
        "a blank word",
        "E407",
        "train.jsonl:3, word 1",
        "remove it",
        jsonl_with(3, '{"tokens": ["", "Bob"], "tags": ["O", "B-LOC"]}', TOKENS),
        "ner",
    ),
]
LABELLING = [
    Fault("one class", "E501", "", "two or more", all_warm()),
    Fault("no label at all", "E501", "", "columns.label", unlabelled(), "multi_label"),
    Fault("no tag but O", "E501", "", "columns.tag", {"train.conll": "a\tO\n\nb\tO\n"}, "ner"),
    Fault("a mistyped label", "E502", "test.csv:3", "'warm'", {"test.csv": with_line(HELD_OUT, 3, "words,wram")}),
    Fault(
        "a mistyped type",
        "E502",
        "test.conll:3",
        "'LOC'",
        {"test.conll": sentences(OFFSETS["test"]).replace("\tO", "\tB-LOK", 1)},
        "ner",
    ),
    Fault(
        "one target",
        "E504",
        "",
        "column",
        {"train.csv": as_csv([(t, 1) for t in texts(9, 300)], "text,score")},
        "regression",
    ),
    Fault("two spellings", "W202", "train.csv:2", "alike", csv_with(2, "words here,Warm")),
    Fault("a single row", "W203", "train.csv:2", "more rows", csv_with(2, "words here,mild")),
    Fault("never tested", "W204", "", "test says nothing", {"test.csv": HELD_OUT.replace("cold", "warm")}),
    Fault(
        "two types",
        "W201",
        "train.jsonl:4",
        "one way",
        jsonl_with(2, '{"text": "words here", "label": 1}', JSONL.replace('"cold"', '"1"')),
    ),
]
TEXTS = [
    Fault("no text", "W101", "train.csv:9", "fill it in", csv_with(9, " ,warm")),
    Fault("a contradiction", "W301", "train.csv:14", "decide", csv_and(f"{texts(2)[1]},warm")),
    Fault("a copy", "W302", "train.csv:14", "duplicates=exact", csv_and(f"{texts(3)[2].upper()},warm")),
    Fault("a near copy", "W303", "train.csv:14", "duplicates=near", csv_and(f"{texts(3)[2]}!,warm")),
    Fault("a leak", "W304", "train.csv:14", "left out", csv_and(f"{texts(3, 200)[2]},warm")),
    Fault("nearly a leak", "W305", "train.csv:14", "leak_similarity", csv_and(f"{texts(3, 200)[2]}!,warm")),
    Fault("a long text", "W401", "train.csv:4", "head=windows", csv_with(4, f"{'sun ' * 1100},warm")),
    Fault("mojibake", "W402", "train.csv:5", "cleaning=default", csv_with(5, "a warm cafÃ© by the sea,warm")),
    Fault("a control character", "W403", "train.csv:6", "cleaning=default", csv_with(6, "a\x07bell rang,warm")),
]
FAULTS = [*FILES, *BYTES, *LINES, *VALUES, *LABELLING, *TEXTS]
