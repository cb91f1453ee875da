"""What is taken out is gone: the smaller model is the whole one with that part silenced, and loads by itself."""

import copy

import pytest
import torch
from torch import nn

from permafrost.errors import ConfigError
from permafrost.model.backbone import branch, load_backbone, load_config, trunk
from permafrost.model.surgery import keep_blocks_, keep_heads_, keep_neurons_

IDS = torch.tensor([[5, 9, 2, 7, 11], [3, 4, 8, 1, 6]])


@pytest.fixture
def backbone(tiny_backbone):
    """Its configuration is its own, to be changed with it."""
    return copy.deepcopy(tiny_backbone).eval()


def ours(backbone, positions=None):
    with torch.no_grad():
        return branch(backbone, trunk(backbone, IDS, 0), 0, positions)


def stock(backbone):
    with torch.no_grad():
        return backbone(IDS).last_hidden_state


@pytest.mark.parametrize("kept", [[0], [1], [1, 0]])
def test_kept_blocks_run_one_after_the_other(backbone, kept):
    whole = copy.deepcopy(backbone)
    keep_blocks_(backbone, kept)
    with torch.no_grad():
        hidden = trunk(whole, IDS, 0)
        for index in kept:
            hidden = trunk_of_one(whole, hidden, index)
        expected = whole.ln_f(hidden)
    torch.testing.assert_close(ours(backbone), expected)
    torch.testing.assert_close(stock(backbone), expected)
    assert backbone.config.n_layer == len(kept)


def trunk_of_one(backbone, hidden, index):
    from permafrost.model.block import run_block

    return run_block(backbone.h[index], hidden)


def test_text_is_written_with_a_cache_that_fits(tiny_config):
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(copy.deepcopy(tiny_config)).eval()
    keep_blocks_(model.transformer, [1])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    cached = model.generate(IDS, use_cache=True, **options)
    assert torch.equal(cached, model.generate(IDS, use_cache=False, **options))


def test_blocks_that_go_by_their_number_stay(backbone):
    backbone.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(ConfigError, match="cannot lose blocks"):
        keep_blocks_(backbone, [1])


def test_neurons_taken_out_are_neurons_silenced(backbone):
    kept = [torch.arange(0, 128, 2), torch.arange(64)]
    silenced = copy.deepcopy(backbone)
    for block, neurons in zip(silenced.h, kept, strict=True):
        gone = torch.ones(128, dtype=torch.bool)
        gone[neurons] = False
        block.mlp.c_proj.weight.data[gone] = 0
    keep_neurons_(backbone, kept)
    torch.testing.assert_close(ours(backbone), ours(silenced))
    torch.testing.assert_close(stock(backbone), ours(silenced))
    assert backbone.config.n_inner == 64
    assert backbone.h[0].mlp.c_fc.weight.shape == (32, 64)


@pytest.mark.parametrize("positions", [None, torch.tensor([[4], [2]]), torch.tensor([[1, 4], [0, 2]])])
def test_heads_taken_out_are_heads_silenced(backbone, positions):
    silenced = copy.deepcopy(backbone)
    for block, head in zip(silenced.h, (0, 1), strict=True):
        block.attn.c_proj.weight.data[(1 - head) * 16 : (2 - head) * 16] = 0
    keep_heads_(backbone, [torch.tensor([0]), torch.tensor([1])])
    torch.testing.assert_close(ours(backbone, positions), ours(silenced, positions))
    torch.testing.assert_close(stock(backbone), stock(silenced))
    assert backbone.h[0].attn.c_attn.weight.shape == (32, 48)


def test_a_narrow_model_is_an_ordinary_one(backbone, tmp_path):
    from transformers import GPT2Model

    keep_blocks_(backbone, [1])
    keep_neurons_(backbone, [torch.arange(40)])
    backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(stock(GPT2Model.from_pretrained(tmp_path).eval()), stock(backbone))
    loaded = load_backbone(str(tmp_path), load_config(str(tmp_path)), pretrained=True).eval()
    torch.testing.assert_close(ours(loaded), ours(backbone))


def test_fewer_heads_are_loaded_by_permafrost_and_refused_by_others(backbone, tmp_path):
    from transformers import GPT2Model

    keep_heads_(backbone, [torch.tensor([1])] * 2)
    backbone.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path), load_config(str(tmp_path)), pretrained=True).eval()
    torch.testing.assert_close(ours(loaded), ours(backbone))
    with pytest.raises(RuntimeError, match="mismatch"):
        GPT2Model.from_pretrained(tmp_path)


def test_what_is_left_is_trained(backbone):
    keep_neurons_(backbone, [torch.arange(8)] * 2)
    backbone.train()
    branch(backbone, trunk(backbone, IDS, 0), 0).sum().backward()
    assert all(isinstance(block.mlp.c_fc.weight, nn.Parameter) for block in backbone.h)
    assert backbone.h[0].mlp.c_proj.weight.grad is not None
