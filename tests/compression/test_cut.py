"""What is taken out is what does least, as much as was asked; and a writer's head stays its embedding."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from permafrost.compression.calibration import worth_by_activation
from permafrost.compression.cut import drop_blocks_, most_worth, narrow_
from permafrost.compression.sparsity import Sparsity, sparsify_
from permafrost.data.tokens.batching import padded_batch
from permafrost.deployment.export import export_model
from permafrost.errors import ConfigError
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.base import Encoding, tokenized_split
from permafrost.tasks.language_modeling import LanguageModeling

TASK = LanguageModeling()


@pytest.fixture
def model(tiny_config):
    """Four blocks, of which the third and the first change nothing."""
    torch.manual_seed(0)
    config = copy.deepcopy(tiny_config)
    config.n_layer = 4
    backbone = GPT2LMHeadModel(config).transformer
    for number in (0, 2):
        for part in (backbone.h[number].attn.c_proj, backbone.h[number].mlp.c_proj):
            part.weight.data.zero_()
    return GPT2WithHead(backbone, TASK.build_head(backbone), Freezing(embeddings=False, blocks=0)).eval()


@pytest.fixture
def batch():
    rows = [np.array(row, np.int32) for row in ([5, 9, 2, 7, 11], [3, 4, 8])]
    return padded_batch(tokenized_split(rows, np.array([4, 2]), None), np.arange(2))


def test_blocks_that_change_nothing_are_dropped(model, batch):
    before = model(batch.input_ids, batch.lengths)
    assert drop_blocks_(model, [batch], share=0.5, choose="influence") == [1, 3]
    torch.testing.assert_close(model(batch.input_ids, batch.lengths), before)


def test_every_other_block_is_dropped_whatever_it_does(model, batch):
    assert drop_blocks_(model, [batch], share=0.5, choose="evenly") == [0, 3]


@pytest.mark.parametrize("share", [0.1, 0.95])
def test_nothing_and_everything_are_refused(model, batch, share):
    with pytest.raises(ConfigError, match=r"of 4 blocks [40] would be left"):
        drop_blocks_(model, [batch], share=share, choose="evenly")


@pytest.mark.parametrize(("dropped", "kept"), [(0.5, [1, 2]), (0.25, [0, 1, 2]), (0.99, [2])])
def test_what_is_worth_most_stays_in_its_order(dropped, kept):
    assert most_worth(torch.tensor([0.3, 0.8, 0.9, 0.1]), dropped).tolist() == kept


@pytest.mark.parametrize("asked", [{"mlp": 0.001, "heads": 0.5}, {"mlp": 0.5, "heads": 0.1}])
def test_a_share_of_which_nothing_goes_is_refused(model, batch, asked):
    with pytest.raises(ConfigError, match=r"of \d+ all would be left; give a larger share"):
        narrow_(model, worth_by_activation(model, [batch]), **asked)


def test_a_writers_head_stays_its_embedding(model, batch, tiny_tokenizer, tmp_path):
    """Through all that takes something out, and through the file: in it there is one matrix for both."""
    drop_blocks_(model, [batch], share=0.5, choose="influence")
    narrow_(model, worth_by_activation(model, [batch]), mlp=0.5, heads=None)
    how = Sparsity(method="magnitude", structure="unstructured", sparsity=0.5, schedule="one_shot")
    sparsify_(model, [batch], how)
    export_model(model, TASK, Encoding(tokenizer=tiny_tokenizer, max_length=32), tmp_path, "# a card\n")
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    stock = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert stock.lm_head.weight is stock.transformer.wte.weight
    with torch.no_grad():
        for row, length in zip(batch.input_ids, batch.lengths, strict=True):
            expected = model(row[None, :length], length[None])
            torch.testing.assert_close(stock(row[None, :length]).logits, expected, rtol=1e-4, atol=1e-5)
