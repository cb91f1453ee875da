"""The labels of all splits: which there are, in which order, and what is wrong with them taken together."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import pyarrow.compute as pc

from permafrost.data.problems import SHOWN, Problem
from permafrost.data.rows import WHERE, Table, word_place
from permafrost.errors import DataError, nearest

Splits = Mapping[str, Table]
EVALUATED = ("validation", "test")
HINTED = 1_000  # labels; among more no near one is looked for, as an identifier taken for a label has


def classes_by_row(rows: Table) -> list[list[str]]:
    """What each row is labelled with: one label, several, one for each turn, or the types of its spans; or nothing."""
    field = next((name for name in CLASSES if name in rows.column_names), None)
    return [CLASSES[field](value) for value in rows[field].to_pylist()] if field else []


def placed_labels(rows: Table) -> Iterator[tuple[str, str]]:
    """Each label of each row, and the type of each span, with file:line of the row or of the span's first word."""
    places = rows[WHERE].to_pylist()
    if "tags" not in rows.column_names:
        for given, where in zip(classes_by_row(rows), places, strict=True):
            yield from ((label, where) for label in sorted(set(given)))
        return
    for tags, where in zip(rows["tags"].to_pylist(), places, strict=True):
        for number, tag in enumerate(tags):
            if tag.startswith("B-"):
                yield tag[2:], word_place(where, number)


def class_counts(rows: Table) -> Counter[str]:
    """Label -> how many rows (turns, spans) have it; by columns, since a list for each row takes memory."""
    field = next((name for name in CLASSES if name in rows.column_names), None)
    if field is None or not rows.num_rows:
        return Counter()
    column = rows[field] if field == "label" else pc.list_flatten(rows[field])
    if field == "tags":
        column = pc.utf8_slice_codeunits(column.filter(pc.starts_with(column, "B-")), 2)
    return Counter({counted["values"]: counted["counts"] for counted in column.value_counts().to_pylist()})


def _types_of(tags: Sequence[str]) -> list[str]:
    return [tag[2:] for tag in tags if tag.startswith("B-")]


CLASSES: Mapping[str, Callable] = {"label": lambda label: [label], "labels": list, "acts": list, "tags": _types_of}


def labels_of(splits: Splits, order: Sequence[str] | None = None) -> list[str]:
    """The labels of the training rows, sorted (numbers by value), or in the order that the user gives.

    Raises:
        DataError: one label only, or labels elsewhere that the training rows do not have; all of them.
    """
    raise_first(problems_of_labels(splits, order))
    return list(order) if order is not None else sorted(class_counts(splits["train"]), key=sort_key)


def problems_of_labels(splits: Splits, order: Sequence[str] | None = None) -> Iterator[Problem]:
    seen = set(class_counts(splits["train"]))
    known = seen if order is None else set(order)
    if seen - known:
        yield from _unknown(splits["train"], known, "E503", "train has the label {!r}, which task.labels does not name")
    elif len(known) < 2:
        message = f"train has one label only ({next(iter(known), None)!r})"
        yield Problem(code="E501", where="", message=message, fix="a classifier needs two or more")
    for name in EVALUATED:
        yield from _unknown(splits[name], known | seen, "E502", f"{name} has the label {{!r}}, which train has not")


def all_labels_of(splits: Splits) -> list[str]:
    """Those of the training rows, sorted.

    Raises:
        DataError: none at all, or labels elsewhere that the training rows do not have, each with its place.
    """
    raise_first(problems_of_label_lists(splits))
    return sorted(_known(splits))


def problems_of_label_lists(splits: Splits) -> Iterator[Problem]:
    if not (known := _known(splits)):
        fix = "give their column with data.columns.label=NAME"
        yield Problem(code="E501", where="", message="no training row has a label", fix=fix)
        return
    for name in EVALUATED:
        yield from _unknown(splits[name], known, "E502", f"{name} has the label {{!r}}, which train has not")


def tags_of(splits: Splits) -> list[str]:
    """O, then B and I of each type that the training rows have.

    Raises:
        DataError: no type at all, or types elsewhere that the training rows do not have, each with its place.
    """
    raise_first(problems_of_tags(splits))
    return ["O", *(f"{prefix}-{kind}" for kind in sorted(_known(splits)) for prefix in "BI")]


def problems_of_tags(splits: Splits) -> Iterator[Problem]:
    if not (known := _known(splits)):
        fix = "give its column with data.columns.tag=INDEX"
        yield Problem(code="E501", where="", message="train has no tag but O", fix=fix)
        return
    for name in EVALUATED:
        yield from _unknown(splits[name], known, "E502", f"{name} has the type {{!r}}, which train has not")


