"""Text to token ids, kept once: a directory per split, found again by a hash of all that shaped it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from permafrost.storage.atomic import complete_or_absent
from permafrost.storage.ragged import RaggedArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
BYTE_0 = "Ā"  # how a byte-level BPE writes the byte 0
IDS, LABELS, COLUMNS = "input_ids.bin", "labels.bin", "columns.npz"
CACHE_VERSION = 6  # raise when the meaning of the cached columns changes


@dataclass(frozen=True, kw_only=True)
class TokenizedSplit:
    """Token ids and labels of a split, or of a part of one. A row of it is a source row, or a window of one."""

    input_ids: RaggedArray  # int32
    num_targets: np.ndarray  # (rows,) int32, how many losses the row contributes
    # (rows,) one label a row, (rows, K) several; int32 for each token, -100 where none is scored; None: unlabelled rows
    labels: np.ndarray | RaggedArray | None = None
    source_rows: np.ndarray | None = None  # (rows,) int64, which row of the source; None where each has one
    truncated_rows: int = 0
    unread_tokens: int = 0  # of them
    repeated_tokens: int = 0  # of long rows, what their windows share and the ends between them

    @property
    def share_read(self) -> float:
        """Of the text, 0 to 1, the ends of rows counted as a token of theirs."""
        read = int(self.lengths.sum()) - self.repeated_tokens
        return read / max(1, read + self.unread_tokens)

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

    end = str(tokenizer.eos_token)
    own = tokenizer.pad_token if tokenizer.pad_token not in (None, end) else None
    ending = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), ending])
    return _fast(backend, end, own or BYTE_0)


def without_end_of_text(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """The tokenizer, or of one that ends every text, as an exported classifier's does, a copy that does not: what
    writes is to go on with the text."""
    from tokenizers import Tokenizer, processors

    if not tokenizer("")["input_ids"]:
        return tokenizer
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return _fast(backend, str(tokenizer.eos_token), str(tokenizer.pad_token or tokenizer.eos_token))


def _fast(backend: "Tokenizer", end: str, pad: str) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end, pad_token=pad, padding_side="right"
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
    offsets = _joined_offsets(parts)
    labels: Any = [part.labels for part in parts]
    if isinstance(labels[0], RaggedArray):
        labels = RaggedArray(np.concatenate([part.values for part in labels]), offsets)
    else:
        labels = None if labels[0] is None else np.concatenate(labels)
    return TokenizedSplit(
        input_ids=RaggedArray(np.concatenate([part.input_ids.values for part in parts]), offsets),
        num_targets=np.concatenate([part.num_targets for part in parts]),
        labels=labels,
        source_rows=_joined_source_rows(parts),
        truncated_rows=sum(part.truncated_rows for part in parts),
        unread_tokens=sum(part.unread_tokens for part in parts),
        repeated_tokens=sum(part.repeated_tokens for part in parts),
    )


def _joined_offsets(parts: Iterable[TokenizedSplit]) -> np.ndarray:
    return np.cumsum(np.concatenate([[0], *(part.lengths for part in parts)]), dtype=np.int64)


def _joined_source_rows(parts: Sequence[TokenizedSplit]) -> np.ndarray | None:
    """Tasks number the source rows through all parts."""
    rows = [part.source_rows for part in parts if part.source_rows is not None]
    return np.concatenate(rows) if rows else None


def _write(path: Path, parts: Iterable[TokenizedSplit]) -> None:
    """What there is of each token goes to the disk part by part; what there is of each row is gathered."""
    with complete_or_absent(path) as directory:
        directory.mkdir()
        of_rows = []
        with (directory / IDS).open("wb") as ids, (directory / LABELS).open("wb") as labels:
            for part in parts:
                ids.write(np.ascontiguousarray(part.input_ids.values, np.int32).data)
                if isinstance(part.labels, RaggedArray):
                    labels.write(np.ascontiguousarray(part.labels.values, np.int32).data)
                of_rows.append(_without_tokens(part))
        columns = {name: value for name, value in vars(joined(of_rows)).items() if isinstance(value, (np.ndarray, int))}
        np.savez(directory / COLUMNS, allow_pickle=False, offsets=_joined_offsets(of_rows), **columns)


def _without_tokens(part: TokenizedSplit) -> TokenizedSplit:
    nothing = RaggedArray(np.empty(0, np.int32), part.input_ids.offsets)
    return replace(part, input_ids=nothing, labels=nothing if isinstance(part.labels, RaggedArray) else part.labels)


def _read(path: Path) -> TokenizedSplit:
    with np.load(path / COLUMNS) as columns:
        offsets, labels = columns["offsets"], columns.get("labels")
        if (path / LABELS).stat().st_size:
            labels = RaggedArray.in_file(path / LABELS, offsets, np.int32)
        return TokenizedSplit(
            input_ids=RaggedArray.in_file(path / IDS, offsets, np.int32),
            num_targets=columns["num_targets"],
            labels=labels,
            source_rows=columns.get("source_rows"),
            truncated_rows=int(columns["truncated_rows"]),
            unread_tokens=int(columns["unread_tokens"]),
            repeated_tokens=int(columns["repeated_tokens"]),
        )
