"""Rows that cannot be used: told and the end, or put aside up to a share; what is missing: left out or filled in."""

import pytest

from permafrost.data.fields.by_role import Notes, RowPolicy, rows_by_role
from permafrost.data.fields.missing import Missing, fill_missing
from permafrost.data.files.readers import read_rows
from permafrost.data.problems import Problem
from permafrost.data.rows import keep
from permafrost.errors import DataError


def given(count: int = 10, **of_third) -> list[dict]:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "where": f"f:{i}"} for i in range(count)]
    rows[3] |= of_third
    return rows


def read(rows, policy=None, roles=("text", "label")) -> tuple[list[dict], Notes]:
    notes = Notes()
    tables = list(rows_by_role(rows, roles, {}, "train", notes, policy))
    return [row for table in tables for row in table.to_pylist()], notes


def test_a_bad_row_ends_the_run_unless_it_may_be_put_aside():
    with pytest.raises(DataError, match="f:3: no label in column 'label'; fill it in or remove the row"):
        read(given(label=""))
    rows, notes = read(given(label=""), RowPolicy(on_bad_rows="quarantine", max_bad_fraction=0.1))
    assert [row["where"] for row in rows] == [f"f:{i}" for i in range(10) if i != 3]
    assert notes.quarantined == [
        {
            "split": "train",
            "code": "E401",
            "problem": "f:3: no label in column 'label'; fill it in or remove the row",
            "row": {"text": "text 3", "label": "", "where": "f:3"},
        }
    ]


def test_what_stands_in_a_bad_row_is_shown():
    notes = Notes()
    with pytest.raises(DataError):
        list(rows_by_role(given(label=""), ("text", "label"), {}, "train", notes))
    assert notes.log.first["E401"][0].excerpt == "text 3 | "


def test_more_bad_rows_than_that_end_the_run():
    with pytest.raises(DataError, match=r"1 of 10 rows of train cannot be used, more than data.max_bad_fraction=0.09"):
        read(given(label=""), RowPolicy(on_bad_rows="quarantine", max_bad_fraction=0.09))


def test_a_line_that_could_not_be_read_is_put_aside_whole():
    problem = Problem(code="E201", where="f:3", message="3 columns", text="one,two,three " * 20)
    rows = [*given(), {"where": "f:11", "fault": DataError(problem)}]
    _, notes = read(rows, RowPolicy(on_bad_rows="quarantine", max_bad_fraction=0.1))
    assert notes.quarantined[0]["row"] == {"text": "one,two,three " * 20}


def tagged(*tags: str) -> dict:
    return {"tokens": list("abc"[: len(tags)]), "tags": list(tags), "where": "f:1"}


def test_all_that_is_wrong_with_a_sentence_is_told_and_it_is_put_aside_once_and_whole():
    rows = [tagged("BX", "O", "IX"), *([tagged("B-X", "O")] * 9)]
    with pytest.raises(DataError) as raised:
        read(rows, roles=("tagged",))
    assert [line.partition(";")[0] for line in str(raised.value).splitlines()] == [
        "f:1, word 1: 'BX' is no tag",
        "f:1, word 3: 'IX' is no tag",
    ]
    kept, notes = read(rows, RowPolicy(on_bad_rows="quarantine", max_bad_fraction=0.1), roles=("tagged",))
    assert len(kept) == 9
    assert notes.log.counts == {"E407": 2}
    (aside,) = notes.quarantined  # one row of ten, as max_bad_fraction counts
    assert aside["row"] == rows[0]
    assert aside["problem"] == str(raised.value)


def test_a_sentence_whose_lines_cannot_be_read_is_put_aside_with_all_of_them(tmp_path):
    (tmp_path / "a.conll").write_text("a O\nb\nc\n\n" + "d B-X\ne O\n\n" * 9)
    rows = list(read_rows(tmp_path / "a.conll"))
    _, notes = read(rows, RowPolicy(on_bad_rows="quarantine", max_bad_fraction=0.1), roles=("tagged",))
    (aside,) = notes.quarantined
    assert aside["row"] == {"text": "a O\nb\nc"}
    assert [line.removeprefix(f"{tmp_path}/")[:9] for line in aside["problem"].splitlines()] == [
        "a.conll:2",
        "a.conll:3",
    ]
    assert notes.log.counts == {"E201": 2}


def test_a_column_that_is_called_fault_is_a_column():
    rows, _ = read([row | {"fault": "none"} for row in given()])
    assert len(rows) == 10


@pytest.mark.parametrize("policy", [RowPolicy(), RowPolicy(on_bad_rows="quarantine", max_bad_fraction=1.0)])
def test_a_missing_column_ends_the_run_whatever_the_policy(policy):
    with pytest.raises(DataError, match=r"f:0: no column looks like the text; did you mean 'txt'"):
        read([{"txt": "x", "label": "a", "where": "f:0"}], policy)


