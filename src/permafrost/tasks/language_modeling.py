"""Language modelling: each token from those before it, over texts joined end to end and cut into windows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.data.tokens.windows import windows
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
    text_rows,
    tokenized_split,
)
from permafrost.tasks.next_token import next_token_loss_sum
from permafrost.tasks.positions import NOT_SCORED
from permafrost.tasks.prompts import token_ids

SHORT = Decoding(max_new_tokens=128)
BEGINNING = 12  # words of a text that the model is shown to go on with


class LanguageModeling:
    """Rows are windows of up to `max_length` tokens; texts are separated by the end-of-text token.

    `perplexity` is exp of the mean loss per token, each scored once from at least half a window before it:
    comparable between runs of one tokenizer and window, and with nothing else. `word_perplexity` is exp of the same
    sum of losses per word between blanks, ends of texts included: comparable between tokenizers too, on one text.
    """

    name = "language_modeling"
    roles = ("text",)
    metrics_logged: Mapping[str, Mode] = {LOSS: "min", "perplexity": "min", "word_perplexity": "min"}

    def __init__(self, words: Mapping[str, int] | None = None, decoding: Decoding = SHORT):
        self.words, self.decoding = words or {}, decoding  # words of each split that is scored

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "LanguageModeling":
        words = {stage: count_words(splits[stage]) for stage in get_args(Stage)}
        return cls(words, Decoding(**options["decoding"]))

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "LanguageModeling":
        return cls(decoding=Decoding(**description["decoding"]))

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        """A window that a slice begins is filled by the next one."""
        if encoding.evaluates:
            yield sliding_windows(
                np.concatenate([token_stream(rows, encoding) for rows in slices]), encoding.max_length
            )
            return
        left = np.empty(0, np.int32)
        for rows in slices:
            stream = np.concatenate([left, token_stream(rows, encoding)])
            whole = len(stream) // encoding.max_length * encoding.max_length
            yield cut_windows(stream[:whole], encoding.max_length)
            left = stream[whole:]
        yield cut_windows(left, encoding.max_length)

    def build_head(self, backbone: nn.Module) -> nn.Module:
        return TiedHead(backbone.get_submodule("wte"))  # type: ignore[arg-type]

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, None]:
        return next_token_loss_sum(model, batch, loss), None

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        of_tokens = {"perplexity": loss.exp()}
        words = self.words.get(stage)  # of a model that was loaded none are known
        return of_tokens | ({"word_perplexity": (loss * num_targets / words).exp()} if words else {})

    def prompts(self, rows: Sequence[Mapping[str, Any]], encoding: Encoding) -> Prompts:
        """Texts that go on, by half a window at most; of a long one its end is read."""
        tokenizer, half = encoding.tokenizer, encoding.max_length // 2
        decoding = replace(self.decoding, max_new_tokens=min(self.decoding.max_new_tokens, half))
        room = encoding.max_length - decoding.max_new_tokens
        texts = [token_ids(tokenizer, row["text"]) for row in rows]
        ids = [text[-room:] or [tokenizer.eos_token_id] for text in texts]
        return Prompts(ids=ids, unread=[max(0, len(text) - room) for text in texts], decoding=decoding)

    def asked(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Its first words: a whole text has nothing to go on with."""
        return {**row, "text": " ".join(row["text"].split()[:BEGINNING])}

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return text_rows(texts)

    def describe(self) -> dict[str, Any]:
        kind = "language_modeling.LanguageModeling"
        return {"task": self.name, "kind": kind, "decoding": asdict(self.decoding)}


def count_words(rows: Table) -> int:
    return sum(len(text.split()) for text in rows["text"].to_pylist())


def token_stream(rows: pa.Table, encoding: Encoding) -> np.ndarray:
    """(tokens,) int32: the texts end to end, each followed by end of text."""
    ids = encoding.tokenizer(rows["text"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
    ends = np.cumsum([len(text) + 1 for text in ids]) - 1
    stream = np.full(int(ends[-1]) + 1 if len(ends) else 0, encoding.tokenizer.eos_token_id, dtype=np.int32)
    for end, text in zip(ends, ids, strict=True):
        stream[end - len(text) : end] = text
    return stream


def sliding_windows(stream: np.ndarray, max_length: int) -> TokenizedSplit:
    """Every token but the first scored once, from at least half a window of tokens before it."""
    found = [window for window in windows(len(stream), max_length) if window.end - window.start > 1]
    labels = []
    for window in found:
        of_tokens = stream[window.start : window.end].copy()
        of_tokens[: window.scored_from - window.start] = NOT_SCORED
        labels.append(of_tokens)
    targets = np.array([(of_tokens[1:] != NOT_SCORED).sum() for of_tokens in labels])
    return tokenized_split([stream[window.start : window.end] for window in found], targets, labels)


def cut_windows(stream: np.ndarray, max_length: int) -> TokenizedSplit:
    windows = [stream[start : start + max_length] for start in range(0, len(stream), max_length)]
    windows = [window for window in windows if len(window) > 1]  # one token alone predicts nothing
    return tokenized_split(windows, np.array([len(window) - 1 for window in windows]), None)
