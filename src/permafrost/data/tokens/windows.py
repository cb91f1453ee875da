"""A row longer than the model's window, as overlapping windows that score every token exactly once."""

from typing import NamedTuple

OVERLAP = 8  # of the windows of one long row, which are pooled, each begins with this share of the one before it


class Window(NamedTuple):
    """Tokens `start` to `end`, of which those from `scored_from` to `scored_to` are scored in this window."""

    start: int
    end: int
    scored_from: int
    scored_to: int


def windows(length: int, limit: int, *, left_context: int | None = None, right_context: int = 0) -> list[Window]:
    """Windows of at most `limit` tokens over a row of `length`.

    Each token but those of the first window has at least `left_context` tokens to its left, else `limit // 2` less the
    right one, and each but those of the last has `right_context` to its right, which serves a model that looks both
    ways.
    """
    if left_context is None:
        left_context = limit // 2 - right_context
    if left_context < 0 or right_context < 0 or left_context + right_context >= limit:
        raise ValueError(f"contexts of {left_context} and {right_context} leave a window of {limit} nothing to score")
    found: list[Window] = []
    scored = 0
    while scored < length or not found:
        start = max(0, scored - left_context) if found else 0
        end = min(start + limit, length)
        scored_to = end if end == length else end - right_context
        found.append(Window(start, end, scored, scored_to))
        scored = scored_to
    return found


def room_for(limit: int, max_windows: int) -> int:
    """Tokens of a row that so many pooled windows of `limit` read."""
    return limit + (max_windows - 1) * (limit - limit // OVERLAP)
