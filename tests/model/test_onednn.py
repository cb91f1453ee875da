"""oneDNN's fused products are torch's: the same numbers to bfloat16, and only where no gradient is wanted."""

import pytest
import torch
from torch.nn import functional

from permafrost.model import flat_rows
from permafrost.model.backbone import trunk
from permafrost.model.onednn import is_inference_by_onednn, onednn_linear

needs_bfloat16 = pytest.mark.skipif(
    not flat_rows.onednn_has_bfloat16(), reason="oneDNN does not multiply bfloat16 on this CPU"
)


@needs_bfloat16
@pytest.mark.parametrize("gelu", [False, True])
def test_it_is_the_product_in_float32_to_bfloat16s_eight_bits(gelu):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(3, 7, 16), torch.randn(16, 24), torch.randn(24)
    with torch.inference_mode():
        found = onednn_linear(hidden, weight, bias, gelu=gelu)
    plain = hidden.bfloat16().float() @ weight.bfloat16().float() + bias.bfloat16().float()
    expected = functional.gelu(plain, approximate="tanh") if gelu else plain
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_it_is_for_inference_in_bfloat16_alone(monkeypatch, has_bfloat16):
    monkeypatch.setattr(flat_rows, "onednn_has_bfloat16", lambda: has_bfloat16)
    hidden = torch.zeros(2, 3, 4)
    with torch.no_grad():
        assert not is_inference_by_onednn(hidden)
        with torch.autocast("cpu", torch.bfloat16):
            assert is_inference_by_onednn(hidden) is has_bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_inference_by_onednn(hidden)


@needs_bfloat16
def test_states_without_gradients_are_those_with(tiny_backbone):
    """Within 1 % by the norm, and not the same: both round to bfloat16, at other places."""
    backbone, ids = tiny_backbone.eval(), torch.arange(2, 14).view(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        trained = trunk(backbone, ids, 2).detach()
        with torch.inference_mode():
            inferred = trunk(backbone, ids, 2)
    assert 0 < (trained - inferred).norm() < 0.01 * trained.norm()
