"""A row longer than the model's window, as overlapping windows that score every token exactly once."""

from typing import NamedTuple


class Window(NamedTuple):
    """Tokens `start` to `end`, of which those from `scored_from` to `scored_to` are scored in this window."""

    start: int
    end: int
    scored_from: int
    scored_to: int


def windows(length: int, limit: int, *, right_context: int = 0) -> list[Window]:
    """Windows of at most `limit` tokens over a row of `length`.

    Each token but those of the first window has at least `limit // 2 - right_context` tokens to its left, and each but
    those of the last has `right_context` to its right, which serves a model that looks both ways.
    """
    if not 0 <= right_context < limit // 2:
        raise ValueError(f"right_context={right_context} leaves a window of {limit} tokens nothing to score")
    found: list[Window] = []
    scored = 0
    while scored < length or not found:
        start = max(0, scored - (limit // 2 - right_context)) if found else 0
        end = min(start + limit, length)
        scored_to = end if end == length else end - right_context
        found.append(Window(start, end, scored, scored_to))
        scored = scored_to
    return found
