"""`permafrost check-data`: what a run would find in its data, and more, before torch is imported or a model loaded."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import permafrost
from permafrost.data.fields.by_role import Notes
from permafrost.data.problems import Problem, ProblemLog, problems_of
from permafrost.data.quality.card import Card, card_lines, drawn_lines, token_lengths
from permafrost.data.quality.duplicates import asked_text
from permafrost.data.quality.examination import has_answers
from permafrost.data.rows import WHERE, StoredRows
from permafrost.data.tokens.windows import room_for
from permafrost.errors import DataError
from permafrost.runs.reading import card_of, read_splits
from permafrost.settings.schema import DataSettings, ModelSection
from permafrost.storage.atomic import complete_or_absent
from permafrost.tasks.declared import declared_roles

DEFAULT_WINDOW = 1024


def check_data(settings: DataSettings, output: Path) -> tuple[Card | None, ProblemLog]:
    """The data card, None where the data cannot be read at all, and all problems, written to `output` too.

    Rows that cannot be used are put aside, however many they are, so that the others are looked at.
    """
    with complete_or_absent(output) as partial, partial.open("w", encoding="utf-8") as file:
        notes = Notes(log=ProblemLog(file), keeps_quarantined=False)
        try:
            card = examined(settings, notes)
        except DataError as error:  # of what the log has already it tells in sentences
            new = [given for given in error.args if isinstance(given, Problem)]
            notes.log.add(*(new if new or notes.log.errors else problems_of(error)))
            card = None
    return card, notes.log


def examined(settings: DataSettings, notes: Notes) -> Card:
    data = settings.data.model_copy(update={"on_bad_rows": "quarantine", "max_bad_fraction": 1.0})
    settings = settings.model_copy(update={"data": data})
    rows = read_splits(settings, declared_roles(settings.task.kind), notes, near=True)
    tokenizer, window = tokenizer_and_window(settings.model)
    window = min(settings.data.max_length or window, window)
    lengths = {name: token_lengths(of_split, tokenizer) for name, of_split in rows.items()}
    max_new_tokens = settings.task.decoding.max_new_tokens
    notes.log.add(*long_rows(rows, lengths, window, data.max_windows))
    notes.log.add(*long_pairs(rows, tokenizer, window, max_new_tokens))
    return card_of(rows, notes, lengths, window)


def tokenizer_and_window(model: ModelSection) -> tuple[Any, int]:
    """By the files alone, of a local directory or the hub's cache; words are counted where there is no tokenizer."""
    directory = model_directory(model)
    config = directory / "config.json"
    window = json.loads(config.read_text("utf-8"))["n_positions"] if config.is_file() else DEFAULT_WINDOW
    if model.architecture:
        window = model.architecture.n_positions
    path = (Path(model.tokenizer) if model.tokenizer not in (None, "train") else directory) / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path)), window
    return WordTokenizer(), window


def model_directory(model: ModelSection) -> Path:
    from huggingface_hub import try_to_load_from_cache

    shipped = Path(permafrost.__file__).parent / "model" / model.name
    if model.path:
        return Path(model.path).expanduser()
    if shipped.is_dir():
        return shipped
    cached = try_to_load_from_cache(model.name, "config.json")
    return Path(cached).parent if isinstance(cached, str) else shipped


@dataclass(frozen=True)
class Words:
    ids: list[str]


class WordTokenizer:
    """In place of a tokenizer: what stands between blanks."""

    def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> list[Words]:
        return [Words(text.split()) for text in texts]


def long_rows(
    splits: Mapping[str, StoredRows], lengths: Mapping[str, np.ndarray], window: int, max_windows: int
) -> Iterator[Problem]:
    """Of tasks that cut a long text; language modelling reads all of it."""
    room = room_for(window - 1, max_windows)
    fix = "head=windows data.max_windows=8" if max_windows == 1 else f"data.max_windows={2 * max_windows}"
    for name, rows in splits.items():
        if "text" in rows.column_names and has_answers(rows):
            over = np.flatnonzero(lengths[name] > room)
            for count, row in zip(lengths[name][over], rows.at(over), strict=True):
                message = f"{count:,} tokens, and the model reads {room:,} of a row"
                yield Problem(code="W401", where=row[WHERE], message=message, fix=fix, text=asked_text(row))


def long_pairs(splits: Mapping[str, StoredRows], tokenizer: Any, window: int, max_new_tokens: int) -> Iterator[Problem]:
    """Of tasks that write: what is read shares the window with what is written, and with a template's words."""
    limits = {"source": window - max_new_tokens, "references": max_new_tokens - 1}
    verbs = {"source": "to read", "references": "to write"}
    fix = f"task.decoding.max_new_tokens={max_new_tokens} are kept for what is written: set it, or shorten the text"
    for rows in splits.values():
        for part in rows.slices() if "references" in rows.column_names else ():
            sources, references = part["source"].to_pylist(), part["references"].to_pylist()
            longest = [max(texts, key=len) for texts in references]
            for name, texts in (("source", sources), ("references", longest)):
                encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                for row in [row for row, one in enumerate(encoded) if len(one.ids) > limits[name]]:
                    message = f"{len(encoded[row].ids):,} tokens {verbs[name]}, and there is room for {limits[name]:,}"
                    where = part[WHERE][row].as_py()
                    yield Problem(code="W401", where=where, message=message, fix=fix, text=texts[row])


def report_lines(card: Card | None, log: ProblemLog, output: Path) -> Iterator[str]:
    """What check-data says on the screen."""
    if card is not None:
        yield from card_lines(card)
        yield from drawn_lines(card)
    yield from log.lines()
    warnings = log.counts.total() - log.errors
    yield f"{log.errors:,} errors, {warnings:,} warnings; all of them: {output}"
