"""What counts as a bad step, and that a step left out changes nothing."""

import numpy as np
import pytest
import torch
from scipy import stats

from permafrost.training.optimizers import muon
from permafrost.training.stability import (
    decides_on_device,
    has_diverged,
    is_spike,
    leave_out_step_,
    leave_out_step_where_,
    robust_z,
)


def test_the_score_is_scipys():
    losses = np.random.default_rng(0).gamma(3, 0.3, 101)
    expected = (5.0 - np.median(losses)) / stats.median_abs_deviation(losses, scale="normal")
    assert robust_z(5.0, losses.tolist()) == pytest.approx(expected, rel=1e-4)  # 1.4826 has five digits


def test_losses_that_hardly_differ_are_not_all_far_apart():
    assert robust_z(1.01, [1.0] * 50) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("loss", "others", "expected"),
    [
        (100.0, [0.9, 1.0, 1.1] * 10, True),
        (1.3, [0.9, 1.0, 1.1] * 10, False),
        (0.0, [0.9, 1.0, 1.1] * 10, False),  # far below is no harm
        (100.0, [0.9, 1.0, 1.1] * 6, False),  # too few to tell
    ],
)
def test_a_spike_is_far_above_enough_others(loss, others, expected):
    assert is_spike(loss, others, 6.0) is expected


@pytest.mark.parametrize(
    ("first", "latest", "expected"),
    [
        (1.6, [400.0] * 20, True),
        (1.6, [400.0] * 19, False),
        (1.6, [10.0] * 20, False),
        (1.6, [400.0] * 9 + [1.0] * 11, False),
        (0.0, [9.0] * 20, False),
    ],
)
def test_a_run_has_diverged_when_most_losses_are_far_beyond_the_first(first, latest, expected):
    assert has_diverged(first, latest) is expected


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def muon_and_adamw(parameters):
    groups = [{"params": parameters, "muon": True, "lr": 0.1, "weight_decay": 0.1}]
    return muon(groups, lr=0.1, weight_decay=0.1, momentum=0.9, betas=(0.9, 0.99))


@pytest.mark.parametrize("make", [adamw, sgd, muon_and_adamw, lambda p: torch.optim.Adafactor(p, weight_decay=0.1)])
def test_a_step_left_out_is_as_if_it_had_not_been(make):
    first, second = (torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    for parameter, gradients in ((first, [1.0, float("nan"), 2.0]), (second, [1.0, 2.0])):
        optimizer = make([parameter])
        for gradient in gradients:
            parameter.grad = torch.full((2, 3), gradient)
            if gradient != gradient:
                leave_out_step_(optimizer)
            optimizer.step()
    assert torch.equal(first, second)


def test_a_fused_kernel_that_is_told_so_leaves_the_step_out():
    """As a GPU does, that is not waited for; the kernels of the CPU take the same word."""
    first, second = (torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    for parameter, gradients in ((first, [1.0, float("nan"), 2.0]), (second, [1.0, 2.0])):
        optimizer = adamw([parameter])
        for gradient in gradients:
            parameter.grad = torch.full((2, 3), gradient)
            leave_out_step_where_(~torch.isfinite(parameter.grad.norm()), optimizer)
            optimizer.step()
    assert torch.equal(first, second)


def test_fused_kernels_can_decide_for_themselves():
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    assert decides_on_device(adamw([parameter]))
    assert not decides_on_device(sgd([parameter]))
    assert not decides_on_device(muon_and_adamw([parameter]))
