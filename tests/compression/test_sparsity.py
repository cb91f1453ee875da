"""Masks by hand, beside torch's own pruning, and exactly as sparse as was asked."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from permafrost.compression.sparsity import (
    Movement,
    apply_masks_,
    cubic,
    magnitudes,
    mask_of,
    matrices,
    sparsity_of,
    two_of_four,
    wanda,
)
from permafrost.errors import ConfigError


@pytest.mark.parametrize("layer", [Conv1D(24, 16), nn.Linear(24, 16)], ids=["Conv1D", "Linear"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_smallest_weights_go_as_in_torch(layer, share):
    mask = mask_of(magnitudes(layer.weight), share, "unstructured", by_output=False)
    assert 1 - mask.float().mean() == pytest.approx(share, abs=1 / layer.weight.numel())
    pruned = prune.l1_unstructured(layer, "weight", amount=share)
    assert torch.equal(mask, pruned.weight_mask.bool())
    prune.remove(pruned, "weight")


def test_each_output_loses_as_many_inputs():
    scores = torch.tensor([[1.0, 8.0], [2.0, 7.0], [3.0, 6.0], [4.0, 5.0]])  # (in, out)
    mask = mask_of(scores, 0.5, "unstructured", by_output=True)
    assert mask.tolist() == [[False, True], [False, True], [True, False], [True, False]]


def test_wanda_weighs_a_weight_by_what_it_sees():
    weight, squares = torch.tensor([[3.0, -1.0], [1.0, 2.0]]), torch.tensor([1.0, 16.0])
    assert wanda(weight, squares).tolist() == [[3.0, 1.0], [4.0, 8.0]]


def test_two_of_each_four_inputs_stay():
    scores = torch.tensor([[1.0], [9.0], [2.0], [8.0], [5.0], [5.0], [5.0], [0.0]])
    assert two_of_four(scores).flatten().tolist() == [False, True, False, True, False, True, True, False]
    assert mask_of(torch.rand(64, 8), 0.5, "2:4", by_output=False).unflatten(0, (-1, 4)).sum(1).eq(2).all()
    with pytest.raises(ConfigError, match="multiple of four"):
        two_of_four(torch.rand(6, 2))


def test_on_the_way_to_two_of_four_those_go_that_lose_least():
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0, 9.0, 0.2, 8.0, 0.1]]).T
    assert two_of_four(scores, 0.0).all()
    assert two_of_four(scores, 0.25).flatten().tolist() == [True, True, True, True, True, False, True, False]
    assert two_of_four(scores, 0.5).flatten().tolist() == [True, False, True, False, True, False, True, False]


def test_a_models_matrices_are_its_blocks_and_nothing_else(tiny_backbone):
    before = {name: weight.clone() for name, weight in tiny_backbone.state_dict().items()}
    parameters = matrices(tiny_backbone)
    assert len(parameters) == 8
    assert sparsity_of(parameters) == 0
    masks = {
        name: mask_of(magnitudes(weight), 0.5, "unstructured", by_output=False) for name, weight in parameters.items()
    }
    apply_masks_(parameters, masks)
    assert sparsity_of(parameters) == pytest.approx(0.5, abs=1e-3)
    for name, weight in tiny_backbone.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in parameters)


@pytest.mark.parametrize(("progress", "expected"), [(0, 0), (0.5, 0.7), (1, 0.8)])
def test_the_cubic_schedule_by_hand(progress, expected):
    assert cubic(progress, 0.8) == pytest.approx(expected)


def test_weights_that_move_away_from_zero_score_high():
    weight = nn.Parameter(torch.tensor([2.0, 2.0, -1.0]))
    weight.grad = torch.tensor([1.0, -1.0, 3.0])  # steps against it: towards zero, away, away
    moved = Movement({"w": weight})
    moved.observe({"w": weight})
    moved.observe({"w": weight})
    assert moved.scores["w"].tolist() == [-4.0, 4.0, 6.0]
