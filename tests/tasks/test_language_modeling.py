"""Language modelling: texts to windows, and the loss of Transformers, in chunks or whole."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import GPT2LMHeadModel

from permafrost.data.tokens.batching import Batch
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.base import Encoding
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.losses import CrossEntropy
from permafrost.tasks.positions import positions_scored
from permafrost.tasks.preparation import encode_table


def windows(tokenizer, texts: list[str], max_length: int) -> list[str]:
    encoding = Encoding(tokenizer=tokenizer, max_length=max_length)
    encoded = encode_table(LanguageModeling(), pa.table({"text": texts}), encoding)
    tokens = encoded.input_ids
    assert encoded.num_targets.tolist() == [length - 1 for length in encoded.lengths]
    return [" ".join(tokenizer.convert_ids_to_tokens(tokens[row].tolist())) for row in range(len(encoded))]


def padded_batch() -> Batch:
    lengths = torch.tensor([12, 7, 2])
    ids = torch.randint(2, 300, (3, 12), generator=torch.Generator().manual_seed(3))
    is_padding = torch.arange(12) >= lengths[:, None]
    return Batch(
        input_ids=ids.masked_fill(is_padding, 0),
        lengths=lengths,
        labels=ids.masked_fill(is_padding, -100),
        num_targets=(lengths - 1).sum(),
        row_ids=torch.arange(3),
        source_rows=torch.arange(3),
        loss_scale=torch.tensor(1.0),
    )


def make_model(reference: GPT2LMHeadModel) -> GPT2WithHead:
    head = LanguageModeling().build_head(reference.transformer)
    return GPT2WithHead(reference.transformer, head, Freezing(embeddings=False, blocks=0)).eval()


def test_texts_are_joined_by_end_of_text_and_cut(tiny_tokenizer):
    # "abc" has no merges: one token for each letter
    assert windows(tiny_tokenizer, ["abc", "ab", "c"], 4) == ["a b c <|endoftext|>", "a b <|endoftext|> c"]


def test_a_last_window_of_two_tokens_is_kept(tiny_tokenizer):
    assert windows(tiny_tokenizer, ["abc", "c"], 4) == ["a b c <|endoftext|>", "c <|endoftext|>"]


def test_an_empty_text_is_its_end_alone(tiny_tokenizer):
    assert windows(tiny_tokenizer, ["", "ab"], 8) == ["<|endoftext|> a b <|endoftext|>"]


def test_one_token_alone_is_no_window(tiny_tokenizer):
    assert windows(tiny_tokenizer, [""], 4) == []


def test_the_loss_is_that_of_transformers(tiny_config):
    torch.manual_seed(0)
    reference, batch = GPT2LMHeadModel(tiny_config).eval(), padded_batch()
    with torch.no_grad():
        total, logits = LanguageModeling().loss_sum(make_model(reference), batch, CrossEntropy())
        expected = reference(input_ids=batch.input_ids, labels=batch.labels).loss.item()
    assert logits is None
    assert total.item() / 18 == pytest.approx(expected, rel=1e-6)  # 11 + 6 + 1 targets; float32 sums in another order


def test_a_loss_over_few_positions_is_that_of_transformers_with_its_gradients(tiny_config):
    torch.manual_seed(0)
    reference, batch = GPT2LMHeadModel(tiny_config).eval(), padded_batch()
    few = batch.labels.clone()
    few[:, :4] = few[1] = -100
    assert positions_scored(few) is not None
    batch = batch._replace(labels=few)
    model = make_model(reference)
    total, _ = LanguageModeling().loss_sum(model, batch, CrossEntropy())
    weights = list(reference.transformer.parameters())
    gradients = torch.autograd.grad(total, weights)
    count = (few[:, 1:] != -100).sum()
    loss = reference(input_ids=batch.input_ids, labels=few).loss * count
    assert total.item() == pytest.approx(loss.item(), rel=1e-6)
    for gradient, expected in zip(gradients, torch.autograd.grad(loss, weights), strict=True):
        # float32 sums in another order; the largest gradients are about 10
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_positions_scored_are_all_that_have_a_label():
    labels = torch.full((2, 8), -100)
    labels[0, 2], labels[0, 5], labels[1, 7] = 1, 2, 3
    positions = positions_scored(labels)
    assert positions.shape == (2, 2)
    assert sorted(labels.gather(1, positions).flatten().tolist()) == [-100, 1, 2, 3]
    assert positions_scored(torch.zeros(2, 8, dtype=torch.int64)) is None


def test_perplexity_is_exp_of_the_loss():
    perplexity = LanguageModeling().metrics_of_loss(torch.tensor(math.log(50.0)), torch.tensor(7), "test")
    assert perplexity.keys() == {"perplexity"}  # the words of a text that was not seen are not known
    assert perplexity["perplexity"].item() == pytest.approx(50.0, rel=1e-6)  # float32


def test_word_perplexity_shares_the_same_losses_out_over_words():
    """Three tokens at 1/8 over two words: 8^3 = 512, and its square root."""
    tables = {name: pa.table({"text": texts}) for name, texts in {"validation": ["a"], "test": ["a", " b\n"]}.items()}
    task = LanguageModeling.from_rows(tables, {"decoding": {"max_new_tokens": 8}})
    values = task.metrics_of_loss(torch.tensor(math.log(8.0)), torch.tensor(3), "test")
    assert values["word_perplexity"].item() == pytest.approx(math.sqrt(512), rel=1e-6)


def test_the_metrics_that_are_announced_are_computed():
    task = LanguageModeling({"test": 1})
    of_loss = task.metrics_of_loss(torch.tensor(0.0), torch.tensor(1), "test")
    computed = {"loss", *of_loss}
    assert computed == LanguageModeling.metrics_logged.keys()


@pytest.mark.parametrize("repeats", [1, 4])
def test_in_evaluation_every_token_is_scored_once_with_half_a_window_before_it(tiny_tokenizer, repeats):
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=8, evaluates=True)
    split = encode_table(LanguageModeling(), pa.table({"text": ["abcdefgh" * repeats]}), encoding)
    stream = [*tiny_tokenizer("abcdefgh" * repeats)["input_ids"], tiny_tokenizer.eos_token_id]
    scored = []
    for row in range(len(split)):
        ids, labels = split.input_ids[row], split.labels[row]
        kept = np.flatnonzero(labels[1:] != -100) + 1
        assert row == 0 or kept[0] >= 4
        scored += ids[kept].tolist()
    assert scored == stream[1:]
    assert split.num_targets.sum() == len(stream) - 1


def test_perplexity_is_that_of_a_loop_over_transformers(tiny_tokenizer, tiny_config):
    """Each token's probability from the window that scores it, one token at a time."""
    from permafrost.data.tokens.batching import padded_batch
    from permafrost.data.tokens.windows import windows as windows_of

    reference = GPT2LMHeadModel(tiny_config).eval()
    model, encoding = make_model(reference), Encoding(tokenizer=tiny_tokenizer, max_length=8, evaluates=True)
    texts = ["the quick brown fox", "jumps over", "the lazy dog"]
    split = encode_table(LanguageModeling(), pa.table({"text": texts}), encoding)
    stream = [i for text in texts for i in (*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id)]
    expected = 0.0
    with torch.no_grad():
        for window in windows_of(len(stream), 8):
            for place in range(max(1, window.scored_from), window.scored_to):
                before = torch.tensor([stream[window.start : place]])
                expected -= reference(before).logits[0, -1].log_softmax(-1)[stream[place]].item()
        batch = padded_batch(split, np.arange(len(split)))
        total, _ = LanguageModeling().loss_sum(model, batch, CrossEntropy())
    assert int(batch.num_targets) == len(stream) - 1
    assert total.item() == pytest.approx(expected, rel=1e-5)
