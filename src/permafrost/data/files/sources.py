"""Rows by role, from files, the hub or this Python installation.

Whatever the source, a split has the fields of the roles that its task asks for (data/fields/roles.py), and `where`:
file:line.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa

from permafrost.data.fields.by_role import Change, Notes, RowPolicy, Rows, rows_by_role
from permafrost.data.fields.labels import classes_by_row
from permafrost.data.fields.roles import as_text
from permafrost.data.files.docstrings import chapters, library_rows, package_rows
from permafrost.data.files.readers import Row, read_parallel, read_rows
from permafrost.data.files.splits import split_of, unit_hash
from permafrost.data.problems import fault
from permafrost.data.rows import ORIGIN, WHERE, StoredRows, keep, select, writing
from permafrost.errors import ConfigError, DataError, ResourceError, nearest
from permafrost.storage.atomic import complete_or_absent

Splits = dict[str, StoredRows]
SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """How splits that are not given are cut from the training rows, and how many training rows are kept."""

    seed: int
    validation_fraction: float
    test_fraction: float
    max_train_rows: int | None = None
    max_rows_per_label: int | None = None


def split_rows(
    given: Mapping[str, Rows | Mapping[str, Rows]],
    roles: Sequence[str],
    columns: Mapping[str, Any],
    plan: SplitPlan,
    notes: Notes,
    directory: Path,
    policy: RowPolicy | None = None,
    change: Change | None = None,
) -> Splits:
    """The three splits by role, kept under `directory`; one that is not given is cut from train by the texts.

    `columns` are names by data.columns' keys; None is found by itself among the common names. `policy` says what
    becomes of rows that cannot be used, and `change` is done to the others.
    """
    missing = [name for name in ("validation", "test") if name not in given]
    splits, faults = Splits(), list[object]()
    for name, rows in given.items():
        slices = mixed(rows, roles, columns, name, notes, policy, change)
        try:
            splits |= cut(slices, missing, plan, directory) if name == "train" else {name: keep(slices, directory)}
        except DataError as error:  # what is wrong with the others is to be told, too
            faults += error.args
    if faults:
        raise DataError(*faults)
    if plan.max_train_rows is not None:
        splits["train"] = sample_rows(splits["train"], plan.max_train_rows, plan.seed, directory)
    if plan.max_rows_per_label is not None:
        splits["train"] = sample_of_each_label(splits["train"], plan.max_rows_per_label, plan.seed, directory)
    check_not_empty(splits, given)
    return {name: splits[name] for name in SPLIT_NAMES}


def check_not_empty(splits: Mapping[str, StoredRows], given: Iterable[str]) -> None:
    """
    Raises:
        DataError: a split, `given` or cut from train, has no row that can be used.
    """
    for name in SPLIT_NAMES:
        if not splits[name].num_rows:
            cut_from_train = f"give data.{name}=PATH or raise data.{name}_fraction"
            fix = f"data.{name} has none that can be used" if name in given else cut_from_train
            raise fault("E505", "", f"the {name} split has no rows", fix)


def mixed(
    rows: Rows | Mapping[str, Rows], roles: Sequence[str], columns: Mapping[str, Any], split: str, *how: Any
) -> Iterator[pa.Table]:
    """Rows by role; of several parts one after the other, each row with its part's name as ORIGIN."""
    if not isinstance(rows, Mapping):
        yield from rows_by_role(rows, roles, columns, split, *how)
        return
    for name, of_part in rows.items():
        for table in rows_by_role(of_part, roles, columns, f"{split}/{name}", *how):
            yield table.append_column(ORIGIN, pa.array([name] * table.num_rows))


def read_files(paths: Mapping[str, str | Sequence[str] | None], file_format: str | None) -> Mapping[str, Rows]:
    """Rows of the files given for each split, each row with its `where`; two files are one text line by line."""
    if not paths.get("train"):
        raise fault("E101", "", "data=files needs a training file", "data.train=PATH")
    return {name: read_file(path, file_format) for name, path in paths.items() if path}


