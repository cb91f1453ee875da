"""Valid BIO: the best path is the best of all paths, and the score is seqeval's."""

import itertools
import random

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

from permafrost.tasks.spans import SpanF1, best_paths, may_follow, span_scores, spans_of

TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]


def is_valid(path) -> bool:
    return all(
        not tag.startswith("I-") or (before is not None and before[1:] == tag[1:] and before != "O")
        for before, tag in zip([None, *path], path, strict=False)
    )


def test_what_may_follow_what():
    allowed = may_follow(TAGS)
    assert [TAGS[i] for i in np.flatnonzero(allowed[:, TAGS.index("I-A")])] == ["B-A", "I-A"]
    assert allowed[:, TAGS.index("O")].all()


@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_best_path_is_the_best_of_all_valid_ones(length):
    rng = np.random.default_rng(length)
    for _ in range(20):
        logits = rng.normal(size=(length, 5)) * 3
        paths = [path for path in itertools.product(range(5), repeat=length) if is_valid([TAGS[tag] for tag in path])]
        best = max(paths, key=lambda path: sum(logits[word, tag] for word, tag in enumerate(path)))
        assert best_paths([logits], TAGS) == [[TAGS[tag] for tag in best]]


def test_sentences_of_many_lengths_keep_their_order():
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(length, 5)) for length in (3, 1, 0, 7, 2)]
    assert best_paths(logits, TAGS) == [best_paths([sentence], TAGS)[0] for sentence in logits]
    assert [len(path) for path in best_paths(logits, TAGS)] == [3, 1, 0, 7, 2]


def test_spans_of_valid_tags():
    tags = ["B-A", "I-A", "O", "B-B", "B-B", "I-B", "I-B"]
    assert spans_of(tags) == [("A", 0, 1), ("B", 3, 3), ("B", 4, 6)]


def random_sentences(seed: int, count: int) -> list[list[str]]:
    rng = random.Random(seed)
    lengths = random.Random(7)
    return [[rng.choice(TAGS) for _ in range(lengths.randint(1, 9))] for _ in range(count)]


def test_scores_are_seqevals():
    true, predicted = random_sentences(0, 60), random_sentences(1, 60)
    scores = span_scores(true, predicted)
    how = {"mode": "strict", "scheme": IOB2}
    assert scores["span_f1"] == pytest.approx(f1_score(true, predicted, **how), abs=1e-12)
    assert scores["precision"] == pytest.approx(precision_score(true, predicted, **how), abs=1e-12)
    assert scores["recall"] == pytest.approx(recall_score(true, predicted, **how), abs=1e-12)
    assert scores.keys() == {"span_f1", "precision", "recall", "span_f1/A", "span_f1/B"}


def test_scores_of_a_hand_made_case():
    """Two true spans, one found with its bounds, one with a bound too far: 1 of 2 and 1 of 2."""
    true = [["B-A", "I-A", "O", "B-B"], ["O"]]
    predicted = [["B-A", "I-A", "O", "O"], ["B-B"]]
    assert span_scores(true, predicted)["span_f1"] == 0.5


def test_no_span_found_is_zero_and_no_warning():
    assert span_scores([["B-A", "O"]], [["O", "O"]])["span_f1"] == 0


def test_windows_of_a_sentence_are_put_together_whatever_their_order():
    """A span that crosses from one window to the next is one span."""
    words = torch.tensor([1, 2, 2, 0, 3])  # B-A I-A I-A O B-B
    logits = torch.nn.functional.one_hot(words, 5).float() * 9
    places = torch.tensor([[0, 0, 4], [0, 0, 6], [0, 1, 3], [0, 1, 5], [1, 2, 0]])  # sentence, window, position
    metric = SpanF1(TAGS)
    for part in (torch.tensor([4, 3]), torch.tensor([2]), torch.tensor([1, 0])):
        metric.update(logits[part], words[part], places[part])
    assert metric.compute()["span_f1"] == 1
