"""All splits taken together: labels, copies, leaks, contradictions and broken texts. The same for check-data and a run.

A training row that stands in validation or test is left out of train, since what was learned by heart is no test.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from permafrost.data.fields.labels import label_problems
from permafrost.data.problems import EXCERPT, Problem, ProblemLog, fault
from permafrost.data.quality.duplicates import (
    SIMILARITY,
    Copy,
    asked_text,
    asked_texts,
    digests_of,
    exact_copies,
    leaked_rows,
    near_copies,
    repeated_digests,
)
from permafrost.data.rows import ORIGIN, WHERE, StoredRows, select
from permafrost.storage.atomic import kept_json

Splits = dict[str, StoredRows]
VERSION = f"{SIMILARITY}-2"  # of what is kept of near copies; raise it when they are found in another way
NEAR_ROWS = 200_000  # of all splits; of more, near copies are looked for by check-data alone
ANSWERS = ("label", "labels", "target", "acts", "tags")
COPY_CODES = {(True, True): "W302", (True, False): "W303", (False, True): "W304", (False, False): "W305"}
ALLOWED_CONTROL = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85"  # white space, of sorts


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What is to be looked for, and what becomes of training rows that stand elsewhere, too."""

    labels: Sequence[str] | None = None  # task.labels
    near: bool = True
    allow_leaks: bool = False
    leak_similarity: float = 1.0  # from which a training row counts as a row of validation or test
    duplicates: str = "keep"  # in train: keep, exact or near ones are dropped


@dataclass
class Findings:
    """Counts of what was found, for the data card."""

    copies: dict[str, dict[str, int]]  # split -> exact and near copies within it
    leaks: dict[str, int]  # training rows: exact, near, and how many were removed
    allow_leaks: bool
    conflicts: int
    dropped_duplicates: int


def examine(splits: Splits, wanted: Examination, log: ProblemLog, cache_dir: Path) -> tuple[Splits, Findings]:
    """The splits, with train freed of leaks and, if that is wanted, of copies; problems go to `log`."""
    of_labels = list(label_problems(splits, wanted.labels))
    log.add(*of_labels)
    for name, rows in splits.items():
        for problem in broken_texts(rows, name):
            log.add(problem)
    digests = {name: digests_of(rows) for name, rows in splits.items()}
    exact = exact_copies(digests)
    near = cached_near_copies(splits, digests, cache_dir) if wanted.near else []
    conflicts = list(conflicting(splits, digests))
    for problem in [*problems_of_copies(splits, [*exact, *near], wanted), *conflicts]:
        log.add(problem)
    leaves_out = keeps_leaks(splits, wanted) is None
    leaked = leaked_rows(copy for copy in [*exact, *near] if leaves_out and copy.similarity >= wanted.leak_similarity)
    doubles = {copy.row for copy in _droppable(exact, near, wanted.duplicates)} - leaked.keys()
    if leaked and len(leaked) == splits["train"].num_rows:
        fix = "give other files; data.allow_leaks=true trains on them all the same"
        raise fault("E505", "", "every training row stands in validation or test, too", fix)
    findings = Findings(
        copies={name: _counted(exact, near, name, name) for name in splits},
        leaks=_counted_leaks(exact, near) | {"removed": len(leaked)},
        allow_leaks=wanted.allow_leaks,
        conflicts=len(conflicts),
        dropped_duplicates=len(doubles),
    )
    left = np.setdiff1d(np.arange(splits["train"].num_rows), [*leaked, *doubles])
    cleared = splits | {"train": select(splits["train"], left, cache_dir / "rows")}
    if cleared["train"] is not splits["train"]:
        log.add(*labels_lost(cleared, wanted, of_labels))
    return cleared, findings


def labels_lost(cleared: Splits, wanted: Examination, before: Sequence[Problem]) -> Iterator[Problem]:
    """Errors of labels that train has no more, as all of its rows were copies."""
    known = {(problem.code, problem.where) for problem in before}
    for problem in label_problems(cleared, wanted.labels):
        if problem.severity == "error" and (problem.code, problem.where) not in known:
            yield replace(problem, fix="its rows in train were left out as copies; give others")


def keeps_leaks(splits: Splits, wanted: Examination) -> str | None:
    """Why training rows that stand elsewhere stay in train; None where they are left out."""
    if wanted.allow_leaks:
        return "data.allow_leaks keeps it in train"
    return None if has_answers(splits["train"]) else "language modelling keeps it in train"


def has_answers(rows: StoredRows) -> bool:
    """A plain text for language modelling has none: a heading that stands in two articles gives nothing away."""
    return bool(set(rows.column_names) - {WHERE, ORIGIN, "text"})


