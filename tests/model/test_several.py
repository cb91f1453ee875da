"""Several heads over one trunk: what is shared is one tensor, and what is frozen is saved under no name."""

import pytest
import torch

from permafrost.model.freezing import Freezing, depth_of, frozen_parameters, trainable
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.model.several import Several, backbone_for_another

FREEZING = Freezing(embeddings=True, blocks=1)
IDS, LENGTHS = torch.tensor([[5, 6, 7]]), torch.tensor([3])


def make_several(backbone, branches: str) -> Several:
    models = {}
    for name, labels in {"two": 2, "three": 3}.items():
        own = backbone_for_another(backbone, 1, branches) if models else backbone
        models[name] = GPT2WithHead(own, PooledHead(32, labels, pooling="last", init="normal"), FREEZING)
    return Several(models)


@pytest.mark.parametrize(("branches", "branch_is_shared"), [("shared", True), ("separate", False)])
def test_the_trunk_is_one_and_the_branch_as_asked(tiny_backbone, branches, branch_is_shared):
    several = make_several(tiny_backbone, branches)
    two, three = (several.of[name].transformer for name in ("two", "three"))
    assert two.wte is three.wte
    assert two.h[0] is three.h[0]
    assert (two.h[1] is three.h[1]) is branch_is_shared
    assert (two.ln_f is three.ln_f) is branch_is_shared


def test_a_separate_branch_starts_alike_and_learns_alone(tiny_backbone):
    several = make_several(tiny_backbone, "separate").eval()
    before = several.of["three"](IDS, LENGTHS).detach()
    optimizer = torch.optim.SGD([parameter for _, parameter in trainable(several)], lr=0.1)
    several.of["two"](IDS, LENGTHS).square().sum().backward()
    optimizer.step()
    assert torch.equal(several.of["three"](IDS, LENGTHS), before)


def test_each_parameter_is_trained_once_and_has_a_depth(tiny_backbone):
    names = [name for name, _ in trainable(make_several(tiny_backbone, "shared"))]
    assert sum(name.endswith("transformer.h.1.ln_1.weight") for name in names) == 1
    assert {depth_of(name, 2) for name in names} == {2, 3}  # block 1 and, above it, the norm and both heads


def test_frozen_parameters_come_under_every_name_of_a_state_dict(tiny_backbone):
    several = make_several(tiny_backbone, "separate")
    frozen = {name for name, _ in frozen_parameters(several)}
    assert {"of.two.transformer.wte.weight", "of.three.transformer.wte.weight"} <= frozen
    assert all(".h.0." in name or "wte" in name or "wpe" in name for name in frozen)
    assert frozen <= set(several.state_dict())
