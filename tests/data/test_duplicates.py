"""Copies within and across splits: planted ones are found, others are not, and similarity is Jaccard's by hand."""

import csv
import random
import time

import pyarrow as pa
import pytest

from permafrost.data.quality.duplicates import (
    Copy,
    asked_texts,
    digests_of,
    exact_copies,
    leaked_rows,
    near_copies,
    normalized,
)
from permafrost.data.rows import keep
from tests.planted import WORDS


@pytest.fixture
def store(tmp_path):
    def kept(**splits: list[str]):
        tables = {
            name: pa.table({"where": [f"{name}:{i}" for i in range(len(texts))], "text": pa.array(texts, pa.string())})
            for name, texts in splits.items()
        }
        stored = {name: keep([table], tmp_path) for name, table in tables.items()}
        return stored, {name: digests_of(rows) for name, rows in stored.items()}

    return kept


def drawn(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(10, 30))) for _ in range(count)]


def edited(text: str, rng: random.Random) -> str:
    """Up to a tenth of the words replaced, taken out or doubled with another, one at least."""
    words = text.split()
    for place in rng.sample(range(len(words)), max(1, int(len(words) * rng.uniform(0, 0.1)))):
        words[place] = rng.choice([rng.choice(WORDS), "", f"{words[place]} {rng.choice(WORDS)}"])
    return " ".join(words)


def half_replaced(text: str, rng: random.Random) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), len(words) // 2):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


def test_equal_but_for_case_blanks_and_width():
    assert normalized("\uff34he  \ufb01rst\nLINE ") == normalized("the first line")
    assert normalized("the first line") != normalized("the first lines")


def test_what_a_row_asks_is_all_but_its_answer():
    pair = pa.table({"where": ["f:1"], "text": ["a"], "text_pair": ["b"], "label": ["x"]})
    words = pa.table({"where": ["f:1"], "tokens": [["New", "York"]], "tags": [["B-L", "I-L"]]})
    assert asked_texts(pair) == ["a\nb"]
    assert asked_texts(words) == ["New York"]


def test_exact_copies_by_hand(store):
    _, digests = store(train=["a", "b", "A", "c"], validation=["b", "c"], test=["c", "C "])
    assert exact_copies(digests) == [
        Copy("test", 1, "test", 0),
        Copy("validation", 1, "test", 0),
        Copy("train", 1, "validation", 0),
        Copy("train", 2, "train", 0),
        Copy("train", 3, "test", 0),
    ]
    assert sorted(leaked_rows(exact_copies(digests))) == [1, 3]


def test_similarity_is_that_of_the_sets_of_runs(store):
    first, second = "the quick brown fox jumps over", "the quick brown fox jumped over"
    sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in (first, second)]
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    (found,) = near_copies(*store(train=[second], validation=[], test=[first]))
    assert (found.split, found.of_split) == ("train", "test")
    assert found.similarity == pytest.approx(expected)


def test_32_planted_near_copies_are_found_and_no_others(store):
    """Beside unrelated texts stand some that share half of their words with a training row: no copies."""
    rng = random.Random(0)
    base, others = drawn(400, seed=1), drawn(200, seed=2)
    half = [half_replaced(text, rng) for text in base[1::4]]
    stored, digests = store(
        train=base, validation=[*others, *half], test=[*(edited(text, rng) for text in base[::4]), *others[100:]]
    )
    copies = [*near_copies(stored, digests), *exact_copies(digests)]
    found, planted = set(leaked_rows(copies)), set(range(0, 400, 4))
    assert len(found & planted) >= 0.95 * len(planted)
    assert len(found & planted) >= 0.95 * len(found)
    assert all(copy.of_row == copy.row // 4 for copy in copies if copy.row in planted and copy.split == "train")


def test_each_of_several_exact_copies_that_nearly_stand_in_test_is_told_of(store):
    text = "the quick brown fox jumps over the lazy dog"
    copies = near_copies(*store(train=[text, "something else here", text.upper()], validation=[], test=[f"{text}!"]))
    assert [(copy.split, copy.row, copy.of_split, copy.of_row) for copy in copies] == [
        ("train", 0, "test", 0),
        ("train", 2, "test", 0),
    ]


@pytest.mark.slow
def test_52_fifty_thousand_rows_in_fifteen_seconds_and_no_square_of_them(store, shared):
    """On real sentences with words of their own, as benchmarks/many_rows.py makes them."""
    rng = random.Random(0)
    with (shared / "data" / "ag_news" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = [row["text"].split() for row in csv.DictReader(file)]
    texts = []
    for number in range(50_000):
        words = list(rows[number % len(rows)])
        rng.shuffle(words)
        texts.append(" ".join([str(number), *words]))

    def seconds(count: int) -> float:
        stored, digests = store(train=texts[:count], validation=[], test=[])
        start = time.process_time()  # of one thread, so that a busy machine is no matter
        exact_copies({name: digests_of(rows) for name, rows in stored.items()})
        near_copies(stored, digests)
        return time.process_time() - start

    whole = seconds(50_000)
    assert whole < 15
    assert whole < 12 * seconds(12_500)  # of four times as many rows a square is sixteen
