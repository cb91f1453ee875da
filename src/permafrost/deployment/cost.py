"""What a model costs to run: python -m permafrost.deployment.cost DIRECTORY [--threads 1] [--rows 32]

In a process of its own, so that the memory counted is the model's. Prints one line of JSON: size, resident memory,
milliseconds of a request (batch 1, prefill) and of each token that is written, and rows a second in batches of --rows,
unless that is 0.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from permafrost.compression.measure import Latency, latency, resident_mb, size_mb
from permafrost.data.tokens.batching import Batch
from permafrost.deployment.predictor import Predictor
from permafrost.model.decoding import Decoding, generate
from permafrost.tasks.base import Writes
from permafrost.training.hardware import keep_freed_buffers

TOKENS, WRITTEN, BATCH = 128, 16, 32  # of a request; of an answer; rows


def cost_of(directory: Path, threads: int, rows: int = BATCH) -> dict[str, Any]:
    """Measured in another process."""
    command = [sys.executable, "-m", "permafrost.deployment.cost", str(directory)]
    command += [f"--threads={threads}", f"--rows={rows}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {directory} failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(directory: Path, threads: int, rows: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    before = resident_mb()
    predictor = Predictor(directory, threads=threads)
    room = WRITTEN if isinstance(predictor.task, Writes) else 0
    tokens = max(1, min(TOKENS, predictor.encoding.max_length - room))
    request = request_of(predictor, rows=1, tokens=tokens)
    request()
    cost = {"size_mb": round(size_mb(directory), 3), "resident_mb": round(resident_mb() - before, 1)}
    one = latency(request)
    cost |= {"threads": threads, "tokens": tokens, "latency_ms": one.p50_ms, "latency_p95_ms": one.p95_ms}
    if rows:
        many = latency(request_of(predictor, rows=rows, tokens=tokens), repeats=5, warm_up=1)
        cost["rows_per_second"] = rows / (many.p50_ms / 1000)
    if isinstance(predictor.task, Writes):
        more = written(predictor, tokens, WRITTEN + 1)
        cost |= {"token_ms": (more.p50_ms - one.p50_ms) / WRITTEN, "token_p95_ms": (more.p95_ms - one.p50_ms) / WRITTEN}
    return cost


@torch.inference_mode()
def written(predictor: Predictor, tokens: int, new_tokens: int) -> Latency:
    """Of an answer of exactly so many tokens: no token ends it."""
    prompts, decoding = ids(predictor, 1, tokens).tolist(), Decoding(max_new_tokens=new_tokens)
    return latency(lambda: generate(predictor.model.transformer, prompts, decoding, end_token_id=-1), repeats=10)


def request_of(predictor: Predictor, *, rows: int, tokens: int) -> Any:
    """What is to be timed: the outputs of so many rows, or of a task that writes, their next token."""
    if isinstance(predictor.task, Writes):
        prompts, decoding = ids(predictor, rows, tokens).tolist(), Decoding(max_new_tokens=1)
        return lambda: generate(predictor.model.transformer, prompts, decoding, end_token_id=-1)
    batch = Batch(
        input_ids=ids(predictor, rows, tokens),
        lengths=torch.full((rows,), tokens),
        labels=torch.zeros(rows, tokens, dtype=torch.int64),
        num_targets=torch.tensor(rows),
        row_ids=torch.arange(rows),
        source_rows=torch.arange(rows),
        loss_scale=torch.tensor(1.0),
    )

    @torch.inference_mode()
    def request() -> Any:
        return predictor.answering.outputs(predictor.model, batch)

    return request


def ids(predictor: Predictor, rows: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokenizer = predictor.encoding.tokenizer
    drawn = torch.randint(0, len(tokenizer), (rows, tokens), generator=generator)
    if getattr(predictor.task, "pooling", None) == "pair":
        drawn[drawn == tokenizer.eos_token_id] = (tokenizer.eos_token_id + 1) % len(tokenizer)
        drawn[:, [tokens // 2 - 1, tokens - 1]] = tokenizer.eos_token_id  # two texts of the same length
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=BATCH)
    options = parser.parse_args()
    keep_freed_buffers()
    print(json.dumps(measure(options.directory, options.threads, options.rows)))


if __name__ == "__main__":
    main()
