"""Rows to tokenised splits, each kept on disk under a hash of the rows, the tokenizer and the task."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from permafrost.data.rows import TEXT_FIELDS, StoredRows
from permafrost.data.tokens.tokenization import (
    CACHE_VERSION,
    TokenizedSplit,
    cached_split,
    fingerprint,
    joined,
    train_tokenizer,
)
from permafrost.errors import DataError, ResourceError
from permafrost.safety.trust import check_model_directory
from permafrost.storage.atomic import complete_or_absent
from permafrost.storage.ragged import RaggedArray
from permafrost.tasks.base import Encoding, Task
from permafrost.tasks.positions import NOT_SCORED

SHOWN_TOKENS = 96
SHOWN_END = 120  # characters at either end of a long row


def load_tokenizer(source: str):
    from transformers import AutoTokenizer

    check_model_directory(Path(source))
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"cannot load a tokenizer from {source!r}; give a directory with model.tokenizer=DIR"
        ) from error


def trained_tokenizer(rows: StoredRows, vocab_size: int, max_length: int, cache_dir: Path):
    """A tokenizer trained on the rows' texts, or the one trained on the same rows before."""
    directory = cache_dir / "tokenizers" / fingerprint(TEXT_FIELDS, rows.fingerprint, vocab_size, max_length)
    if not directory.exists():
        texts = (text for part in rows.slices() for text in texts_read(part))
        with complete_or_absent(directory) as partial:
            train_tokenizer(texts, vocab_size, max_length).save_pretrained(partial)
    return load_tokenizer(str(directory))


def texts_read(rows: pa.Table) -> Iterator[str]:
    """All that a model reads or writes of these rows."""
    for name in TEXT_FIELDS:
        values = rows[name].to_pylist() if name in rows.column_names else []
        yield from (value if isinstance(value, str) else " ".join(value or ()) for value in values)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of what it makes of a text: how the last call filled up and cut its rows is not of it."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return fingerprint(content | {"padding": None, "truncation": None})


def encode_splits(
    task: Task, splits: Mapping[str, StoredRows], encoding: Encoding, cache_dir: Path
) -> dict[str, TokenizedSplit]:
    """Every split as tokens, from the cache where the same rows were encoded the same way before."""
    tokenizer_print = tokenizer_fingerprint(encoding.tokenizer)
    encoded = {}
    for name, rows in splits.items():
        of_split = replace(encoding, evaluates=name != "train")
        how = (of_split.max_length, of_split.max_windows, of_split.evaluates, task.describe())
        key = fingerprint(CACHE_VERSION, rows.fingerprint, tokenizer_print, *how)
        encoded[name] = cached_split(cache_dir / "tokens", key, partial(_encode, task, rows, of_split))
        if not len(encoded[name]):
            raise DataError(f"the {name} split holds no text of two tokens or more")
    return encoded


def first_row_shown(split: TokenizedSplit, tokenizer: Any) -> list[str]:
    """The first row exactly as the model sees it; where some of its tokens are scored those stand in brackets, in its
    text and token by token."""
    if not isinstance(split.labels, RaggedArray):
        ids = split.input_ids[0].tolist()
        scored = ", with loss on each but the first" if split.labels is None else ""
        tokens = tokenizer.convert_ids_to_tokens(ids)
        return [
            f"first row, {len(ids)} tokens{scored}: {shortened_text(tokenizer.decode(ids))!r}",
            f"its tokens: {' '.join(shortened(tokens))}",
        ]
    ids, labels = split.input_ids[0].tolist(), split.labels[0].tolist()
    parts = [(scored, [i for i, _ in part]) for scored, part in groupby(zip(ids, labels, strict=True), _is_scored)]
    text = "".join(f"[{tokenizer.decode(part)}]" if scored else tokenizer.decode(part) for scored, part in parts)
    tokens = [
        f"[{token}]" if scored else token for scored, part in parts for token in tokenizer.convert_ids_to_tokens(part)
    ]
    count = sum(label != NOT_SCORED for label in labels)
    return [
        f"first row, {len(ids)} tokens, with loss on the {count} in brackets: {text!r}",
        f"its tokens: {' '.join(shortened(tokens))}",
    ]


def shortened_text(text: str) -> str:
    return text if len(text) <= 2 * SHOWN_END else f"{text[:SHOWN_END]} ... {text[-SHOWN_END:]}"


def shortened(tokens: Sequence[str]) -> list[str]:
    """A long row's first and last ones: what leads to the answer, and the answer, stand at its end."""
    if len(tokens) <= SHOWN_TOKENS:
        return list(tokens)
    return [*tokens[: SHOWN_TOKENS // 2], "...", *tokens[-SHOWN_TOKENS // 2 :]]


def _is_scored(token: tuple[int, int]) -> bool:
    return token[1] != NOT_SCORED


def _encode(task: Task, rows: StoredRows, encoding: Encoding) -> Iterator[TokenizedSplit]:
    return task.encode(rows.slices(), encoding)


def encode_table(task: Task, rows: pa.Table, encoding: Encoding) -> TokenizedSplit:
    return joined(task.encode([rows], encoding))
