"""Packed rows are the rows: the same states, logits and losses as one by one; on a CPU no path packs by itself."""

import pytest
import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import create_mask

from permafrost.model import backbone as backbone_module
from permafrost.model.backbone import branch, trunk
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.model.packing import make_packing, pack_where_it_pays, real_tokens

# uncompiled, as a CPU has it here, FlexAttention says that it is slow
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # two ways to the same float32 sums
LENGTHS = torch.tensor([9, 4, 1, 6])
IDS = torch.randint(2, 200, (4, 9), generator=torch.Generator().manual_seed(0))
REAL = torch.arange(9) < LENGTHS[:, None]


@pytest.fixture(params=["padded", "packed"])
def way(request, monkeypatch) -> str:
    """Whether rows are packed, as a GPU would; on a CPU FlexAttention runs uncompiled, and forward only."""
    if request.param == "packed":
        monkeypatch.setattr(
            backbone_module, "pack_where_it_pays", lambda lengths, hidden, **_: make_packing(lengths, hidden.shape[1])
        )
    return request.param


@pytest.fixture
def backbone(tiny_backbone):
    return tiny_backbone.eval()


def alone(backbone, row: int) -> torch.Tensor:
    """(T, C): the states of one row by Transformers itself."""
    with torch.no_grad():
        return backbone(IDS[row : row + 1, : LENGTHS[row]]).last_hidden_state[0]


def test_real_tokens_are_those_before_each_rows_end():
    assert real_tokens(torch.tensor([1, 3]), 3).tolist() == [[True, False, False], [True, True, True]]


def test_packing_and_back_keeps_every_token_and_clears_the_padding():
    hidden = torch.randn(4, 9, 3)
    packing = make_packing(LENGTHS, 9)
    packed = packing.pack(hidden)
    assert packed.shape == (1, 20, 3)
    assert torch.equal(packed[0, 9:13], hidden[1, :4])
    assert torch.equal(packing.unpack(packed), hidden * REAL[..., None])


@pytest.mark.parametrize("depth", [0, 1, 2])
@torch.no_grad()
def test_states_are_those_of_each_row_alone(backbone, way, depth):
    states = branch(backbone, trunk(backbone, IDS, depth, LENGTHS), depth, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(states[row, :length], alone(backbone, row), **CLOSE)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@torch.no_grad()
def test_logits_are_those_of_each_row_alone(backbone, way, pooling):
    head = PooledHead(32, 3, pooling=pooling, init="normal")
    model = GPT2WithHead(backbone, head, Freezing(embeddings=True, blocks=1)).eval()
    together = model(IDS, LENGTHS)
    for row, length in enumerate(LENGTHS):
        only = slice(row, row + 1)
        torch.testing.assert_close(together[only], model(IDS[only, :length], LENGTHS[only]), **CLOSE)


def attend_by_dense_mask(query, key, value, mask, scale):
    """What FlexAttention computes, by torch's plain attention, which has a backward pass on a CPU."""
    longest = query.shape[2]
    visible = create_mask(mask.mask_mod, None, None, longest, longest, device="cpu")
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_gradients_are_those_of_rows_with_their_padding(backbone, monkeypatch, pooling):
    head = PooledHead(32, 3, pooling=pooling, init="normal")
    model = GPT2WithHead(backbone, head, Freezing(embeddings=False, blocks=0)).eval()

    def gradients() -> list[torch.Tensor]:
        return torch.autograd.grad(model(IDS, LENGTHS).square().sum(), list(model.parameters()))

    padded, packed = gradients(), []
    monkeypatch.setattr("permafrost.model.block.attend_packed", attend_by_dense_mask)
    monkeypatch.setattr(
        backbone_module,
        "pack_where_it_pays",
        lambda lengths, hidden, **_: packed.append(hidden.shape) or make_packing(lengths, hidden.shape[1]),
    )
    for ours, theirs in zip(gradients(), padded, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert packed


@torch.no_grad()
def test_a_row_does_not_see_what_stands_before_it(backbone, monkeypatch):
    monkeypatch.setattr(backbone_module, "pack_where_it_pays", lambda lengths, *_, **__: make_packing(lengths, 9))
    others = IDS.clone()
    others[0] = 7
    first, second = (trunk(backbone, ids, 2, LENGTHS)[1:] for ids in (IDS, others))
    assert torch.equal(first, second)


def test_a_cpu_does_not_pack(monkeypatch):
    assert pack_where_it_pays(LENGTHS, torch.zeros(4, 9, 32), attention_dropout=False) is None


class OnGpu(torch.Tensor):
    """A CPU's tensor that says it is a GPU's."""

    is_cuda = True


@pytest.mark.parametrize(
    ("lengths", "dropout", "packs"),
    [(LENGTHS, False, True), (LENGTHS, True, False), (torch.tensor([9, 9, 9, 8]), False, False), (None, False, False)],
    ids=["padding", "attention dropout", "little padding", "lengths unknown"],
)
def test_a_gpu_packs_where_there_is_padding_to_spare(lengths, dropout, packs):
    hidden = torch.zeros(4, 9, 32).as_subclass(OnGpu)
    assert (pack_where_it_pays(lengths, hidden, attention_dropout=dropout) is not None) is packs
