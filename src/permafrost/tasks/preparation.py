"""Rows to tokenised splits, each kept on disk under a hash of the rows, the tokenizer and the task."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from permafrost.data.rows import StoredRows
from permafrost.data.tokenization import (
    CACHE_VERSION,
    TokenizedSplit,
    cached_split,
    fingerprint,
    joined,
    train_tokenizer,
)
from permafrost.errors import DataError, ResourceError
from permafrost.tasks.base import Encoding, Task


def load_tokenizer(source: str):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"cannot load a tokenizer from {source!r}; give a directory with model.tokenizer=DIR"
        ) from error


def trained_tokenizer(rows: StoredRows, vocab_size: int, max_length: int, cache_dir: Path):
    """A tokenizer trained on the rows' texts, or the one trained on the same rows before."""
    directory = cache_dir / "tokenizers" / fingerprint(rows.fingerprint, vocab_size, max_length)
    if not (directory / "tokenizer.json").exists():
        texts = (text for part in rows.slices() for text in part["text"].to_pylist())
        train_tokenizer(texts, vocab_size, max_length).save_pretrained(directory)
    return load_tokenizer(str(directory))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    return fingerprint(json.loads(tokenizer.backend_tokenizer.to_str()))


def encode_splits(
    task: Task, splits: Mapping[str, StoredRows], encoding: Encoding, cache_dir: Path
) -> dict[str, TokenizedSplit]:
    """Every split as tokens, from the cache where the same rows were encoded the same way before."""
    tokenizer_print = tokenizer_fingerprint(encoding.tokenizer)
    encoded = {}
    for name, rows in splits.items():
        key = fingerprint(CACHE_VERSION, rows.fingerprint, tokenizer_print, encoding.max_length, task.describe())
        encoded[name] = cached_split(cache_dir / "tokens", key, partial(_encode, task, rows, encoding))
        if not len(encoded[name]):
            raise DataError(f"the {name} split holds no text of two tokens or more")
    return encoded


def _encode(task: Task, rows: StoredRows, encoding: Encoding) -> Iterator[TokenizedSplit]:
    return task.encode(rows.slices(), encoding)


def encode_table(task: Task, rows: pa.Table, encoding: Encoding) -> TokenizedSplit:
    return joined(task.encode([rows], encoding))
