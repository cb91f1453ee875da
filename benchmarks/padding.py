"""How much of what is computed is padding: run by `python benchmarks/run.py padding`."""

from collections.abc import Sequence
from datetime import date

import numpy as np
from materials import MINI, TOKENS_PER_BATCH
from stated import ROOT, SHARED, publish

from permafrost.data.files.readers import read_rows
from permafrost.data.tokens.batching import TokenBatching, padding_share, shuffled_batches
from permafrost.model.flat_rows import MULTIPLE
from permafrost.reporting.seeds import spread
from permafrost.tasks.preparation import load_tokenizer

DATA = (("ag_news", "train.csv", "text"), ("sst2", "train.tsv", "sentence"))
EPOCHS = 3


def padding() -> None:
    """In the first epochs' plans, by the default batches and tokenizer; and with the tokens that fill a batch up to a
    round number, which a CPU computes in bfloat16 (model/flat_rows.py)."""
    if not SHARED.is_dir():
        print("padding: left out, its data are not beside this clone")
        return
    lines = ["# Padding", ""]
    lines += [
        f"{date.today()}; `python benchmarks/run.py padding`: batches of {TOKENS_PER_BATCH:,} tokens, epochs 1 to"
    ]
    lines += [
        f"{EPOCHS}, mean (smallest to largest), % of the computed tokens. In bfloat16 a CPU also computes what fills"
    ]
    lines += [f"a batch up to a multiple of {MULTIPLE} tokens.", ""]
    lines += ["| training rows of | rows | tokens | padding | in bfloat16 on a CPU |", "|---" * 5 + "|"]
    figures = {}
    for name, file, column in DATA:
        lengths = lengths_of([row[column] for row in read_rows(SHARED / name / file)])
        batching = TokenBatching(max_tokens=TOKENS_PER_BATCH)
        plans = [shuffled_batches(lengths, batching, seed=0, epoch=epoch) for epoch in range(EPOCHS)]
        shares = {way: [100 * share(plan, lengths) for plan in plans] for way, share in WAYS.items()}
        figures[name] = {way: max(of_way) for way, of_way in shares.items()}
        cells = [
            name,
            f"{len(lengths):,}",
            f"{int(lengths.sum()):,}",
            *(spread(each, ".2f") for each in shares.values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    publish("padding", lines, figures)


def lengths_of(texts: Sequence[str]) -> np.ndarray:
    """Tokens of each, and its end of text."""
    tokenizer = load_tokenizer(str(ROOT / MINI))
    return np.array([len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])


def filled_share(batches: Sequence[np.ndarray], lengths: np.ndarray) -> float:
    """As `padding_share`, where each batch is filled up to a multiple of MULTIPLE tokens."""
    computed = sum(-(-len(rows) * int(lengths[rows].max()) // MULTIPLE) * MULTIPLE for rows in batches)
    return 1 - float(lengths.sum()) / computed


WAYS = {"padding": padding_share, "filled up": filled_share}
