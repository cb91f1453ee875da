"""Rows longer than the model's window: run as windows that begin anew, side by side.

B rows of T tokens, W windows of S tokens in the longest of them; every window of a row but its last one is full.
"""

import torch
from torch import Tensor


def fold(rows: Tensor, window: int) -> Tensor:
    """(B, T, ...) -> (B * W, S, ...), zeros after the rows' ends"""
    count = -(-rows.shape[1] // window)
    padded = rows.new_zeros(rows.shape[0], count * window, *rows.shape[2:])
    padded[:, : rows.shape[1]] = rows
    return padded.unflatten(1, (count, window)).flatten(0, 1)


def unfold(windows: Tensor, rows: int) -> Tensor:
    """(B * W, S, ...) -> (B, W * S, ...)"""
    return windows.unflatten(0, (rows, -1)).flatten(1, 2)


def window_lengths(lengths: Tensor, window: int, count: int) -> Tensor:
    """(B,) -> (B * W,) tokens of each window; 1 for one behind its row's end, of which nothing is read."""
    starts = torch.arange(count, device=lengths.device) * window
    return (lengths[:, None] - starts).clamp(1, window).flatten()


def window_counts(lengths: Tensor, window: int) -> Tensor:
    """(B,) -> (B,)"""
    return -(-lengths // window)


def last_positions(lengths: Tensor, window: int) -> Tensor:
    """(B,) -> (B, W) the last token of each window; of windows behind a row's end, the row's last."""
    count = -(-int(lengths.max()) // window)
    ends = (torch.arange(count, device=lengths.device) + 1) * window
    return torch.minimum(ends, lengths[:, None]) - 1


def within_windows(positions: Tensor, window: int) -> Tensor:
    """(B, W) one position of each window -> (B * W, 1), counted from its window's start"""
    starts = torch.arange(positions.shape[1], device=positions.device) * window
    return (positions - starts).clamp(min=0).flatten()[:, None]
