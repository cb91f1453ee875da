"""Products by oneDNN as inference has them: the bias and GELU are put on in the product's own pass over its result.

torch computes them by two passes more, and its GELU alone takes as long as the product (benchmarks/results/
trunk_pass.md). The operations are private ones, of torch's compiler, and have no gradient.
"""

import torch
from torch import Tensor

from permafrost.model.flat_rows import filled_up, keeps_code_by_shape


def is_inference_by_onednn(hidden: Tensor) -> bool:
    """In bfloat16 on a CPU, where no gradient is wanted. In float32 MKL is the faster one."""
    return not torch.is_grad_enabled() and keeps_code_by_shape(hidden)


def onednn_linear(hidden: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """(..., in), (in, out), (out,) -> (..., out) bfloat16, through GELU's tanh approximation if `gelu`."""
    flat = hidden.flatten(0, -2).bfloat16()
    name, algorithm = ("gelu", "tanh") if gelu else ("none", "")
    parameters = weight.bfloat16().t(), bias.bfloat16()
    result = torch.ops.mkldnn._linear_pointwise(filled_up(flat), *parameters, name, [], algorithm)
    return result[: len(flat)].unflatten(0, hidden.shape[:-1])
