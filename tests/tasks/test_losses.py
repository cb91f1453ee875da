"""Losses against torch and against values worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional

from permafrost.tasks.losses import CrossEntropy, Focal, Huber, MeanSquared


def some_logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(20, 4, generator=generator), torch.randint(0, 4, (20,), generator=generator)


def two_class_logits(*probabilities: float) -> torch.Tensor:
    """Logits whose softmax gives the second class these probabilities."""
    return torch.tensor([[0.0, math.log(p / (1 - p))] for p in probabilities])


def test_binary_cross_entropy_by_hand():
    # -ln 0.6 = 0.5108, -ln(1 - 0.3) = 0.3567, -ln 0.7 = 0.3567; together 1.2242
    losses = CrossEntropy()(two_class_logits(0.6, 0.3, 0.7), torch.tensor([1, 0, 1]))
    assert losses.tolist() == pytest.approx([0.5108, 0.3567, 0.3567], abs=5e-5)  # four digits are written here
    assert losses.sum().item() == pytest.approx(1.2242, abs=5e-5)


def test_label_smoothing_is_torchs_in_training():
    logits, labels = some_logits()
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.1).train()(logits, labels), expected)


def test_label_smoothing_is_off_in_evaluation():
    logits, labels = some_logits()
    smoothed = CrossEntropy(label_smoothing=0.1).eval()
    assert torch.equal(smoothed(logits, labels), CrossEntropy()(logits, labels))


@pytest.mark.parametrize("weights", [[0.5, 1.0, 2.0, 4.0], [1, 2, 3, 4]])
def test_class_weights_are_torchs(weights):
    logits, labels = some_logits()
    expected = functional.cross_entropy(logits, labels, weight=torch.tensor(weights).float(), reduction="none")
    torch.testing.assert_close(CrossEntropy(class_weights=weights)(logits, labels), expected)


def test_focal_with_gamma_0_is_cross_entropy():
    logits, labels = some_logits()
    torch.testing.assert_close(Focal(gamma=0.0)(logits, labels), CrossEntropy()(logits, labels))


def test_focal_with_gamma_2_by_hand():
    # (1 - 0.6)^2 * 0.5108 = 0.0817; (1 - 0.7)^2 * 0.3567 = 0.0321
    losses = Focal(gamma=2.0)(two_class_logits(0.6, 0.3), torch.tensor([1, 0]))
    assert losses.tolist() == pytest.approx([0.0817, 0.0321], abs=5e-5)  # four digits are written here


def test_focal_class_weights_multiply_the_loss():
    logits, labels = some_logits()
    weighted = Focal(class_weights=[0.0, 1.0, 2.0, 3.0])(logits, labels)
    torch.testing.assert_close(weighted, Focal()(logits, labels) * labels)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_for_a_row_that_is_certain(gamma):
    logits = torch.tensor([[40.0, -40.0]], requires_grad=True)
    Focal(gamma=gamma)(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 4.0]])
@pytest.mark.parametrize("loss", [CrossEntropy, Focal])
def test_the_label_minus_100_costs_nothing(loss, weights):
    logits, labels = some_logits()
    labels[3] = -100
    losses = loss(class_weights=weights)(logits, labels)
    assert losses[3] == 0
    assert losses.count_nonzero() == 19


def test_mean_squared_is_torchs():
    outputs, targets = torch.randn(9, 1, generator=torch.Generator().manual_seed(1)), torch.arange(9.0)
    expected = functional.mse_loss(outputs[:, 0], targets, reduction="none")
    torch.testing.assert_close(MeanSquared()(outputs, targets), expected)


def test_huber_by_hand():
    # delta 2: error 1 -> 1/2 * 1^2; error 2 -> 1/2 * 2^2; error 5 -> 2 * (5 - 2/2)
    losses = Huber(delta=2.0)(torch.tensor([[1.0], [2.0], [5.0]]), torch.zeros(3))
    assert losses.tolist() == [0.5, 2.0, 8.0]


def test_huber_is_torchs():
    outputs, targets = torch.randn(9, 1, generator=torch.Generator().manual_seed(1)), torch.arange(9.0)
    expected = functional.huber_loss(outputs[:, 0], targets, delta=0.7, reduction="none")
    torch.testing.assert_close(Huber(delta=0.7)(outputs, targets), expected)


@pytest.mark.parametrize("loss", [CrossEntropy(), Focal(), MeanSquared(), Huber()])
def test_sixteen_bit_logits_are_summed_in_float32(loss):
    is_number = isinstance(loss, MeanSquared | Huber)
    logits = torch.zeros(2, 1 if is_number else 3, dtype=torch.bfloat16)
    assert loss(logits, torch.ones(2) if is_number else torch.tensor([0, 1])).dtype == torch.float32
