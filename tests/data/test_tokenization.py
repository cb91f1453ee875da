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


def test_random_code_points_come_back(tiny_tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.integers(1, 0x110000, 40)
        text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("text", ["a , b . c !", "do n't", "it 's ? yes"])
def test_spaces_before_punctuation_come_back(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


def test_a_write_that_stops_half_way_is_no_split(tmp_path, monkeypatch):
    from permafrost.data import tokenization

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tokenization.Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            cached_split(tmp_path, "key", split)
    assert list(tmp_path.glob("*.arrow")) == []
    assert cached_split(tmp_path, "key", split).table.equals(split().table)


def test_chunked_columns_are_stored_as_one(tmp_path):
    twice = TokenizedSplit(table=pa.concat_tables([split().table, split().table]))
    stored = cached_split(tmp_path, "key", lambda: twice)
    assert stored.table["input_ids"].num_chunks == 1
    assert stored.lengths.tolist() == [3, 1, 3, 1]
    assert stored.labels.tolist() == [0, 1, 0, 1]
    assert stored.num_targets.tolist() == [1, 1, 1, 1]


def test_a_split_without_labels_has_none(tmp_path):
    bare = TokenizedSplit(table=split().table.drop_columns("label"))
    assert cached_split(tmp_path, "key", lambda: bare).labels is None


def test_fingerprints_follow_values_not_the_order_of_names():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert len({fingerprint({"a": 1}), fingerprint({"a": 2}), fingerprint({"b": 1}), fingerprint({"a": [1]})}) == 4
