"""New rows: those a judge believes, none twice and none that train has or nearly has; writer and judge are played."""

from collections import Counter

import pytest

from permafrost.deployment.synthesis import new_texts, synthesize
from permafrost.errors import ConfigError
from permafrost.model.decoding import Decoding
from permafrost.tasks.classification import Classification
from permafrost.tasks.generation import Generation

JUDGE = Classification(["cold", "warm"], pooling="last", init="normal")
DRAWN = Decoding(max_new_tokens=8, do_sample=True)


class Writer:
    """Gives these texts in turn, whatever it is asked."""

    def __init__(self, texts: list[str], decoding: Decoding = DRAWN):
        self.task, self.texts = Generation("{source}{target}", decoding), texts

    def answer(self, rows):
        return [{"text": self.texts[number % len(self.texts)]} for number in range(len(rows))]


class Judge:
    """Believes that a text is warm by its suns: the more, the surer."""

    def __init__(self, task=JUDGE):
        self.task = task

    def predict(self, texts):
        return [
            {"label": "warm" if "sun" in text else "cold", "score": 0.5 + 0.1 * text.count("sun")} for text in texts
        ]


def test_the_surest_of_each_label_are_kept():
    texts = ["sun", "sun sun sun", "snow", "sun sun", " ", "SUN", "known sun"]
    rows, refused = synthesize(Writer(texts), Judge(), ["Known  sun"], per_label=2, candidates=4, seed=0)
    assert rows == [
        {"text": "snow", "label": "cold", "score": 0.5, "origin": "synthetic"},
    ]
    assert refused["of another label"] == 2
    assert refused["nearly one of those"] == 2  # "sun sun" of "sun sun sun", each time
    assert refused["empty"] == 2  # asked for warm ones, it writes nothing new
    rows, refused = synthesize(Writer(texts[:4]), Judge(), [], per_label=2, candidates=2, seed=0)
    assert [row["label"] for row in rows] == ["cold"]


def test_what_is_less_sure_is_left_out():
    class Warm(Judge):
        task = Classification(["warm", "cold"], pooling="last", init="normal")

        def __init__(self):
            pass

    texts = ["sun on the hills", "a sun, the sun and one more sun", "suns over the sunny bay"]
    rows, refused = synthesize(Writer(texts), Warm(), [], per_label=2, candidates=2, seed=0)
    assert [(row["text"], row["score"]) for row in rows] == [
        (texts[1], pytest.approx(0.8)),
        (texts[2], pytest.approx(0.7)),
    ]
    assert refused["less sure"] == 1


def test_no_text_comes_twice():
    refused, seen = Counter(), {"c": None}
    assert new_texts(["a", "A ", "b", "", "c"], seen, refused) == ["a", "b"]
    assert refused == Counter({"written before, or a training row": 2, "empty": 1})
    assert list(seen) == ["c", "a", "b"]


def test_nearly_a_training_row_is_refused():
    known = "the plot is thin , and the actors know it from the first scene on"
    refused = Counter()
    texts = [
        known.replace("thin", "slim"),
        "a warm and sunny day by the sea",
        f"{known} .",
        "a warm and sunny day by a sea",
    ]
    assert new_texts(texts, {known: None}, refused) == ["a warm and sunny day by the sea"]
    assert refused["nearly one of those"] == 3


def test_half_characters_are_refused():
    refused = Counter()
    assert new_texts(["caf\ufffd", "a\0b", "café"], {}, refused) == ["café"]
    assert refused["with half a character"] == 2


@pytest.mark.parametrize(
    ("writer", "judge", "message"),
    [
        (Judge(), Judge(), "has to write texts from labels"),
        (Writer(["x"], Decoding(max_new_tokens=8)), Judge(), "do_sample=true"),
        (Writer(["x"]), Writer(["x"]), "has to tell labels"),
    ],
)
def test_runs_of_other_tasks_are_refused(writer, judge, message):
    with pytest.raises(ConfigError, match=message):
        synthesize(writer, judge, [], per_label=1, candidates=1, seed=0)
