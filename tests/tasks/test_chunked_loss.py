"""The loss by chunks is the loss: value and gradients against all logits at once."""

import pytest
import torch
from torch.nn import functional

from permafrost.model import flat_rows
from permafrost.model.flat_rows import MULTIPLE
from permafrost.tasks import chunked_loss
from permafrost.tasks.chunked_loss import vocabulary_loss_sum
from permafrost.tasks.losses import CrossEntropy, Focal

LABELS = torch.tensor([3, -100, 0, 10, 10, -100, 7])


def states() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, generator=generator)
    return hidden.requires_grad_(), torch.randn(11, 4, generator=generator).requires_grad_()


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(
    "loss", [CrossEntropy(), CrossEntropy(label_smoothing=0.1), Focal()], ids=["ce", "smooth", "focal"]
)
def test_chunks_change_neither_loss_nor_gradient(monkeypatch, chunk, loss):
    monkeypatch.setattr(chunked_loss, "CHUNK_TOKENS", chunk)
    hidden, weight = states()
    kept = LABELS != -100
    expected = loss((hidden @ weight.T)[kept], LABELS[kept]).sum()
    total = vocabulary_loss_sum(hidden, weight, LABELS, loss)
    torch.testing.assert_close(total, expected)
    for gradient, by_hand in zip(
        torch.autograd.grad(3 * total, [hidden, weight]),
        torch.autograd.grad(3 * expected, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, by_hand)


def test_the_sum_is_that_of_torch():
    hidden, weight = states()
    with torch.no_grad():
        expected = functional.cross_entropy(hidden @ weight.T, LABELS, reduction="sum", ignore_index=-100)
        torch.testing.assert_close(vocabulary_loss_sum(hidden, weight, LABELS, CrossEntropy()), expected)


def test_a_batch_without_a_target_has_no_loss_and_no_gradient():
    hidden, weight = states()
    total = vocabulary_loss_sum(hidden, weight, torch.full((7,), -100), CrossEntropy())
    total.backward()
    assert total.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_a_frozen_vocabulary_gets_no_gradient():
    hidden, weight = states()
    vocabulary_loss_sum(hidden, weight.detach(), LABELS, CrossEntropy()).backward()
    assert hidden.grad.any()
    assert weight.grad is None


def test_logits_are_never_all_there(monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_TOKENS", 2)
    seen = []

    class Watching(CrossEntropy):
        def forward(self, logits, labels):
            seen.append(len(logits))
            return super().forward(logits, labels)

    hidden, weight = states()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        vocabulary_loss_sum(hidden, weight, LABELS, Watching()).backward()
    assert max(seen) == 2
    assert torch.Size([5, 11]) not in saved


@pytest.mark.parametrize("num_scored", [1, 65, 200])
def test_in_bfloat16_products_have_round_shapes_and_the_same_outcome(monkeypatch, num_scored):
    monkeypatch.setattr(flat_rows, "onednn_has_bfloat16", lambda: True)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 4, generator=generator).requires_grad_() for rows in (num_scored, 11))
    labels = torch.arange(num_scored) % 11
    seen, product = [], functional.linear
    monkeypatch.setattr(functional, "linear", lambda left, right: seen.append(len(left)) or product(left, right))

    def outcome() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            total = vocabulary_loss_sum(hidden, weight, labels, CrossEntropy())
        return [total, *torch.autograd.grad(total, [hidden, weight])]

    filled = outcome()
    assert all(rows % MULTIPLE == 0 for rows in seen)
    monkeypatch.setattr(chunked_loss, "keeps_code_by_shape", lambda hidden: False)
    for ours, plain in zip(filled, outcome(), strict=True):
        torch.testing.assert_close(ours, plain)
