"""The cut model is GPT-2: trunk and branch against Transformers, and how a model is found and loaded."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from permafrost.errors import ConfigError, ResourceError
from permafrost.model.backbone import branch, embed, load_backbone, load_config, locate, trunk

# Two ways to the same float32 sums; hidden states are of size 1 after the final norm.
CLOSE = {"rtol": 0, "atol": 1e-5}


def random_ids(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, 300, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_branch_after_trunk_is_the_whole_model(tiny_backbone, depth):
    model, ids = tiny_backbone.eval(), random_ids(3, 17)
    with torch.no_grad():
        cut = branch(model, trunk(model, ids, depth), depth)
        torch.testing.assert_close(cut, model(input_ids=ids).last_hidden_state, **CLOSE)


@pytest.fixture(scope="module")
def real_shape() -> GPT2Model:
    """GPT-2's twelve blocks of 768 channels, newly initialised, over a small vocabulary."""
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(vocab_size=300, bos_token_id=0, eos_token_id=0)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 10, 12])
def test_branch_after_trunk_is_the_whole_model_in_gpt2s_own_shape(real_shape, depth):
    ids = random_ids(2, 11)
    with torch.no_grad():
        cut = branch(real_shape, trunk(real_shape, ids, depth), depth)
        torch.testing.assert_close(cut, real_shape(input_ids=ids).last_hidden_state, **CLOSE)


def test_trunk_is_the_hidden_state_at_its_depth(tiny_backbone):
    model, ids = tiny_backbone.eval(), random_ids(2, 9)
    with torch.no_grad():
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(trunk(model, ids, 0), expected[0], **CLOSE)
        torch.testing.assert_close(trunk(model, ids, 1), expected[1], **CLOSE)


def test_right_padding_changes_no_real_position(tiny_backbone):
    model, ids = tiny_backbone.eval(), random_ids(3, 20)
    with torch.no_grad():
        padded = branch(model, trunk(model, ids, 1), 1)
        for row, length in enumerate((20, 7, 1)):
            alone = branch(model, trunk(model, ids[row : row + 1, :length], 1), 1)
            torch.testing.assert_close(padded[row, :length], alone[0], **CLOSE)


def test_positions_begin_at_zero(tiny_backbone):
    states = embed(tiny_backbone.eval(), torch.tensor([[5, 6], [7, 8]]))
    expected = tiny_backbone.wte.weight[[7, 8]] + tiny_backbone.wpe.weight[:2]
    torch.testing.assert_close(states[1], expected, rtol=0, atol=0)


def test_pretrained_weights_arrive_unchanged(tiny_model_dir):
    backbone = load_backbone(str(tiny_model_dir), load_config(str(tiny_model_dir)), pretrained=True)
    stored = GPT2LMHeadModel.from_pretrained(tiny_model_dir).transformer.state_dict()
    assert backbone.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in backbone.state_dict().items())


def test_weights_stored_in_16_bit_are_trained_in_float32(tmp_path, tiny_config):
    GPT2Model(tiny_config).bfloat16().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), load_config(str(tmp_path)), pretrained=True)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


def test_without_pretraining_the_weights_are_new(tiny_model_dir):
    config = load_config(str(tiny_model_dir))
    torch.manual_seed(7)
    new = load_backbone(str(tiny_model_dir), config, pretrained=False)
    old = load_backbone(str(tiny_model_dir), config, pretrained=True)
    assert not torch.equal(new.wte.weight, old.wte.weight)


def test_a_missing_directory_is_named():
    with pytest.raises(ConfigError, match=r"\./no_such_model.*no such directory"):
        locate("./no_such_model")


def test_a_local_directory_goes_before_a_hub_name(tmp_path):
    assert locate(str(tmp_path)) == str(tmp_path)
    assert locate("gpt2") == "gpt2"


def test_41_an_unknown_hub_name_says_how_to_give_a_directory():
    with pytest.raises(ResourceError, match=r"'no-such/model'.*model\.path=DIR"):
        load_config("no-such/model")


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="'bert'"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{ not json"])
def test_a_broken_config_is_a_resource_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ResourceError):
        load_config(str(tmp_path))


def test_41_a_truncated_weight_file_is_a_resource_error(tmp_path, tiny_config):
    GPT2Model(tiny_config).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ResourceError):
        load_backbone(str(tmp_path), load_config(str(tmp_path)), pretrained=True)


def test_weights_of_another_size_are_a_resource_error(tmp_path, tiny_config):
    GPT2Model(tiny_config).save_pretrained(tmp_path)
    wider = GPT2Config(**{**tiny_config.to_dict(), "n_embd": 64})
    with pytest.raises(ResourceError):
        load_backbone(str(tmp_path), wider, pretrained=True)


def test_weights_that_lack_a_block_are_a_resource_error(tmp_path, tiny_config):
    GPT2Model(tiny_config).save_pretrained(tmp_path)
    deeper = GPT2Config(**{**tiny_config.to_dict(), "n_layer": 3})
    with pytest.raises(ResourceError):
        load_backbone(str(tmp_path), deeper, pretrained=True)
