"""Rows become tokens slice by slice, and the slices are not to be seen."""

import pyarrow as pa
import pytest

from permafrost.data.rows import keep
from permafrost.data.tokens.tokenization import TokenizedSplit, joined, train_tokenizer
from permafrost.tasks.base import Encoding
from permafrost.tasks.classification import Classification
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.preparation import (
    encode_splits,
    encode_table,
    load_tokenizer,
    texts_read,
    tokenizer_fingerprint,
)

ROWS = pa.table(
    {
        "where": [f"f:{i}" for i in range(11)],
        "text": [f"a day of rain, the {i}th" * (i % 3 + 1) for i in range(11)],
        "label": list("abababababa"),
    }
)
TASKS = [Classification(["a", "b"], pooling="last", init="normal"), LanguageModeling()]


def rows_of(split: TokenizedSplit) -> list[list[int]]:
    return [split.input_ids[row].tolist() for row in range(len(split))]


def slices(size: int) -> list[pa.Table]:
    return [ROWS.slice(start, size) for start in range(0, ROWS.num_rows, size)]


@pytest.mark.parametrize("size", [1, 4, 11])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_slices_change_nothing(tiny_tokenizer, task, size):
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=16)
    whole, sliced = encode_table(task, ROWS, encoding), joined(task.encode(slices(size), encoding))
    assert rows_of(sliced) == rows_of(whole)
    assert sliced.num_targets.tolist() == whole.num_targets.tolist()
    assert sliced.truncated_rows == whole.truncated_rows


def test_a_kept_split_of_several_slices_reads_as_one(tiny_tokenizer, tmp_path):
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=16)
    expected = encode_table(TASKS[0], ROWS, encoding)
    for size in (3, 11):  # the second one finds what the first one made
        kept = encode_splits(TASKS[0], {"train": keep(slices(size), tmp_path / "rows")}, encoding, tmp_path)["train"]
        assert rows_of(kept) == rows_of(expected)
        assert kept.labels.tolist() == expected.labels.tolist()
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_a_tokenizer_is_told_by_what_it_does(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == tokenizer_fingerprint(tiny_tokenizer)
    other = train_tokenizer(["other words than those, of the same number"], vocab_size=300, max_length=64)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tiny_tokenizer)


def test_a_tokenizer_learns_from_all_that_is_read_or_written():
    rows = pa.table(
        {
            "where": ["f:1", "f:2"],
            "text": ["a", "b"],
            "text_pair": ["c", None],
            "references": [["d e", "f"], ["g"]],
            "tokens": [["h", "i"], []],
            "label": ["not", "these"],
        }
    )
    assert [text for text in texts_read(rows) if text] == ["a", "b", "c", "d e f", "g", "h i"]
