"""Weights of fewer bits: 8 by ONNX Runtime, 4 by OpenVINO, and 4 of another spacing by bitsandbytes.

What a library passes over in silence is an error: each way counts what it has changed.
"""

import logging
import math
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from permafrost.compression.signed_products import mark_signed_
from permafrost.data.tokens.batching import Batch
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.packing import real_tokens
from permafrost.storage.atomic import complete_or_absent

PACKAGES = {
    "int8": ("onnx", "onnxruntime", "onnxscript"),
    "int4": ("onnx", "onnxruntime", "onnxscript", "openvino", "nncf"),
    "nf4": ("bitsandbytes", "accelerate"),
}
EXTRAS = {"int8": "onnx", "int4": "int4", "nf4": "nf4"}
INT4_GROUP = 64  # inputs that share a scale
LEAST_SHARE = 0.9  # of the weights; below it, something was passed over in silence


def check_packages(method: str) -> None:
    """Raises ConfigError where one is missing; none is imported."""
    for package in PACKAGES[method]:
        if find_spec(package) is None:
            raise ConfigError(f"{method} needs {package}; pip install -e '.[{EXTRAS[method]}]'")


def quantize_int8(source: Path, target: Path) -> None:
    """Each product's and each embedding's weights, a scale for every output channel; what is computed is quantized on
    the way (dynamically).

    Raises:
        ResourceError: less than nine tenths of the weights have changed, or the file is not smaller.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with complete_or_absent(target) as partial:
        quantize_dynamic(source, partial, per_channel=True, weight_type=QuantType.QInt8)
        quantized = onnx.load(partial)
        check_share("int8", share_of_integers(quantized.graph.initializer))
        mark_signed_(quantized)
        onnx.save(quantized, partial)
        if partial.stat().st_size >= source.stat().st_size:
            raise ResourceError(f"int8: {target.name} is not smaller than {source.name}")


def check_share(method: str, share: float) -> None:
    if share < LEAST_SHARE:
        raise ResourceError(
            f"{method}: only {share:.0%} of the weights were quantized; the model has products that it passes over"
        )


def share_of_integers(initializers: Iterable[Any]) -> float:
    """Of the numbers in all matrices of a graph, those of 8 bits."""
    from onnx import TensorProto

    sizes = {True: 0, False: 0}
    for tensor in initializers:
        if len(tensor.dims) > 1:
            sizes[tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)] += int(np.prod(tensor.dims))
    return sizes[True] / max(1, sum(sizes.values()))


def quantize_int4(source: Path, target: Path, group: int) -> None:
    """The blocks' weights in 4 bits, `group` inputs of an output sharing a scale, embeddings and the last product in 8:
    OpenVINO's pair of files, .xml and .bin, from an ONNX graph.

    Raises:
        ConfigError: a package is missing.
        ResourceError: less than nine tenths of the weights have changed.
    """
    os.environ["NNCF_CI"] = "1"  # else it reports its use to its makers, and does not ask
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise ConfigError(f"int4 needs {error.name}; pip install -e '.[int4]'") from None
    nncf.set_log_level(logging.ERROR)
    graph = openvino.Core().read_model(source)
    smaller = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=group, ratio=1.0)
    check_share("int4", share_of_few_bits(smaller))
    openvino.save_model(smaller, target, compress_to_fp16=False)


def share_of_few_bits(graph: Any) -> float:
    """Of the numbers in all matrices of an OpenVINO graph, those of 8 bits or fewer."""
    sizes = {True: 0, False: 0}
    for node in graph.get_ops():
        if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) > 1:
            sizes[node.get_element_type().bitwidth <= 8] += int(np.prod(node.get_output_shape(0)))
    return sizes[True] / max(1, sum(sizes.values()))


def largest_group(widths: Iterable[int], most: int = INT4_GROUP) -> int:
    """The largest power of two that divides the inputs of every product, up to `most`."""
    return math.gcd(most, *widths)


def quantize_nf4(directory: Path) -> None:
    """A Hugging Face directory's blocks in 4 bits of which more lie where a normal distribution has its weights
    (Dettmers et al. 2023, arXiv:2305.14314, section 3); plain Transformers loads it, where bitsandbytes is.

    Raises:
        ConfigError: a package is missing.
        ResourceError: less than nine tenths of the blocks' weights have changed.
    """
    import transformers

    try:
        import bitsandbytes
    except ImportError:
        raise ConfigError("nf4 needs bitsandbytes; pip install -e '.[nf4]'") from None
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(directory).architectures[0])
    heads = ["score", "classifier", "lm_head"]
    how = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=heads)
    model = kind.from_pretrained(directory, quantization_config=how, device_map="cpu")
    products = [m for m in model.transformer.h.modules() if hasattr(m, "weight") and m.weight.dim() > 1]
    changed = [isinstance(product, bitsandbytes.nn.Linear4bit) for product in products]
    check_share("nf4", sum(changed) / len(changed))
    model.save_pretrained(directory)


@torch.inference_mode()
def sqnr_db(exact: Any, quantized: Any, batches: Iterable[Batch]) -> float:
    """Of two models' logits over all real tokens: signal to noise in decibels, of which 20 are an error of a tenth."""
    signal = noise = 0.0
    for batch in batches:
        given = (batch.input_ids, batch.lengths)
        expected, found = (real(model(*given).float(), batch) for model in (exact, quantized))
        signal += float(expected.square().sum())
        noise += float((expected - found).square().sum())
    return 10 * math.log10(signal / noise) if noise else math.inf


def real(logits: Tensor, batch: Batch) -> Tensor:
    """(B, K) as they are, (B, T, K) without padding."""
    return logits if logits.dim() == 2 else logits[real_tokens(batch.lengths, logits.shape[1])]
