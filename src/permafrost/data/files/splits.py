"""Splits and samples that depend on the text and the seed alone, never on row order."""

import hashlib


def unit_hash(text: str, seed: int) -> float:
    """A number in [0, 1) that is the same on every machine for the same text and seed."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(text: str, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """`train`, `validation` or `test`; equal texts always fall into the same split."""
    position = unit_hash(text, seed)
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"
