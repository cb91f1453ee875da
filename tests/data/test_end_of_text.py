"""The exported tokenizer writes rows as training did, also for a GPT-2 that has no pad token."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from permafrost.data.tokens.tokenization import with_end_of_text


@pytest.fixture
def saved(tiny_tokenizer, tmp_path) -> PreTrainedTokenizerFast:
    with_end_of_text(tiny_tokenizer).save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_a_text_and_a_pair_end_with_it(saved, tiny_tokenizer):
    plain, end = tiny_tokenizer("a warm day")["input_ids"], [tiny_tokenizer.eos_token_id]
    assert saved("a warm day")["input_ids"] == plain + end
    assert saved("a warm day", "a warm day")["input_ids"] == plain + end + plain + end


def test_a_cut_text_ends_with_it(saved):
    ids = saved("a warm day by the sea", truncation=True, max_length=4)["input_ids"]
    assert len(ids) == 4
    assert ids[-1] == saved.eos_token_id


def test_the_last_token_that_is_not_padding_is_the_end(saved):
    ids = saved(["a", "a warm day by the sea"], padding=True)["input_ids"]
    assert [token for token in ids[0] if token != saved.pad_token_id][-1] == saved.eos_token_id


def test_gpt2s_own_tokenizer_gets_another_pad_token(shared: Path, tmp_path):
    source = shared / "gpt2-tokenizer"
    vocab = json.loads((source / "vocab.json").read_text("utf-8"))
    gpt2 = GPT2Tokenizer(str(source / "vocab.json"), str(source / "merges.txt"))
    with_end_of_text(gpt2).save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.pad_token_id == vocab["Ā"] != saved.eos_token_id == 50256
    assert saved("Hello, world")["input_ids"] == [15496, 11, 995, 50256]
