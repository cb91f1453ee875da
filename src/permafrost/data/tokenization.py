"""Text to token ids, kept once: a directory per split, found again by a hash of all that shaped it."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from permafrost.ragged import RaggedArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
BYTE_0 = "Ā"  # how a byte-level BPE writes the byte 0
IDS, COLUMNS = "input_ids.bin", "columns.npz"
CACHE_VERSION = 3  # raise when the meaning of the cached columns changes


@dataclass(frozen=True, kw_only=True)
class TokenizedSplit:
    """Token ids and labels of a split, or of a part of one."""

    input_ids: RaggedArray  # int32
    num_targets: np.ndarray  # (rows,) int32, how many losses the row contributes
    labels: np.ndarray | None = None  # (rows,) int64 or float32; None for unlabelled rows
    truncated_rows: int = 0

    @property
    def lengths(self) -> np.ndarray:
        return self.input_ids.lengths

    def __len__(self) -> int:
        return len(self.input_ids)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> "PreTrainedTokenizerBase":
    """A byte-level BPE as GPT-2's (Radford et al. 2019, section 2.2), with a pad token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=max_length,
    )


def with_end_of_text(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A copy that ends every text, and separates a pair, with the end-of-text token, as training rows are written.

    It pads with the model's own pad token, or else with the byte 0: any token but the end of text serves, as the last
    one that is not padding is then always the end of text.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    end = str(tokenizer.eos_token)
    own = tokenizer.pad_token if tokenizer.pad_token not in (None, end) else None
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ending = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), ending])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        pad_token=own or BYTE_0,
        padding_side="right",
    )


def fingerprint(*parts: object) -> str:
    """A short hash of plain values (strings, numbers, lists, dicts)."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=10).hexdigest()


def cached_split(directory: Path, key: str, make: Callable[[], Iterable[TokenizedSplit]]) -> TokenizedSplit:
    """The split stored under `key`, its parts made and stored first if it is not there; complete or absent on disk."""
    path = directory / key
    if not path.exists():
        _write(path, make())
    return _read(path)


def joined(parts: Iterable[TokenizedSplit]) -> TokenizedSplit:
    """The parts as one split, in memory."""
    parts = list(parts)
    labels = [part.labels for part in parts if part.labels is not None]
    return TokenizedSplit(
        input_ids=RaggedArray(np.concatenate([part.input_ids.values for part in parts]), _joined_offsets(parts)),
        num_targets=np.concatenate([part.num_targets for part in parts]),
        labels=np.concatenate(labels) if labels else None,
        truncated_rows=sum(part.truncated_rows for part in parts),
    )


def _joined_offsets(parts: Iterable[TokenizedSplit]) -> np.ndarray:
    return np.cumsum(np.concatenate([[0], *(part.lengths for part in parts)]), dtype=np.int64)


def _write(path: Path, parts: Iterable[TokenizedSplit]) -> None:
    """The token ids go to the disk part by part; what there is one of for each row is small enough to gather."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        without_ids = []
        with (partial / IDS).open("wb") as file:
            for part in parts:
                file.write(np.ascontiguousarray(part.input_ids.values, np.int32).data)
                without_ids.append(replace(part, input_ids=RaggedArray(np.empty(0, np.int32), part.input_ids.offsets)))
        whole = joined(without_ids)
        offsets = _joined_offsets(without_ids)
        np.savez(partial / COLUMNS, allow_pickle=False, offsets=offsets, **_columns(whole))
        partial.rename(path)
    except OSError:
        if not path.exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _columns(split: TokenizedSplit) -> dict[str, np.ndarray]:
    columns = {"num_targets": split.num_targets, "truncated_rows": np.array(split.truncated_rows)}
    return columns if split.labels is None else columns | {"labels": split.labels}


def _read(path: Path) -> TokenizedSplit:
    with np.load(path / COLUMNS) as columns:
        return TokenizedSplit(
            input_ids=RaggedArray.in_file(path / IDS, columns["offsets"], np.int32),
            num_targets=columns["num_targets"],
            labels=columns.get("labels"),
            truncated_rows=int(columns["truncated_rows"]),
        )
