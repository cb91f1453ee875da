"""Weights of signed bytes on CPUs whose products overflow: the same numbers, kept without a sign.

ONNX Runtime multiplies unsigned bytes (what is computed) by signed ones (weights). On x86 without VNNI its instruction
adds two such products in 16 bits, and what does not fit is cut off. Unsigned by unsigned has no such limit
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, its part on U8S8), but has no kernel for
VNNI, and is reported wrong on AMX before release 1.25: so files keep the signed form.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS, SIGNED = "permafrost.weights", "int8"
LARGEST = (255, 127)  # of an unsigned and a signed byte; two products of them are more than 16 bits hold
ROWS, INPUTS, OUTPUTS = 4, 64, 16  # of a product as small as any that takes the CPU's usual way


def mark_signed_(model: Any) -> None:
    """So that a session knows, without reading the file again."""
    model.metadata_props.add(key=WEIGHTS, value=SIGNED)


def has_signed_weights(session: Any) -> bool:
    return session.get_modelmeta().custom_metadata_map.get(WEIGHTS) == SIGNED


@cache
def products_overflow() -> bool:
    """Whether ONNX Runtime's product of unsigned and signed bytes is wrong on this CPU: one is tried."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = {"left": (TensorProto.UINT8, [ROWS, INPUTS]), "product": (TensorProto.INT32, [ROWS, OUTPUTS])}
    left, product = (helper.make_tensor_value_info(name, *of_name) for name, of_name in names.items())
    weights = helper.make_tensor("weights", TensorProto.INT8, [INPUTS, OUTPUTS], [LARGEST[1]] * INPUTS * OUTPUTS)
    node = helper.make_node("MatMulInteger", ["left", "weights"], ["product"])
    graph = helper.make_graph([node], "probe", [left], [product], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"left": np.full((ROWS, INPUTS), LARGEST[0], np.uint8)})
    return bool((found != INPUTS * LARGEST[0] * LARGEST[1]).any())


def without_sign(path: Path) -> bytes:
    """The graph with 128 more in each weight and in its zero point, both unsigned: weight minus zero point stays."""
    import onnx

    model: Any = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            signed = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(signed.view(np.uint8) ^ np.uint8(128), tensor.name))
    del model.graph.value_info[:]  # which has the types from before
    return model.SerializeToString()
