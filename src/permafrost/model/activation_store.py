"""What the frozen trunk makes of each token, kept on disk: computed once, read by every epoch, trial and seed after.

An entry is a directory `<trunk>-<rows>/`: `states.bin` holds (tokens, C) of all rows end to end, unpadded;
`offsets.npy` (rows + 1,) where each row begins; `rows.npy` a digest of its token ids; `checks.bin` a checksum of each
row's states, looked at when the row is first read, and one of the other files; `manifest.json` is written last, so an
entry is complete or absent. B rows in a batch, T tokens in the longest of them, C channels.
"""

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from permafrost.errors import ConfigError, ResourceError
from permafrost.model.freezing import weights_fingerprint
from permafrost.storage.atomic import complete_or_absent, flush_to_disk
from permafrost.storage.ragged import RaggedArray

if TYPE_CHECKING:
    from transformers import GPT2Model

Dtype = Literal["float32", "float16", "bfloat16"]
STATES, OFFSETS, ROWS, CHECKS = "states.bin", "offsets.npy", "rows.npy", "checks.bin"
MANIFEST, USED = "manifest.json", "last_used"
STORE_VERSION = 1  # raise it with whatever gives the same tokens other states under the same weights, beyond rounding
AS_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.int16}  # numpy has no bfloat16
CANNOT_RESERVE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system
REMOVED = "so the entry is removed; the same command with resume=auto goes on and computes it again"
NOT_REMOVED = "and the entry cannot be removed: another run computes it anew, or the store can only be read"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands in an entry."""

    model: str
    depth: int
    dtype: Dtype
    precision: str
    channels: int
    rows: int
    tokens: int

    @property
    def num_bytes(self) -> int:
        return self.tokens * self.channels * np.dtype(AS_STORED[self.dtype]).itemsize


class ActivationStore:
    """One entry, opened for reading."""

    def __init__(self, directory: Path, manifest: Manifest):
        self.directory, self.manifest = directory, manifest
        offsets, dtype = np.load(directory / OFFSETS), AS_STORED[manifest.dtype]
        self.states = RaggedArray.in_file(directory / STATES, offsets, dtype, manifest.channels)
        self.checks, self.is_checked = np.fromfile(directory / CHECKS, np.uint32), np.zeros(len(self.states), bool)

    def padded(self, rows: np.ndarray) -> Tensor:
        """(B,) row positions -> (B, T, C) in the stored type, zeros right of the shorter rows.

        Raises:
            ResourceError: a row is not what was written.
        """
        found = [self._checked(row) for row in rows]
        states = np.zeros((len(rows), max(map(len, found)), self.manifest.channels), self.states.values.dtype)
        for place, row in zip(states, found, strict=True):
            place[: len(row)] = row
        return torch.from_numpy(states).view(getattr(torch, self.manifest.dtype))

    def mark_used(self) -> None:
        """Lest it make room for others while it is read."""
        with suppress(OSError):  # it was removed, and is read on; or the store can only be read
            os.utime(self.directory / USED)

    def _checked(self, row: int) -> np.ndarray:
        states = self.states[row]
        if not self.is_checked[row]:
            if zlib.crc32(states.data) != self.checks[row]:
                raise ResourceError(
                    f"row {row} in the activation store's {self.directory} is not what was written, "
                    f"{REMOVED if remove_if_free(self.directory) else NOT_REMOVED}"
                )
            self.is_checked[row] = True
        return states


def trunk_key(
    backbone: "GPT2Model",
    depth: int,
    *,
    dtype: Dtype,
    precision: str,
    tokenizer: str,
    window: int | None,
    apart: bool = False,
) -> str:
    """Hash of all that the stored states depend on, but for the rows: weights below the cut, how they are run, and by
    which code.

    `window` in tokens, where rows are longer than that; `apart` where the texts of a pair do not see each other.
    """
    config = backbone.config
    code = (STORE_VERSION, torch.__version__.partition("+")[0])  # behind it, what the build is for: cpu, cu126
    how = (depth, window, dtype, precision, tokenizer, *(["apart"] if apart else []))
    built = (config.n_head, config.layer_norm_epsilon, config.activation_function)
    scaled = (config.scale_attn_weights, config.scale_attn_by_inverse_layer_idx)
    below = ("wte.", "wpe.", *(f"h.{block}." for block in range(depth)))
    weights = weights_fingerprint(named for named in backbone.state_dict().items() if named[0].startswith(below))
    return hashlib.blake2b(repr((*code, *how, *built, *scaled, weights)).encode(), digest_size=8).hexdigest()


def row_digests(input_ids: RaggedArray) -> np.ndarray:
    """(rows, 2) uint64, a 128-bit digest of each row's ids (int32)."""
    digests = [hashlib.blake2b(input_ids[row].data, digest_size=16).digest() for row in range(len(input_ids))]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def entry_directory(root: Path, trunk: str, digests: np.ndarray) -> Path:
    return root / f"{trunk}-{hashlib.blake2b(np.ascontiguousarray(digests).data, digest_size=8).hexdigest()}"


