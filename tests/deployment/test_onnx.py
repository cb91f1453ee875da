"""The graph gives what the model gives: for every head, other sizes, and written text token by token."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

from permafrost.compression.quantization import quantize_int8, sqnr_db
from permafrost.compression.signed_products import products_overflow, without_sign
from permafrost.data.tokens.batching import padded_batch
from permafrost.deployment import onnx_graph, sessions
from permafrost.deployment.graph_model import load_graph
from permafrost.deployment.onnx_graph import TOLERANCE, export_onnx
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.decoding import Decoding, generate
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead, TiedHead, TokenHead
from permafrost.tasks.base import tokenized_split


def model_with(head, backbone, **options):
    return GPT2WithHead(backbone, head, Freezing(embeddings=False, blocks=0), **options).eval()


def heads(backbone):
    return {
        "last": PooledHead(32, 3, pooling="last", init="normal"),
        "mean": PooledHead(32, 3, pooling="mean", init="normal"),
        "attention": PooledHead(32, 3, pooling="attention", init="normal"),
        "pair": PooledHead(32, 3, pooling="pair", init="normal"),
        "tokens": TokenHead(32, 5, init="normal"),
    }


@pytest.fixture(scope="module")
def classifier(tiny_config, tmp_path_factory):
    from transformers import GPT2Model

    torch.manual_seed(0)
    model = model_with(PooledHead(32, 3, pooling="last", init="normal"), GPT2Model(tiny_config))
    path = tmp_path_factory.mktemp("classifier") / "model.onnx"
    export_onnx(model, path)
    return model, path


def assert_same_logits(model, path):
    graph = load_graph(path, model.transformer.config)
    for rows, tokens in ((1, 2), (4, 9), (2, 64)):
        ids, lengths = torch.randint(1, 290, (rows, tokens)), torch.randint(1, tokens + 1, (rows,))
        ids[torch.arange(rows), lengths // 3] = model.transformer.config.eos_token_id  # where a pair's first text ends
        with torch.inference_mode():
            expected = model(ids, lengths)
        found = graph(ids, lengths)
        real = torch.arange(tokens) < lengths[:, None] if expected.dim() == 3 else slice(None)
        torch.testing.assert_close(found[real], expected[real], rtol=TOLERANCE, atol=TOLERANCE)


def test_logits_of_a_graph_are_the_models(classifier):
    assert_same_logits(*classifier)


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["last", "mean", "attention", "pair", "tokens"])
def test_logits_of_every_head(tiny_backbone, tmp_path, name, bidirectional):
    model = model_with(heads(tiny_backbone)[name], tiny_backbone, bidirectional=bidirectional)
    export_onnx(model, tmp_path / "model.onnx")
    assert_same_logits(model, tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def writer(tiny_config, tmp_path_factory):
    """A model that writes, and its graph."""
    from transformers import GPT2Model

    torch.manual_seed(0)
    backbone = GPT2Model(tiny_config)
    model = model_with(TiedHead(backbone.wte), backbone)
    path = tmp_path_factory.mktemp("writer") / "model.onnx"
    export_onnx(model, path)
    return model, path


@pytest.mark.slow
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=12),
        Decoding(max_new_tokens=8, num_beams=3),
        Decoding(max_new_tokens=8, repetition_penalty=1.3),
    ],
    ids=["greedy", "beams", "penalty"],
)
def test_a_graph_writes_what_the_model_writes(writer, decoding):
    model, path = writer
    graph = load_graph(path, model.transformer.config)
    prompts = [[5, 9, 2], [7], [3, 4, 8, 1, 6]]
    expected = generate(model.transformer, prompts, decoding, end_token_id=0)
    assert generate(graph.transformer, prompts, decoding, end_token_id=0) == expected


@pytest.mark.slow
def test_a_graph_that_differs_is_not_kept(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "TOLERANCE", 0.0)
    with pytest.raises(ResourceError, match="differ from the model's"):
        export_onnx(model_with(heads(tiny_backbone)["last"], tiny_backbone), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_graph_that_writes_otherwise_is_refused(writer, tiny_config):
    from transformers import GPT2LMHeadModel

    from permafrost.model.decoding import as_language_model

    model, path = writer
    onnx_graph.check_greedy(as_language_model(model.transformer), path)
    torch.manual_seed(9)
    with pytest.raises(ResourceError, match="writes"):
        onnx_graph.check_greedy(GPT2LMHeadModel(tiny_config).eval(), path)


def test_a_head_over_windows_is_refused(tiny_backbone, tmp_path):
    head = PooledHead(32, 3, pooling="windows", init="normal", window=64)
    with pytest.raises(ConfigError, match="head=windows"):
        export_onnx(model_with(head, tiny_backbone), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "writer"])
def test_int8_is_smaller_and_near(request, tmp_path, kind):
    model, path = request.getfixturevalue(kind)
    backbone = model.transformer
    quantize_int8(path, tmp_path / "model.onnx")
    matrices = sum(weight.numel() for weight in backbone.parameters() if weight.dim() > 1)
    assert path.stat().st_size - (tmp_path / "model.onnx").stat().st_size > 2.5 * matrices  # bytes: 4 become 1
    split = tokenized_split([np.arange(1 + row, 10, dtype=np.int32) for row in range(4)], np.ones(4), np.zeros(4))
    batch = padded_batch(split, np.arange(4))
    exact, near = (load_graph(of, backbone.config) for of in (path, tmp_path / "model.onnx"))
    assert 15 < sqnr_db(model, near, [batch]) < 60
    assert sqnr_db(model, exact, [batch]) > 90


@pytest.mark.slow
def test_weights_without_sign_are_the_same_weights(classifier, tmp_path):
    """Near the model on any CPU, and where products of signed bytes do not overflow, what they are with it."""
    model, path = classifier
    quantize_int8(path, tmp_path / "model.onnx")
    (tmp_path / "unsigned.onnx").write_bytes(without_sign(tmp_path / "model.onnx"))
    split = tokenized_split([np.arange(1 + row, 10, dtype=np.int32) for row in range(4)], np.ones(4), np.zeros(4))
    batch = padded_batch(split, np.arange(4))
    unsigned, near = (load_graph(tmp_path / name, model.transformer.config) for name in ("unsigned.onnx", "model.onnx"))
    assert 15 < sqnr_db(model, unsigned, [batch]) < 60
    assert sqnr_db(unsigned, near, [batch]) > 60


@pytest.mark.slow
@pytest.mark.parametrize("overflow", [True, False])
def test_only_where_signed_products_overflow_are_they_done_without(classifier, tmp_path, monkeypatch, overflow):
    import onnxruntime

    quantize_int8(classifier[1], tmp_path / "model.onnx")
    opened, make = [], onnxruntime.InferenceSession
    monkeypatch.setattr(sessions, "products_overflow", lambda: overflow)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda of, *a, **how: opened.append(of) or make(of, *a, **how))
    sessions.open_session(tmp_path / "model.onnx")
    assert [type(of) for of in opened] == ([str, bytes] if overflow else [str])
    sessions.open_session(classifier[1])
    assert opened[-1] == str(classifier[1])


def test_products_overflow_where_a_product_by_numpy_differs():
    """Of bytes that are drawn: as many as a weight matrix has, so that what overflows is likely to be met."""
    import onnxruntime
    from onnx import TensorProto, helper

    generator = np.random.default_rng(0)
    left, right = generator.integers(0, 256, (8, 256), np.uint8), generator.integers(-128, 128, (256, 64), np.int8)
    shown = helper.make_tensor_value_info
    given = [shown("left", TensorProto.UINT8, left.shape), shown("right", TensorProto.INT8, right.shape)]
    product = shown("product", TensorProto.INT32, [8, 64])
    node = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
    graph = helper.make_graph([node], "random", given, [product])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"left": left, "right": right})
    is_exact = bool((found == left.astype(int) @ right.astype(int)).all())
    assert is_exact is not products_overflow()


def test_what_quantizes_nothing_is_an_error(classifier, tmp_path, monkeypatch):
    import onnxruntime.quantization as runtime

    def nothing(source, target, **options):
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(runtime, "quantize_dynamic", nothing)
    with pytest.raises(ResourceError, match="only 0% of the weights were quantized"):
        quantize_int8(classifier[1], tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_sqnr_by_hand_and_without_padding():
    split = tokenized_split([np.array([1, 2], np.int32), np.array([1], np.int32)], np.ones(2), np.zeros(2))
    batch = padded_batch(split, np.arange(2))

    def exact(input_ids, lengths):
        return torch.tensor([[[3.0], [4.0]], [[0.0], [99.0]]])  # 99 is padding

    def near(input_ids, lengths):
        return torch.tensor([[[3.0], [3.5]], [[0.0], [0.0]]])

    assert sqnr_db(exact, near, [batch]) == pytest.approx(20)
    assert sqnr_db(exact, exact, [batch]) == float("inf")
