"""Rows kept on disk: what went in comes out, named by its content, complete or absent."""

import pyarrow as pa
import pytest

from permafrost.data.rows import keep, select, writing
from permafrost.errors import DataError

ROWS = pa.table({"where": [f"a.csv:{i}" for i in range(10)], "text": [f"text {i}" for i in range(10)]})


def in_slices(table: pa.Table, size: int) -> list[pa.Table]:
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_rows_come_back_however_they_were_sliced(size, tmp_path):
    kept = keep(in_slices(ROWS, size), tmp_path)
    assert list(kept) == ROWS.to_pylist()
    assert kept["text"].to_pylist() == ROWS["text"].to_pylist()
    assert (kept.num_rows, kept.column_names) == (10, ("where", "text"))
    assert kept.fingerprint == keep([ROWS], tmp_path).fingerprint


def test_the_same_rows_are_kept_once(tmp_path):
    keep([ROWS], tmp_path)
    keep([ROWS], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fingerprint_is_the_rows_not_their_place(tmp_path):
    moved = ROWS.set_column(0, "where", pa.array([f"b.csv:{i}" for i in range(10)]))
    first, second = keep([ROWS], tmp_path), keep([moved], tmp_path)
    assert first.fingerprint == second.fingerprint
    assert next(iter(second))["where"] == "b.csv:0"
    assert next(iter(first))["where"] == "a.csv:0"


@pytest.mark.parametrize(
    "change", [{"text": ["text 1", "text 0"]}, {"text": ["text 0text 1", ""]}, {"label": ["a", "b"]}]
)
def test_the_fingerprint_tells_rows_apart(change, tmp_path):
    two = {"where": ["f:1", "f:2"], "text": ["text 0", "text 1"]}
    assert keep([pa.table(two)], tmp_path).fingerprint != keep([pa.table(two | change)], tmp_path).fingerprint


def test_rows_that_do_not_all_arrive_leave_nothing(tmp_path):
    def failing():
        yield ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(failing(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_no_file(tmp_path):
    with writing(tmp_path) as writer:
        empty = writer.finish()
    assert (empty.num_rows, list(empty)) == (0, [])


@pytest.mark.parametrize("size", [1, 3, 10])
def test_rows_are_selected_by_their_positions_and_stay_in_order(size, tmp_path):
    rows = keep(in_slices(ROWS, size), tmp_path)
    assert list(select(rows, [7, 2, 3], tmp_path)) == ROWS.take([2, 3, 7]).to_pylist()
    assert select(rows, [], tmp_path).num_rows == 0
    assert select(rows, range(10), tmp_path) is rows


def test_rows_of_other_columns_are_told(tmp_path):
    """As of two files of a mixture, of which one has pairs."""
    pairs = pa.table({"where": ["b.csv:2"], "text": ["x"], "text_pair": ["y"]})
    with pytest.raises(DataError, match=r"b.csv:2: rows of text, text_pair after rows of text; give them the same"):
        keep([ROWS, pairs], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_number_and_its_text_are_kept_apart(tmp_path):
    number, text = (pa.table({"where": ["f:1"], name: [value]}) for name, value in (("target", 3.0), ("label", "3.0")))
    first, second = keep([number], tmp_path), keep([text], tmp_path)
    assert first.path != second.path
    assert (first["target"].to_pylist(), second["label"].to_pylist()) == ([3.0], ["3.0"])
