"""How near a training step comes to the machine's matrix products: python benchmarks/profile_step.py

One real batch of ag_news through the part that is trained, its input being what lies below. FLOPs of forward and
backward, counted as they are computed, over the median seconds of a whole step (forward, backward, optimizer), against
the rate of one large product of the same type measured between the steps. Then where the time goes. Each model is
measured in float32, and in what `trainer.precision=auto` takes on this CPU. Writes results/profile_step_CPU.md and
.json.
"""

import csv
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import materials
import pyarrow as pa
import torch
from stated import RESULTS, ROOT, hardware, machine
from torch import Tensor
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from permafrost.data.tokens.batching import Batch, TokenBatching, padded_batch, shuffled_batches
from permafrost.model.backbone import load_backbone, load_config, quiet_transformers, trunk
from permafrost.model.freezing import Freezing, trainable
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.tasks.base import Encoding, encode_texts, tokenized_split
from permafrost.tasks.preparation import load_tokenizer
from permafrost.training.hardware import autocast, keep_freed_buffers, resolve_precision, use_all_cores

CASES = (("gpt2-shape", 10), ("gpt2-shape", 0), ("mini", 0))  # model, frozen blocks
PRECISIONS = list(dict.fromkeys(["32-true", resolve_precision("auto", "cpu")]))
LABELS, LR, DROPOUT, MAX_LENGTH = 4, 1e-3, 0.1, 512
REPEATS, WARMUP = 7, 2
PRODUCT = (2048, 768, 3072)  # rows x in x out: a batch through the MLP of GPT-2 small
TOP = 12  # operations shown


@dataclass
class Step:
    """Seconds by part of each repeat."""

    forward: list[float]
    backward: list[float]
    optimizer: list[float]

    @property
    def whole(self) -> list[float]:
        return [sum(parts) for parts in zip(self.forward, self.backward, self.optimizer, strict=True)]


def main() -> None:
    os.chdir(ROOT)
    use_all_cores()
    keep_freed_buffers()
    quiet_transformers()
    torch.manual_seed(0)
    measured = [measure(name, blocks, precision) for name, blocks in CASES for precision in PRECISIONS]
    lines = [
        "# A training step beside the machine's matrix products",
        "",
        f"`python benchmarks/profile_step.py`; {hardware()}; {date.today()}; {torch.get_num_threads()} threads;"
        f" medians of {REPEATS} steps on a batch of ag_news. The rate beside is that of a"
        f" product of {' x '.join(map(str, PRODUCT))} in the same type, measured between the steps.",
        "",
        *shares_table(measured),
        *(line for case in measured for line in operations_table(case)),
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"profile_step_{machine()}"
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    stated = {"hardware": hardware(), "date": date.today().isoformat(), "steps": measured}
    path.with_suffix(".json").write_text(json.dumps(stated, indent=1) + "\n")
    print("\n".join(lines))
    print(json.dumps({case["step"]: round(case["share_of_peak"], 3) for case in measured}))


def measure(name: str, blocks: int, precision: str) -> dict[str, Any]:
    model, source = build_model(name, blocks)
    batch = one_batch(source)
    with torch.no_grad():  # as the activation store holds it
        below = trunk(model.transformer, batch.input_ids, blocks).half() if blocks else None
    optimizer = torch.optim.AdamW([parameter for _, parameter in trainable(model)], lr=LR, fused=True)
    with FlopCounterMode(display=False) as counter, autocast(precision, "cpu"):
        loss_of(model, batch, below).backward()
    optimizer.zero_grad()
    step, rates = timed_steps(model, batch, below, optimizer, precision)
    seconds, rate = statistics.median(step.whole), statistics.median(rates)
    with profile() as profiler:
        one_step(model, batch, below, optimizer, precision)
    return {
        "step": f"{name}, {blocks} of {len(model.transformer.h)} blocks frozen, {precision}",
        "tokens": int(batch.lengths.sum()),
        "computed_tokens": batch.input_ids.numel(),
        "gflop": counter.get_total_flops() / 1e9,
        "seconds": {part: statistics.median(getattr(step, part)) for part in ("forward", "backward", "optimizer")},
        "step_seconds": seconds,
        "gflop_per_second": counter.get_total_flops() / 1e9 / seconds,
        "product_gflop_per_second": rate,
        "share_of_peak": counter.get_total_flops() / 1e9 / seconds / rate,
        "compiled": compiled_step(model, batch, below, optimizer, precision),
        "operations": operations(profiler),
    }


def build_model(name: str, blocks: int) -> tuple[GPT2WithHead, Path]:
    source = materials.MINI if name == "mini" else materials.gpt2_shape()
    config = load_config(str(source))
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = DROPOUT
    backbone = load_backbone(str(source), config, pretrained=True)
    head = PooledHead(config.n_embd, LABELS, pooling="last", init="normal")
    return GPT2WithHead(backbone, head, Freezing(embeddings=blocks > 0, blocks=blocks)).train(), source


def one_batch(source: Path) -> Batch:
    """The first batch of an epoch."""
    with (ROOT / materials.ag_news(2000)["train"]).open(encoding="utf-8", newline="") as file:
        table = pa.table({"text": [row["text"] for row in csv.DictReader(file)]})
    ids, *_ = encode_texts(table, Encoding(tokenizer=load_tokenizer(str(source)), max_length=MAX_LENGTH))
    split = tokenized_split(ids, torch.ones(len(ids)).numpy(), None)
    batching = TokenBatching(max_tokens=materials.TOKENS_PER_BATCH)
    rows = shuffled_batches(split.lengths, batching, seed=0, epoch=0)[0]
    return padded_batch(split, rows)


def logits_of(model: GPT2WithHead, batch: Batch, below: Tensor | None) -> Tensor:
    return model(batch.input_ids, batch.lengths, below)


def loss_of(model: GPT2WithHead, batch: Batch, below: Tensor | None) -> Tensor:
    logits = logits_of(model, batch, below)
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % LABELS)


