"""Language modelling: texts to windows, and the loss of Transformers, in chunks or whole."""

import math

import pyarrow as pa
import pytest
import torch
from transformers import GPT2LMHeadModel

from permafrost.data.batching import Batch
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks import language_modeling
from permafrost.tasks.base import Encoding
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.losses import CrossEntropy


def windows(tokenizer, texts: list[str], max_length: int) -> list[str]:
    encoded = LanguageModeling().encode(pa.table({"text": texts}), Encoding(tokenizer=tokenizer, max_length=max_length))
    tokens = encoded.token_arrays()
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
        row_ids=torch.arange(3),
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
        losses, logits = LanguageModeling().target_losses(make_model(reference), batch, CrossEntropy())
        expected = reference(input_ids=batch.input_ids, labels=batch.labels).loss.item()
    assert logits is None
    assert losses.shape == (33,)
    assert losses.count_nonzero() == 11 + 6 + 1
    assert losses.sum().item() / 18 == pytest.approx(expected, rel=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("chunk", [1, 10, 33])
def test_chunks_change_neither_loss_nor_gradient(tiny_config, monkeypatch, chunk):
    torch.manual_seed(0)
    model, task = make_model(GPT2LMHeadModel(tiny_config)), LanguageModeling()
    whole, _ = task.target_losses(model, padded_batch(), CrossEntropy())
    (expected,) = torch.autograd.grad(whole.sum(), model.transformer.wte.weight)
    monkeypatch.setattr(language_modeling, "CHUNK_TOKENS", chunk)
    parts, _ = task.target_losses(model, padded_batch(), CrossEntropy())
    (gradient,) = torch.autograd.grad(parts.sum(), model.transformer.wte.weight)
    # float32 sums in another order
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_perplexity_is_exp_of_the_loss():
    perplexity = LanguageModeling().metrics_of_loss(torch.tensor(math.log(50.0)))
    assert perplexity["perplexity"].item() == pytest.approx(50.0, rel=1e-6)  # float32


def test_the_metrics_that_are_announced_are_computed():
    task = LanguageModeling()
    computed = {"loss", *task.build_metrics().keys(), *task.metrics_of_loss(torch.tensor(0.0))}
    assert computed == LanguageModeling.metrics_logged.keys()
