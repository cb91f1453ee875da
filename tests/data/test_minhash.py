"""Runs of characters, candidates and their similarity: by hand, and against sets of all pairs."""

import itertools
import random

import numpy as np
import pytest

from permafrost.data.quality.minhash import (
    BAND_ROWS,
    BANDS,
    alike,
    band_keys,
    blocks,
    candidates,
    jaccard,
    shingle_set,
    shingled,
)
from tests.planted import WORDS


def sets_of(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(len(text) - 4)} or {text}


@pytest.mark.parametrize("text", ["abcdef", "aaaaaaaa", "abcde", "ab", "", "snö faller på gatan", "a 🙂 b 🙂 c"])
def test_there_are_as_many_shingles_as_runs_of_five_characters(text):
    assert len(shingle_set(text)) == len(sets_of(text))


def test_texts_are_told_apart_where_they_meet():
    texts = ["abcdef", "", "ab", "cdefgh"]
    shingles, starts = shingled(texts)
    assert starts.tolist() == [0, 2, 3, 4]
    assert len(shingles) == 6
    for text, part in zip(texts, np.split(shingles, starts[1:]), strict=True):
        assert sorted(part.tolist()) == sorted(shingled([text])[0].tolist())


def test_jaccard_is_that_of_the_sets():
    rng = random.Random(0)
    for _ in range(50):
        first, second = ("".join(rng.choices("ab ", k=rng.randint(0, 30))) for _ in range(2))
        expected = len(sets_of(first) & sets_of(second)) / len(sets_of(first) | sets_of(second))
        assert jaccard(shingle_set(first), shingle_set(second)) == pytest.approx(expected)


def test_bands_find_what_they_should():
    """A pair that is alike to s is found with probability 1 - (1 - s^5)^25."""
    rng, found, expected, pairs = random.Random(1), 0, 0.0, 400
    for _ in range(pairs):
        words = rng.choices(WORDS, k=20)
        other = [rng.choice(WORDS) if rng.random() < 0.13 else word for word in words]
        texts = [" ".join(words), " ".join(other)]
        share = jaccard(*map(shingle_set, texts))
        found += len(candidates(band_keys(texts, seed=rng.randrange(1000)))) > 0
        expected += 1 - (1 - share**BAND_ROWS) ** BANDS
    assert found == pytest.approx(expected, abs=4 * (pairs * 0.25) ** 0.5)
    assert 0.3 * pairs < expected < 0.95 * pairs


def test_keys_are_of_the_text_alone():
    texts = ["one text here", "and another there", "a third"]
    assert (band_keys(texts)[1] == band_keys(texts[1:2])[0]).all()


def test_52_a_bucket_of_many_costs_no_square():
    keys = np.ones((1_000, 1), np.uint64)
    pairs = candidates(keys)
    assert len(pairs) < 5 * 1_000
    assert {tuple(pair) for pair in pairs.tolist()} >= {(0, row) for row in range(1, 1_000)}
    assert all(earlier < later for earlier, later in pairs.tolist())


def test_without_texts_there_are_no_pairs():
    assert candidates(band_keys(["a"])).tolist() == []


def test_blocks_are_of_so_many_characters_and_one_text_at_least(monkeypatch):
    texts = ["a" * length for length in (3, 3, 3, 9, 1, 6, 2)]
    monkeypatch.setattr("permafrost.data.quality.minhash.BLOCK", 7)
    assert list(blocks(texts)) == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert list(blocks([])) == []
    expected = np.concatenate([band_keys([text]) for text in texts])
    assert (band_keys(texts) == expected).all()


def test_of_alike_rows_each_names_the_earliest():
    texts = dict(enumerate(["the quick brown fox", "the quick brown fox!", "something else", "the quick brown fox!!"]))
    pairs = list(itertools.combinations(range(4), 2))
    found, across = alike(texts, pairs, 0.6)
    assert {row: of for row, (of, _) in found.items()} == {1: 0, 3: 0}
    assert across == {}


def test_of_another_group_the_most_similar_row_counts():
    """As a training row is nearly several test rows, and a copy of another training row besides."""
    texts = dict(enumerate(["the quick brown fox and a dog", "the quick brown fox", "the quick brown fox!", "fox"]))
    texts |= {4: "the quick brown fox!!"}
    pairs = list(itertools.combinations(range(5), 2))
    within, across = alike(texts, pairs, 0.5, lambda row: row > 1)
    assert {row: of for row, (of, _) in across.items()} == {2: 1, 4: 1}
    assert {row: of for row, (of, _) in within.items()} == {1: 0, 4: 2}
