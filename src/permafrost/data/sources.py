"""Rows by role, from files, the hub or this Python installation.

Whatever the source, a split is a table with the columns `text` and `where` (file:line, for messages) and, as the task
asks, `text_pair`, `label` (a string) or `target` (a number).
"""

import hashlib
import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from permafrost.data.docstrings import chapters, library_rows, package_rows
from permafrost.data.readers import Row, read_rows
from permafrost.data.rows import SLICE_ROWS, StoredRows, keep, writing
from permafrost.data.splits import split_of, unit_hash
from permafrost.errors import DataError, ResourceError, nearest

Rows = Iterable[Row]
Splits = dict[str, StoredRows]
SPLIT_NAMES = ("train", "validation", "test")

TYPES = {"where": pa.string(), "text": pa.string(), "text_pair": pa.string(), "label": pa.string()}
TYPES |= {"target": pa.float64()}
# Column names found by themselves, best first. Pairs come before single texts.
COMMON_NAMES: dict[str, Sequence[str | tuple[str, str]]] = {
    "text": (
        *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2")),
        *("text", "sentence", "content", "review", "document", "question", "body", "title"),
    ),
    "label": ("label", "labels", "class", "category", "sentiment", "intent"),
    "target": ("target", "score", "value", "rating", "similarity", "label"),
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Column names by role; None is found by itself among the common names."""

    text: str | Sequence[str] | None = None
    label: str | None = None
    target: str | None = None


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """How splits that are not given are cut from the training rows, and how many training rows are kept."""

    seed: int
    validation_fraction: float
    test_fraction: float
    max_train_rows: int | None = None


@dataclass
class Notes:
    """What was found and decided while reading, one sentence each, for the user to see."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)


def split_rows(
    given: Mapping[str, Rows], roles: Sequence[str], columns: Columns, plan: SplitPlan, notes: Notes, directory: Path
) -> Splits:
    """The three splits by role, kept under `directory`; one that is not given is cut from train by the texts."""
    missing = [name for name in ("validation", "test") if name not in given]
    slices = {name: rows_by_role(rows, roles, columns, name, notes) for name, rows in given.items()}
    splits = cut(slices.pop("train"), missing, plan, directory)
    splits |= {name: keep(parts, directory) for name, parts in slices.items()}
    if plan.max_train_rows is not None:
        splits["train"] = sample_rows(splits["train"], plan.max_train_rows, plan.seed, directory)
    for name in SPLIT_NAMES:
        if not splits[name].num_rows:
            raise DataError(f"the {name} split has no rows; give data.{name}=PATH or raise data.{name}_fraction")
    return {name: splits[name] for name in SPLIT_NAMES}


def read_files(paths: Mapping[str, str | None], file_format: str | None) -> Mapping[str, Rows]:
    """Rows of the files given for each split, each row with its `where`."""
    if not paths.get("train"):
        raise DataError("data=files needs a training file: data.train=PATH")
    return {name: read_rows(Path(path), file_format) for name, path in paths.items() if path}


def read_hub(name: str, subset: str | None, names: Mapping[str, str | None]) -> Mapping[str, Rows]:
    """Rows of a hub data set, or of a local directory in a layout that 🤗 Datasets reads."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset)
    except datasets.exceptions.DatasetGenerationError as error:
        raise DataError(f"data set {name!r} cannot be read: {error.__cause__ or error}") from error
    except Exception as error:  # the hub's errors have no common base
        raise ResourceError(
            f"data set {name!r} is not here and the hub cannot be reached ({type(error).__name__}); "
            "with a copy on disk use data=files data.train=PATH, or data.hub.name=DIRECTORY"
        ) from error
    rows = {}
    for split, hub_split in names.items():
        if hub_split is None:
            continue
        if hub_split not in loaded:
            raise DataError(f"data set {name!r} has no split {hub_split!r}{nearest(hub_split, loaded)}")
        part = _with_label_names(loaded[hub_split])
        rows[split] = _placed(part, f"{name}/{hub_split}")
    return rows


def installed_docstrings(kind: str, cache_dir: Path) -> list[Row]:
    """Rows of `pydocs` or `docstrings`, kept as parquet for the Python version and packages they were read from."""
    import pyarrow.parquet as parquet

    path = cache_dir / "docstrings" / f"{kind}-{_installation(kind)}.parquet"
    if not path.exists():
        rows = library_rows() if kind == "pydocs" else package_rows()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        parquet.write_table(pa.Table.from_pylist(rows), partial)
        partial.replace(path)
    return [{**row, "where": row["source"]} for row in parquet.read_table(path).to_pylist()]


def rows_by_role(rows: Rows, roles: Sequence[str], columns: Columns, split: str, notes: Notes) -> Iterator[pa.Table]:
    """Pick each role's column, check its values, and leave out rows without text (counted and said)."""
    rows, names, left_out, first_left_out = iter(rows), None, 0, ""
    while part := list(itertools.islice(rows, SLICE_ROWS)):
        names = names or {role: _column_of(role, columns, part[0], notes) for role in roles}
        kept = [row for row in part if _has_text(row, names["text"])]
        if len(kept) < len(part):
            left_out += len(part) - len(kept)
            first_left_out = first_left_out or next(r["where"] for r in part if not _has_text(r, names["text"]))
        if kept:
            yield _by_role(kept, names)
    if left_out:
        notes.add(f"{split}: left out {left_out} rows without text, the first at {first_left_out}")


def cut(slices: Iterable[pa.Table], missing: Sequence[str], plan: SplitPlan, directory: Path) -> Splits:
    """The training rows, and of them those that the hash of their text gives to a missing split."""
    fractions = {name: getattr(plan, f"{name}_fraction") if name in missing else 0.0 for name in SPLIT_NAMES[1:]}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(writing(directory)) for name in ("train", *missing)}
        for rows in slices:
            places = [
                split_of(text, plan.seed, fractions["validation"], fractions["test"])
                for text in rows["text"].to_pylist()
            ]
            for name, writer in writers.items():
                writer.add(rows.filter(pa.array([place == name for place in places])))
        return {name: writer.finish() for name, writer in writers.items()}


