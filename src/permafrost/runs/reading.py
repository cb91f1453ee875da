"""From settings to rows that have been read, cleaned and examined, and to their data card; without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from permafrost.data.fields.by_role import Notes, RowPolicy
from permafrost.data.fields.missing import Missing, fill_missing
from permafrost.data.files import sources
from permafrost.data.quality.card import Card, data_card
from permafrost.data.quality.examination import NEAR_ROWS, Examination, examine
from permafrost.data.quality.wrong_labels import judged
from permafrost.data.rows import StoredRows
from permafrost.data.transforms.cleaning import Cleaner, Steps
from permafrost.errors import ConfigError
from permafrost.settings.schema import DataSection, DataSettings, Settings


def read_splits(
    settings: Settings | DataSettings, roles: Any, notes: Notes, *, near: bool = False
) -> dict[str, StoredRows]:
    """Read, clean and examine the rows; what was found on the way goes to `notes`. `near` looks for near copies,
    however many rows there are.

    Raises:
        DataError: what is wrong with them.
    """
    data, cleaning, rows_dir = settings.data, settings.cleaning, Path(settings.data.cache_dir) / "rows"
    plan = sources.SplitPlan(
        seed=data.split_seed,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        max_train_rows=data.max_train_rows,
        max_rows_per_label=data.max_rows_per_label,
    )
    columns, policy = data.columns.model_dump(), row_policy(settings)
    cleaner = Cleaner(Steps(**cleaning.steps()), notes.cleaned)
    missing = Missing(**cleaning.missing.model_dump(exclude={"text"}))
    given = given_rows(data)
    splits = sources.split_rows(given, roles, columns, plan, notes, rows_dir, policy, cleaner or None)
    splits = fill_missing(splits, missing, notes, rows_dir)
    sources.check_not_empty(splits, given)
    splits, notes.findings = examine(splits, examination(settings, splits, near=near), notes.log, Path(data.cache_dir))
    if notes.findings.dropped_duplicates:
        dropped = f"{notes.findings.dropped_duplicates:,} copies left out of train"
        notes.add(f"cleaning.duplicates={cleaning.duplicates}: {dropped}")
    return judged(splits, cleaning.wrong_labels, notes, rows_dir)


def given_rows(data: DataSection) -> Mapping[str, Any]:
    """Rows of each split that there is, as their source has them."""
    if data.source == "files":
        paths = {"train": data.train, "validation": data.validation, "test": data.test}
        return sources.read_files(paths, data.format)
    if data.source == "mixture":
        return given_mixture(data)
    if data.source == "hub":
        if data.hub.name is None:
            raise ConfigError("data=hub needs a data set: data.hub.name=NAME, as on the hub, or a directory")
        hub_splits = {"train": data.hub.train, "validation": data.hub.validation, "test": data.hub.test}
        return sources.read_hub(str(data.hub.name), data.hub.subset, hub_splits)
    return {"train": sources.installed_docstrings(data.source, Path(data.cache_dir))}


def given_mixture(data: DataSection) -> Mapping[str, Any]:
    if not data.mixture:
        raise ConfigError("data=mixture has no parts: 'data.mixture={reviews: {train: a.csv, weight: 1}, ...}'")
    parts = {name: part.train for name, part in data.mixture.items()}
    paths = {"validation": data.validation, "test": data.test}
    held_out = {name: sources.read_file(path, data.format) for name, path in paths.items() if path}
    return {"train": {name: sources.read_file(path, data.format) for name, path in parts.items()}} | held_out


def told_of_files(data: DataSection) -> dict[str, Any]:
    """How files are read: kept with the model, for those that it is given later."""
    return {"columns": data.columns.model_dump(exclude_none=True), "format": data.format}


def row_policy(settings: Settings | DataSettings) -> RowPolicy:
    missing = settings.cleaning.missing
    if missing.text == "constant" and missing.constant is None:
        raise ConfigError("cleaning.missing.text=constant writes what cleaning.missing.constant=... says; set it")
    return RowPolicy(
        on_bad_rows=settings.data.on_bad_rows,
        max_bad_fraction=settings.data.max_bad_fraction,
        missing_text=str(missing.constant) if missing.text == "constant" else None,
        keep_missing_labels=missing.label != "error",
        keep_missing_targets=missing.target != "error",
    )


def examination(settings: Settings | DataSettings, splits: Mapping[str, StoredRows], *, near: bool) -> Examination:
    return Examination(
        labels=settings.task.labels,
        near=near
        or settings.data.leak_similarity < 1
        or settings.cleaning.duplicates == "near"
        or sum(rows.num_rows for rows in splits.values()) <= NEAR_ROWS,
        allow_leaks=settings.data.allow_leaks,
        leak_similarity=settings.data.leak_similarity,
        duplicates=settings.cleaning.duplicates,
    )


def card_of(rows: Mapping[str, StoredRows], notes: Notes, lengths: Mapping[str, np.ndarray], window: int) -> Card:
    """The data card of examined rows; `lengths` in tokens, of all or of the first of each split."""
    assert notes.findings is not None, "the rows have been examined"
    return data_card(
        rows,
        notes.findings,
        notes.log,
        lengths,
        window,
        decided=notes.lines,
        cleaned=notes.cleaned,
        quarantined=notes.num_quarantined,
    )
