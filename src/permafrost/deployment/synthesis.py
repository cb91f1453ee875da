"""New rows where there are few: one run writes them for each label, another says which of them it believes.

After LAMBADA (Anaby-Tavor et al. 2020, arXiv 1911.03118, section 3): the writer was trained on `label -> text`, the
judge on `text -> label`, both on the rows there are.

A writer of few rows soon knows them by heart: what is a training row, or nearly one, adds nothing and is refused.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from permafrost.data.quality import minhash
from permafrost.data.quality.duplicates import SIMILARITY, normalized
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError
from permafrost.tasks.base import Writes
from permafrost.tasks.classification import Classification

ORIGIN = "synthetic"
LOST = "\ufffd"  # what tokens that are half a character are decoded to


def synthesize(
    writer: Predictor, judge: Predictor, known: Iterable[str], *, per_label: int, candidates: int, seed: int
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Up to `per_label` rows of each label, the surest first, of `candidates` times as many that were written; and how
    many candidates were refused, by why. `known` are the training texts, which no row repeats or nearly repeats.

    Raises:
        ConfigError: the writer writes nothing, or always the same; the judge does not tell labels.
    """
    import torch

    check(writer, judge)
    torch.manual_seed(seed)
    seen, rows, refused = dict.fromkeys(map(normalized, known)), list[dict[str, Any]](), Counter[str]()
    for label in judge.task.labels:  # type: ignore[attr-defined]
        written = writer.answer([{"source": label}] * (per_label * candidates))
        texts = new_texts([answer["text"].strip() for answer in written], seen, refused)
        believed = [
            {"text": text, "label": label, "score": answer["score"], "origin": ORIGIN}
            for text, answer in zip(texts, judge.predict(texts) if texts else [], strict=True)
            if answer["label"] == label
        ]
        refused["of another label"] += len(texts) - len(believed)
        ordered = sorted(believed, key=lambda row: -row["score"])
        refused["less sure"] += len(ordered[per_label:])
        rows += ordered[:per_label]
    return rows, refused


def check(writer: Predictor, judge: Predictor) -> None:
    if not isinstance(writer.task, Writes) or "source" not in writer.task.roles:
        raise ConfigError(
            "the first run has to write texts from labels: "
            "task=generation data.columns.source=label data.columns.target=text task.decoding.do_sample=true"
        )
    if not writer.task.describe()["decoding"]["do_sample"]:
        raise ConfigError("the first run writes the same text each time; train it with task.decoding.do_sample=true")
    if not isinstance(judge.task, Classification):
        raise ConfigError("the second run has to tell labels: task=classification")
    if judge.task.pooling == "pair":
        raise ConfigError("the second run compares two texts; give one that tells labels of single ones")


def new_texts(texts: Sequence[str], seen: dict[str, Any], refused: Counter[str]) -> list[str]:
    """Those that are none of the `seen` and nearly none of them, which they join."""
    found: dict[str, str] = {}
    for text in texts:
        key = normalized(text)
        if not key:
            refused["empty"] += 1
        elif LOST in text or "\0" in text:
            refused["with half a character"] += 1
        elif key in seen or key in found:
            refused["written before, or a training row"] += 1
        else:
            found[key] = text
    near = near_earlier([*seen, *found])
    new = {key: text for place, (key, text) in enumerate(found.items(), len(seen)) if place not in near}
    refused["nearly one of those"] += len(found) - len(new)
    seen |= dict.fromkeys(new)
    return list(new.values())


def near_earlier(texts: Sequence[str]) -> set[int]:
    """Places of texts that are nearly an earlier one, as near copies of rows are found."""
    pairs = minhash.candidates(minhash.band_keys(texts)).tolist() if texts else []
    compared = {place: texts[place] for pair in pairs for place in pair}
    within, _ = minhash.alike(compared, pairs, SIMILARITY)
    return set(within)
