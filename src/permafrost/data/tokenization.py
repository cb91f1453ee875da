"""Text to token ids, kept once: an Arrow file per split, memory-mapped, found again by a hash of all that shaped it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
BYTE_0 = "Ā"  # how a byte-level BPE writes the byte 0
CACHE_VERSION = 2  # raise when the meaning of the cached columns changes


@dataclass(frozen=True, kw_only=True)
class TokenizedSplit:
    """Token ids and labels of one split, over a memory-mapped Arrow table.

    Columns: `input_ids` list<int32>, `label` (int64, float32 or list<int32>; absent for unlabelled rows),
    `num_targets` int32 (how many losses the row contributes), `row` int64 (position in the source).
    """

    table: pa.Table
    truncated_rows: int = 0

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self._offsets())

    @property
    def num_targets(self) -> np.ndarray:
        return self.table["num_targets"].combine_chunks().to_numpy()

    @property
    def labels(self) -> np.ndarray | None:
        return self.table["label"].combine_chunks().to_numpy() if "label" in self.table.column_names else None

    def __len__(self) -> int:
        return self.table.num_rows

    def _offsets(self) -> np.ndarray:
        return self.table["input_ids"].combine_chunks().offsets.to_numpy()

    def token_arrays(self) -> "TokenArrays":
        ids = self.table["input_ids"].combine_chunks()
        return TokenArrays(values=ids.values.to_numpy(), offsets=ids.offsets.to_numpy())


@dataclass(frozen=True)
class TokenArrays:
    """All token ids end to end, and where each row begins: views of the mapped file, no copies."""

    values: np.ndarray  # (tokens,) int32
    offsets: np.ndarray  # (rows + 1,) int32

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


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


def texts_fingerprint(columns: Iterable[Iterable[object]]) -> str:
    digest = hashlib.blake2b(digest_size=10)
    for column in columns:
        for value in column:
            digest.update(str(value).encode("utf-8", "surrogatepass") + b"\x00")
        digest.update(b"\x01")
    return digest.hexdigest()


def cached_split(directory: Path, key: str, make: Callable[[], TokenizedSplit]) -> TokenizedSplit:
    """The split stored under `key`, made and stored first if it is not there; complete or absent on disk."""
    path = directory / f"{key}.arrow"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _write(path, make())
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    return TokenizedSplit(table=table, truncated_rows=int(table.schema.metadata[b"truncated_rows"]))


def _write(path: Path, split: TokenizedSplit) -> None:
    table = split.table.combine_chunks().replace_schema_metadata({"truncated_rows": str(split.truncated_rows)})
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        # one record batch, so that every column is one contiguous mapped array
        writer.write_table(table, max_chunksize=max(1, table.num_rows))
    partial.replace(path)
