"""Several trained models over one frozen part: it is kept once in memory, and run once for each text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from permafrost.data.tokens.batching import Batch, pad_right
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.deployment.predictor import Predictor, batches
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.base import asked_rows

Answer = dict[str, Any]


class Branches:
    """Runs by name; `depth` first blocks are the same in all of them, and 0 where they have no more in common."""

    def __init__(self, runs: Mapping[str, Path], threads: int = 0):
        # what is asked is seldom a training row, and looking it up in the store takes longer than a text
        self.predictors = {name: Predictor(run, threads=threads, reads_store=False) for name, run in runs.items()}
        models = [predictor.model for predictor in self.predictors.values()]
        self.depth = share_(models) if len(models) > 1 and all(isinstance(m, GPT2WithHead) for m in models) else 0

    def answers(
        self, texts: Sequence[str], pairs: Sequence[str] | None, names: Sequence[str]
    ) -> list[dict[str, Answer]]:
        """Of each text the answer of each named run."""
        rows = {name: asked_rows(self.predictors[name].task, texts, pairs) for name in names}
        if not self.depth:
            found = {name: self.predictors[name].answer(rows[name]) for name in names}
        else:
            splits = {name: self._encoded(name, rows[name]) for name in names}
            states = self._states(splits)
            found = {name: self._answers_above(name, rows[name], splits[name], states) for name in names}
        return [{name: found[name][number] for name in names} for number in range(len(texts))]

    def _encoded(self, name: str, rows: Sequence[Mapping[str, Any]]) -> TokenizedSplit:
        predictor = self.predictors[name]
        return predictor.encoded(pa.Table.from_pylist(predictor.cleaned(rows)))

    @torch.inference_mode()
    def _states(self, splits: Mapping[str, TokenizedSplit]) -> dict[bytes, Tensor]:
        """Token ids -> (T, C) what the frozen part makes of them, of every row that differs."""
        unique = {
            split.input_ids[row].tobytes(): split.input_ids[row]
            for split in splits.values()
            for row in range(len(split))
        }
        rows, lengths = list(unique.values()), torch.tensor([len(row) for row in unique.values()])
        below: GPT2WithHead = next(iter(self.predictors.values())).model
        states = below.frozen_states(pad_right(rows), lengths)
        return {key: state[:length] for key, state, length in zip(unique, states, lengths.tolist(), strict=True)}

    @torch.inference_mode()
    def _answers_above(
        self, name: str, rows: Sequence[Mapping[str, Any]], split: TokenizedSplit, states: Mapping[bytes, Tensor]
    ) -> list[Answer]:
        predictor = self.predictors[name]
        given = [with_states(batch, split, states) for batch in batches(split)]
        return predictor.answering.answers(predictor.gathered(given), rows)


def with_states(batch: Batch, split: TokenizedSplit, states: Mapping[bytes, Tensor]) -> Batch:
    of_rows = [states[split.input_ids[row].tobytes()] for row in batch.row_ids.tolist()]
    return batch._replace(trunk_states=nn.utils.rnn.pad_sequence(of_rows, batch_first=True))


def share_(models: Sequence[GPT2WithHead]) -> int:
    """Give all models the first one's embeddings and first blocks, as far as their weights are equal; how many blocks.

    Blocks that look ahead are no frozen ones, those below them that are not shared look back, and windows of another
    length cut rows elsewhere, as do pairs that are read apart: then none.
    """
    first, *others = models
    if len({(model.window, model.reads_apart) for model in models}) > 1 or not all(
        is_same(first, other, ("wte", "wpe")) for other in others
    ):
        return 0
    lowest = min(len(model.transformer.h) if not model.bidirectional else model.freezing.blocks for model in models)
    depth = next((n for n in range(lowest) if not all(is_same(first, o, (f"h.{n}",)) for o in others)), lowest)
    if not depth or any(model.bidirectional and model.freezing.blocks != depth for model in models):
        return 0
    for model in models:
        backbone: Any = model.transformer
        backbone.wte, backbone.wpe = first.transformer.wte, first.transformer.wpe
        backbone.h = nn.ModuleList([*first.transformer.h[:depth], *backbone.h[depth:]])
        model.freezing = Freezing(embeddings=True, blocks=depth)
    for model in others:
        keep_own_(model, depth)
    return depth


@torch.no_grad()
def keep_own_(model: GPT2WithHead, depth: int) -> None:
    """Copies of what is not shared: as it was loaded, each weight is a part of its file, which stays in memory as a
    whole for as long as one of them is used."""
    backbone: Any = model.transformer
    for part in (*backbone.h[depth:], backbone.ln_f, model.head):
        for parameter in part.parameters():
            parameter.data = parameter.data.clone()


def is_same(model: GPT2WithHead, other: GPT2WithHead, names: Sequence[str]) -> bool:
    """Whether these parts have the same weights, bit for bit."""
    parts = [(model.transformer.get_submodule(name), other.transformer.get_submodule(name)) for name in names]
    return all(_equal(one.state_dict(), two.state_dict()) for one, two in parts)


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[key].numpy(), two[key].numpy()) for key in one)