def check_known(rows: Table, names: Sequence[str]) -> None:
    """`names` are the labels or the tags of a finished run; there are none where it has neither.

    Raises:
        DataError: labels, or types of tags, that are none of them, each with its place.
    """
    what, known = ("type", _types_of(names)) if "tags" in rows.column_names else ("label", names)
    if names:
        raise_first(_unknown(rows, set(known), "E502", f"the run does not know the {what} {{!r}}"))


PROBLEMS: Mapping[str, Callable[[Splits], Iterator[Problem]]] = {
    "labels": problems_of_label_lists,
    "acts": problems_of_labels,
    "tags": problems_of_tags,
}


def label_problems(splits: Splits, order: Sequence[str] | None) -> Iterator[Problem]:
    """Errors and warnings about the labels of all splits; of what has none, nothing."""
    columns = splits["train"].column_names
    if "label" in columns:
        yield from problems_of_labels(splits, order)
    for field in PROBLEMS.keys() & set(columns):
        yield from PROBLEMS[field](splits)
    if CLASSES.keys() & set(columns):
        yield from doubtful_labels(splits)
    if "target" in columns and len(splits["train"]["target"].unique()) == 1:
        target = splits["train"]["target"][0].as_py()
        message = f"every training target is {target:g}"
        yield Problem(code="E504", where="", message=message, fix="there is nothing to learn: look at the column")


def doubtful_labels(splits: Splits) -> Iterator[Problem]:
    """Labels that may be two spellings of one, that have a single training row, or that are never scored."""
    counts = {name: class_counts(rows) for name, rows in splits.items()}
    spellings = defaultdict(set)
    for label in set().union(*counts.values()):
        spellings[_plain(label)].add(label)
    alike = sorted(sorted(group) for group in spellings.values() if len(group) > 1)
    rarest = [min(group, key=lambda label: sum(of_split[label] for of_split in counts.values())) for group in alike]
    places = first_places(splits, {*rarest, *(label for label, count in counts["train"].items() if count == 1)})
    for group, label in zip(alike, rarest, strict=True):
        message = f"labels that are told apart by their spelling alone: {', '.join(map(repr, group))}"
        fix = "write them alike if they mean the same"
        yield Problem(code="W202", where=places[label], message=message, fix=fix, text=label)
    for label in sorted(counts["train"], key=sort_key):
        if counts["train"][label] == 1:
            message, fix = f"label {label!r} has one training row", "give more rows, or join it with another"
            yield Problem(code="W203", where=places[label], message=message, fix=fix, text=label)
        for name in EVALUATED:
            if splits[name].num_rows and not counts[name][label]:
                fix = f"{name} says nothing about it"
                yield Problem(code="W204", where="", message=f"label {label!r} has no row in {name}", fix=fix)


def first_places(splits: Splits, labels: set[str]) -> dict[str, str]:
    """Label -> file:line of the first row or word that has it, in train if it is there."""
    found: dict[str, str] = {}
    for rows in (splits[name] for name in ("train", *EVALUATED)):
        if not rows.num_rows or not labels - found.keys():
            continue
        for label, where in placed_labels(rows):
            if label in labels:
                found.setdefault(label, where)
    return found


def raise_first(problems: Iterable[Problem]) -> None:
    """
    Raises:
        DataError: there are any; a line for each of the first SHOWN, and how many more there are.
    """
    rest = iter(problems)
    if lines := [str(problem) for problem in islice(rest, SHOWN)]:
        left_out = sum(1 for _ in rest)
        raise DataError("\n".join([*lines, *([f"and {left_out:,} more"] if left_out else [])]))


def sort_key(label: str) -> tuple[int, float, str]:
    """Numbers by value, then words; "nan" is a word, as it would sort differently each time."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (1, 0.0, label) if math.isnan(number) else (0, number, label)


def _plain(label: str) -> tuple[int, float, str]:
    kind, number, word = sort_key(" ".join(label.casefold().split()))
    return (kind, number, word if kind else "")


def _known(splits: Splits) -> set[str]:
    return set(class_counts(splits["train"]))


def _unknown(rows: Table, known: set[str], code: str, message: str) -> Iterator[Problem]:
    unknown, hints = class_counts(rows).keys() - known, dict[str, str]()
    for label, where in placed_labels(rows) if unknown else ():
        if label in unknown:
            if label not in hints and len(hints) < SHOWN and len(known) <= HINTED:
                hints[label] = nearest(label, known).removeprefix("; ")
            yield Problem(code=code, where=where, message=message.format(label), fix=hints.get(label, ""), text=label)
