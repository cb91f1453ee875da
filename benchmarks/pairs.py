"""Paired measurements: who goes first, the ratio of each pair, and the table of all of them. Knows no model."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SIDES = ("ours", "peer")
Pair = Mapping[str, Any]  # {"ours": {figure: value}, "peer": {figure: value}}


@dataclass(frozen=True)
class Figure:
    """A row of the table. `compared` ones have a ratio: what the peer takes of ours."""

    key: str
    title: str
    digits: int
    compared: bool = False


def order(pair: int) -> tuple[str, ...]:
    """A B, B A, A B, ...: what drifts over an hour then falls on both sides alike."""
    return SIDES if pair % 2 == 0 else SIDES[::-1]


def values(pairs: Sequence[Pair], side: str, key: str) -> list[float]:
    """One for each pair; none where a side does not measure it."""
    found = [pair[side].get(key) for pair in pairs]
    return [] if None in found else found


def ratios(pairs: Sequence[Pair], key: str) -> list[float]:
    """How many times what we take the peer takes, within each pair."""
    ours, peer = (values(pairs, side, key) for side in SIDES)
    return [theirs / mine for mine, theirs in zip(ours, peer, strict=False)]


def spread(measured: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(measured), "smallest": min(measured), "largest": max(measured)}


def spelled(measured: Sequence[float], digits: int) -> str:
    if not measured:
        return "-"
    median, smallest, largest = (f"{value:,.{digits}f}" for value in spread(measured).values())
    return median if smallest == largest else f"{median} ({smallest} to {largest})"


def table(pairs: Sequence[Pair], figures: Sequence[Figure], peer: str, ours: str = "Permafrost") -> list[str]:
    """Markdown: a row for each figure that either side has."""
    lines = [f"| | {ours} | {peer} | ratio |", "|---" * 4 + "|"]
    for figure in figures:
        mine, theirs = (values(pairs, side, figure.key) for side in SIDES)
        if mine or theirs:
            times = ratios(pairs, figure.key) if figure.compared else []
            cells = [figure.title, spelled(mine, figure.digits), spelled(theirs, figure.digits)]
            lines.append("| " + " | ".join([*cells, spelled(times, 2) if times else ""]) + " |")
    return lines


def summary(pairs: Sequence[Pair], figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """The spread of each compared figure's ratio."""
    compared = {figure.key: ratios(pairs, figure.key) for figure in figures if figure.compared}
    spreads = {key: spread(times) for key, times in compared.items() if times}
    return {key: {name: round(value, 3) for name, value in found.items()} for key, found in spreads.items()}
