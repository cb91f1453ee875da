"""Writing beside Transformers' generate: python benchmarks/decoding.py [--model DIRECTORY] [--pairs 5]

The same prompts, the first tokens of docstrings, go through permafrost's `generate`, which batches them by length, and
through `GPT2LMHeadModel.generate` in the order of the file, padded on the left; which goes first alternates. Writes
results/decoding_MODEL.md and prints, last, one line of JSON.
"""

import argparse
import csv
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import materials
import torch
from pairs import Figure, order, summary, table
from stated import RESULTS, ROOT, hardware
from transformers import AutoTokenizer, GPT2LMHeadModel

from permafrost.model.backbone import load_backbone, load_config, quiet_transformers
from permafrost.model.decoding import Decoding, batches_by_length, generate
from permafrost.training.hardware import keep_freed_buffers, use_all_cores

PROMPTS, LONGEST_PROMPT, NEW_TOKENS = 96, 96, 32  # rows; tokens
WAYS = {
    "greedy": Decoding(max_new_tokens=NEW_TOKENS),
    "4 beams": Decoding(max_new_tokens=NEW_TOKENS, num_beams=4),
}
FIGURES = (Figure("seconds", f"{PROMPTS} texts, s", 2, compared=True),)
Written = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=materials.MINI)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    os.chdir(ROOT)
    use_all_cores()
    keep_freed_buffers()
    quiet_transformers()
    lines = ["# Writing beside Transformers' generate", ""]
    lines += [f"`python benchmarks/decoding.py --model {options.model}`; {hardware()}; {date.today()}."]
    lines += [
        f"Pairs: {options.pairs}; median (smallest to largest). float32, {NEW_TOKENS} new tokens a text at most.",
        "",
    ]
    ratios = {}
    for name, decoding in WAYS.items():
        pairs = measured_pairs(options.model, decoding, options.pairs)
        ratios[name] = summary(pairs, FIGURES)
        same = min(pair["same"] for pair in pairs)
        lines += [
            f"## {name}",
            "",
            *table(pairs, FIGURES, "Transformers"),
            "",
            f"Alike: {same} of {PROMPTS} texts.",
            "",
        ]
    (RESULTS / f"decoding_{options.model.name}.md").write_text("\n".join(lines))
    print("\n".join(lines))
    print(json.dumps({"hardware": hardware(), "date": date.today().isoformat(), "ratio": ratios}))


def measured_pairs(model: Path, decoding: Decoding, pairs: int) -> list[dict[str, Any]]:
    prompts, end = prompts_of(model)
    backbone = load_backbone(str(model), load_config(str(model)), pretrained=True).eval()
    stock: Any = GPT2LMHeadModel.from_pretrained(model, dtype=torch.float32).eval()  # else that of its file
    sides: dict[str, Callable[[], Written]] = {
        "ours": lambda: generate(backbone, prompts, decoding, end_token_id=end),
        "peer": lambda: stock_texts(stock, prompts, decoding, end),
    }
    sides["ours"](), sides["peer"]()  # the first pass compiles oneDNN's kernels
    return [measured_pair(sides, number) for number in range(pairs)]


def measured_pair(sides: dict[str, Callable[[], Written]], number: int) -> dict[str, Any]:
    pair: dict[str, Any] = {}
    written = {}
    for side in order(number):
        start = time.perf_counter()
        written[side] = sides[side]()
        pair[side] = {"seconds": time.perf_counter() - start}
    return pair | {"same": sum(mine == theirs for mine, theirs in zip(*written.values(), strict=True))}


def prompts_of(model: Path) -> tuple[Written, int]:
    """Of the default's test rows, none shorter than two tokens; and the end-of-text token."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    with (ROOT / materials.pydocs()["test"]).open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:PROMPTS]
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=LONGEST_PROMPT)["input_ids"]
    return ids, tokenizer.eos_token_id


@torch.inference_mode()
def stock_texts(model: GPT2LMHeadModel, prompts: Written, decoding: Decoding, end: int) -> Written:
    """In the same batches of like length as permafrost's."""
    texts: dict[int, list[int]] = {}
    for rows in batches_by_length(prompts, decoding):
        texts |= zip(rows, stock_batch(model, [prompts[row] for row in rows], decoding, end), strict=True)
    return [texts[row] for row in range(len(prompts))]


def stock_batch(model: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, end: int) -> Written:
    longest = max(map(len, prompts))
    padded = torch.tensor([[end] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": decoding.max_new_tokens, "num_beams": decoding.num_beams, "do_sample": False}
    written = model.generate(input_ids=padded, attention_mask=mask, eos_token_id=end, pad_token_id=end, **options)
    texts = [row[longest:].tolist() for row in written]
    return [text[: text.index(end)] if end in text else text for text in texts]


if __name__ == "__main__":
    main()
