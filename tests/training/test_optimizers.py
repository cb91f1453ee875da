"""Parameter groups are a partition with the right rates and decays; Muon beside AdamW is each of them alone."""

import io

import pytest
import torch
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead, TiedHead
from permafrost.training.optimizers import muon, parameter_groups

MUON = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "betas": [0.8, 0.95]}


def make_model(backbone, blocks: int = 0) -> GPT2WithHead:
    torch.manual_seed(6)
    freezing = Freezing(embeddings=blocks > 0, blocks=blocks)
    return GPT2WithHead(backbone, PooledHead(32, 2, pooling="last", init="normal"), freezing)


def groups_of(model: GPT2WithHead, lr: float = 0.01, decay: float = 0.1, layer_lr_decay: float = 1.0) -> list[dict]:
    return parameter_groups(model, 2, lr=lr, weight_decay=decay, layer_lr_decay=layer_lr_decay)


def give_gradients(parameters, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def small_groups() -> list[dict]:
    """Two matrices for Muon, a matrix and a vector for AdamW, rates and decays all different."""
    torch.manual_seed(2)
    return [
        {"params": [torch.nn.Parameter(torch.randn(4, 6))], "lr": 0.01, "weight_decay": 0.1, "muon": True},
        {"params": [torch.nn.Parameter(torch.randn(6, 3))], "lr": 0.02, "weight_decay": 0.0, "muon": True},
        {"params": [torch.nn.Parameter(torch.randn(5, 4))], "lr": 0.03, "weight_decay": 0.2, "muon": False},
        {"params": [torch.nn.Parameter(torch.randn(7))], "lr": 0.04, "weight_decay": 0.0, "muon": False},
    ]


def parameters_of(groups: list[dict]) -> list[torch.nn.Parameter]:
    return [parameter for group in groups for parameter in group["params"]]


def run_steps(optimizer: torch.optim.Optimizer, parameters, seeds: range) -> None:
    for seed in seeds:
        give_gradients(parameters, seed)
        optimizer.step()


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_every_trainable_parameter_is_in_exactly_one_group(tiny_backbone, blocks):
    model = make_model(tiny_backbone, blocks)
    grouped = [id(parameter) for group in groups_of(model) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_the_tied_embedding_is_in_one_group(tiny_backbone):
    model = GPT2WithHead(tiny_backbone, TiedHead(tiny_backbone.wte), Freezing(embeddings=False, blocks=0))
    held = [parameter is tiny_backbone.wte.weight for group in groups_of(model) for parameter in group["params"]]
    assert sum(held) == 1


@pytest.mark.parametrize("layer_lr_decay", [1.0, 0.5])
def test_groups_have_names_of_their_own(tiny_backbone, layer_lr_decay):
    names = [group["name"] for group in groups_of(make_model(tiny_backbone), layer_lr_decay=layer_lr_decay)]
    assert len(names) == len(set(names)) > 1


def test_matrices_decay_and_norms_and_biases_do_not(tiny_backbone):
    model = make_model(tiny_backbone)
    decay = {id(parameter): group["weight_decay"] for group in groups_of(model) for parameter in group["params"]}
    named = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    vectors = {
        name for name in named if name.endswith(".bias") or ".ln_1." in name or ".ln_2." in name or ".ln_f." in name
    }
    assert len(vectors) == 2 * 8 + 2  # a block has two norms of two vectors and four biases
    assert {name for name, value in named.items() if value == 0.0} == vectors
    assert {value for name, value in named.items() if name not in vectors} == {0.1}


@pytest.mark.parametrize(
    ("layer_lr_decay", "expected"),
    [
        (1.0, {"wte": 8.0, "wpe": 8.0, "h.0": 8.0, "h.1": 8.0, "ln_f": 8.0, "head": 8.0}),
        (0.5, {"wte": 1.0, "wpe": 1.0, "h.0": 2.0, "h.1": 4.0, "ln_f": 8.0, "head": 8.0}),
    ],
)
def test_layer_lr_decay_by_hand(tiny_backbone, layer_lr_decay, expected):
    model = make_model(tiny_backbone)
    groups = groups_of(model, lr=8.0, layer_lr_decay=layer_lr_decay)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    named = {name.removeprefix("transformer."): rates[id(parameter)] for name, parameter in model.named_parameters()}
    for part, rate in expected.items():
        assert {value for name, value in named.items() if name.startswith(f"{part}.")} == {rate}


@pytest.mark.parametrize("layer_lr_decay", [1.0, 0.5])
def test_muon_takes_the_matrices_of_the_blocks_alone(tiny_backbone, layer_lr_decay):
    model = make_model(tiny_backbone)
    groups = groups_of(model, layer_lr_decay=layer_lr_decay)
    taken = {id(parameter) for group in groups if group["muon"] for parameter in group["params"]}
    expected = {id(parameter) for parameter in tiny_backbone.h.parameters() if parameter.ndim == 2}
    assert len(expected) == 2 * 4
    assert taken == expected


def test_muon_is_torchs_muon_and_torchs_adamw():
    ours, theirs = small_groups(), small_groups()
    together = muon(ours, **MUON)
    options = {"lr": MUON["lr"], "weight_decay": MUON["weight_decay"]}
    alone = [
        Muon(
            [{k: v for k, v in g.items() if k != "muon"} for g in theirs[:2]],
            momentum=0.9,
            adjust_lr_fn="match_rms_adamw",
            **options,
        ),
        AdamW(
            [{k: v for k, v in g.items() if k != "muon"} for g in theirs[2:]], betas=(0.8, 0.95), fused=True, **options
        ),
    ]
    for seed in range(3):
        give_gradients(parameters_of(ours), seed)
        give_gradients(parameters_of(theirs), seed)
        for optimizer in (together, *alone):
            optimizer.step()
    start = small_groups()
    for mine, its, first in zip(*map(parameters_of, (ours, theirs, start)), strict=True):
        assert torch.equal(mine, its)
        assert not torch.equal(mine, first)


def test_muon_on_the_whole_model_moves_every_parameter(tiny_backbone):
    model = make_model(tiny_backbone)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = muon(groups_of(model), **MUON)
    run_steps(optimizer, list(model.parameters()), range(1))
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("kept", [slice(0, 2), slice(2, 4)])
def test_muon_may_have_one_kind_of_parameter_only(kept):
    groups = small_groups()[kept]
    before = [parameter.detach().clone() for parameter in parameters_of(groups)]
    run_steps(muon(groups, **MUON), parameters_of(groups), range(1))
    assert not any(torch.equal(a, b) for a, b in zip(parameters_of(groups), before, strict=True))


def test_a_scheduler_changes_the_rates_of_both_parts():
    groups = small_groups()
    optimizer = muon(groups, **MUON)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)
    run_steps(optimizer, parameters_of(groups), range(1))
    scheduler.step()
    before = [parameter.detach().clone() for parameter in parameters_of(groups)]
    run_steps(optimizer, parameters_of(groups), range(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(parameters_of(groups), before, strict=True))


def saved_and_loaded(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_muon_resumes_where_it_was_saved():
    straight, resumed = small_groups(), small_groups()
    run_steps(muon(straight, **MUON), parameters_of(straight), range(4))
    first = muon(resumed, **MUON)
    run_steps(first, parameters_of(resumed), range(2))
    again = [
        {**group, "params": [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]} for group in resumed
    ]
    second = muon(again, **MUON)
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    run_steps(second, parameters_of(again), range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(parameters_of(again), parameters_of(straight), strict=True))


def test_a_scheduler_reaches_both_parts_after_a_resume():
    groups = small_groups()
    optimizer = muon(groups, **MUON)
    run_steps(optimizer, parameters_of(groups), range(1))
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in parameters_of(groups)]
    run_steps(optimizer, parameters_of(groups), range(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(parameters_of(groups), before, strict=True))


def test_muon_holds_the_state_of_every_parameter():
    groups = small_groups()
    optimizer = muon(groups, **MUON)
    run_steps(optimizer, parameters_of(groups), range(1))
    kinds = [set(state) for state in optimizer.state_dict()["state"].values()]
    assert kinds == [{"momentum_buffer"}] * 2 + [{"step", "exp_avg", "exp_avg_sq"}] * 2
