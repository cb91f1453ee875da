"""The tokenizer loses no character, and a cached split is complete or absent."""

import numpy as np
import pyarrow as pa
import pytest

from permafrost.data.tokenization import END_OF_TEXT, PAD, TokenizedSplit, cached_split, fingerprint, texts_fingerprint


def split() -> TokenizedSplit:
    ids = pa.array([[1, 2, 3], [4]], pa.list_(pa.int32()))
    table = pa.table({"input_ids": ids, "num_targets": pa.array([1, 1], pa.int32()), "label": pa.array([0, 1])})
    return TokenizedSplit(table=table, truncated_rows=3)


@pytest.mark.parametrize("text", ["plain words", "naïve café", "日本語 🎉", "tabs\tand\nlines", "  two spaces "])
def test_every_text_comes_back(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


def test_padding_and_end_of_text_are_two_tokens(tiny_tokenizer):
    assert tiny_tokenizer.convert_tokens_to_ids([END_OF_TEXT, PAD]) == [0, 1]
    assert tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id


def test_a_cached_split_is_what_was_made(tmp_path):
    made = cached_split(tmp_path, "key", split)
    assert made.table.equals(split().table)
    assert made.truncated_rows == 3
    assert made.lengths.tolist() == [3, 1]
    assert [made.token_arrays()[i].tolist() for i in range(2)] == [[1, 2, 3], [4]]


def test_a_split_is_made_once(tmp_path):
    cached_split(tmp_path, "key", split)
    assert len(cached_split(tmp_path, "key", lambda: pytest.fail("made again"))) == 2


def test_the_tokens_are_read_from_the_mapped_file(tmp_path):
    tokens = cached_split(tmp_path, "key", split).token_arrays()
    assert not tokens.values.flags.owndata
    assert not tokens.values.flags.writeable


def test_a_failed_split_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached_split(tmp_path, "key", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert list(tmp_path.glob("*.arrow")) == []


def test_fingerprints_tell_texts_apart():
    assert texts_fingerprint([["a", "b"]]) == texts_fingerprint([["a", "b"]])
    assert texts_fingerprint([["a", "b"]]) != texts_fingerprint([["ab"]])
    assert texts_fingerprint([["a"], ["b"]]) != texts_fingerprint([["a", "b"]])
    assert fingerprint(1, "a") != fingerprint("1", "a")


def test_tokens_are_one_contiguous_array(tmp_path):
    tokens = cached_split(tmp_path, "key", split).token_arrays()
    assert np.array_equal(tokens.values, [1, 2, 3, 4])