def sample_rows(rows: StoredRows, max_rows: int, seed: int, directory: Path) -> StoredRows:
    """The `max_rows` rows with the smallest hash of text and seed, in their own order.

    The first row of each label by that order comes before all others, so that no label is lost.
    """
    if rows.num_rows <= max_rows:
        return rows
    hashes = [unit_hash(text, seed + 1) for part in rows.slices() for text in part["text"].to_pylist()]
    by_hash = sorted(range(len(hashes)), key=hashes.__getitem__)
    if "label" in rows.column_names:
        labels = rows["label"].to_pylist()
        firsts = set({labels[row]: row for row in reversed(by_hash)}.values())
        by_hash = [row for row in by_hash if row in firsts] + [row for row in by_hash if row not in firsts]
    chosen = np.zeros(rows.num_rows, bool)
    chosen[by_hash[:max_rows]] = True
    starts = itertools.accumulate((part.num_rows for part in rows.slices()), initial=0)
    return keep(
        (
            part.filter(pa.array(chosen[start : start + part.num_rows]))
            for start, part in zip(starts, rows.slices(), strict=False)
        ),
        directory,
    )


def _has_text(row: Row, names: str | Sequence[str]) -> bool:
    return all(str(row.get(name) or "").strip() for name in _as_list(names))


def _by_role(rows: Sequence[Row], names: Mapping[str, str | Sequence[str]]) -> pa.Table:
    table: dict[str, list[Any]] = {"where": [row["where"] for row in rows]}
    texts = zip(("text", "text_pair"), _as_list(names["text"]), strict=False)
    table |= {key: [_text(row, name) for row in rows] for key, name in texts}
    if "label" in names:
        table["label"] = [_label(row, str(names["label"])) for row in rows]
    if "target" in names:
        table["target"] = [_number(row, str(names["target"])) for row in rows]
    return pa.table({name: pa.array(values, TYPES[name]) for name, values in table.items()})


def _placed(rows: Rows, source: str) -> Iterator[Row]:
    return (row | {"where": f"{source}:{number}"} for number, row in enumerate(rows))


def _installation(kind: str) -> str:
    """Names what the docstrings come from: this Python, and for packages also their names and versions."""
    parts = [sys.version, str(chapters())]
    if kind == "docstrings":
        parts += sorted(f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions())
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _column_of(role: str, columns: Columns, row: Mapping[str, Any], notes: Notes) -> str | Sequence[str]:
    named = getattr(columns, role)
    present = [name for name in row if name != "where"]
    if named is not None:
        for name in _as_list(named):
            if name not in row:
                raise DataError(f"{row['where']}: no column {name!r} for data.columns.{role}{nearest(name, present)}")
        return named
    for candidate in COMMON_NAMES[role]:
        if all(name in row for name in _as_list(candidate)):
            notes.add(f"data.columns.{role}={_written(candidate)}, found by its name")
            return candidate
    hint = nearest(role, present)
    raise DataError(f"{row['where']}: no column looks like the {role}{hint} set data.columns.{role}=NAME")


def _text(row: Mapping[str, Any], name: str) -> str:
    text = str(row[name])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row['where']}: column {name!r} holds half a character at position {error.start}; remove or mend it"
        ) from None
    return text


def _label(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None or not str(value).strip():
        raise DataError(f"{row['where']}: no label in column {name!r}; fill it in or remove the row")
    return str(value).strip()


def _number(row: Mapping[str, Any], name: str) -> float:
    try:
        value = float(row.get(name))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{row['where']}: {row.get(name)!r} in column {name!r} is not a number")
    return value


def _with_label_names(part: Any) -> Iterator[dict[str, Any]]:
    """Rows of a hub split with class names in place of class numbers; a secret label (-1) is none."""
    classes = {name: feature.names for name, feature in part.features.items() if hasattr(feature, "int2str")}
    for row in part:
        yield row | {n: names[row[n]] if row[n] is not None and row[n] >= 0 else None for n, names in classes.items()}


def _as_list(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _written(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else f"[{','.join(names)}]"