def one_step(
    model: GPT2WithHead,
    batch: Batch,
    below: Tensor | None,
    optimizer: torch.optim.Optimizer,
    precision: str,
    loss_of: Callable[..., Tensor] = loss_of,
) -> list[float]:
    """Seconds of forward, backward and optimizer."""
    marks = [time.perf_counter()]
    with autocast(precision, "cpu"):
        loss = loss_of(model, batch, below)
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    optimizer.zero_grad()
    marks.append(time.perf_counter())
    return [end - start for start, end in pairwise(marks)]


def timed_steps(
    model: GPT2WithHead, batch: Batch, below: Tensor | None, optimizer: torch.optim.Optimizer, precision: str
) -> tuple[Step, list[float]]:
    """Steps and large products by turns, so that both meet the same machine; the first of each do not count."""
    product, times, rates = large_product(precision), [], []
    for _ in range(WARMUP + REPEATS):
        times.append(one_step(model, batch, below, optimizer, precision))
        rates.append(product())
    return Step(*(list(part) for part in zip(*times[WARMUP:], strict=True))), rates[WARMUP:]


def compiled_step(
    model: GPT2WithHead, batch: Batch, below: Tensor | None, optimizer: torch.optim.Optimizer, precision: str
) -> dict[str, float]:
    """Seconds of the first step with `torch.compile`, which compiles, and of a later one, all of the same shape."""
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, dynamic=False)
    step = (model, batch, below, optimizer, precision, compiled)
    times = [sum(one_step(*step)) for _ in range(WARMUP + REPEATS)]
    return {"first": times[0], "later": statistics.median(times[WARMUP:])}


def large_product(precision: str, count: int = 10) -> Callable[[], float]:
    """A function that measures GFLOP/s, with nothing to allocate."""
    rows, width, out = PRODUCT
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    left, right, into = (torch.randn(*shape, dtype=dtype) for shape in ((rows, width), (width, out), (rows, out)))

    def rate() -> float:
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(left, right, out=into)
        return count * 2 * rows * width * out / (time.perf_counter() - start) / 1e9

    return rate


def operations(profiler: Any) -> list[dict[str, Any]]:
    """The operations that take longest by themselves."""
    averages = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    longest = sorted(averages, key=lambda event: -event.self_cpu_time_total)[:TOP]
    return [
        {
            "operation": event.key,
            "calls": event.count,
            "milliseconds": event.self_cpu_time_total / 1e3,
            "share": event.self_cpu_time_total / total,
        }
        for event in longest
    ]


def shares_table(measured: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| step | tokens (with padding) | GFLOP | forward, ms | backward, ms | optimizer, ms |"]
    lines[0] += " GFLOP/s | of the product's | compiled, s | a step then, ms |"
    lines.append("|---" * 10 + "|")
    for case in measured:
        parts = [f"{1000 * seconds:,.1f}" for seconds in case["seconds"].values()]
        tokens = f"{case['tokens']:,} ({case['computed_tokens']:,})"
        rate = f"{case['gflop_per_second']:.0f} of {case['product_gflop_per_second']:.0f}"
        cells = [case["step"], tokens, f"{case['gflop']:,.1f}", *parts, rate, f"{case['share_of_peak']:.0%}"]
        cells += [f"{case['compiled']['first']:.0f}", f"{1000 * case['compiled']['later']:,.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def operations_table(case: dict[str, Any]) -> list[str]:
    lines = ["", f"## {case['step']}", "", "| operation | calls | ms | share |", "|---" * 4 + "|"]
    for event in case["operations"]:
        cells = [event["operation"], str(event["calls"]), f"{event['milliseconds']:.1f}", f"{event['share']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