def read_file(path: str | Sequence[str], file_format: str | None) -> Rows:
    return read_rows(Path(path), file_format) if isinstance(path, str) else read_parallel([Path(part) for part in path])


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
        with complete_or_absent(path) as partial:
            parquet.write_table(pa.Table.from_pylist(rows), partial)
    return [{**row, "where": row["source"]} for row in parquet.read_table(path).to_pylist()]


def cut(slices: Iterable[pa.Table], missing: Sequence[str], plan: SplitPlan, directory: Path) -> Splits:
    """The training rows, and of them those that the hash of their text gives to a missing split."""
    fractions = {name: getattr(plan, f"{name}_fraction") if name in missing else 0.0 for name in SPLIT_NAMES[1:]}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(writing(directory)) for name in ("train", *missing)}
        for rows in slices:
            places = [split_of(text, plan.seed, fractions["validation"], fractions["test"]) for text in texts_of(rows)]
            for name, writer in writers.items():
                writer.add(rows.filter(pa.array([place == name for place in places])))
        return {name: writer.finish() for name, writer in writers.items()}


def texts_of(rows: pa.Table) -> list[str]:
    """What a row is told by: its first field, in words."""
    name = next(name for name in rows.column_names if name != WHERE and name != "speakers")
    return [as_text(value) for value in rows[name].to_pylist()]


def sample_rows(rows: StoredRows, max_rows: int, seed: int, directory: Path) -> StoredRows:
    """The `max_rows` rows with the smallest hash of text and seed, in their own order.

    The first row of each label by that order comes before all others, so that no label is lost.
    """
    if rows.num_rows <= max_rows:
        return rows
    by_hash = rows_by_hash(rows, seed)
    if classes := classes_by_row(rows):
        firsts = set({label: row for row in reversed(by_hash) for label in classes[row]}.values())
        by_hash = [row for row in by_hash if row in firsts] + [row for row in by_hash if row not in firsts]
    return select(rows, by_hash[:max_rows], directory)


def sample_of_each_label(rows: StoredRows, count: int, seed: int, directory: Path) -> StoredRows:
    """Of each label the `count` rows with the smallest hash of text and seed, in their own order.

    Raises:
        ConfigError: the rows have no label, or several each.
    """
    if "label" not in rows.column_names:
        raise ConfigError(f"data.max_rows_per_label={count} is for rows with one label each; take data.max_train_rows")
    labels, by_label = rows["label"].to_pylist(), defaultdict[str, list[int]](list)
    for row in rows_by_hash(rows, seed):
        by_label[labels[row]].append(row)
    return select(rows, [row for of_label in by_label.values() for row in of_label[:count]], directory)


def rows_by_hash(rows: StoredRows, seed: int) -> list[int]:
    hashes = [unit_hash(text, seed + 1) for part in rows.slices() for text in texts_of(part)]
    return sorted(range(len(hashes)), key=hashes.__getitem__)


def _placed(rows: Rows, source: str) -> Iterator[Row]:
    return (row | {"where": f"{source}:{number}"} for number, row in enumerate(rows))


def _installation(kind: str) -> str:
    """Names what the docstrings come from: this Python, and for packages also their names and versions."""
    parts = [sys.version, str(chapters())]
    if kind == "docstrings":
        parts += sorted(f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions())
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _with_label_names(part: Any) -> Iterator[dict[str, Any]]:
    """Rows of a hub split with class names in place of class numbers, in lists, too; a secret label (-1) is none."""
    classes = {name: getattr(feature, "feature", feature) for name, feature in part.features.items()}
    names = {name: feature.names for name, feature in classes.items() if hasattr(feature, "int2str")}
    for row in part:
        yield row | {name: _class_name(row[name], of_class) for name, of_class in names.items()}


def _class_name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_class_name(each, names) for each in value]
    return names[value] if value is not None and value >= 0 else None
