"""The yardsticks: the commonest answer by hand, and a rule of words that a linear model must find."""

import random

import numpy as np
import pyarrow as pa
import pytest

from permafrost.model.decoding import Decoding
from permafrost.tasks.base import tokenized_split
from permafrost.tasks.dialogue import Dialogue
from permafrost.tasks.text_scores import text_scores
from permafrost.tasks.yardsticks import (
    majority_accuracy,
    of_label_lists,
    of_labels,
    of_next_tokens,
    of_numbers,
    of_tags,
    of_texts,
    of_turns,
    tfidf_accuracy,
    yardsticks_of,
)


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


def test_each_words_commonest_tag_and_o_for_a_new_word():
    train = pa.table({"tokens": [["a", "b", "a"], ["a", "c"]], "tags": [["B-X", "O", "B-X"], ["O", "B-X"]]})
    test = pa.table({"tokens": [["a", "b"], ["c", "d"]], "tags": [["B-X", "O"], ["B-X", "B-X"]]})
    # two of three spans, and nothing else
    assert of_tags({"train": train, "test": test}) == {"span_f1 of each word's commonest tag": pytest.approx(0.8)}


def test_the_training_mean_and_how_alike_the_words_of_a_pair_are():
    def pairs(*rows: tuple[str, str, float]) -> pa.Table:
        return pa.table({name: [row[i] for row in rows] for i, name in enumerate(("text", "text_pair", "target"))})

    rows = pairs(("a fox", "a fox", 4.0), ("a fox", "the dog", 0.0), ("a dog", "the dog", 2.0))
    found = of_numbers({"train": rows, "validation": rows, "test": rows})
    assert found["rmse of the training mean"] == pytest.approx((8 / 3) ** 0.5)
    assert found["pearson of the TF-IDF cosine"] > 0.9


def test_the_source_itself_and_the_turn_before_are_scored_as_answers_are():
    texts = pa.table({"source": ["a small fox", "b"], "references": [["a small fox", "x"], ["c"]]})
    scores = text_scores(["a small fox", "b"], [["a small fox", "x"], ["c"]])
    assert of_texts({"test": texts})["chrf of the source itself"] == scores["chrf"]
    turns = pa.table({"turns": [["hi", "a small fox", "a small fox"], ["b", "c"]]})
    assert (
        of_turns({"test": turns})["bleu of the turn before"]
        == text_scores(["a small fox", "b"], [["a small fox"], ["c"]])["bleu"]
    )


def test_a_dialogue_is_scored_on_the_last_turn_of_who_replies():
    turns = [["hi", "a small fox", "thanks"], ["a small fox"]]
    speakers = [["user", "system", "user"], ["system"]]
    test = pa.table({"speakers": speakers, "turns": turns})
    task = Dialogue("system", Decoding(max_new_tokens=4), ["user", "system"])
    expected = text_scores(["hi", ""], [["a small fox"], ["a small fox"]])["chrf"]
    assert yardsticks_of(task, {"test": test})["chrf of the turn before"] == expected


@pytest.mark.parametrize("texts", [["🎉", "a", "日"], ["", " ", "?"]])
def test_texts_without_a_word_leave_what_needs_none(texts):
    rows = pa.table({"text": texts, "label": ["a", "b", "a"], "labels": [["a"], [], ["a", "b"]], "target": [1, 2, 3]})
    splits = {"train": rows, "validation": rows, "test": rows}
    assert of_labels(splits) == {"accuracy of the majority label": pytest.approx(2 / 3)}
    assert of_label_lists(splits) == {}
    pairs = {name: split.append_column("text_pair", split["text"]) for name, split in splits.items()}
    assert of_numbers(pairs).keys() == {"rmse of the training mean"}


def test_a_label_that_every_row_has_is_given_to_every_row():
    def rows(labels: list[list[str]]) -> pa.Table:
        return pa.table({"text": [" ".join(["sea", "fox", *row]) for row in labels], "labels": labels})

    always = rows([["on"], ["on", "warm"], ["on"], ["on", "warm"]])
    found = of_label_lists({"train": always, "validation": always, "test": always})
    assert found["f1_micro of TF-IDF + logistic regression"] == 1


def test_a_planted_rule_for_each_of_several_labels():
    def rows(seed: int) -> pa.Table:
        generator = random.Random(seed)
        labels = [[name for name in ("warm", "cold") if generator.random() < 0.4] for _ in range(150)]
        return pa.table({"text": [" ".join(["sea", *row, "fox"]) for row in labels], "labels": labels})

    found = of_label_lists({"train": rows(0), "validation": rows(1), "test": rows(2)})
    assert found["f1_macro of TF-IDF + logistic regression"] == 1


def test_token_frequencies_foretell_those_that_have_a_loss_alone():
    """Learned 5, 5, 7: counts with one each of 8 tokens (the largest that is asked is 7) are 3, 2 and six ones."""

    def rows(ids: list[int], labels: list[int] | None):
        given = None if labels is None else [np.array(labels, np.int32)]
        return tokenized_split([np.array(ids, np.int32)], np.array([2]), given)

    expected = ((11 / 3) * (11 / 2)) ** 0.5
    unlabelled = of_next_tokens(rows([1, 5, 5, 7], None), rows([2, 5, 7], None))
    labelled = of_next_tokens(rows([1, 2, 5, 5, 7], [-100, -100, 5, 5, 7]), rows([2, 2, 5, 7], [-100, -100, 5, 7]))
    assert unlabelled == labelled == {"perplexity of token frequencies": pytest.approx(expected)}
