"""BIO tags and the spans they tell of: the best valid sequence, and the field's score of it.

S sentences, n words in one, T in the longest, K tags.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

SENTENCES_AT_ONCE = 1024
IMPOSSIBLE = -1e9


def spans_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, last word) of each span in valid BIO tags."""
    found: list[tuple[str, int, int]] = []
    for number, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append((tag[2:], number, number))
        elif tag.startswith("I-"):
            kind, first, _ = found.pop()
            found.append((kind, first, number))
    return found


def best_paths(logits: Sequence[np.ndarray], tags: Sequence[str]) -> list[list[str]]:
    """(n, K) of each sentence -> its likeliest tags of all that are valid BIO (Viterbi 1967, with hard transitions)."""
    order = sorted(range(len(logits)), key=lambda sentence: len(logits[sentence]))
    paths: dict[int, list[str]] = {}
    for start in range(0, len(order), SENTENCES_AT_ONCE):
        chosen = order[start : start + SENTENCES_AT_ONCE]
        for sentence, path in zip(chosen, _viterbi([logits[i] for i in chosen], tags), strict=True):
            paths[sentence] = [tags[tag] for tag in path]
    return [paths[sentence] for sentence in range(len(logits))]


def _viterbi(logits: Sequence[np.ndarray], tags: Sequence[str]) -> list[list[int]]:
    lengths = np.array([len(sentence) for sentence in logits])
    scores = np.zeros((len(logits), max(1, lengths.max()), len(tags)))
    for row, sentence in zip(scores, logits, strict=True):
        row[: len(sentence)] = _log_softmax(sentence)
    transitions = np.where(may_follow(tags), 0.0, IMPOSSIBLE)  # (K before, K after)
    best = scores[:, 0] + np.array([IMPOSSIBLE if tag.startswith("I-") else 0.0 for tag in tags])
    back = np.zeros(scores.shape, np.int64)
    for word in range(1, scores.shape[1]):
        ways = best[:, :, None] + transitions  # (S, K, K)
        back[:, word] = ways.argmax(1)
        reached = ways.max(1) + scores[:, word]
        best = np.where((word < lengths)[:, None], reached, best)
    return [_path(end, back[row, : lengths[row]]) for row, end in enumerate(best.argmax(1).tolist())]


def may_follow(tags: Sequence[str]) -> np.ndarray:
    """(K, K) bool: I- stands only after B- or I- of its own type."""
    return np.array([[after[0] != "I" or before in ("B" + after[1:], after) for after in tags] for before in tags])


def _path(last: int, back: np.ndarray) -> list[int]:
    path = [last] * len(back)
    for word in range(len(back) - 1, 0, -1):
        path[word - 1] = int(back[word, path[word]])
    return path


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True, initial=-np.inf) if len(logits) else logits
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class SpanF1(Metric):
    """Strict span precision, recall and F1 over all sentences and for each type, by seqeval, after best_paths.

    Sentences are put together from windows at the end, so that a span may cross from one to the next.
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]
    places: list[Tensor]

    def __init__(self, tags: Sequence[str]):
        super().__init__()
        self.tags = list(tags)
        for name in ("logits", "labels", "places"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, places: Tensor) -> None:
        """(words, K), (words,) and (words, 3): sentence, window, position."""
        self.logits.append(logits)
        self.labels.append(labels)
        self.places.append(places)

    def compute(self) -> dict[str, Tensor]:
        logits, labels, places = (_joined(state) for state in (self.logits, self.labels, self.places))
        order = np.lexsort(places.T[::-1])
        starts = np.flatnonzero(np.diff(places[order, 0], prepend=-1))[1:]
        predicted = best_paths(np.split(logits[order], starts), self.tags)
        true = [[self.tags[label] for label in sentence] for sentence in np.split(labels[order], starts)]
        return {name: torch.tensor(value) for name, value in span_scores(true, predicted).items()}


def span_scores(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """`span_f1`, `precision`, `recall`, and `span_f1/TYPE` for each type."""
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    report: Any = classification_report(true, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    overall = report["micro avg"]
    scores = {"span_f1": overall["f1-score"], "precision": overall["precision"], "recall": overall["recall"]}
    types = {f"span_f1/{kind}": line["f1-score"] for kind, line in report.items() if not kind.endswith(" avg")}
    return {name: float(score) for name, score in (scores | types).items()}


def _joined(state: list[Tensor] | Tensor) -> np.ndarray:
    return (torch.cat(state) if isinstance(state, list) else state).cpu().numpy()
