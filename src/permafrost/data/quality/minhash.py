"""Which of many texts are nearly alike, without comparing each with each.

The similarity of two texts is Jaccard's, of their sets of runs of 5 characters. Candidates are found by MinHash (Broder
1997) with locality-sensitive hashing in 25 bands of 5, as Lee et al. 2022 (arXiv 2107.06499, section 4.2) do: of pairs
that are alike to 0.6, 0.65 and 0.7 the bands find 87, 95 and 99 %. Every candidate is then counted out.

In numpy over whole slices, as datasketch 2.0 took about six times as long for 100,000 rows, and 0.9 GB more (once, by
hand); what all of check-data costs is in benchmarks/results/data.md.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

SHINGLE = 5
BANDS, BAND_ROWS = 25, 5
BLOCK = 60_000  # characters that are hashed at once: so few that the processor's cache holds them
KEPT_SETS = 10_000  # of texts that are compared, so that memory is not a matter of how many are
NEIGHBOURS = 4  # before a row in its bucket that it is compared with, besides the bucket's first
Alike = dict[int, tuple[int, float]]  # row -> another, and how alike they are
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # spreads what is multiplied by it (Knuth, volume 3, section 6.4)


def shingled(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(shingles,) uint32, a hash of each run of 5 characters, or of a shorter text as it is, text after text; and
    (texts,) where each text's begin."""
    padding = "\0" * SHINGLE
    joined = "".join(f"{text}{padding}" for text in texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in texts], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths + len(padding))])
    counts = np.maximum(1, lengths - SHINGLE + 1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    places = np.arange(offsets[-1]) + np.repeat(starts[:-1] - offsets[:-1], counts)
    runs = np.zeros(len(places), np.uint64)
    for step in range(SHINGLE):
        runs = (runs ^ codes[places + step]) * GOLDEN
        runs ^= runs >> np.uint64(29)
    return (runs >> np.uint64(32)).astype(np.uint32), offsets[:-1]


def band_keys(texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """(texts, BANDS) uint32: texts that are alike are likely to have a key in common."""
    generator = np.random.default_rng(seed)
    factors = generator.integers(0, 2**32, BANDS * BAND_ROWS, np.uint32) | np.uint32(1)
    keys = np.empty((len(texts), BANDS), np.uint32)
    for start, end in blocks(texts):
        keys[start:end] = _keys(*shingled(texts[start:end]), factors)
    return keys


def blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each, of one text at least."""
    start, characters = 0, 0
    for place, text in enumerate(texts):
        characters += len(text)
        if characters > BLOCK and place > start:
            yield start, place
            start, characters = place, len(text)
    if start < len(texts):
        yield start, len(texts)


def _keys(shingles: np.ndarray, starts: np.ndarray, factors: np.ndarray) -> np.ndarray:
    keys = np.zeros((len(starts), BANDS), np.uint64)
    mixed, shifted = np.empty_like(shingles), np.empty_like(shingles)
    for number, factor in enumerate(factors):
        np.multiply(shingles, factor, out=mixed)
        np.right_shift(mixed, np.uint32(15), out=shifted)
        mixed ^= shifted
        mixed *= factor
        smallest = np.minimum.reduceat(mixed, starts).astype(np.uint64)
        band = number // BAND_ROWS
        keys[:, band] = (keys[:, band] ^ smallest) * GOLDEN
        keys[:, band] ^= keys[:, band] >> np.uint64(31)
    return (keys >> np.uint64(32)).astype(np.uint32)


def candidates(keys: np.ndarray) -> np.ndarray:
    """(pairs, 2) of rows with a key in common, the earlier one first: each row with the first of its bucket and with
    the few before it, so that a bucket of many costs no square of them."""
    pairs = [np.empty(0, np.int64)]
    number = np.int64(len(keys))
    for column in keys.T:
        order = np.argsort(column, kind="stable")  # of one bucket the earlier rows come first
        ordered = column[order]
        is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        bucket_starts = np.maximum.accumulate(np.where(is_first, np.arange(number), 0))
        pairs.append((order[bucket_starts] * number + order)[~is_first])
        for distance in range(1, NEIGHBOURS + 1):
            same = ordered[distance:] == ordered[:-distance]
            pairs.append((order[:-distance] * number + order[distance:])[same])
    found = np.unique(np.concatenate(pairs))
    return np.stack([found // number, found % number], axis=1) if number else np.empty((0, 2), np.int64)


def shingle_set(text: str) -> np.ndarray:
    """(distinct,) uint32, sorted."""
    return np.unique(shingled([text])[0])


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Of two sorted sets."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def alike(
    texts: dict[int, str],
    pairs: Iterable[Sequence[int]],
    similarity: float,
    group_of: Callable[[int], object] = lambda row: None,
) -> tuple[Alike, Alike]:
    """Of the candidate `pairs` those that are alike: row -> the earliest row before it of its own group, and row -> the
    most similar one before it of another group."""
    set_of = lru_cache(KEPT_SETS)(lambda row: shingle_set(texts[row]))
    within, across = Alike(), Alike()
    for earlier, later in pairs:  # by the earlier row, so that the first that fits is the earliest
        is_within = group_of(earlier) == group_of(later)
        if is_within and later in within:
            continue
        share = jaccard(set_of(earlier), set_of(later))
        if share >= similarity and is_within:
            within[later] = (earlier, share)
        elif share >= similarity and share > across.get(later, (0, 0.0))[1]:
            across[later] = (earlier, share)
    return within, across
