"""Rows of two texts, whose model reads each by itself: they are run as two rows.

B rows of T tokens, S in the longest of their 2 B texts; a first text ends with the row's first end of text.
"""

import torch
from torch import Tensor

from permafrost.model.packing import real_tokens


def first_lengths(input_ids: Tensor, lengths: Tensor, end_token_id: int) -> Tensor:
    """(B, T), (B,) -> (B,) tokens of each first text, its end included; a second one has its end at least."""
    tokens = input_ids.shape[1]
    ends = (input_ids == end_token_id) & real_tokens(lengths, tokens)
    first = torch.where(ends, torch.arange(tokens, device=ends.device), tokens).amin(1)
    return torch.minimum(first + 1, lengths - 1).clamp(min=1)


def text_lengths(firsts: Tensor, lengths: Tensor) -> Tensor:
    """(B,) of first texts, (B,) of rows -> (2 B,) of all texts, a row's two side by side"""
    return torch.stack([firsts, (lengths - firsts).clamp(min=1)], dim=1).flatten()


def apart(rows: Tensor, firsts: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, ...) -> (2 B, S, ...); what stands behind a text's end is not of it."""
    tokens = rows.shape[1]
    # a graph cannot ask how long the longest is
    longest = tokens if torch.compiler.is_compiling() else int(text_lengths(firsts, lengths).max())
    starts = torch.stack([torch.zeros_like(firsts), firsts], dim=1)  # (B, 2)
    places = (starts[..., None] + torch.arange(longest, device=rows.device)).clamp(max=tokens - 1)
    return _taken(rows, places.flatten(1)).unflatten(1, (2, longest)).flatten(0, 1)


def together(texts: Tensor, firsts: Tensor, tokens: int) -> Tensor:
    """(2 B, S, ...) -> (B, T, ...)"""
    longest = texts.shape[1]
    place = torch.arange(tokens, device=texts.device)
    within = torch.where(place < firsts[:, None], place, longest + place - firsts[:, None])  # (B, T)
    return _taken(texts.unflatten(0, (-1, 2)).flatten(1, 2), within.clamp(max=2 * longest - 1))


def _taken(rows: Tensor, places: Tensor) -> Tensor:
    """(B, T, ...), (B, P) -> (B, P, ...)"""
    return rows.gather(1, places.reshape(*places.shape, *[1] * (rows.dim() - 2)).expand(*places.shape, *rows.shape[2:]))
