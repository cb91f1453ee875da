"""Which columns of a file fill a role: those that are named, or those whose names are usual."""

from collections.abc import Mapping, Sequence
from typing import Any

from permafrost.data.fields.roles import ROLES, Names, Row
from permafrost.data.problems import fault
from permafrost.errors import nearest


def columns_of(role: str, given: Mapping[str, Any], row: Row) -> tuple[Names, str | None]:
    """The columns that fill a role, and a sentence where they were found by their names.

    Raises:
        DataError: a column that was named is not there, or none looks like the role.
    """
    present = _columns(row)
    keys = [key for key in ROLES[role].column if given.get(key) is None]
    named = {
        key: [_named(name, key, row, present) for name in _as_list(given[key])]
        for key in ROLES[role].column
        if key not in keys
    }
    found, how = _found(role, keys, row, present) if keys else ({}, "")
    if found is None:
        hint, missing = nearest(keys[0], present).removeprefix("; "), f"no column looks like the {keys[0]}"
        raise fault("E301", row["where"], missing, f"{hint}; set data.columns.{keys[0]}=NAME", ", ".join(present))
    written = " ".join(f"data.columns.{key}={_written(names)}" for key, names in found.items())
    names = [name for key in ROLES[role].column for name in (named | found)[key]]
    return names, f"{written}, {how}" if found else None


def _found(role: str, keys: Sequence[str], row: Row, present: Sequence[str]) -> tuple[dict[str, Names] | None, str]:
    """The columns of those keys of the role that were not named, and by what they were found."""
    of_role = ROLES[role].column
    for names in ROLES[role].common:
        by_key = {of_role[0]: names} if len(of_role) == 1 else {k: [n] for k, n in zip(of_role, names, strict=True)}
        found = {key: by_key[key] for key in keys}
        if all(name in row for of_key in found.values() for name in of_key):
            return found, "found by its name"
    if "first_line" in row and role in ("tagged", "words"):  # a column file: the word comes first and its tag last
        places = {"token": ("first", present[0]), "tag": ("last", present[-1])}
        found = {key: [places[key][1]] for key in keys}
        return found, f"{' and '.join(places[key][0] for key in keys)} column"
    return None, ""


def columns_here(given: Mapping[str, Any], row: Row) -> dict[str, Any]:
    """Those of `given`, which were another file's, that this row's file has too."""
    present = _columns(row)
    return {key: names for key, names in given.items() if all(_column(n, present) in present for n in _as_list(names))}


def _columns(row: Row) -> list[str]:
    return [name for name in row if name not in ("where", "first_line")]


def _column(name: Any, present: Sequence[str]) -> str:
    """Of a column file, which has numbers for names, -1 is the last."""
    return present[name] if isinstance(name, int) and -len(present) <= name < 0 else str(name)


def _named(name: Any, key: str, row: Row, present: Sequence[str]) -> str:
    found = _column(name, present)
    if found not in present:
        hint, missing = nearest(found, present).removeprefix("; "), f"no column {found!r} for data.columns.{key}"
        raise fault("E301", row["where"], missing, hint, ", ".join(present))
    return found


def _as_list(names: Any) -> list[Any]:
    return list(names) if isinstance(names, (list, tuple)) else [names]


def _written(names: Names) -> str:
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"
