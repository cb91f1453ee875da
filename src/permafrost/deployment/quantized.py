"""An exported model's weights in fewer bits, in place of those it was exported with."""

from pathlib import Path
from typing import Literal

from permafrost.compression.quantization import largest_group, quantize_int4, quantize_int8, quantize_nf4
from permafrost.compression.sparsity import matrices
from permafrost.deployment.onnx_graph import export_onnx, quiet
from permafrost.deployment.sessions import ONNX, OPENVINO
from permafrost.errors import ConfigError
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.storage.checksums import write_checksums

Method = Literal["int8", "int4", "nf4"]
NO_NF4 = (
    "nf4 is for what plain Transformers loads: head=last, attention=causal, all heads; int8 and int4 are for all but "
    "head=windows"
)
NF4_BLOCK = 64  # weights that share a scale


def quantize_(directory: Path, model: GPT2WithHead, method: Method) -> None:
    """`directory` holds `model`, exported.

    Raises:
        ConfigError: a package is missing, or the method has no way to write this model.
        ResourceError: it passed over the weights.
    """
    if method == "nf4":
        check_stock(model)
        quantize_nf4(directory)
    else:
        quantize_graph_(directory, model, method)
    write_checksums(directory)


def quantize_graph_(directory: Path, model: GPT2WithHead, method: Method) -> None:
    exact = directory / "exact.onnx"
    export_onnx(model, exact, tied=method == "int4")
    with quiet():
        if method == "int8":
            quantize_int8(exact, directory / ONNX)
        else:
            quantize_int4(exact, directory / OPENVINO, group_of(model))
    exact.unlink()
    for path in directory.glob("*.safetensors"):
        path.unlink()


def group_of(model: GPT2WithHead) -> int:
    """How many inputs of a product may share a scale."""
    return largest_group(weight.shape[0] for weight in matrices(model.transformer).values())


def check_stock(model: GPT2WithHead) -> None:
    """nf4 is Transformers' own, which knows its own classes, and bitsandbytes', which on a CPU knows whole blocks."""
    is_pooled = isinstance(model.head, PooledHead)
    if (
        model.bidirectional
        or (is_pooled and model.head.pooling != "last")
        or hasattr(model.transformer.config, "kept_heads")
    ):
        raise ConfigError(NO_NF4)
    narrow = [weight.shape[0] for weight in matrices(model.transformer).values() if weight.shape[0] % NF4_BLOCK]
    if narrow:
        raise ConfigError(f"nf4 takes {NF4_BLOCK} inputs together; a product has {narrow[0]}; take int8")
