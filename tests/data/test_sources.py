"""Rows by role: columns found or named, splits cut by the text, faults with their place."""

import pytest

from permafrost.data.sources import Columns, Notes, SplitPlan, read_hub, rows_by_role, sample_rows, split_rows
from permafrost.errors import DataError, ResourceError

PLAN = SplitPlan(seed=0, validation_fraction=0.2, test_fraction=0.1)


def rows(count: int, **columns) -> list[dict]:
    made = [{"text": f"text {i}", "label": "ab"[i % 2], "where": f"f.csv:{i + 2}"} for i in range(count)]
    return [row | columns for row in made]


def pick(given, roles=("text", "label"), columns=None, notes=None):
    return rows_by_role(given, roles, columns or Columns(), "train", notes or Notes())


def test_columns_are_found_by_their_names_and_stated():
    notes = Notes()
    table = pick([{"sentence": "x", "category": "a", "where": "f:1"}], notes=notes)
    assert table.to_pylist() == [{"where": "f:1", "text": "x", "label": "a"}]
    assert notes.lines == [
        "data.columns.text=sentence, found by its name",
        "data.columns.label=category, found by its name",
    ]


def test_a_pair_is_found_before_a_single_text():
    table = pick([{"sentence1": "x", "sentence2": "y", "score": "2.5", "where": "f:1"}], ("text", "target"))
    assert table.to_pylist() == [{"where": "f:1", "text": "x", "text_pair": "y", "target": 2.5}]


def test_named_columns_come_first():
    given = rows(2, title="the title")
    assert pick(given, columns=Columns(text="title"))["text"].to_pylist() == ["the title"] * 2


FAULTS = [
    (
        [{"txt": "x", "label": "a", "where": "f:1"}],
        Columns(),
        r"f:1: no column looks like the text; did you mean 'txt'",
    ),
    (rows(1), Columns(text="texte"), r"f.csv:2: no column 'texte' .*did you mean 'text'"),
    (rows(1, label=""), Columns(), r"f.csv:2: no label in column 'label'"),
    (rows(1, label=None), Columns(), r"f.csv:2: no label"),
]


@pytest.mark.parametrize(("given", "columns", "message"), FAULTS)
def test_faults_name_the_row_and_the_nearest_column(given, columns, message):
    with pytest.raises(DataError, match=message):
        pick(given, columns=columns)


def test_a_target_that_is_no_number():
    with pytest.raises(DataError, match=r"f.csv:2: 'high' in column 'score' is not a number"):
        pick(rows(1, score="high"), ("text", "target"))


def test_rows_without_text_are_left_out_and_counted():
    notes, given = Notes(), rows(4)
    given[1]["text"], given[2]["text"] = "  ", None
    assert pick(given, notes=notes).num_rows == 2
    assert notes.lines[-1] == "train: left out 2 rows without text, the first at f.csv:3"


def test_missing_splits_are_cut_from_train_whatever_the_order():
    cut = split_rows({"train": rows(2000)}, ("text", "label"), Columns(), PLAN, Notes())
    turned = split_rows({"train": rows(2000)[::-1]}, ("text", "label"), Columns(), PLAN, Notes())
    parts = {name: set(table["text"].to_pylist()) for name, table in cut.items()}
    assert sum(len(part) for part in parts.values()) == 2000 == len(set.union(*parts.values()))
    assert parts == {name: set(table["text"].to_pylist()) for name, table in turned.items()}
    assert 340 < len(parts["validation"]) < 460  # 400 expected, 3.4 standard deviations
    assert 150 < len(parts["test"]) < 250


def test_given_splits_are_left_alone():
    given = {"train": rows(50), "validation": rows(5), "test": rows(6)}
    cut = split_rows(given, ("text", "label"), Columns(), PLAN, Notes())
    assert {name: table.num_rows for name, table in cut.items()} == {"train": 50, "validation": 5, "test": 6}


def test_one_missing_split_takes_nothing_for_the_given_one():
    cut = split_rows({"train": rows(500), "test": rows(6)}, ("text", "label"), Columns(), PLAN, Notes())
    assert cut["test"].num_rows == 6
    assert cut["train"].num_rows + cut["validation"].num_rows == 500


def test_a_split_without_rows_says_what_to_set():
    with pytest.raises(DataError, match=r"data.validation_fraction"):
        split_rows({"train": rows(2)}, ("text", "label"), Columns(), PLAN, Notes())


def test_a_sample_is_seeded_and_keeps_every_label():
    table = pick([*rows(300), {"text": "rare", "label": "c", "where": "f:999"}])
    first, again = sample_rows(table, 20, seed=0), sample_rows(table, 20, seed=0)
    assert first.equals(again)
    assert first.num_rows == 20
    assert set(first["label"].to_pylist()) == {"a", "b", "c"}
    assert not first.equals(sample_rows(table, 20, seed=1))


def test_an_unreachable_hub_is_a_resource_error():
    with pytest.raises(ResourceError, match="hub cannot be reached"):
        read_hub("nobody/nothing", None, {"train": "train"})
