"""Labels that are not known: each is told, with its place and the nearest one that is."""

import time

import pyarrow as pa
import pytest

from permafrost.data.fields.labels import check_known, first_places, label_problems
from permafrost.data.problems import SHOWN
from permafrost.data.rows import word_place
from permafrost.errors import DataError


def rows(field: str, values: list, where: str = "f.jsonl:{}") -> pa.Table:
    return pa.table({field: values, "where": [where.format(number) for number in range(1, len(values) + 1)]})


def told(table: pa.Table, names: list[str]) -> list[str]:
    with pytest.raises(DataError) as raised:
        check_known(table, names)
    assert raised.value.exit_code == 3
    return str(raised.value).splitlines()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("label", ["warm", "wram", "cold", "x"]),
        ("labels", [["warm"], ["cold", "wram"], [], ["x"]]),
        ("acts", [["warm"], ["cold", "wram", "wram"], ["cold"], ["x"]]),
    ],
)
def test_labels_that_a_run_does_not_know_are_told_all_at_once(field, values):
    assert told(rows(field, values), ["cold", "warm"]) == [
        "f.jsonl:2: the run does not know the label 'wram'; did you mean 'warm'?",
        "f.jsonl:4: the run does not know the label 'x'; known here: cold, warm",
    ]


def test_types_that_a_run_does_not_know_are_told_at_their_words():
    table = rows("tags", [["O", "B-LOK", "I-LOK", "B-LOC", "B-LOK"], ["B-X"]], "f.conll:{0}1-{0}9")
    assert told(table, ["O", "B-LOC", "I-LOC"]) == [
        "f.conll:12: the run does not know the type 'LOK'; did you mean 'LOC'?",
        "f.conll:15: the run does not know the type 'LOK'; did you mean 'LOC'?",
        "f.conll:21: the run does not know the type 'X'; known here: LOC",
    ]


def test_more_than_can_be_read_are_counted():
    lines = told(rows("label", ["c"] * (SHOWN + 5)), ["a", "b"])
    assert len(lines) == SHOWN + 1
    assert lines[-1] == "and 5 more"


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (rows("label", ["a"]), ["a", "b"]),
        (rows("tags", [["O", "B-A", "I-A"]]), ["O", "B-A", "I-A"]),
        (rows("text", ["a"]), []),
        (rows("label", ["a"]), []),  # of a task that does not say which labels it has
    ],
)
def test_what_a_run_knows_is_no_problem(table, names):
    check_known(table, names)


@pytest.mark.parametrize(
    ("where", "place"),
    [("f.conll:5-8", "f.conll:7"), ("f.jsonl:5", "f.jsonl:5, word 3"), ("a:3-4.jsonl:5", "a:3-4.jsonl:5, word 3")],
)
def test_the_place_of_a_word(where, place):
    assert word_place(where, 2) == place


def test_a_type_of_one_span_is_told_at_its_word():
    train = rows("tags", [["O", "B-A"], ["B-B", "B-B", "B-A"]], "train.conll:{0}0-{0}9")
    splits = {"train": train, "validation": train.slice(0, 0), "test": rows("tags", [["O", "B-C"]], "test.conll:7-8")}
    assert first_places(splits, {"A", "B", "C"}) == {"A": "train.conll:11", "B": "train.conll:20", "C": "test.conll:8"}
    (unknown,) = [problem for problem in label_problems(splits, None) if problem.code == "E502"]
    assert unknown.where == "test.conll:8"


def test_an_identifier_that_is_taken_for_a_label_is_told_at_once():
    """Near names are not looked for among thousands: that would take hours."""
    known = [f"row {number}" for number in range(20_000)]
    start = time.process_time()
    lines = told(rows("label", [f"other {number}" for number in range(5_000)]), known)
    assert time.process_time() - start < 5
    assert lines[0] == "f.jsonl:1: the run does not know the label 'other 0'"
    assert lines[-1] == "and 4,980 more"
