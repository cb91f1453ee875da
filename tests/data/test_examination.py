"""What becomes of training rows that stand elsewhere, too; and that looking changes nothing else."""

import pyarrow as pa
import pytest

from permafrost.data.problems import ProblemLog
from permafrost.data.quality.examination import Examination, examine, has_answers
from permafrost.data.rows import keep
from permafrost.errors import DataError

TEST = ["a warm and sunny day by the sea", "snow fell on the empty street"]
TRAIN = ["A warm  and sunny day by the sea", "snow fell on the empty streets", "the book is late", "the book is late"]


@pytest.fixture
def look(tmp_path):
    def examined(columns=None, **wanted):
        log = ProblemLog()
        given = {"train": TRAIN, "validation": ["one more text", "and another"], "test": TEST}
        stored = {}
        for name, texts in given.items():
            table = {"where": [f"{name}:{i}" for i in range(len(texts))], "text": texts}
            table |= {"label": [str(i % 2) for i in range(len(texts))]} if columns is None else {}
            stored[name] = keep([pa.table(table)], tmp_path)
        splits, findings = examine(stored, Examination(**wanted), log, tmp_path)
        return splits["train"]["where"].to_pylist(), findings, log

    return examined


def test_32_training_rows_that_stand_in_test_are_left_out(look):
    left, findings, log = look()
    assert left == ["train:1", "train:2", "train:3"]
    assert findings.leaks == {"exact": 1, "near": 1, "removed": 1}
    assert [problem.where for problem in log.first["W304"]] == ["train:0"]
    assert "it is left out of train" in str(log.first["W304"][0])


def test_32_near_ones_are_left_out_from_a_similarity_on(look):
    left, findings, _ = look(leak_similarity=0.8)
    assert left == ["train:2", "train:3"]
    assert findings.leaks["removed"] == 2


def test_leaks_can_be_allowed(look):
    left, findings, log = look(allow_leaks=True, leak_similarity=0.8)
    assert len(left) == 4
    assert findings.leaks == {"exact": 1, "near": 1, "removed": 0}
    assert findings.allow_leaks
    for code in ("W304", "W305"):
        assert log.first[code][0].fix == "data.allow_leaks keeps it in train"


def test_copies_in_train_are_dropped_if_that_is_wanted(look):
    assert look(duplicates="exact")[0] == ["train:1", "train:2"]
    assert look(duplicates="exact")[1].dropped_duplicates == 1
    assert look(duplicates="exact")[2].first["W302"][0].fix == "it is left out of train"
    assert look()[2].first["W302"][0].fix == "cleaning.duplicates=exact drops it"
    assert look()[1].copies["train"] == {"exact": 1, "near": 0}


def test_32_contradictions_are_told(look):
    _, findings, log = look()
    assert findings.conflicts == 1
    assert str(log.first["W301"][0]) == "train:3: '1' here, and '0' for the same text at train:2; decide for one"


def test_texts_of_a_language_model_keep_what_they_repeat(look):
    left, findings, log = look(columns=())
    assert len(left) == 4
    assert findings.leaks["removed"] == 0
    assert log.first["W304"][0].fix == "language modelling keeps it in train"


def test_near_copies_are_looked_for_once(look, monkeypatch):
    look()
    monkeypatch.setattr("permafrost.data.quality.examination.near_copies", lambda *_: pytest.fail("looked for again"))
    look()


def test_train_that_is_test_is_refused(tmp_path):
    rows = keep([pa.table({"where": ["f:0", "f:1"], "text": ["a", "b"], "label": ["x", "y"]})], tmp_path)
    with pytest.raises(DataError, match="every training row stands in validation or test"):
        examine({"train": rows, "validation": rows, "test": rows}, Examination(), ProblemLog(), tmp_path)


def test_what_has_an_answer(tmp_path):
    assert not has_answers(keep([pa.table({"where": ["f"], "text": ["a"]})], tmp_path))
    assert has_answers(keep([pa.table({"where": ["f"], "turns": [["a", "b"]]})], tmp_path))
