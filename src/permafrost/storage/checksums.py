"""Weights that are as they were written: their SHA-256 lies beside them, and a damaged file is refused by its name."""

import hashlib
import json
from pathlib import Path

from permafrost.errors import ResourceError

SUMS, CHUNK_BYTES = "checksums.json", 2**20
WEIGHT_FILES = ("*.safetensors", "*.onnx", "*.onnx.data", "*.bin", "*.xml")


def sums_of(directory: Path) -> dict[str, str]:
    """Of every file of weights in it."""
    return {str(path.relative_to(directory)): sha256(path) for path in weight_files(directory)}


def write_checksums(directory: Path) -> None:
    (directory / SUMS).write_text(json.dumps(sums_of(directory), indent=2) + "\n", "utf-8")


def check_files(directory: Path) -> None:
    """Raises ResourceError for a file of weights that is missing or has changed, where sums lie beside them."""
    path = directory / SUMS
    if not path.is_file():
        return
    for name, expected in json.loads(path.read_text("utf-8")).items():
        file = directory / name
        if not file.is_file() or sha256(file) != expected:
            fate = "is damaged" if file.is_file() else "is missing"
            raise ResourceError(
                f"{file} {fate}: its SHA-256 is not that in {SUMS}; copy it anew, or remove {SUMS} if you changed it"
            )


def weight_files(directory: Path) -> list[Path]:
    return sorted(path for pattern in WEIGHT_FILES for path in directory.rglob(pattern))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
