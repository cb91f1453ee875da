"""The yardsticks: the commonest label by hand, and a rule of words that a linear model must find."""

import random

import pyarrow as pa
import pytest

from permafrost.tasks.yardsticks import majority_accuracy, tfidf_accuracy


def labelled(*labels: str) -> pa.Table:
    return pa.table({"label": list(labels)})


def planted(rows: int, seed: int, *, in_pair: bool = False) -> pa.Table:
    """Random words; the word "warm" or "cold" among them tells the label."""
    generator = random.Random(seed)
    labels = [generator.choice(["warm", "cold"]) for _ in range(rows)]
    noise = [" ".join(generator.choices(["sea", "street", "night", "fox", "dog", "rain"], k=3)) for _ in range(rows)]
    told = [f"{words} {label}" for words, label in zip(noise, labels, strict=True)]
    return pa.table({"text": noise, "text_pair": told, "label": labels} if in_pair else {"text": told, "label": labels})


@pytest.mark.parametrize(
    ("test_labels", "expected"), [(["a", "b", "b", "b"], 0.25), (["a", "a"], 1.0), (["b", "c"], 0.0)]
)
def test_majority_answers_the_commonest_training_label(test_labels, expected):
    splits = {"train": labelled("b", "a", "a"), "validation": labelled("b", "b"), "test": labelled(*test_labels)}
    assert majority_accuracy(splits) == expected


@pytest.mark.parametrize("in_pair", [False, True])
def test_tfidf_learns_a_planted_rule(in_pair):
    sizes = {"train": 200, "validation": 20, "test": 40}
    splits = {name: planted(rows, seed, in_pair=in_pair) for seed, (name, rows) in enumerate(sizes.items())}
    assert tfidf_accuracy(splits) == 1.0


def test_tfidf_finds_no_rule_where_there_is_none():
    splits = {name: planted(200, seed) for seed, name in enumerate(("train", "validation", "test"))}
    labels = splits["test"]["label"].to_pylist()
    random.Random(9).shuffle(labels)
    splits["test"] = splits["test"].set_column(1, "label", [labels])
    assert 0.3 < tfidf_accuracy(splits) < 0.7  # chance is 0.5 +- 0.035 (one standard error of 200 rows)