def test_a_first_row_that_lacks_a_column_is_one_bad_row():
    rows = [{"text": "text 0", "where": "f:0"}, *given()[1:]]
    with pytest.raises(DataError, match=r"f:0: no label in column 'label'") as raised:
        read(rows)
    assert "\n" not in str(raised.value)
    assert len(read(rows, RowPolicy(on_bad_rows="quarantine", max_bad_fraction=0.1))[0]) == 9


def test_columns_of_later_rows_choose_nothing_that_the_first_has():
    rows = [*given(), {"sentence1": "a", "sentence2": "b", "label": "a", "where": "f:10"}]
    made, notes = read(rows)
    assert "text_pair" not in made[0]
    assert "data.columns.text=text, found by its name" in notes.lines


def test_a_file_that_breaks_off_is_told_after_its_rows():
    def breaks_off():
        yield from given(label="")
        raise DataError(Problem(code="E103", where="f", message="not a complete gzip file"))

    with pytest.raises(DataError) as raised:
        read(breaks_off(), RowPolicy(on_bad_rows="quarantine", max_bad_fraction=1.0))
    assert str(raised.value).splitlines() == [
        "f: not a complete gzip file",
        "f:3: no label in column 'label'; fill it in or remove the row",
    ]


def test_no_text_can_be_given_one():
    rows, notes = read(given(text=" "), RowPolicy(missing_text="(none)"))
    assert rows[3]["text"] == "(none)"
    assert notes.lines[-1] == "train: filled in '(none)' for 1 rows without text, the first at f:3"
    assert not notes.log.counts


def splits_of(rows, directory, **policy):
    roles = ("text", "number") if "score" in rows[0] else ("text", "label")
    tables = {n: list(rows_by_role(rows, roles, {}, n, Notes(), RowPolicy(**policy))) for n in ("train", "test")}
    return {name: keep(parts, directory) for name, parts in tables.items()}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Missing(label="most_frequent"), ["b", "b", "b"]),
        (Missing(label="constant", constant="c"), ["b", "c", "b"]),
        (Missing(label="drop"), ["b", "b"]),
    ],
)
def test_labels_that_are_missing(how, expected, tmp_path):
    rows = [{"text": f"t{i}", "label": label, "where": f"f:{i}"} for i, label in enumerate(["b", None, "b"])]
    notes = Notes()
    filled = fill_missing(splits_of(rows, tmp_path, keep_missing_labels=True), how, notes, tmp_path)
    assert filled["train"]["label"].to_pylist() == expected
    assert filled["test"]["label"].to_pylist() == ["b", "b"]  # no answer is made up to be scored by
    assert notes.lines[-1] == "test: left out 1 rows without a label"


@pytest.mark.parametrize(
    ("how", "expected"), [(Missing(target="median"), 2.5), (Missing(target="constant", constant=7), 7.0)]
)
@pytest.mark.parametrize("absent", ["", None, "NaN", "n/a"])
def test_targets_that_are_missing(how, expected, absent, tmp_path):
    rows = [
        {"text": f"t{i}", "score": score, "where": f"f:{i}"} for i, score in enumerate(["1", "2", absent, "3", "9"])
    ]
    filled = fill_missing(splits_of(rows, tmp_path, keep_missing_targets=True), how, Notes(), tmp_path)
    assert filled["train"]["target"].to_pylist() == [1, 2, expected, 3, 9]


@pytest.mark.parametrize("policy", [{"label": "most_frequent"}, {"label": "drop"}])
def test_where_no_label_is_known_none_is_made_up(policy, tmp_path):
    rows = [{"text": f"t{i}", "label": None, "where": f"f:{i}"} for i in range(3)]
    splits = splits_of(rows, tmp_path, keep_missing_labels=True)
    if policy["label"] == "drop":
        assert fill_missing(splits, Missing(**policy), Notes(), tmp_path)["train"].num_rows == 0
    else:
        with pytest.raises(DataError, match=r"no training row has a label; give its column with data.columns.label"):
            fill_missing(splits, Missing(**policy), Notes(), tmp_path)


def test_where_no_target_is_known_none_is_made_up(tmp_path):
    splits = splits_of([{"text": "t", "score": "", "where": "f:0"}], tmp_path, keep_missing_targets=True)
    with pytest.raises(DataError, match=r"no training row has a target; give its column with data.columns.target"):
        fill_missing(splits, Missing(target="median"), Notes(), tmp_path)


def test_a_word_for_a_number_is_not_missing(tmp_path):
    with pytest.raises(DataError, match="'high' in column 'score' is not a number"):
        splits_of([{"text": "t", "score": "high", "where": "f:0"}], tmp_path, keep_missing_targets=True)
