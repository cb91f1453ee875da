"""Files of tensors that tell whether they are whole: each ends in the SHA-256 of all bytes before.

A checkpoint is a zip archive, of which readers look for the directory from the end: what stands behind it is nothing
to them, and torch loads a sealed file as any other. A checksum within the file cannot be lost or left behind by a
rename, as one beside it can.
"""

import hashlib
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from permafrost.errors import DataError, ResourceError
from permafrost.storage.atomic import complete_or_absent, flush_to_disk

MARK = b"\npermafrost sha256 1 "  # the 1 is the format's version
SEAL_BYTES = len(MARK) + 64
CHUNK_BYTES = 2**22


class Hashed:
    """What `torch.save` writes to: bytes on their way to the file go into the digest, so that none is read again."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None  # torch tells of it in words of its own

    def write(self, content: memoryview) -> int:
        try:
            self.digest.update(content)
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_sealed(content: Any, path: Path) -> None:
    """Write beside the target, through to the disk, and rename; whatever fails, the file that was there stays.

    Raises:
        ResourceError: the disk is full, or may not be written.
    """
    try:
        with complete_or_absent(path) as partial:
            with partial.open("wb") as file:
                _save(content, file)
            flush_to_disk(partial)
        flush_to_disk(path.parent)
    except OSError as error:
        raise ResourceError(cannot_write(path, error)) from error


def _save(content: Any, file: BinaryIO) -> None:
    hashed = Hashed(file)
    try:
        torch.save(content, hashed)  # type: ignore[arg-type]
    except RuntimeError:
        if hashed.error:
            raise hashed.error from None
        raise
    file.write(MARK + hashed.digest.hexdigest().encode())


def cannot_write(path: Path, error: OSError) -> str:
    kept = f"; {path.name} is as it was" if path.is_file() else ""
    return (
        f"cannot write {path}: {error.strerror}{_free_space(path.parent)}{kept}; free some space, or set hydra.run.dir"
    )


def _free_space(directory: Path) -> str:
    try:
        return f" ({shutil.disk_usage(directory).free / 2**20:,.0f} MB are free)"
    except OSError:
        return ""


def fault_of(path: Path) -> str | None:
    """What is wrong with a sealed file; None where it is whole."""
    try:
        return _fault(path)
    except OSError as error:
        return str(error.strerror)


def _fault(path: Path) -> str | None:
    rest, digest = path.stat().st_size - SEAL_BYTES, hashlib.sha256()
    if rest <= 0:
        return "it is cut off"
    with path.open("rb") as file:
        while rest > 0 and (chunk := file.read(min(CHUNK_BYTES, rest))):
            digest.update(chunk)
            rest -= len(chunk)
        seal = file.read()
    if not seal.startswith(MARK):
        return "it has no checksum at its end: it is cut off, or of another program"
    return None if seal == MARK + digest.hexdigest().encode() else "its content is not what was written"


def read_sealed(path: Path) -> dict[str, Any]:
    """Tensors and plain values alone: no code of a stranger's file is run.

    Raises:
        DataError: the file is damaged.
    """
    if fault := fault_of(path):
        raise DataError(f"{path} is damaged: {fault}")
    return _tensors_in(path)


def peek(path: Path) -> dict[str, Any]:
    """Of a file that is known to be whole: its tensors are read from the disk as they are used, if they are."""
    return _tensors_in(path, mmap=True)


def _tensors_in(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError:  # whose words are how to read it all the same
        raise DataError(f"{path} holds more than tensors and plain values, so it is not read") from None
