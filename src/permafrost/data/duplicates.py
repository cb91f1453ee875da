"""Rows that ask the same or nearly the same, within a split and across splits.

The same: equal after Unicode compatibility, case and white space are evened out. Nearly the same: a Jaccard similarity
of their runs of 5 characters of SIMILARITY or more, candidates found by MinHash (Broder 1997) with locality-sensitive
hashing in 25 bands of 5, as Lee et al. 2022 (arXiv 2107.06499, section 4.2) do, and every pair then counted out: of
pairs that are alike to 0.6, 0.65 and 0.7 the bands find 87, 95 and 99 %.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from permafrost.data.roles import as_text
from permafrost.data.rows import StoredRows

# What a row is told by: all but its labels. A text that is to be written is part of it, as one source may have many.
ASKED = ("text", "text_pair", "source", "references", "turns", "tokens")
SHINGLE, SIMILARITY = 5, 0.6
BANDS, BAND_ROWS = 25, 5
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
    """What each row is told by, as one text."""
    columns = [rows[name].to_pylist() for name in ASKED if name in rows.column_names]
    return ["\n".join(as_text(value) for value in values) for values in zip(*columns, strict=True)]


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
    """Rows that nearly are an earlier one, in ORDER, each with the first that it is like; exact copies are left out."""
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=BANDS * BAND_ROWS, params=(BANDS, BAND_ROWS))
    places: list[tuple[str, int]] = []
    shingled: list[np.ndarray] = []
    found = []
    for name, row, shingles, signature in _signatures(splits, digests):
        alike = _first_alike(shingles, sorted(index.query(signature)), shingled, similarity)
        if alike is not None:
            found.append(Copy(name, row, *places[alike[0]], alike[1]))
        if alike is None or places[alike[0]][0] != name:  # of a group of near copies the first stands for all
            index.insert(len(places), signature, check_duplication=False)
            places.append((name, row))
            shingled.append(shingles)
    return found


def _first_alike(
    shingles: np.ndarray, candidates: Sequence[int], shingled: Sequence[np.ndarray], similarity: float
) -> tuple[int, float] | None:
    for candidate in candidates:
        jaccard = _jaccard(shingles, shingled[candidate])
        if jaccard >= similarity:
            return candidate, min(jaccard, 0.999)  # 1 is for texts that are equal
    return None


def _signatures(splits: Mapping[str, StoredRows], digests: Mapping[str, np.ndarray]) -> Iterator[tuple]:
    """(split, row, its shingles, their MinHash) of the first row of each text in all splits."""
    from datasketch import MinHash

    seen, empty = set[int](), MinHash(num_perm=BANDS * BAND_ROWS, hashfunc=_as_it_is)
    for name in sorted(splits, key=ORDER.index):
        texts = (text for part in splits[name].slices() for text in asked_texts(part))
        for row, (text, digest) in enumerate(zip(texts, digests[name].tolist(), strict=True)):
            if digest not in seen:
                seen.add(digest)
                shingles = shingles_of(normalized(text))
                signature = empty.copy()
                signature.update_batch(shingles.tolist())
                yield name, row, shingles, signature


def shingles_of(text: str) -> np.ndarray:
    """(distinct,) uint32, sorted: a hash of each run of 5 characters, or of a shorter text as it is."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    runs = np.zeros(max(1, len(codes) - SHINGLE + 1), np.uint64)
    for place in range(min(SHINGLE, len(codes))):
        runs = (runs ^ codes[place : place + len(runs)]) * np.uint64(0x9E3779B97F4A7C15)  # golden ratio (Knuth 6.4)
        runs ^= runs >> np.uint64(29)
    return np.unique((runs >> np.uint64(32)).astype(np.uint32))


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def _as_it_is(value: int) -> int:
    return value


def leaked_rows(copies: Iterable[Copy]) -> dict[int, Copy]:
    """Training row -> of which validation or test row it is a copy."""
    return {copy.row: copy for copy in copies if copy.split == "train" and copy.of_split != "train"}
