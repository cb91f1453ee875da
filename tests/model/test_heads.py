"""Heads against Transformers' own, and pooling that reads real tokens alone."""

import pytest
import torch
from torch.nn.functional import softmax
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead, TiedHead, initialize_, pool_mean

NOTHING_FROZEN = Freezing(embeddings=False, blocks=0)
LENGTHS = torch.tensor([5, 2, 1])


def states() -> torch.Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(3))


def make_head(pooling: str) -> PooledHead:
    torch.manual_seed(4)
    head = PooledHead(8, 3, pooling=pooling, init="normal")
    if pooling == "attention":
        torch.nn.init.normal_(head.attention.query.weight)
    return head


def test_last_pooling_is_gpt2_for_sequence_classification(tiny_config, tiny_tokenizer):
    pad = tiny_tokenizer.pad_token_id
    reference = GPT2ForSequenceClassification(tiny_config).eval()
    reference.config.pad_token_id = pad
    head = PooledHead(32, 2, pooling="last", init="normal")
    head.score.weight = reference.score.weight
    model = GPT2WithHead(reference.transformer, head, NOTHING_FROZEN).eval()
    ids = torch.randint(2, 300, (3, 12), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([12, 4, 1])
    ids[torch.arange(12) >= lengths[:, None]] = pad
    with torch.no_grad():
        # float32 sums in another order; logits are about 0.1
        torch.testing.assert_close(model(ids, lengths), reference(input_ids=ids).logits, rtol=0, atol=1e-6)


def test_tied_head_is_gpt2_lm_head(tiny_config):
    reference = GPT2LMHeadModel(tiny_config).eval()
    model = GPT2WithHead(reference.transformer, TiedHead(reference.transformer.wte), NOTHING_FROZEN).eval()
    ids = torch.randint(0, 300, (2, 10), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        # float32 sums in another order; logits are about 0.1
        logits = model(ids, torch.tensor([10, 10]))
        torch.testing.assert_close(logits, reference(input_ids=ids).logits, rtol=0, atol=1e-6)


def test_tied_head_brings_no_weight_of_its_own(tiny_backbone):
    head = TiedHead(tiny_backbone.wte)
    assert list(head.parameters()) == []
    assert head.state_dict() == {}


@pytest.mark.parametrize("pad_position", [0, 2, 4])
def test_43_the_pad_id_inside_a_text_is_a_token_like_any_other(tiny_backbone, tiny_tokenizer, pad_position):
    model = GPT2WithHead(tiny_backbone, PooledHead(32, 2, pooling="last", init="normal"), NOTHING_FROZEN).eval()
    ids = torch.tensor([[10, 11, 12, 13, 14]])
    ids[0, pad_position] = tiny_tokenizer.pad_token_id
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        expected = model.head.score(tiny_backbone(input_ids=ids).last_hidden_state[:, 4])
        # float32 sums in another order
        torch.testing.assert_close(model(padded, torch.tensor([5])), expected, rtol=0, atol=1e-6)


def test_last_reads_the_last_real_token():
    assert make_head("last").reads(LENGTHS).tolist() == [[4], [1], [0]]


def test_mean_is_over_the_real_tokens():
    hidden = states()
    expected = torch.stack([hidden[row, :length].mean(0) for row, length in enumerate(LENGTHS)])
    torch.testing.assert_close(pool_mean(hidden, LENGTHS), expected)


def test_attention_begins_as_the_mean():
    head = PooledHead(8, 3, pooling="attention", init="normal")
    torch.testing.assert_close(head.pool(states(), LENGTHS), pool_mean(states(), LENGTHS))


def test_attention_weighs_tokens_by_their_score():
    head, hidden = make_head("attention"), states()
    weights = softmax(hidden[1, :2] @ head.attention.query.weight[0], dim=0)
    torch.testing.assert_close(head.pool(hidden, LENGTHS)[1], weights @ hidden[1, :2])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_43_padding_has_no_part_in_the_answer(pooling):
    head, hidden = make_head(pooling), states()
    noisy = hidden.clone()
    noisy[torch.arange(5) >= LENGTHS[:, None]] = 1e4
    assert torch.equal(head(noisy, LENGTHS), head(hidden, LENGTHS))


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_padding_gets_no_gradient(pooling):
    head, hidden = make_head(pooling), states().requires_grad_()
    head(hidden, LENGTHS).sum().backward()
    is_padding = torch.arange(5) >= LENGTHS[:, None]
    assert not hidden.grad[is_padding].any()
    assert hidden.grad[torch.arange(3), LENGTHS - 1].any()


# For a (fan_out 400, fan_in 100) weight: 0.02; sqrt(2 / (400 + 100)); sqrt(1 / 100), a linear layer's gain being 1
@pytest.mark.parametrize(("init", "deviation"), [("normal", 0.02), ("xavier", 0.0632), ("he", 0.1)])
def test_initialization_has_the_deviation_of_its_paper(init, deviation):
    torch.manual_seed(0)
    weight = torch.empty(400, 100)
    initialize_(weight, init)
    assert weight.std().item() == pytest.approx(deviation, rel=0.02)  # 40,000 draws: 0.4% is one standard error
