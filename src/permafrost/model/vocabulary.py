"""A pretrained GPT-2 that reads by another tokenizer: each token begins as the mean of what its text was in before.

Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression" (EMNLP, industry track), section 3. Blocks
and positions stay as they are; a text has fewer tokens where the new ones are those of its field.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from permafrost.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2Model


def read_by_(backbone: "GPT2Model", pieces: Sequence[Sequence[int]]) -> None:
    """Embeddings of the new tokens, of each the ids in `pieces`, in place of those that there are."""
    embeddings = mean_embeddings(backbone.wte.weight.detach(), pieces)
    backbone.wte = nn.Embedding.from_pretrained(embeddings, freeze=False)
    backbone.config.vocab_size = len(embeddings)


def pieces_of(before: "Tokenizer", after: "Tokenizer") -> list[list[int]]:
    """Of each token of `after`, by its id, the ids of `before` that its text is in: one where both have the token.

    Raises:
        ConfigError: a token that the old tokenizer has no way to write; both have to be byte-level BPE.
    """
    known = before.get_vocab()
    pieces = [[0]] * (1 + max(after.get_vocab().values()))  # an id of no token is never read, so that any row does
    for name, index in after.get_vocab().items():
        pieces[index] = [known[name]] if name in known else spelled(before.model, name)
    return pieces


def spelled(model: Any, name: str) -> list[int]:
    """By the merges of the model, and not as text: a token of a byte-level BPE can end within a character."""
    tokens = model.tokenize(name)
    if "".join(token.value for token in tokens) != name:
        raise ConfigError(
            f"model.tokenizer: the model's own tokenizer cannot write the token {name!r}; give a byte-level BPE as "
            "GPT-2's, or model.init=random"
        )
    return [token.id for token in tokens]


def mean_embeddings(embeddings: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(V before, C) -> (V, C)."""
    starts = torch.tensor([0, *map(len, pieces)][:-1]).cumsum(0)
    flat = torch.tensor([index for of_token in pieces for index in of_token])
    return nn.functional.embedding_bag(flat, embeddings, starts, mode="mean")
