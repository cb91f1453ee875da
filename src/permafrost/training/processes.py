"""What the processes of one run tell each other."""

from typing import Any

import torch


def gathered(value: Any, world_size: int) -> list[Any]:
    """Each process's, in their order; each process must call it."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(values, value)
    return values
