"""What both sides of a comparison start from: models, rows in CSV files, and the rows of a batch.

All of it lies under outputs/benchmarks and is made once. Paths are relative to the repository, as commands print them.
"""

import csv
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kept import cleared
from stated import ROOT, SHARED

OUTPUTS = Path("outputs/benchmarks")
MINI = Path("src/permafrost/model/mini")
TOKENIZER = ROOT.parent / "shared" / "gpt2-tokenizer"
SEED = 0
TOKENS_PER_BATCH = 2048  # data.max_tokens_per_batch
Rows = Iterable[Mapping[str, Any]]


def apart(make: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own: peak memory is handed down to children, so the one that starts them stays small."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(make, *arguments).result()


def gpt2_shape() -> Path:
    """GPT-2 small's architecture and tokenizer with random weights: as fast as the real one, and needs no network."""
    directory = OUTPUTS / "models" / "gpt2-shape"
    if not (ROOT / directory / "tokenizer.json").exists():
        apart(_make_gpt2_shape, ROOT / directory)
    return directory


def _make_gpt2_shape(directory: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    torch.manual_seed(SEED)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
    GPT2Tokenizer.from_pretrained(TOKENIZER).save_pretrained(directory)


def ag_news(train_rows: int) -> dict[str, Path]:
    """A seeded sample, with a quarter as many rows for validation and for test."""
    files = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
    directory = OUTPUTS / "data" / f"ag_news-{train_rows}"
    if not (ROOT / directory / files["test"]).exists():
        for name, file in files.items():
            with (SHARED / "ag_news" / file).open(encoding="utf-8", newline="") as source:
                rows = list(csv.DictReader(source))
            count = train_rows if name == "train" else max(1, train_rows // 4)
            write_rows(ROOT / directory / file, random.Random(SEED).sample(rows, min(count, len(rows))))
    return {name: directory / file for name, file in files.items()}


def pydocs() -> dict[str, Path]:
    """The default's rows, as `python train.py` splits them."""
    directory = OUTPUTS / "data" / "pydocs"
    cleared(ROOT / directory)  # another Python has other docstrings
    files = {name: directory / f"{name}.csv" for name in ("train", "validation", "test")}
    if not (ROOT / files["test"]).exists():
        apart(_export_pydocs, {name: ROOT / path for name, path in files.items()})
    return files


def _export_pydocs(files: Mapping[str, Path]) -> None:
    from hydra import compose, initialize_config_dir

    from permafrost.data.files.sources import Notes
    from permafrost.runs.reading import read_splits
    from permafrost.settings.config import read_settings

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = read_settings(compose("train"))
    for name, rows in read_splits(settings, ("text", "label"), Notes()).items():
        write_rows(files[name], rows)


def write_rows(path: Path, rows: Rows) -> None:
    """`text,label`; complete or absent on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    shutil.move(partial, path)


def count_rows(path: Path) -> int:
    with (ROOT / path).open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def rows_per_batch(model: Path, train: Path, max_length: int) -> int:
    """Rows of mean length that fill the token budget: the peer's batches are counted in rows, ours in tokens."""
    return max(1, round(TOKENS_PER_BATCH / apart(_mean_length, ROOT / model, ROOT / train, max_length)))


def _mean_length(model: Path, train: Path, max_length: int) -> float:
    from transformers import AutoTokenizer

    with train.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    ids = AutoTokenizer.from_pretrained(model)(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return sum(min(max_length, len(row) + 1) for row in ids) / len(ids)
