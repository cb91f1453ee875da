"""Weights of 4 bits: OpenVINO's graph beside the model that was trained as such, and Transformers' own classes."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2Model

from permafrost.compression.quantization import largest_group, sqnr_db
from permafrost.compression.rounding import rounded_weights
from permafrost.data.tokens.batching import padded_batch
from permafrost.deployment import quantized
from permafrost.deployment.export import copy_model, copy_onnx, export_model
from permafrost.deployment.predictor import Predictor
from permafrost.deployment.quantized import quantize_
from permafrost.deployment.sessions import import_onnx
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.base import Encoding, tokenized_split
from permafrost.tasks.classification import Classification
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.tagging import Tagging

TASKS = {
    "classification": Classification(["a", "b", "c"], pooling="last", init="normal"),
    "ner": Tagging(["O", "B-x", "I-x"], init="normal", right_context=0),
    "language_modeling": LanguageModeling(),
}


@pytest.fixture
def exported(tiny_backbone, tiny_tokenizer, tmp_path):
    """Task, and more of the model -> the model and its directory."""

    def export(name, backbone=tiny_backbone, **options):
        torch.manual_seed(0)
        task = TASKS[name]
        nothing_frozen = Freezing(embeddings=False, blocks=0)
        model = GPT2WithHead(backbone, task.build_head(backbone), nothing_frozen, **options).eval()
        encoding = Encoding(tokenizer=tiny_tokenizer, max_length=32)
        export_model(model, task, encoding, tmp_path / "model", "# a card\n")
        return model, tmp_path / "model"

    return export


def wider(config: GPT2Config) -> GPT2Model:
    """With products that nf4 takes: of a multiple of 64 inputs."""
    return GPT2Model(GPT2Config.from_dict(config.to_dict() | {"n_embd": 64}))


@pytest.fixture
def batch():
    rows = [np.arange(1 + row, 10, dtype=np.int32) for row in range(4)]
    return padded_batch(tokenized_split(rows, np.ones(4), np.zeros(4)), np.arange(4))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", "language_modeling"])
def test_what_was_trained_in_four_bits_is_what_runs(exported, batch, monkeypatch, name):
    monkeypatch.setenv("NNCF_CI", "1")
    pytest.importorskip("nncf", reason="the extra [int4] is not installed")
    model, directory = exported(name)
    size = (directory / "model.safetensors").stat().st_size
    quantize_(directory, model, "int4")
    assert {path.suffix for path in directory.glob("model.*")} == {".xml", ".bin"}
    assert (directory / "model.bin").stat().st_size < 0.45 * size
    graph = Predictor(directory).model
    exact = sqnr_db(model, graph, [batch])
    with rounded_weights(model.transformer, quantized.group_of(model)):
        assert sqnr_db(model, graph, [batch]) > exact + 5  # little more than half the error: the embeddings' 8 bits
    assert exact > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", "ner", "language_modeling"])
def test_transformers_own_four_bits_answer_alike(exported, batch, tiny_config, name):
    pytest.importorskip("bitsandbytes", reason="the extra [nf4] is not installed")
    model, directory = exported(name, wider(tiny_config))
    exact = Predictor(directory).model
    size = (directory / "model.safetensors").stat().st_size
    quantize_(directory, model, "nf4")
    assert (directory / "model.safetensors").stat().st_size < 0.75 * size
    assert 5 < sqnr_db(exact, Predictor(directory).model, [batch]) < 40


@pytest.mark.parametrize("sign", ["graph", "config"])
def test_what_has_fewer_bits_is_not_exported_as_if_it_had_all(exported, tmp_path, sign):
    _, directory = exported("classification")
    if sign == "graph":
        (directory / "model.onnx").write_bytes(b"")
    else:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    for copy in (lambda new: copy_model(directory, new, "float16"), lambda new: copy_onnx(directory, new)):
        with pytest.raises(ConfigError, match="give the run that it was made of"):
            copy(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_transformers_has_no_class_for_is_refused(exported):
    model, directory = exported("classification", bidirectional=True)
    with pytest.raises(ConfigError, match="nf4 is for what plain Transformers loads"):
        quantize_(directory, model, "nf4")


def test_a_width_that_its_blocks_do_not_divide_is_refused(exported):
    model, directory = exported("classification")
    with pytest.raises(ConfigError, match="nf4 takes 64 inputs together; a product has 32"):
        quantize_(directory, model, "nf4")


@pytest.mark.slow
def test_four_bits_that_change_nothing_are_an_error(exported, monkeypatch):
    monkeypatch.setenv("NNCF_CI", "1")
    nncf = pytest.importorskip("nncf", reason="the extra [int4] is not installed")
    model, directory = exported("classification")
    monkeypatch.setattr(nncf, "compress_weights", lambda graph, **options: graph)
    with pytest.raises(ResourceError, match="only 0% of the weights were quantized"):
        quantize_(directory, model, "int4")


@pytest.mark.slow
def test_an_nf4_that_changes_nothing_is_an_error(exported, tiny_config, monkeypatch):
    pytest.importorskip("bitsandbytes", reason="the extra [nf4] is not installed")
    import transformers

    model, directory = exported("classification", wider(tiny_config))
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", lambda **options: None)
    with pytest.raises(ResourceError, match="only 0% of the weights were quantized"):
        quantize_(directory, model, "nf4")


@pytest.mark.parametrize(
    ("method", "package", "extra"),
    [("int8", "onnxruntime", "onnx"), ("int4", "nncf", "int4"), ("nf4", "bitsandbytes", "nf4")],
)
def test_a_package_that_is_missing_is_told_in_one_line(exported, tiny_config, monkeypatch, method, package, extra):
    model, directory = exported("classification", wider(tiny_config))
    monkeypatch.setenv("NNCF_CI", "1")
    monkeypatch.setattr(quantized, "export_onnx", lambda *_, **__: import_onnx() if method == "int8" else None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as raised:
        quantize_(directory, model, method)
    assert f"needs {package}; pip install -e '.[{extra}]'" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_group_divides_every_products_inputs():
    assert largest_group([768, 3072]) == 64
    assert largest_group([192, 384]) == 64
    assert largest_group([32, 80]) == 16
