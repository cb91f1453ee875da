"""The two texts of a row, read apart, are what each is when it stands alone; with the store and without."""

import pytest
import torch
from torch.nn import functional

from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.model.pairs import apart, first_lengths, text_lengths, together

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # two ways to the same float32 sums
END, PAD = 0, 1
IDS = torch.tensor(
    [
        [5, 6, 0, 7, 0, 1, 1],
        [5, 0, 7, 8, 9, 9, 0],
        [5, 6, 7, 8, 9, 9, 0],  # cut within its first text
        [0, 0, 1, 1, 1, 1, 1],  # two empty texts
    ]
)
LENGTHS = torch.tensor([5, 7, 7, 2])
FIRSTS = torch.tensor([3, 2, 6, 1])


def make_model(backbone, *, blocks: int = 1, bidirectional: bool = False) -> GPT2WithHead:
    torch.manual_seed(1)
    head = PooledHead(32, 1, pooling="pair", init="normal")
    for weight in (head.score.weight, head.comparison.attention.query.weight, head.comparison.centre):
        torch.nn.init.normal_(weight)  # they begin the same in each channel
    freezing = Freezing(embeddings=blocks > 0, blocks=blocks)
    return GPT2WithHead(backbone, head, freezing, bidirectional=bidirectional).eval()


def texts(row: int) -> list[torch.Tensor]:
    first, length = int(FIRSTS[row]), int(LENGTHS[row])
    return [IDS[row : row + 1, :first], IDS[row : row + 1, first:length]]


def test_texts_of_rows_written_out():
    firsts = first_lengths(IDS, LENGTHS, END)
    assert firsts.tolist() == FIRSTS.tolist()
    assert text_lengths(firsts, LENGTHS).tolist() == [3, 2, 2, 5, 6, 1, 1, 1]
    folded = apart(IDS, firsts, LENGTHS)
    assert folded.shape == (8, 6)
    assert [row[:length].tolist() for row, length in zip(folded, text_lengths(firsts, LENGTHS), strict=True)] == [
        [5, 6, 0],
        [7, 0],
        [5, 0],
        [7, 8, 9, 9, 0],
        [5, 6, 7, 8, 9, 9],
        [0],
        [0],
        [0],
    ]


def test_apart_and_together_again_keeps_every_token():
    states = torch.randn(4, 7, 3)
    back = together(apart(states, FIRSTS, LENGTHS), FIRSTS, 7)
    for row, length in enumerate(LENGTHS.tolist()):
        assert torch.equal(back[row, :length], states[row, :length])


def test_a_row_of_one_token_has_two_texts_of_it():
    firsts = first_lengths(torch.tensor([[END]]), torch.tensor([1]), END)
    assert apart(torch.tensor([[END]]), firsts, torch.tensor([1])).tolist() == [[END], [END]]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("blocks", [0, 1, 2])
@torch.no_grad()
def test_the_answer_is_of_how_alike_the_two_texts_alone_are(tiny_backbone, blocks, bidirectional):
    model = make_model(tiny_backbone.eval(), blocks=blocks, bidirectional=bidirectional)
    found = model(IDS, LENGTHS)
    for row in range(len(IDS)):
        states = [model.hidden_states(text, torch.tensor([text.shape[1]]))[0] for text in texts(row)]
        shares = [(of_text @ model.head.comparison.attention.query.weight[0]).softmax(0) for of_text in states]
        pooled = [share @ of_text - model.head.comparison.centre for share, of_text in zip(shares, states, strict=True)]
        one, two = (functional.normalize(text, dim=0) for text in pooled)
        torch.testing.assert_close(found[row], model.head.score(one * two), **CLOSE)


@torch.no_grad()
def test_an_untrained_head_answers_by_the_cosine(tiny_backbone):
    model = GPT2WithHead(
        tiny_backbone,
        PooledHead(32, 1, pooling="pair", init="xavier"),
        Freezing(embeddings=False, blocks=0),
    ).eval()
    means = [[model.hidden_states(t, torch.tensor([t.shape[1]]))[0].mean(0) for t in texts(row)] for row in range(4)]
    cosines = torch.stack([functional.cosine_similarity(one, two, dim=0) for one, two in means])
    answers = model(IDS, LENGTHS)[:, 0]
    torch.testing.assert_close(answers, 3 * (cosines - 1), **CLOSE)


@torch.no_grad()
def test_which_text_comes_first_makes_no_difference(tiny_backbone):
    model = make_model(tiny_backbone.eval())
    swapped = torch.tensor([[7, 0, 5, 6, 0]])
    torch.testing.assert_close(model(swapped, torch.tensor([5])), model(IDS[:1, :5], LENGTHS[:1]), **CLOSE)


@pytest.mark.parametrize("blocks", [1, 2])
@torch.no_grad()
def test_stored_states_give_the_same(tiny_backbone, blocks):
    model = make_model(tiny_backbone.eval(), blocks=blocks)
    stored = model.frozen_states(IDS, LENGTHS)
    assert stored.shape == (4, 7, 32)
    torch.testing.assert_close(model(IDS, LENGTHS, stored), model(IDS, LENGTHS), **CLOSE)


@torch.no_grad()
def test_what_is_stored_of_a_row_does_not_depend_on_its_batch(tiny_backbone):
    model = make_model(tiny_backbone.eval())
    stored = model.frozen_states(IDS, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        one = model.frozen_states(IDS[row : row + 1, :length], LENGTHS[row : row + 1])
        torch.testing.assert_close(stored[row, :length], one[0], **CLOSE)


@torch.no_grad()
def test_weights_of_sixteen_bits_answer_too(tiny_backbone):
    exact = make_model(tiny_backbone.eval())(IDS, LENGTHS)
    half = make_model(tiny_backbone).bfloat16()(IDS, LENGTHS)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)  # 8 bits of a number


def test_both_texts_are_trained(tiny_backbone):
    model = make_model(tiny_backbone.eval())
    states = model.frozen_states(IDS, LENGTHS).detach().requires_grad_()
    model(IDS, LENGTHS, states).sum().backward()
    reached = states.grad.abs().sum(-1) > 0
    assert torch.equal(reached[:2], torch.arange(7) < LENGTHS[:2, None])
