"""Contract review: where in a document each category of clause stands, by a run that tells clauses apart."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from permafrost.data.tokens.windows import room_for
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError
from permafrost.tasks.base import Encoding, stacked
from permafrost.tasks.classification import Classification
from permafrost.tasks.multi_label import MultiLabel

# A passage ends with a line, or with a sentence: a stop or semicolon before a blank and what begins one.
BOUND = re.compile(r"\n\s*|(?<=[.;])\s+(?=[A-Z(\"“\d])")
SHORTEST, LONGEST = 60, 1500  # characters: what is shorter, a heading or a number, goes with what follows it


@dataclass(frozen=True)
class Passage:
    start: int  # characters of the document
    end: int
    text: str


def passages(document: str) -> list[Passage]:
    """The document's sentences and lines in their order; between them stand blanks alone."""
    found, start = [], 0
    for end, following in _bounds(document):
        if end - start >= SHORTEST or following >= len(document):
            found += list(_of_size(document, start, end))
            start = following
    return found


def read_whole(parts: Sequence[Passage], encoding: Encoding) -> list[Passage]:
    """The passages, those of more tokens than the run reads cut at a blank: what is shown as evidence has been read."""
    if not parts:
        return []
    limit = room_for(encoding.max_length - 1, encoding.max_windows)  # and the end of text
    texts = [part.text for part in parts]
    given = encoding.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = []
    for part, offsets in zip(parts, given["offset_mapping"], strict=True):
        if len(offsets) <= limit or len(part.text) == 1:
            found.append(part)
            continue
        read = offsets[limit][0] or 1  # all before the first token that is not read
        end = part.text.rfind(" ", 1, read) if " " in part.text[1:read] else read
        first, rest = part.text[:end].rstrip(), part.text[end:].lstrip()
        cut = [Passage(part.start, part.start + len(first), first), Passage(part.end - len(rest), part.end, rest)]
        found += read_whole([piece for piece in cut if piece.text], encoding)
    return found


def review(
    predictor: Predictor, document: str, *, top: int, min_score: float, categories: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """`{"category", "evidence": [{"start", "end", "text", "score"}]}` for each category, its best passages first.

    `score` is the probability that the run gives the category on the passage; below `min_score` it is no evidence.

    Raises:
        ConfigError: the run does not tell classes of texts apart, or has no such category.
    """
    labels, parts = labels_of_run(predictor), read_whole(passages(document), predictor.encoding)
    if unknown := sorted(set(categories or ()) - set(labels)):
        raise ConfigError(f"the run has no category {unknown[0]!r}; it has {', '.join(labels)}")
    scores = category_scores(predictor, [part.text for part in parts])
    return [
        {"category": label, "evidence": evidence(parts, scores[:, column], top, min_score)}
        for column, label in enumerate(labels)
        if not categories or label in categories
    ]


def evidence(parts: Sequence[Passage], scores: Tensor, top: int, min_score: float) -> list[Mapping[str, Any]]:
    best = scores.topk(min(top, len(parts)))
    return [
        {"start": parts[i].start, "end": parts[i].end, "text": parts[i].text, "score": score}
        for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if score >= min_score
    ]


def category_scores(predictor: Predictor, texts: Sequence[str]) -> Tensor:
    """(texts, categories), probabilities."""
    if not texts:
        return torch.zeros(0, len(labels_of_run(predictor)))
    logits = stacked(predictor.outputs_of(predictor.task.rows_of(texts)))
    return logits.softmax(-1) if isinstance(predictor.task, Classification) else logits.sigmoid()


def labels_of_run(predictor: Predictor) -> list[str]:
    task = predictor.task
    if not isinstance(task, (Classification, MultiLabel)):
        raise ConfigError(f"a review needs a run that classifies texts; this one is of task={task.name}")
    if task.pooling == "pair":
        raise ConfigError("a review needs a run that classifies texts; this one compares two")
    return task.labels


def _bounds(document: str) -> Iterator[tuple[int, int]]:
    """Where each piece ends, and where the next one begins."""
    for found in BOUND.finditer(document):
        yield found.span()
    yield len(document), len(document)


def _of_size(document: str, start: int, end: int) -> Iterator[Passage]:
    """Without blanks at its ends, and cut at blanks where it is longer than LONGEST."""
    while start < end:
        stop = end if end - start <= LONGEST else document.rfind(" ", start, start + LONGEST) + 1 or start + LONGEST
        stop = stop if stop > start else start + LONGEST
        text = document[start:stop]
        inner = text.strip()
        if inner:
            first = start + text.index(inner)
            yield Passage(first, first + len(inner), inner)
        start = stop
