"""Weights as 8-bit integers, by ONNX Runtime: a file of a quarter of the size, and products in integers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from permafrost.atomic import complete_or_absent
from permafrost.errors import ResourceError

LEAST_SHARE = 0.9  # of the weights; below it, something was passed over in silence


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
        share = share_of_integers(onnx.load(partial).graph.initializer)
        if share < LEAST_SHARE:
            raise ResourceError(
                f"int8: only {share:.0%} of the weights were quantized; the graph has products of another kind"
            )
        if partial.stat().st_size >= source.stat().st_size:
            raise ResourceError(f"int8: {target.name} is not smaller than {source.name}")


def share_of_integers(initializers: Iterable[Any]) -> float:
    """Of the numbers in all matrices of a graph, those of 8 bits."""
    from onnx import TensorProto

    sizes = {True: 0, False: 0}
    for tensor in initializers:
        if len(tensor.dims) > 1:
            sizes[tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)] += int(np.prod(tensor.dims))
    return sizes[True] / max(1, sum(sizes.values()))


def sqnr_db(exact: np.ndarray, quantized: np.ndarray) -> float:
    """Signal to quantization noise, in decibels: 20 is an error of a tenth."""
    noise = float(np.square(exact - quantized).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(np.square(exact).sum() / noise))