def open_entry(directory: Path) -> ActivationStore | None:
    """The entry, marked as used now; None where there is none that is complete and of this version's shape."""
    try:
        manifest = read_manifest(directory)
        if manifest is None or (directory / STATES).stat().st_size != manifest.num_bytes:
            return None
        store = ActivationStore(directory, manifest)
    except OSError:  # another process made room just now, or it is not for this user to read
        return None
    store.mark_used()
    return store


def sound_entry(directory: Path) -> ActivationStore | None:
    """The entry, where the files beside its states are what was written; the states are checked as they are read."""
    return open_entry(directory) if check_entry(directory) else None


def check_entry(directory: Path) -> bool:
    """Whether the files beside the states are what was written. One where they are not stays until it is built anew:
    who is not its builder would remove what another process writes."""
    try:
        return bool(_check_of_others(directory) == np.fromfile(directory / CHECKS, np.uint32)[-1])
    except (OSError, IndexError):  # none that is here and can be read; one that is cut off
        return False


def _check_of_others(directory: Path) -> int:
    check = 0
    for name in (MANIFEST, OFFSETS, ROWS):
        check = zlib.crc32((directory / name).read_bytes(), check)
    return check


def read_manifest(directory: Path) -> Manifest | None:
    """None where there is none, as another process removes it, or one that is damaged or of another version."""
    try:
        return Manifest(**json.loads((directory / MANIFEST).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def sole_builder(directory: Path, on_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Of several processes that want the same entry one goes in at a time, and whoever has to wait calls `on_waiting`;
    the lock of a killed one is free."""
    from filelock import FileLock, Timeout

    with writing_in(directory.parent):
        lock = FileLock(directory.with_suffix(".lock"))
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            on_waiting()
            held = lock.acquire()
        with held:
            yield


@contextmanager
def writing_in(root: Path) -> Iterator[None]:
    """Make it where it is not there, and say of what goes wrong meanwhile where it did."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = error.strerror or error
        raise ResourceError(f"cannot write to the activation store {root}: {why}") from error


def write_entry(
    directory: Path,
    manifest: Manifest,
    offsets: np.ndarray,
    digests: np.ndarray,
    parts: Iterable[tuple[np.ndarray, Tensor]],
) -> None:
    """Write the states that `parts` gives as (row positions (B,), (B, T, C)), every row once, in any order."""
    remove(directory)  # what a killed build left
    directory.mkdir(parents=True)
    checks = np.zeros(len(offsets), np.uint32)
    with (directory / STATES).open("wb") as file:
        reserve_(file, manifest.num_bytes)
        for rows, states in parts:
            stored = as_stored(states, manifest.dtype)
            for row, state in zip(rows, stored, strict=True):
                length = int(offsets[row + 1] - offsets[row])
                file.seek(int(offsets[row]) * state.strides[0])
                file.write(state[:length].data)
                checks[row] = zlib.crc32(state[:length].data)
    np.save(directory / OFFSETS, offsets)
    np.save(directory / ROWS, digests)
    (directory / USED).touch()
    flush_to_disk(directory / STATES)
    with complete_or_absent(directory / MANIFEST) as partial:
        partial.write_text(json.dumps(asdict(manifest), indent=2) + "\n", "utf-8")
        checks[-1] = zlib.crc32(
            b"".join(path.read_bytes() for path in (partial, directory / OFFSETS, directory / ROWS))
        )
        checks.tofile(directory / CHECKS)
        flush_to_disk(partial)


def reserve_(file: BufferedWriter, num_bytes: int) -> None:
    """Have the disk set it aside, so that a full one is found here, and not after hours of computing."""
    file.truncate(num_bytes)
    if hasattr(os, "posix_fallocate") and num_bytes:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno not in CANNOT_RESERVE:
                raise


def as_stored(states: Tensor, dtype: Dtype) -> np.ndarray:
    """(B, T, C) as numpy in the stored type; a state that it cannot hold is an error, not an infinity."""
    converted = states.detach().to("cpu", getattr(torch, dtype)).contiguous()
    if dtype == "float16" and not torch.isfinite(converted).all():
        raise ConfigError("the trunk's output is beyond float16; set store.dtype=bfloat16 or float32")
    return (converted.view(torch.int16) if dtype == "bfloat16" else converted).numpy()


def being_built(directory: Path) -> bool:
    """By another process, at this moment."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(directory.with_suffix(".lock"), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # nowhere to write: nobody builds there
        return False


def remove_if_free(directory: Path, *, only_incomplete: bool = False) -> bool:
    """Remove it under its lock, and so not what another process builds; returns whether it went.

    `only_incomplete` is for what seems abandoned: another process may have been done with it just now.
    """
    from filelock import FileLock

    try:
        with FileLock(directory.with_suffix(".lock"), timeout=0):
            if only_incomplete and (directory / MANIFEST).exists():
                return False
            remove(directory)
            return True
    except OSError:  # it is being built, which filelock's Timeout says; or nothing can be written there
        return False


def remove(directory: Path) -> None:
    """For who has its lock. The manifest goes first, so that half an entry is none; who has it open still reads it."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
