"""Rows that are told by the same or nearly the same text, within a split and across splits.

The same: equal after Unicode compatibility, case and white space are evened out. Nearly the same: alike to SIMILARITY
or more (data/quality/minhash.py).
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from permafrost.data.fields.roles import as_text
from permafrost.data.quality.minhash import BANDS, alike, band_keys, candidates
from permafrost.data.rows import TEXT_FIELDS, StoredRows

SIMILARITY = 0.6
ORDER = ("test", "validation", "train")  # of splits: a train row is told to be the copy, not the test row


@dataclass(frozen=True)
class Copy:
    """Row `row` of `split` asks what row `of_row` of `of_split` does."""

    split: str
    row: int
    of_split: str
    of_row: int
    similarity: float = 1.0


def asked_texts(rows: pa.Table) -> list[str]:
    """What each row is told by, as one text: also the text that is to be written, as one source may have many."""
    columns = [rows[name].to_pylist() for name in TEXT_FIELDS if name in rows.column_names]
    if len(columns) == 1:
        return [as_text(value) for value in columns[0]]
    return ["\n".join(as_text(value) for value in values) for values in zip(*columns, strict=True)]


def asked_text(row: Mapping[str, Any]) -> str:
    return "\n".join(as_text(row[name]) for name in TEXT_FIELDS if name in row)


def normalized(text: str) -> str:
    even = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(even.casefold().split())


def digests_of(rows: StoredRows) -> np.ndarray:
    """(rows,) uint64: equal for rows that ask the same."""
    found = (_digest(normalized(text)) for part in rows.slices() for text in asked_texts(part))
    return np.fromiter(found, np.uint64, rows.num_rows)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def exact_copies(digests: Mapping[str, np.ndarray]) -> list[Copy]:
    """Of each row that has a double, the first one of its own split; and the first of the first split in ORDER."""
    found, repeated = [], repeated_digests(digests)
    firsts: dict[str, dict[int, int]] = {}
    for name in sorted(digests, key=ORDER.index):
        own: dict[int, int] = {}
        for row in np.flatnonzero(np.isin(digests[name], repeated)).tolist():
            digest = int(digests[name][row])
            if own.setdefault(digest, row) != row:
                found.append(Copy(name, row, name, own[digest]))
            elsewhere = next((other for other in firsts if digest in firsts[other]), None)
            if elsewhere is not None:
                found.append(Copy(name, row, elsewhere, firsts[elsewhere][digest]))
        firsts[name] = own
    return found


def repeated_digests(digests: Mapping[str, np.ndarray]) -> np.ndarray:
    """Those that several rows have, of whichever splits: few, so that memory is not a matter of all rows."""
    values, counts = np.unique(np.concatenate(list(digests.values())), return_counts=True)
    return values[counts > 1]


def near_copies(
    splits: Mapping[str, StoredRows], digests: Mapping[str, np.ndarray], similarity: float = SIMILARITY
) -> list[Copy]:
    """Rows that nearly are an earlier one, in ORDER: each with the earliest found in its own split, and with the most
    similar found in the splits before it. Of exact copies within a split the first counts, but each of them that nearly
    stands in another split is told of."""
    order = [name for name in ORDER if name in splits]
    counts = [splits[name].num_rows for name in order]
    keys, filled = np.empty((sum(counts), BANDS), np.uint32), 0
    for part in (part for name in order for part in _normalized_slices(splits[name])):
        keys[filled : filled + len(part)] = band_keys(part)
        filled += len(part)
    everywhere = np.concatenate([digests[name] for name in order])
    _, first_of_digest, digest_of_row = np.unique(everywhere, return_index=True, return_inverse=True)
    first = first_of_digest[digest_of_row]  # (rows,) the first row with the same text
    firsts = np.sort(first_of_digest)
    if not len(firsts):
        return []
    pairs = firsts[candidates(keys if len(firsts) == len(keys) else keys[firsts])]
    del keys  # a hundred bytes a row
    starts = dict(zip(order, np.cumsum([0, *counts]).tolist(), strict=False))
    texts = {row: text for name in order for row, text in _texts_at(splits[name], starts[name], np.unique(pairs))}
    split_of = np.repeat(np.arange(len(order), dtype=np.int8), counts)
    within, across = alike(texts, pairs.tolist(), similarity, split_of.__getitem__)
    copies = [_copy(row, *found[row], starts) for found in (within, across) for row in sorted(found)]
    for found in (within, across):
        doubles = np.flatnonzero((first != np.arange(len(first))) & np.isin(first, list(found))).tolist()
        of_doubles = (_copy(row, *found[int(first[row])], starts) for row in doubles)
        copies += [copy for copy in of_doubles if copy.split != copy.of_split]
    return copies


def _copy(row: int, of_row: int, share: float, starts: Mapping[str, int]) -> Copy:
    """A similarity of 1 is for texts that are equal."""
    return Copy(*_place(row, starts), *_place(of_row, starts), min(share, 0.999))


def _normalized_slices(rows: StoredRows) -> Iterator[list[str]]:
    return ([normalized(text) for text in asked_texts(part)] for part in rows.slices())


def _texts_at(rows: StoredRows, start: int, wanted: np.ndarray) -> Iterator[tuple[int, str]]:
    """(position, text) of the split's rows among the wanted positions, which count from the first split on."""
    here = wanted[(wanted >= start) & (wanted < start + rows.num_rows)]
    chosen = pa.Table.from_pylist(list(rows.at(here - start)))
    texts = asked_texts(chosen) if chosen.num_rows else []
    return ((row, normalized(text)) for row, text in zip(here.tolist(), texts, strict=True))


def _place(position: int, starts: Mapping[str, int]) -> tuple[str, int]:
    name = max(
        (name for name in starts if starts[name] <= position), key=lambda name: (starts[name], ORDER.index(name))
    )
    return name, position - starts[name]


def leaked_rows(copies: Iterable[Copy]) -> dict[int, Copy]:
    """Training row -> of which validation or test row it is a copy."""
    return {copy.row: copy for copy in copies if copy.split == "train" and copy.of_split != "train"}
