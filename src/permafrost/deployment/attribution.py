"""What each token has to do with an answer: integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365).

The path leads from a text without words, its positions alone, to the text. What the tokens get adds up to what the
output gains on the way. B rows, T tokens, C channels.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError
from permafrost.model.backbone import run_blocks
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.tasks.base import asked_rows
from permafrost.tasks.classification import Classification
from permafrost.tasks.preparation import encode_table
from permafrost.tasks.regression import Regression

NODES = 50  # of the Gauss-Legendre sum along the path


def explain(predictor: Predictor, text: str, pair: str | None = None) -> dict[str, Any]:
    """The answer, with the part that each token has in the label's logit, or in the number.

    Raises:
        ConfigError: the run answers otherwise, or by weights of which there is no gradient; the text is too long.
    """
    task, model = predictor.task, predictor.model
    if not isinstance(task, Classification | Regression):
        raise ConfigError(f"task={task.name}: explained are answers by one label, or by a number")
    if not (isinstance(model, GPT2WithHead) and isinstance(model.head, PooledHead)):
        raise ConfigError("a compressed graph has no gradients; give the run that it was made from")
    rows = asked_rows(task, [text], None if pair is None else [pair])
    (answer,) = predictor.answer(rows)
    split = encode_table(task, pa.Table.from_pylist(predictor.cleaned(rows)), predictor.encoding)
    if split.truncated_rows or len(split.input_ids[0]) > model.window:
        raise ConfigError(
            f"the text is longer than the {model.window:,} tokens that are seen at once; give a part of it"
        )
    input_ids = torch.from_numpy(split.input_ids[0]).long()
    output = task.labels.index(answer["label"]) if isinstance(task, Classification) else 0
    unit = task.scale.unit if isinstance(task, Regression) else 1.0
    parts, gain = attribute(model, input_ids, output)
    written = [predictor.encoding.tokenizer.decode([token]) for token in input_ids.tolist()]
    tokens = [{"token": token, "part": unit * part} for token, part in zip(written, parts.tolist(), strict=True)]
    return answer | {"gain": unit * gain, "tokens": tokens}


@torch.enable_grad()
def attribute(model: GPT2WithHead, input_ids: Tensor, output: int, *, nodes: int = NODES) -> tuple[Tensor, float]:
    """(T,) token ids -> (T,) each one's part in the output, and what the output gains by them all."""
    words = model.transformer.wte(input_ids).detach()
    places, weights = np.polynomial.legendre.leggauss(nodes)  # from -1 to 1
    shares = torch.from_numpy((places + 1) / 2).to(words.dtype)
    along = (shares[:, None, None] * words).requires_grad_()
    (gradients,) = torch.autograd.grad(outputs_of(model, along, input_ids)[:, output].sum(), along)
    mean = torch.einsum("b,btc->tc", torch.from_numpy(weights / 2).to(words.dtype), gradients)
    with torch.no_grad():
        without, whole = outputs_of(model, torch.stack([torch.zeros_like(words), words]), input_ids)[:, output]
    return (mean * words).sum(-1), float(whole - without)


def outputs_of(model: GPT2WithHead, words: Tensor, input_ids: Tensor) -> Tensor:
    """(B, T, C) in place of these (T,) -> (B, K): as the model itself, from the embeddings of the tokens on."""
    lengths = torch.full((len(words),), words.shape[1], device=words.device)
    words, lengths = model.as_run(words, input_ids.expand(len(words), -1), lengths)
    positions = model.transformer.wpe(torch.arange(words.shape[1], device=words.device))
    states = run_blocks(model.transformer.h[: model.freezing.blocks], words + positions, lengths)
    hidden = model.above_the_cut(states, lengths, model.head.reads(lengths))
    return model.head(hidden, lengths)
