"""Frozen means no gradient, no dropout and no change, for exactly the parameters that were named."""

import pytest
import torch

from permafrost.errors import ConfigError
from permafrost.model.freezing import Freezing, depth_of, frozen_names, trainable
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead, TiedHead

IDS = torch.randint(0, 300, (4, 11), generator=torch.Generator().manual_seed(5))
LENGTHS = torch.tensor([11, 8, 5, 2])
FREEZINGS = [
    Freezing(embeddings=False, blocks=0),
    Freezing(embeddings=True, blocks=0),
    Freezing(embeddings=True, blocks=1),
    Freezing(embeddings=True, blocks=2),
    Freezing(embeddings=True, blocks=2, final_norm=True),
]


def pooled(backbone, freezing: Freezing, pooling: str = "last") -> GPT2WithHead:
    torch.manual_seed(6)
    return GPT2WithHead(backbone, PooledHead(32, 2, pooling=pooling, init="normal"), freezing)


def expected_frozen(model: GPT2WithHead, freezing: Freezing) -> set[str]:
    """By the modules themselves, where the code goes by names."""
    frozen = list(model.transformer.h[: freezing.blocks])
    if freezing.embeddings:
        frozen += [model.transformer.wte, model.transformer.wpe]
    if freezing.final_norm:
        frozen += [model.transformer.ln_f]
    ids = {id(parameter) for module in frozen for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_every_parameter_lies_in_one_depth_group(tiny_backbone, pooling):
    model = pooled(tiny_backbone, FREEZINGS[0], pooling)
    depths = {name: depth_of(name, 2) for name, _ in model.named_parameters()}
    assert set(depths.values()) == {0, 1, 2, 3}
    assert {name for name, depth in depths.items() if depth == 0} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    assert all(name.startswith("transformer.h.0.") for name, depth in depths.items() if depth == 1)
    assert all(name.startswith(("transformer.ln_f.", "head.")) for name, depth in depths.items() if depth == 3)


def test_block_ten_is_not_block_one():
    assert depth_of("transformer.h.10.ln_1.weight", 12) == 11


@pytest.mark.parametrize("name", ["adapter.weight", "transformer.wtext.weight", "transformer.hidden.0.weight"])
def test_a_parameter_of_no_group_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        depth_of(name, 2)


@pytest.mark.parametrize("freezing", FREEZINGS)
def test_frozen_names_are_those_of_the_frozen_modules(tiny_backbone, freezing):
    model = pooled(tiny_backbone, freezing)
    assert frozen_names(model, 2, freezing) == expected_frozen(model, freezing)
    assert {name for name, _ in trainable(model)} == dict(model.named_parameters()).keys() - expected_frozen(
        model, freezing
    )


@pytest.mark.parametrize("freezing", FREEZINGS)
def test_gradients_reach_the_trained_and_only_them(tiny_backbone, freezing):
    model = pooled(tiny_backbone, freezing)
    model(IDS, LENGTHS).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == expected_frozen(model, freezing)


def test_embeddings_alone_can_learn_below_frozen_blocks(tiny_backbone):
    model = pooled(tiny_backbone, Freezing(embeddings=False, blocks=2))
    model(IDS, LENGTHS).sum().backward()
    assert model.transformer.wte.weight.grad.any()
    assert all(parameter.grad is None for parameter in model.transformer.h.parameters())


def test_a_frozen_trunk_has_no_dropout_in_training(tiny_backbone):
    model = pooled(tiny_backbone, Freezing(embeddings=True, blocks=2)).train()
    first, second = model(IDS, LENGTHS), model(IDS, LENGTHS)
    assert torch.equal(first, second)
    assert torch.equal(first, model.eval()(IDS, LENGTHS))


def test_the_trained_part_has_dropout_in_training(tiny_backbone):
    model = pooled(tiny_backbone, Freezing(embeddings=True, blocks=1)).train()
    assert not torch.equal(model(IDS, LENGTHS), model(IDS, LENGTHS))
    assert model.transformer.h[1].training
    assert not any(module.training for module in model.transformer.h[0].modules())


def test_training_mode_comes_back_after_evaluation(tiny_backbone):
    model = pooled(tiny_backbone, Freezing(embeddings=True, blocks=1)).train()
    before = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in model.eval().train().named_modules()} == before


def test_steps_change_the_trained_and_leave_the_frozen_bitwise(tiny_backbone):
    freezing = Freezing(embeddings=True, blocks=1)
    model = pooled(tiny_backbone, freezing).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(IDS, LENGTHS), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    unchanged = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert unchanged == expected_frozen(model, freezing)


def test_freezing_more_blocks_than_there_are_is_an_error(tiny_backbone):
    with pytest.raises(ConfigError, match=r"freezing\.blocks=3.*2 blocks"):
        pooled(tiny_backbone, Freezing(embeddings=True, blocks=3))


def test_a_tied_head_over_a_wholly_frozen_model_is_an_error(tiny_backbone):
    with pytest.raises(ConfigError, match="nothing is left to train"):
        GPT2WithHead(tiny_backbone, TiedHead(tiny_backbone.wte), Freezing(embeddings=True, blocks=2, final_norm=True))


def test_a_tied_head_is_frozen_with_the_embeddings(tiny_backbone):
    model = GPT2WithHead(tiny_backbone, TiedHead(tiny_backbone.wte), Freezing(embeddings=True, blocks=2))
    assert {name for name, _ in trainable(model)} == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
