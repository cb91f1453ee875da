"""Rows laid end to end and filled up are the same rows: states, gradients, and as few shapes as promised."""

import pytest
import torch

from permafrost.model import flat_rows
from permafrost.model.backbone import branch, trunk
from permafrost.model.flat_rows import MULTIPLE, FlatRows, flat_where_it_pays, is_to_fill_up

LENGTHS = torch.tensor([9, 4, 1, 6])
IDS = torch.randint(2, 200, (4, 9), generator=torch.Generator().manual_seed(0))
LAST = (LENGTHS - 1)[:, None]


def states_and_gradient(backbone, positions, *, bidirectional: bool) -> tuple[torch.Tensor, torch.Tensor]:
    backbone.zero_grad()
    hidden = trunk(backbone, IDS, 1, LENGTHS)
    states = branch(backbone, hidden, 1, positions, LENGTHS, bidirectional=bidirectional)
    real = states if positions is not None else states * (torch.arange(9) < LENGTHS[:, None])[..., None]
    real.square().sum().backward()
    return real.detach(), backbone.h[0].mlp.c_fc.weight.grad.clone()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("positions", [None, LAST])
def test_states_and_gradients_are_those_of_rows_side_by_side(tiny_backbone, monkeypatch, positions, bidirectional):
    backbone = tiny_backbone.eval()
    plain = states_and_gradient(backbone, positions, bidirectional=bidirectional)
    monkeypatch.setattr(flat_rows, "keeps_code_by_shape", lambda hidden: True)  # else float32 is left as it is
    packed, pack = [], FlatRows.pack
    monkeypatch.setattr(FlatRows, "pack", lambda rows, hidden: packed.append(rows) or pack(rows, hidden))
    flat = states_and_gradient(backbone, positions, bidirectional=bidirectional)
    assert packed
    for one, other in zip(plain, flat, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_rows_are_filled_up_to_a_multiple_and_come_back_whole():
    hidden = torch.randn(3, 25, 2)
    rows = FlatRows(3, 25, None)
    packed = rows.pack(hidden)
    assert packed.shape == (1, 128, 2)
    assert torch.equal(packed[0, 75:], torch.zeros(53, 2))
    assert torch.equal(rows.unpack(packed), hidden)


@pytest.mark.parametrize(
    ("dtype", "enabled", "pays"), [("bfloat16", True, True), ("bfloat16", False, False), ("float16", True, False)]
)
def test_only_bfloat16_on_a_cpu_keeps_code_by_shape(monkeypatch, dtype, enabled, pays):
    monkeypatch.setattr(flat_rows, "onednn_has_bfloat16", lambda: True)
    hidden = torch.zeros(2, 5, 4)
    with torch.autocast("cpu", dtype=getattr(torch, dtype), enabled=enabled):
        assert (flat_where_it_pays(hidden, None) is not None) is pays
        assert is_to_fill_up(hidden.flatten(0, 1)) is pays
        assert not is_to_fill_up(torch.zeros(MULTIPLE, 4))


def test_products_of_many_batches_have_few_shapes(tiny_backbone, monkeypatch):
    monkeypatch.setattr(flat_rows, "onednn_has_bfloat16", lambda: True)
    seen = set()
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda bias, left, right: seen.add(left.shape[0]) or addmm(bias, left, right))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for longest in range(3, 60):
            rows = 512 // longest
            trunk(tiny_backbone, torch.ones(rows, longest, dtype=torch.long), 2, torch.full((rows,), longest))
    assert seen
    assert seen <= {448, 512}
