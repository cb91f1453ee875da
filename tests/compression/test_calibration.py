"""What blocks see, beside Transformers' own forward pass with hooks; and planted parts that matter to nothing."""

import pytest
import torch

from permafrost.compression.calibration import (
    CONV1DS,
    heads_by_activation,
    neurons_by_activation,
    seen_by_blocks,
    worth_by_taylor,
)
from permafrost.data.tokens.batching import padded_batch
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.base import tokenized_split
from permafrost.tasks.classification import Classification
from permafrost.tasks.losses import CrossEntropy

TASK = Classification(["a", "b"], pooling="last", init="normal")
ROWS = [[5, 9, 2, 7, 11], [3, 4, 8]]


@pytest.fixture
def model(tiny_backbone):
    torch.manual_seed(1)
    none_frozen = Freezing(embeddings=False, blocks=0)
    return GPT2WithHead(tiny_backbone, TASK.build_head(tiny_backbone), none_frozen).eval()


@pytest.fixture
def batch():
    import numpy as np

    split = tokenized_split([np.array(row, np.int32) for row in ROWS], np.ones(2), np.array([0, 1]))
    return padded_batch(split, np.arange(2))


def test_inputs_and_influence_are_those_of_transformers(model, batch):
    seen = seen_by_blocks(model, [batch, batch])
    squares = {(n, name): 0.0 for n in range(2) for name in CONV1DS}

    def count(key):
        def hook(module, inputs, output):
            squares[key] = squares[key] + inputs[0].flatten(0, -2).square().sum(0)

        return hook

    for n, block in enumerate(model.transformer.h):
        for name in CONV1DS:
            block.get_submodule(name).register_forward_hook(count((n, name)))
    change = torch.zeros(2)
    with torch.no_grad():
        for row in ROWS:  # one by one, without padding
            states = model.transformer(torch.tensor([row]), output_hidden_states=True).hidden_states
            # Transformers' last state is after the final norm, so that the last block's own output is not among them
            change[0] += (1 - torch.cosine_similarity(states[0], states[1], dim=-1)).sum()
    for (n, name), expected in squares.items():
        torch.testing.assert_close(seen[n].squares[name], 2 * expected, rtol=1e-4, atol=1e-4)
    assert seen[0].tokens == 16
    assert seen[0].influence == pytest.approx(float(change[0]) / 8, rel=1e-4)


def test_a_block_that_changes_nothing_has_no_influence(model, batch):
    for part in (model.transformer.h[1].attn.c_proj, model.transformer.h[1].mlp.c_proj):
        part.weight.data.zero_()
        part.bias.data.zero_()
    assert seen_by_blocks(model, [batch])[1].influence == pytest.approx(0, abs=1e-6)


def test_a_silent_neuron_and_a_silent_head_add_nothing(model, batch):
    block = model.transformer.h[0]
    block.mlp.c_proj.weight.data[7] = 0
    block.attn.c_proj.weight.data[16:] = 0
    seen = seen_by_blocks(model, [batch])[0]
    neurons, heads = neurons_by_activation(block, seen), heads_by_activation(block, seen)
    assert (neurons == 0).nonzero().flatten().tolist() == [7]
    assert heads[1] == 0 < heads[0]


def test_by_its_gradient_what_has_no_weight_has_no_worth(model, batch):
    block = model.transformer.h[1]
    for weight in (block.mlp.c_fc.weight.data[:, 7], block.mlp.c_fc.bias.data[7:8], block.mlp.c_proj.weight.data[7]):
        weight.zero_()
    worth = worth_by_taylor(model, TASK, CrossEntropy(), [batch])
    assert worth[1].neurons[7] == 0
    assert (worth[1].neurons > 0).sum() > 100
    assert (worth[0].heads > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_worth_of_a_head_is_the_square_of_weight_times_gradient(model, batch):
    loss, _ = TASK.loss_sum(model, batch, CrossEntropy())
    (loss / 2).backward()
    attention, by_hand = model.transformer.h[0].attn, 0.0
    for part in range(3):
        columns = slice(part * 32 + 16, part * 32 + 32)
        by_hand += (attention.c_attn.weight * attention.c_attn.weight.grad)[:, columns].sum()
        by_hand += (attention.c_attn.bias * attention.c_attn.bias.grad)[columns].sum()
    by_hand += (attention.c_proj.weight * attention.c_proj.weight.grad)[16:].sum()
    worth = worth_by_taylor(model, TASK, CrossEntropy(), [batch])
    assert float(worth[0].heads[1]) == pytest.approx(float(by_hand.detach()) ** 2, rel=1e-3)
