"""The tokenizer loses no character, and a cached split is complete or absent."""

from dataclasses import replace

import numpy as np
import pytest

from permafrost.data.tokens.tokenization import END_OF_TEXT, PAD, TokenizedSplit, cached_split, fingerprint, joined
from permafrost.storage.ragged import RaggedArray


def ragged(*rows: list[int]) -> RaggedArray:
    return RaggedArray(np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)]))


def parts() -> list[TokenizedSplit]:
    targets = np.array([1, 1], np.int32)
    return [
        TokenizedSplit(
            input_ids=ragged([1, 2, 3], [4]), num_targets=targets, labels=np.array([0, 1]), truncated_rows=3
        ),
        TokenizedSplit(input_ids=ragged([5], [6, 7]), num_targets=targets, labels=np.array([1, 1]), truncated_rows=1),
    ]


def check(split: TokenizedSplit) -> None:
    assert [split.input_ids[row].tolist() for row in range(len(split))] == [[1, 2, 3], [4], [5], [6, 7]]
    assert split.lengths.tolist() == [3, 1, 1, 2]
    assert split.labels.tolist() == [0, 1, 1, 1]
    assert split.num_targets.tolist() == [1, 1, 1, 1]
    assert split.truncated_rows == 4


@pytest.mark.parametrize("text", ["plain words", "naïve café", "日本語 🎉", "tabs\tand\nlines", "  two spaces "])
def test_every_text_comes_back(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


def test_padding_and_end_of_text_are_two_tokens(tiny_tokenizer):
    assert tiny_tokenizer.convert_tokens_to_ids([END_OF_TEXT, PAD]) == [0, 1]
    assert tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id


def test_a_cached_split_is_its_parts_end_to_end(tmp_path):
    check(cached_split(tmp_path, "key", parts))
    check(cached_split(tmp_path, "key", lambda: pytest.fail("made again")))


def test_parts_are_joined_in_memory():
    check(joined(parts()))


def test_a_failed_split_leaves_nothing(tmp_path):
    def failing():
        yield parts()[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached_split(tmp_path, "key", failing)
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_write_the_same_split_the_first_one_stays(tmp_path):
    def overtaken():
        cached_split(tmp_path, "key", parts)
        return parts()

    check(cached_split(tmp_path, "key", overtaken))
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_fingerprints_tell_values_and_types_apart():
    assert fingerprint(1, "a") != fingerprint("1", "a")


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
    from permafrost.storage import atomic

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(atomic.Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            cached_split(tmp_path, "key", parts)
    assert list(tmp_path.iterdir()) == []
    check(cached_split(tmp_path, "key", parts))


def test_a_split_without_labels_has_none(tmp_path):
    bare = [replace(part, labels=None) for part in parts()]
    assert cached_split(tmp_path, "key", lambda: bare).labels is None


def test_fingerprints_follow_values_not_the_order_of_names():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert len({fingerprint({"a": 1}), fingerprint({"a": 2}), fingerprint({"b": 1}), fingerprint({"a": [1]})}) == 4
