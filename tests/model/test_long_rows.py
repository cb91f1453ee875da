"""A row longer than the window is its windows, each as if it stood alone, with the store and without."""

import pytest
import torch
from torch import nn

from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.model.long_rows import fold, last_positions, unfold, window_lengths, within_windows

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # two ways to the same float32 sums
WINDOW = 8
LENGTHS = torch.tensor([20, 3, 16, 9])
IDS = torch.randint(2, 200, (4, 20), generator=torch.Generator().manual_seed(0))


def make_model(backbone, *, blocks: int = 1, pooling: str = "windows", bidirectional: bool = False) -> GPT2WithHead:
    torch.manual_seed(1)
    head = PooledHead(32, 3, pooling=pooling, init="normal", window=WINDOW)
    if hasattr(head, "attention"):
        nn.init.normal_(head.attention.query.weight)  # it begins as the mean
    freezing = Freezing(embeddings=blocks > 0, blocks=blocks)
    return GPT2WithHead(backbone, head, freezing, bidirectional=bidirectional, window=WINDOW).eval()


def parts(row: int) -> list[torch.Tensor]:
    """Token ids (1, S) of each window of a row."""
    return list(IDS[row : row + 1, : LENGTHS[row]].split(WINDOW, dim=1))


def test_folding_and_back_keeps_every_token():
    rows = torch.arange(40.0).view(2, 20)
    folded = fold(rows, WINDOW)
    assert folded.shape == (6, 8)
    assert folded[2].tolist() == [16, 17, 18, 19, 0, 0, 0, 0]
    assert torch.equal(unfold(folded, 2)[:, :20], rows)


def test_positions_and_lengths_of_windows_written_out():
    assert window_lengths(LENGTHS, WINDOW, 3).view(4, 3).tolist() == [[8, 8, 4], [3, 1, 1], [8, 8, 1], [8, 1, 1]]
    positions = last_positions(LENGTHS, WINDOW)
    assert positions.tolist() == [[7, 15, 19], [2, 2, 2], [7, 15, 15], [7, 8, 8]]
    assert within_windows(positions, WINDOW).view(4, 3).tolist() == [[7, 7, 3], [2, 0, 0], [7, 7, 0], [7, 0, 0]]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("blocks", [0, 1, 2])
@torch.no_grad()
def test_states_are_those_of_each_window_alone(tiny_backbone, blocks, bidirectional):
    model = make_model(tiny_backbone.eval(), blocks=blocks, bidirectional=bidirectional)
    states = model.hidden_states(IDS, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = [model.hidden_states(part, torch.tensor([part.shape[1]]))[0] for part in parts(row)]
        torch.testing.assert_close(states[row, :length], torch.cat(alone), **CLOSE)


@pytest.mark.parametrize("blocks", [0, 1, 2])
@torch.no_grad()
def test_logits_are_of_the_last_state_of_each_window_as_they_are_weighed(tiny_backbone, blocks):
    model = make_model(tiny_backbone.eval(), blocks=blocks)
    logits = model(IDS, LENGTHS)
    for row in range(4):
        last = torch.cat([model.hidden_states(part, torch.tensor([part.shape[1]]))[:, -1] for part in parts(row)])
        weights = (last @ model.head.attention.query.weight[0]).softmax(0)
        torch.testing.assert_close(logits[row], model.head.score(weights @ last), **CLOSE)


@torch.no_grad()
def test_a_row_of_one_window_is_pooled_as_by_its_last_token(tiny_backbone):
    windows, last = (make_model(tiny_backbone.eval(), pooling=pooling) for pooling in ("windows", "last"))
    last.head.score.load_state_dict(windows.head.score.state_dict())
    ids, lengths = IDS[:, :7], torch.tensor([7, 3, 5, 7])
    torch.testing.assert_close(windows(ids, lengths), last(ids, lengths), **CLOSE)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(tiny_backbone):
    model = make_model(tiny_backbone.eval())
    together = model(IDS, LENGTHS)
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        torch.testing.assert_close(together[one], model(IDS[one, :length], LENGTHS[one]), **CLOSE)


@torch.no_grad()
def test_stored_states_give_the_same(tiny_backbone):
    model = make_model(tiny_backbone.eval())
    stored = model.below_the_cut(IDS, LENGTHS)
    torch.testing.assert_close(model(IDS, LENGTHS, stored), model(IDS, LENGTHS), **CLOSE)


def test_every_window_is_trained(tiny_backbone):
    """A gradient reaches the tokens of each: through a state that nothing stored."""
    model = make_model(tiny_backbone.eval())
    states = model.below_the_cut(IDS, LENGTHS).detach().requires_grad_()
    model(IDS, LENGTHS, states).sum().backward()
    reached = states.grad.abs().sum(-1) > 0
    assert torch.equal(reached, torch.arange(20) < LENGTHS[:, None])
