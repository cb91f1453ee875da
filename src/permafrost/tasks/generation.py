"""A text from a text: translation, summaries, data to text, code from a description. Loss on the target alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.model.decoding import Decoding
from permafrost.model.heads import TiedHead
from permafrost.tasks.base import (
    LOSS,
    Encoding,
    LossFunction,
    Mode,
    Prompts,
    Stage,
    Table,
    references_of,
    tokenized_split,
    with_column,
)
from permafrost.tasks.next_token import next_token_loss_sum
from permafrost.tasks.positions import NOT_SCORED
from permafrost.tasks.prompts import prompt_ids, read_template
from permafrost.tasks.text_scores import SCORES, parses_as_python, text_scores


class Generation:
    """Rows are `template`, filled. Answers have at most `decoding.max_new_tokens`, and so have targets in training.

    `perplexity` is exp of the mean loss per token of the targets, their end included. `parses` adds the share of
    answers that are Python.
    """

    name = "generation"
    roles = ("source", "references")
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "perplexity": "min", **SCORES, "parses": "max"}

    def __init__(self, template: str, decoding: Decoding, *, parses: bool = False):
        self.template, self.decoding, self.parses = template, decoding, parses

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "Generation":
        return cls(options["template"], Decoding(**options["decoding"]), parses=options["parses"])

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Generation":
        return cls(description["template"], Decoding(**description["decoding"]), parses=description["parses"])

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        """Of several references each is a row of its own."""
        first_row = 0
        for rows in slices:
            sources, references = rows["source"].to_pylist(), rows["references"].to_pylist()
            yield encode_pairs(self.template, sources, references, encoding, self.decoding.max_new_tokens, first_row)
            first_row += rows.num_rows

    def build_head(self, backbone: nn.Module) -> nn.Module:
        return TiedHead(backbone.get_submodule("wte"))  # type: ignore[arg-type]

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, None]:
        return next_token_loss_sum(model, batch, loss), None

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        return {"perplexity": loss.exp()}

    def prompts(self, rows: Sequence[Mapping[str, Any]], encoding: Encoding) -> Prompts:
        """The template, filled with each row's `source`."""
        limit = encoding.max_length - self.decoding.max_new_tokens
        sources, template = [row["source"] for row in rows], read_template(self.template)
        ids, unread = prompt_ids(template, sources, encoding.tokenizer, limit)
        return Prompts(ids=ids, unread=unread, decoding=self.decoding)

    def score(self, written: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        scores = text_scores(written, [references_of(row) for row in rows])
        return scores | ({"parses": sum(map(parses_as_python, written)) / len(written)} if self.parses else {})

    def asked(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return row

    def with_answers(self, rows: pa.Table, written: Sequence[str]) -> pa.Table:
        references = [
            [text] if text else own for text, own in zip(written, rows["references"].to_pylist(), strict=True)
        ]
        return with_column(rows, "references", references)

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"source": text} for text in texts]

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "kind": "generation.Generation",
            "template": self.template,
            "decoding": asdict(self.decoding),
            "parses": self.parses,
        }


def encode_pairs(
    template: str,
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    encoding: Encoding,
    max_new_tokens: int,
    first_row: int = 0,
) -> TokenizedSplit:
    """Prompt, target and end of text; the label of a target's token is the token, elsewhere -100."""
    tokenizer, limit = encoding.tokenizer, encoding.max_length - max_new_tokens
    prompts, unread_of_prompts = prompt_ids(read_template(template), sources, tokenizer, limit)
    rows, labels, source_rows, unread = [], [], [], []
    for row, (prompt, targets) in enumerate(zip(prompts, references, strict=True), first_row):
        for ids in tokenizer([f" {text}" for text in targets], add_special_tokens=False, verbose=False)["input_ids"]:
            target = [*ids, tokenizer.eos_token_id][:max_new_tokens]
            unread.append(unread_of_prompts[row - first_row] + max(0, len(ids) + 1 - max_new_tokens))
            rows.append(np.array([*prompt, *target], np.int32))
            labels.append(np.array([NOT_SCORED] * len(prompt) + target, np.int32))
            source_rows.append(row)
    return tokenized_split(
        rows,
        np.array([(label != NOT_SCORED).sum() for label in labels]),
        labels,
        source_rows=np.array(source_rows),
        unread=unread,
    )
