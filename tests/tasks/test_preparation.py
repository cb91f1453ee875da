"""Rows become tokens slice by slice, and the slices are not to be seen."""

import pyarrow as pa
import pytest

from permafrost.tasks import preparation
from permafrost.tasks.base import Encoding
from permafrost.tasks.classification import Classification
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.preparation import encode_in_slices, encode_splits

ROWS = pa.table({"text": [f"a day of rain, the {i}th" * (i % 3 + 1) for i in range(11)], "label": list("abababababa")})
TASKS = [Classification(["a", "b"], pooling="last", init="normal"), LanguageModeling()]


@pytest.mark.parametrize("slice_rows", [1, 4, 11, 100])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_slices_change_nothing(tiny_tokenizer, monkeypatch, task, slice_rows):
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=16)
    whole = task.encode(ROWS, encoding)
    monkeypatch.setattr(preparation, "SLICE_ROWS", slice_rows)
    sliced = encode_in_slices(task, ROWS, encoding)
    assert sliced.table.to_pylist() == whole.table.to_pylist()
    assert sliced.truncated_rows == whole.truncated_rows


def test_a_kept_split_of_several_slices_reads_as_one(tiny_tokenizer, monkeypatch, tmp_path):
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=16)
    expected = TASKS[0].encode(ROWS, encoding)
    monkeypatch.setattr(preparation, "SLICE_ROWS", 3)
    kept = encode_splits(TASKS[0], {"train": ROWS}, encoding, tmp_path)["train"]
    tokens, whole = kept.token_arrays(), expected.token_arrays()
    assert [tokens[row].tolist() for row in range(11)] == [whole[row].tolist() for row in range(11)]
    assert kept.labels.tolist() == expected.labels.tolist()
