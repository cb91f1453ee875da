"""Which parameters are frozen, and how deep each one lies.

Depth groups: 0 the embeddings, 1..L the blocks, L+1 the final norm and the head.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from permafrost.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """The first `blocks` blocks are frozen and, each for itself, the embeddings and the final norm."""

    embeddings: bool
    blocks: int
    final_norm: bool = False


def depth_of(name: str, num_blocks: int) -> int:
    """Depth group of a parameter, by its name in `GPT2WithHead`, be it one of several (model/several.py)."""
    name = re.sub(r"^of\.\w+\.", "", name)
    if re.match(r"transformer\.(wte|wpe)\.", name):
        return 0
    if block := re.match(r"transformer\.h\.(\d+)\.", name):
        return 1 + int(block[1])
    if re.match(r"transformer\.ln_f\.|head\.", name):
        return num_blocks + 1
    raise ValueError(f"parameter {name!r} belongs to no depth group")


def frozen_names(model: nn.Module, num_blocks: int, freezing: Freezing) -> set[str]:
    """Names of the parameters that `freezing` takes out of training."""
    if freezing.blocks > num_blocks:
        raise ConfigError(f"freezing.blocks={freezing.blocks}, but the model has {num_blocks} blocks")
    return {name for name, _ in model.named_parameters() if _is_frozen(name, num_blocks, freezing)}


def freeze_(model: nn.Module, num_blocks: int, freezing: Freezing) -> None:
    """Take the frozen parameters out of gradient computation. Eval mode is kept by the model itself."""
    frozen = frozen_names(model, num_blocks, freezing)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("nothing is left to train: the head is tied to the frozen embeddings; freeze fewer blocks")


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def frozen_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Under each of their names, as in a `state_dict`: what several models share has several."""
    named = model.named_parameters(remove_duplicate=False)
    return ((name, parameter) for name, parameter in named if not parameter.requires_grad)


def weights_fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of names, types and values."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in named:
        digest.update(f"{name} {weight.dtype} ".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_frozen(name: str, num_blocks: int, freezing: Freezing) -> bool:
    depth = depth_of(name, num_blocks)
    if depth == 0:
        return freezing.embeddings
    if depth <= num_blocks:
        return depth <= freezing.blocks
    return freezing.final_norm and name.startswith("transformer.ln_f.")
