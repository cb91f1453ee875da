"""Rows to tokenised splits, each kept on disk under a hash of the rows, the tokenizer and the task."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from permafrost.data.tokenization import (
    CACHE_VERSION,
    TokenizedSplit,
    cached_split,
    fingerprint,
    texts_fingerprint,
    train_tokenizer,
)
from permafrost.errors import DataError, ResourceError
from permafrost.tasks.base import Encoding, Task

SLICE_ROWS = 20_000


def load_tokenizer(source: str):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"cannot load a tokenizer from {source!r}; give a directory with model.tokenizer=DIR"
        ) from error


def trained_tokenizer(rows: pa.Table, vocab_size: int, max_length: int, cache_dir: Path):
    """A tokenizer trained on the rows' texts, or the one trained on the same rows before."""
    texts = rows["text"].to_pylist()
    directory = cache_dir / "tokenizers" / fingerprint(texts_fingerprint([texts]), vocab_size, max_length)
    if not (directory / "tokenizer.json").exists():
        train_tokenizer(texts, vocab_size, max_length).save_pretrained(directory)
    return load_tokenizer(str(directory))


def encode_in_slices(task: Task, rows: pa.Table, encoding: Encoding) -> TokenizedSplit:
    """As one call would, but for the memory: a tokenizer's own lists are many times the token ids."""
    if task.joins_rows:
        return task.encode(rows, encoding)
    starts = range(0, max(1, rows.num_rows), SLICE_ROWS)
    parts = [task.encode(rows.slice(start, SLICE_ROWS), encoding) for start in starts]
    table = pa.concat_tables([part.table for part in parts])
    return TokenizedSplit(table=table, truncated_rows=sum(part.truncated_rows for part in parts))


def _values(column: pa.ChunkedArray) -> Iterator[Any]:
    for start in range(0, len(column), SLICE_ROWS):
        yield from column.slice(start, SLICE_ROWS).to_pylist()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    return fingerprint(json.loads(tokenizer.backend_tokenizer.to_str()))


def encode_splits(
    task: Task, splits: Mapping[str, pa.Table], encoding: Encoding, cache_dir: Path
) -> dict[str, TokenizedSplit]:
    """Every split as tokens, from the cache where the same rows were encoded the same way before."""
    tokenizer_print = tokenizer_fingerprint(encoding.tokenizer)
    encoded = {}
    for name, rows in splits.items():
        texts = texts_fingerprint([_values(rows[column]) for column in rows.column_names if column != "where"])
        key = fingerprint(CACHE_VERSION, texts, tokenizer_print, encoding.max_length, task.describe())
        encoded[name] = cached_split(cache_dir / "tokens", key, partial(encode_in_slices, task, rows, encoding))
        if not len(encoded[name]):
            raise DataError(f"the {name} split holds no text of two tokens or more")
    return encoded