def _droppable(exact: Sequence[Copy], near: Sequence[Copy], which: str) -> list[Copy]:
    chosen = {"keep": [], "exact": exact, "near": [*exact, *near]}[which]
    return [copy for copy in chosen if copy.split == copy.of_split == "train"]


def _counted(exact: Sequence[Copy], near: Sequence[Copy], split: str, of_split: str) -> dict[str, int]:
    return {
        kind: len({copy.row for copy in copies if (copy.split, copy.of_split) == (split, of_split)})
        for kind, copies in (("exact", exact), ("near", near))
    }


def _counted_leaks(exact: Sequence[Copy], near: Sequence[Copy]) -> dict[str, int]:
    return {"exact": len(leaked_rows(exact)), "near": len(leaked_rows(near))}


def cached_near_copies(splits: Splits, digests: Mapping[str, np.ndarray], cache_dir: Path) -> list[Copy]:
    """Those that were found before in the same rows, as finding them takes longest of all checks."""
    path = cache_dir / "copies" / f"{'-'.join(splits[name].fingerprint for name in sorted(splits))}-{VERSION}.json"
    found = kept_json(path, lambda: [asdict(copy) for copy in near_copies(splits, digests)])
    return [Copy(**copy) for copy in found]


def problems_of_copies(splits: Splits, copies: Sequence[Copy], wanted: Examination) -> Iterator[Problem]:
    told, kept, left_out = _told(splits, copies), keeps_leaks(splits, wanted), "it is left out of train"
    for copy in copies:
        within, exactly = copy.split == copy.of_split, copy.similarity == 1.0
        word = "the same as" if exactly else f"nearly ({copy.similarity:.0%} alike)"
        message = f"{word} {told[copy.of_split, copy.of_row][0]}{'' if within else f' of {copy.of_split}'}"
        if copy.split != "train":
            fix = "remove one of them"
        elif within:
            dropping = ("exact", "near") if exactly else ("near",)
            fix = left_out if wanted.duplicates in dropping else f"cleaning.duplicates={dropping[0]} drops it"
        elif kept is None and copy.similarity < wanted.leak_similarity:
            fix = f"data.leak_similarity={SIMILARITY} removes it"
        else:
            fix = kept or left_out
        code = COPY_CODES[within or copy.split != "train", exactly]
        where, text = told[copy.split, copy.row]
        yield Problem(code=code, where=where, message=message, fix=fix, text=text)


def _told(splits: Splits, copies: Sequence[Copy]) -> dict[tuple[str, int], tuple[str, str]]:
    """(split, row) -> file:line and the beginning of the text, of the rows that are told of."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for name, rows in splits.items():
        wanted = {copy.row for copy in copies if copy.split == name}
        wanted |= {copy.of_row for copy in copies if copy.of_split == name}
        for row, of_row in zip(sorted(wanted), rows.at(wanted), strict=True):
            found[name, row] = (of_row[WHERE], asked_text(of_row)[: EXCERPT + 1])
    return found


def conflicting(splits: Splits, digests: Mapping[str, np.ndarray]) -> Iterator[Problem]:
    """Rows that ask the same as an earlier one and are answered otherwise."""
    answers = [name for name in ANSWERS if name in splits["train"].column_names]
    first: dict[int, tuple[Any, str]] = {}
    repeated = repeated_digests(digests)
    for name, rows in splits.items():
        positions = np.flatnonzero(np.isin(digests[name], repeated))
        for digest, row in zip(digests[name][positions].tolist(), rows.at(positions), strict=True):
            answer = [row[column] for column in answers]
            other, place = first.setdefault(digest, (answer, row[WHERE]))
            if other != answer:
                message = f"{_shown(answer)} here, and {_shown(other)} for the same text at {place}"
                yield Problem(
                    code="W301", where=row[WHERE], message=message, fix="decide for one", text=asked_text(row)
                )


def _shown(answer: Sequence[Any]) -> str:
    text = repr(answer[0])
    return text if len(text) < 40 else f"{text[:39]}…"


def broken_texts(rows: StoredRows, split: str) -> Iterator[Problem]:
    """Texts that were decoded by the wrong table (mojibake), and control characters in them."""
    from ftfy.badness import is_bad

    for part in rows.slices():
        for text, where in zip(asked_texts(part), part[WHERE].to_pylist(), strict=True):
            if not text.isascii() and is_bad(text):
                fix = "cleaning=default mends it, or read the source again as what it is"
                yield Problem(code="W402", where=where, message="decoded wrongly", fix=fix, text=text)
            if (character := _control(text)) is not None:
                message = f"the control character U+{ord(character):04X}"
                yield Problem(code="W403", where=where, message=message, fix="cleaning=default removes it", text=text)


def _control(text: str) -> str | None:
    if text.isprintable():  # nearly all are
        return None
    return next((one for one in text if unicodedata.category(one) == "Cc" and one not in ALLOWED_CONTROL), None)
