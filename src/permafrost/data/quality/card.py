"""The data card: what a run is trained and tested on, as a plain dict for screen and report."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from permafrost.data.fields.labels import class_counts, classes_by_row
from permafrost.data.fields.roles import as_text
from permafrost.data.problems import CODES, LEAKS_ALLOWED, ProblemLog, as_json
from permafrost.data.quality.duplicates import asked_texts
from permafrost.data.quality.examination import Findings
from permafrost.data.quality.languages import languages_of
from permafrost.data.rows import TEXT_FIELDS, StoredRows
from permafrost.data.transforms.cleaning import OF_TEXTS

Card = dict[str, Any]
BINS, CLASSES_SHOWN, EXAMPLES, SCRIPT_ROWS = 30, 50, 8, 1_000
EXAMPLE_CHARACTERS, ENCODED_AT_ONCE = 160, 200
BARS = " ▁▂▃▄▅▆▇█"
MANY_LEAKS = 0.1  # of train


def data_card(
    splits: Mapping[str, StoredRows],
    findings: Findings,
    log: ProblemLog,
    lengths: Mapping[str, np.ndarray],
    window: int,
    *,
    decided: Sequence[str],
    cleaned: Mapping[str, int],
    quarantined: int,
) -> Card:
    """`lengths` in tokens, of all rows of each split or of a sample; `decided` are the sentences said while reading,
    `cleaned` the rows that each step changed."""
    return {
        "decided": list(decided),
        "rows": {name: rows.num_rows for name, rows in splits.items()},
        "classes": counted_classes(splits),
        "targets": {name: spread(rows["target"].to_numpy()) for name, rows in splits.items() if _has_target(rows)},
        "tokens": token_figures(lengths, window),
        "copies": findings.copies,
        "leaks": findings.leaks,
        "allow_leaks": findings.allow_leaks,
        "conflicts": findings.conflicts,
        "dropped_duplicates": findings.dropped_duplicates,
        "scripts": {name: scripts_of(rows) for name, rows in splits.items()},
        "languages": {name: languages_of(islice(_fields(rows), SCRIPT_ROWS)) for name, rows in splits.items()},
        "cleaned": {step: cleaned[step] for step in OF_TEXTS if step in cleaned},
        "quarantined": quarantined,
        "problems": {
            code: {"count": log.counts[code], "meaning": CODES[code], "first": [as_json(one) for one in problems]}
            for code, problems in sorted(log.first.items())
        },
        "examples": examples(splits["train"]),
    }


def _has_target(rows: StoredRows) -> bool:
    return "target" in rows.column_names and rows.num_rows > 0


def counted_classes(splits: Mapping[str, StoredRows]) -> dict[str, dict[str, int]]:
    """Split -> label -> rows (turns, spans) that have it, the commonest of train first; none of tasks without."""
    counts = {name: class_counts(rows) for name, rows in splits.items()}
    shown = [label for label, _ in counts["train"].most_common(CLASSES_SHOWN)]
    return {name: {label: of_split[label] for label in shown} for name, of_split in counts.items()} if shown else {}


def imbalance(counts: Mapping[str, int]) -> float:
    """The commonest class to the rarest, 1 where all have as many rows."""
    return max(counts.values()) / max(1, min(counts.values()))


def spread(values: np.ndarray) -> dict[str, float]:
    return {name: round(float(getattr(np, name)(values)), 6) for name in ("min", "median", "mean", "max", "std")}


def token_figures(lengths: Mapping[str, np.ndarray], window: int) -> dict[str, Any]:
    """Of each split its middle and its longest rows, and the share that is longer than the window; a histogram."""
    longest = max((int(of_split.max(initial=0)) for of_split in lengths.values()), default=0)
    top = min(longest, 2 * window) or 1  # a few very long rows would flatten all others
    edges = np.unique(np.linspace(0, top + 1, BINS + 1).astype(int))
    figures = {
        name: {
            "rows": len(of_split),
            "median": float(np.median(of_split)),
            "p95": float(np.percentile(of_split, 95)),
            "longest": int(of_split.max()),
            "over_window": round(float((of_split > window).mean()), 6),
            "histogram": np.histogram(np.minimum(of_split, top), edges)[0].tolist(),
        }
        for name, of_split in lengths.items()
        if len(of_split)
    }
    return {"window": window, "edges": edges.tolist(), "splits": figures}


def token_lengths(rows: StoredRows, tokenizer: Any, max_rows: int | None = None) -> np.ndarray:
    """(rows,) tokens of what each row asks, of the first `max_rows`. `tokenizer` is a tokenizers.Tokenizer."""
    texts = islice(_texts(rows), max_rows)
    batches = iter(lambda: list(islice(texts, ENCODED_AT_ONCE)), [])
    encoded = (one for batch in batches for one in tokenizer.encode_batch_fast(batch, add_special_tokens=False))
    return np.fromiter((len(one.ids) for one in encoded), np.int64)


def scripts_of(rows: StoredRows) -> dict[str, float]:
    """Script -> its share of the letters, as Unicode names them: LATIN, CYRILLIC, CJK."""
    letters: Counter[str] = Counter()
    for text in islice(_texts(rows), SCRIPT_ROWS):
        letters.update(character for character in text if character.isalpha())
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        counts[script_of(letter)] += count
    return {script: round(count / counts.total(), 4) for script, count in counts.most_common(5)}


@lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def _texts(rows: StoredRows) -> Iterator[str]:
    return (text for part in rows.slices() for text in asked_texts(part))


def _fields(rows: StoredRows) -> Iterator[str]:
    """Each by itself: a text and its translation are in two languages."""
    for part in rows.slices():
        columns = [part[name].to_pylist() for name in TEXT_FIELDS if name in part.column_names]
        yield from (as_text(value) for values in zip(*columns, strict=True) for value in values if value)


def examples(train: StoredRows) -> list[dict[str, str]]:
    """The first row of each class, or the first rows."""
    chosen: dict[str, str] = {}
    for part in train.slices():
        texts, classes = asked_texts(part), classes_by_row(part)
        for number, text in enumerate(texts):
            named = ", ".join(dict.fromkeys(classes[number])) if classes else f"row {number + 1}"
            chosen.setdefault(named, text[:EXAMPLE_CHARACTERS])
            if len(chosen) == EXAMPLES:
                return [{"of": named, "text": text} for named, text in chosen.items()]
    return [{"of": named, "text": text} for named, text in chosen.items()]


def card_lines(card: Card) -> Iterator[str]:
    """For the screen, but for the problems, which are told one by one."""
    yield from card["decided"]
    for name, count in card["rows"].items():
        tokens = card["tokens"]["splits"].get(name)
        told = f", {tokens['median']:.0f} tokens in the middle, {tokens['longest']:,} at most" if tokens else ""
        over = f", {tokens['over_window']:.1%} longer than the window" if tokens and tokens["over_window"] else ""
        copies = "".join(f", {number:,} {kind} copies" for kind, number in card["copies"][name].items() if number)
        yield f"{name}: {count:,} rows{told}{over}{copies}"
    yield from (f"{name}: {share:.1%} of its tokens are read" for name, share in card.get("share_read", {}).items())
    for name, classes in card["classes"].items():
        listed = ", ".join(f"{label} {count:,}" for label, count in islice(classes.items(), 12))
        more = f" and {len(classes) - 12} more" if len(classes) > 12 else ""
        yield f"{name} classes: {listed}{more}; the commonest is {imbalance(classes):.1f} times the rarest"
    for name, figures in card["targets"].items():
        yield f"{name} targets: " + ", ".join(f"{key} {value:g}" for key, value in figures.items())
    yield from leak_lines(card)
    for name, scripts in card["scripts"].items():
        if len(scripts) > 1:
            yield f"{name} letters: " + ", ".join(f"{script} {share:.1%}" for script, share in scripts.items())
    for name, languages in card["languages"].items():
        if languages:
            listed = ", ".join(f"{language} {share:.1%}" for language, share in languages.items())
            yield f"{name} languages, of the rows whose words tell one: {listed}"
    for step, count in card["cleaned"].items():
        yield f"cleaning.{step}: {count:,} rows"
    if card["quarantined"]:
        yield f"{card['quarantined']:,} rows that cannot be used"


def drawn_lines(card: Card) -> Iterator[str]:
    """What a report has plots and a table for: lengths in tokens, and an example of each class."""
    edges, window = card["tokens"]["edges"], card["tokens"]["window"]
    for name, of_split in card["tokens"]["splits"].items():
        highest = max(of_split["histogram"])
        bars = "".join(BARS[-(-(len(BARS) - 1) * count // highest)] for count in of_split["histogram"])
        yield f"{name} tokens of a row |{bars}| {edges[0]:,} to {edges[-1] - 1:,}, the model's window is {window:,}"
    for one in card["examples"]:
        yield f"an example of {one['of']}: {one['text']!r}"


TOLD_ELSEWHERE = {"W101", "W301", "W304", "W305", "W404"}  # by a sentence of their own


def brief_lines(card: Card) -> Iterator[str]:
    """Before a run: what may be wrong, a line for each kind."""
    yield from leak_lines(card)
    for code, found in card["problems"].items():
        if code not in TOLD_ELSEWHERE:
            first = found["first"][0]
            place = f", the first at {first['where']}" if first["where"] else f": {first['message']}"
            yield f"{code} {found['count']:,} x {found['meaning']}{place}"
    for step, count in card["cleaned"].items():
        yield f"cleaning.{step}: {count:,} rows"


def leak_lines(card: Card) -> Iterator[str]:
    """Also where there is none to tell of but the user allows them: a score with leaks is another score."""
    leaks = card["leaks"]
    if leaks["exact"] or leaks["near"]:
        found = f"{leaks['exact']:,}, and nearly: {leaks['near']:,}; {leaks['removed']:,} left out of train"
        yield f"leaks: training rows that stand in validation or test: {found}"
    share = leaks["removed"] / max(1, leaks["removed"] + card["rows"]["train"])
    if share > MANY_LEAKS:
        why = "where short texts repeat by themselves, as in chats, data.allow_leaks=true keeps them"
        yield f"  that is {share:.0%} of train: {why}"
    if card["allow_leaks"]:
        yield LEAKS_ALLOWED
    if card["conflicts"]:
        yield f"conflicts: rows that ask what an earlier one does and are answered otherwise: {card['conflicts']:,}"
