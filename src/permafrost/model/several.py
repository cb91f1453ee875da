"""Several models over one trunk: a head for each task, over one branch that they share or over one of their own."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from torch import nn

from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead

if TYPE_CHECKING:
    from transformers import GPT2Model

Branches = Literal["shared", "separate"]


class Several(nn.Module):
    """The models by the name of their part. What they share is in each of them, and once in memory."""

    def __init__(self, of: Mapping[str, GPT2WithHead]):
        super().__init__()
        self.of = nn.ModuleDict(of)

    @property
    def freezing(self) -> Freezing:
        return next(iter(self.of.values())).freezing  # type: ignore[return-value]


def backbone_for_another(backbone: "GPT2Model", depth: int, branches: Branches) -> "GPT2Model":
    """The same one, or one with a branch of its own over the embeddings and the first `depth` blocks of this one."""
    if branches == "shared":
        return backbone
    shared = [backbone.wte, backbone.wpe, *backbone.h[:depth]]
    return copy.deepcopy(backbone, {id(module): module for module in shared})
