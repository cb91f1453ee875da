"""What a save costs."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def overhead(root: Path) -> list[str]:
    """What a save costs beside a step: GPT-2 124M's shape, nothing frozen and ten of twelve blocks frozen."""
    head = (
        "frozen blocks",
        "checkpoint, MB",
        "a save, s",
        "of it the checksum, s",
        "a step, s",
        "at `save_every=10min`",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for blocks in (0, 10):
        megabytes, save_s, hash_s, step_s = save_and_step(root, blocks)
        share = f"{100 * save_s / 600:.2f} % of the time"
        cells = [str(blocks), f"{megabytes:,.0f}", f"{save_s:.2f}", f"{hash_s:.2f}", f"{step_s:.2f}", share]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "A step is one batch of 2,048 tokens in float32, forward, backward and AdamW; medians of 3, beside other work.",
    ]


def save_and_step(root: Path, blocks: int) -> tuple[float, float, float, float]:
    import hashlib

    from transformers import GPT2Config, GPT2Model

    from permafrost.model.freezing import Freezing
    from permafrost.model.gpt2 import GPT2WithHead
    from permafrost.model.heads import PooledHead
    from permafrost.training.sealed import write_sealed

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = GPT2WithHead(
        GPT2Model(GPT2Config()),
        PooledHead(768, 4, pooling="last", init="normal"),
        Freezing(embeddings=blocks > 0, blocks=blocks),
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ids, lengths = torch.randint(0, 50_000, (16, 128)), torch.full((16,), 128)
    steps, saves = [], []
    for _ in range(3):
        steps.append(timed(lambda: one_step(model, optimizer, ids, lengths)))
    content = {"state_dict": dict(enumerate(trained)), "optimizer": optimizer.state_dict()}
    path = root / "a.ckpt"
    for _ in range(3):
        saves.append(timed(lambda: write_sealed(content, path)))
    size = path.stat().st_size
    hashed = timed(lambda: hashlib.sha256(path.read_bytes()))
    return size / 2**20, statistics.median(saves), hashed, statistics.median(steps)


def one_step(model: Any, optimizer: Any, ids: torch.Tensor, lengths: torch.Tensor) -> None:
    model(ids, lengths).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
