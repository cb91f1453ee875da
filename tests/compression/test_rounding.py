"""Weights as 4 bits hold them: by hand, as NNCF rounds them, and with the gradient of what they stand for."""

import copy

import numpy as np
import pytest
import torch

from permafrost.compression.calibration import CONV1DS
from permafrost.compression.rounding import rounded_to_int4, rounded_weights
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead


def test_sixteen_values_by_hand():
    # the largest is positive: it becomes -8 by a scale of -0.1
    column = torch.tensor([[0.8], [-0.44], [0.2], [0.06]])
    torch.testing.assert_close(rounded_to_int4(column, 4), torch.tensor([[0.8], [-0.4], [0.2], [0.1]]))
    # the largest is negative: the scale is 0.1, and 0.78 has to do with 7 of it
    column = torch.tensor([[-0.8], [0.78], [0.0], [0.04]])
    torch.testing.assert_close(rounded_to_int4(column, 4), torch.tensor([[-0.8], [0.7], [0.0], [0.0]]))


def test_groups_of_inputs_have_scales_of_their_own():
    torch.manual_seed(0)
    weight = torch.randn(8, 3)
    weight[:4] *= 100
    halves = torch.cat([rounded_to_int4(weight[:4], 4), rounded_to_int4(weight[4:], 4)])
    assert torch.equal(rounded_to_int4(weight, 4), halves)
    assert (rounded_to_int4(weight, 4)[4:] != 0).any()
    assert torch.equal(rounded_to_int4(torch.zeros(4, 2), 4), torch.zeros(4, 2))


def test_it_rounds_as_what_ships_the_weights_does(monkeypatch):
    monkeypatch.setenv("NNCF_CI", "1")
    nncf = pytest.importorskip("nncf", reason="the extra [int4] is not installed")
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.weight_lowering import integer_quantize_dequantize_weight
    from nncf.tensor import Tensor

    torch.manual_seed(0)
    weight = torch.randn(64, 10)
    how = WeightCompressionConfig(nncf.CompressWeightsMode.INT4_SYM, group_size=16)
    theirs = integer_quantize_dequantize_weight(Tensor(weight.T.contiguous().numpy()), how, reduction_axes=(1,))
    expected = np.asarray(theirs.data).reshape(10, 64).T
    torch.testing.assert_close(rounded_to_int4(weight, 16), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


@pytest.fixture
def model(tiny_backbone):
    torch.manual_seed(0)
    head = PooledHead(32, 3, pooling="last", init="normal")
    return GPT2WithHead(tiny_backbone, head, Freezing(embeddings=False, blocks=0)).eval()


def test_within_the_context_the_model_is_the_rounded_one(model):
    rounded, exact = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    for block in rounded.transformer.h:
        for name in CONV1DS:
            weight = block.get_submodule(name).weight
            weight.data = rounded_to_int4(weight.data, 32)
    given = (torch.tensor([[5, 9, 2, 7]]), torch.tensor([4]))
    with rounded_weights(model.transformer, 32):
        torch.testing.assert_close(model(*given), rounded(*given))
    after = model.state_dict()
    assert after.keys() == exact.keys()
    assert all(torch.equal(after[name], exact[name]) for name in exact)


def test_the_gradient_passes_as_if_nothing_were_rounded(model):
    product = model.transformer.h[0].mlp.c_fc
    with rounded_weights(model.transformer, 32):
        seen = product.weight
        (seen * torch.arange(seen.numel()).view_as(seen)).sum().backward()
        gradient = product.parametrizations["weight"].original.grad
    assert torch.equal(gradient, torch.arange(seen.numel(), dtype=torch.float32).view_as(seen))
