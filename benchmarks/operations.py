"""Single operations, measured for what the program chooses by them: run by `python benchmarks/run.py STUDY`."""

import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from types import SimpleNamespace
from typing import Any

import materials
import torch
from pairs import spelled
from stated import hardware, machine, publish

from permafrost.model import block
from permafrost.model.backbone import load_backbone, load_config, trunk
from permafrost.training.hardware import autocast, keep_freed_buffers, use_all_cores


def precision() -> None:
    """GFLOP/s of matrix products in float32 and bfloat16: why `trainer.precision=auto` measures the CPU."""
    lines = [
        "# Matrix products by precision",
        "",
        f"{hardware()}; {date.today()}; `python benchmarks/run.py precision`.",
    ]
    lines += [f"AMX: {torch.cpu._is_amx_tile_supported()}, AVX512-BF16: {torch.cpu._is_avx512_bf16_supported()}.", ""]
    lines += ["| rows x in x out | float32, GFLOP/s | bfloat16, GFLOP/s |", "|---" * 3 + "|"]
    figures = {}
    for shape in ((2048, 192, 768), (2048, 768, 192), (2048, 768, 3072), (2048, 3072, 768)):
        rates = [product_rates(*shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
        name = " x ".join(map(str, shape))
        figures[name] = [round(statistics.median(rate)) for rate in rates]
        lines.append(f"| {name} | " + " | ".join(spelled(rate, 0) for rate in rates) + " |")
    publish(f"precision_{machine()}", lines, figures)


def attention_types() -> None:
    """Milliseconds of attention's passes, fused by torch and written out: why model/block.py does not fuse in bf16."""
    use_all_cores()
    keep_freed_buffers()
    ways = {
        "fused, float32": (torch.float32, fused_attention),
        "fused, bfloat16": (torch.bfloat16, fused_attention),
        "written out, bfloat16": (torch.bfloat16, written_out_attention),
    }
    lines = ["# Attention by type, and fused or not", ""]
    lines += [f"{hardware()}; {date.today()}; `python benchmarks/run.py attention_types`; heads of 64 channels."]
    lines += ["Median of 9 (smallest to largest), ms; causal, in training, no dropout.", ""]
    lines += [f"| rows x heads x tokens | pass | {' | '.join(ways)} |", "|---" * (2 + len(ways)) + "|"]
    figures = {}
    for shape in ((39, 12, 50), (16, 12, 128), (4, 12, 512), (2, 12, 1024)):
        times = [attention_ms(shape, *way) for way in ways.values()]
        for index, name in enumerate(("forward", "backward")):
            cells = [" x ".join(map(str, shape)), name]
            figures[" ".join(cells)] = [round(statistics.median(time[index]), 2) for time in times]
            lines.append("| " + " | ".join([*cells, *(spelled(time[index], 2) for time in times)]) + " |")
    publish("attention_types", lines, figures)


def fused_attention(query: Any, key: Any, value: Any) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def written_out_attention(query: Any, key: Any, value: Any) -> Any:
    without_dropout: Any = SimpleNamespace(attn_dropout=torch.nn.Dropout(0.0), scaling=query.shape[-1] ** -0.5)
    return block.attend_written_out(without_dropout, query, key, value, None)


def attention_ms(
    shape: Sequence[int], dtype: Any, attend: Callable[..., Any], repeats: int = 9
) -> tuple[list[float], list[float]]:
    """Of each repeat the milliseconds of the forward and of the backward pass; the first does not count."""
    parts = [torch.randn(*shape, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
    forward, backward = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        attended = attend(*parts)
        middle = time.perf_counter()
        attended.backward(attended.detach())
        forward.append(1000 * (middle - start))
        backward.append(1000 * (time.perf_counter() - middle))
    return forward[1:], backward[1:]


def trunk_pass() -> None:
    """Microseconds a token of ten frozen blocks of GPT-2's shape, by precision, batch, and who multiplies."""
    by_onednn, ways = block.is_inference_by_onednn, []
    ways.append(("32-true, torch", "32-true", lambda hidden: False))
    ways.append(("bf16-mixed, torch", "bf16-mixed", lambda hidden: False))
    ways.append(("bf16-mixed, oneDNN's bias and GELU", "bf16-mixed", by_onednn))
    lines = ["# The frozen part's pass over the data", ""]
    lines += [f"{hardware()}; {date.today()}; `python benchmarks/run.py trunk_pass`; 10 blocks of GPT-2's shape,"]
    lines += ["rows of 52 tokens. Median of 5 (smallest to largest), us a token, by tokens in a batch.", ""]
    lines += ["| | 2,048 | 4,096 | 8,192 |", "|---" * 4 + "|"]
    figures = {}
    for name, precision, is_by_onednn in ways:
        block.is_inference_by_onednn = is_by_onednn
        times = [trunk_microseconds(tokens, precision) for tokens in (2048, 4096, 8192)]
        figures[name] = [round(statistics.median(each), 2) for each in times]
        lines.append("| " + " | ".join([name, *(spelled(each, 2) for each in times)]) + " |")
    publish("trunk_pass", lines, figures)


def trunk_microseconds(tokens: int, precision: str, repeats: int = 5) -> list[float]:
    use_all_cores()
    keep_freed_buffers()
    source = str(materials.gpt2_shape())
    backbone = load_backbone(source, load_config(source), pretrained=True).eval()
    input_ids, times = torch.randint(0, 50_000, (tokens // 52, 52)), []
    with torch.inference_mode(), autocast(precision, "cpu"):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            trunk(backbone, input_ids, 10)
            times.append(1e6 * (time.perf_counter() - start) / input_ids.numel())
    return times[1:]


def product_rates(rows: int, width: int, out: int, dtype: Any, repeats: int = 9) -> list[float]:
    """GFLOP/s of `repeats` timings of 20 products each."""
    left, right = torch.randn(rows, width, dtype=dtype), torch.randn(width, out, dtype=dtype)
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(20):
            left @ right
        rates.append(20 * 2 * rows * width * out / (time.perf_counter() - start) / 1e9)
    return rates[1:]
