"""What the field reports of written texts, by its own programs: sacrebleu, torchmetrics' ROUGE, and counts."""

import ast
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from permafrost.tasks.base import Mode

SCORES: Mapping[str, Mode] = {
    "bleu": "max",
    "chrf": "max",
    "rouge_l": "max",
    "exact_match": "max",
    "distinct_1": "max",
    "distinct_2": "max",
}


def text_scores(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF from 0 to 100, as sacrebleu prints them; the others from 0 to 1.

    `references` has one or more for each text. BLEU (Papineni et al. 2002), chrF (Popovic 2015), ROUGE-L (Lin 2004,
    the best of the references), distinct-n (Li et al. 2016).
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    streams = list(zip_longest(*references))  # the first of each row, the second of each, None where there is none
    return {
        "bleu": BLEU().corpus_score(written, streams).score,
        "chrf": CHRF().corpus_score(written, streams).score,
        "rouge_l": rouge_l(written, references),
        "exact_match": sum(map(is_match, written, references)) / len(written),
        "distinct_1": distinct(written, 1),
        "distinct_2": distinct(written, 2),
    }


def signatures(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, str]:
    """How sacrebleu computed, in its own notation: references, case, tokenizer, smoothing and version."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    streams, signed = list(zip_longest(*references)), {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metric.corpus_score(written, streams)
        signed[name] = str(metric.get_signature())
    return signed


def rouge_l(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Words are runs of letters, their marks and digits of any script; the program's own are of a to z and 0 to 9."""
    from torchmetrics.functional.text import rouge_score

    given = [list(row) for row in references]
    how: Any = {"accumulate": "best", "rouge_keys": "rougeL", "normalizer": only_words}
    return float(rouge_score(list(written), given, **how)["rougeL_fmeasure"])


def only_words(text: str) -> str:
    return "".join(char if is_of_word(char) else " " for char in unicodedata.normalize("NFC", text.lower()))


def is_of_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")


def is_match(text: str, references: Sequence[str]) -> bool:
    return text.strip() in [reference.strip() for reference in references]


def distinct(written: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams."""
    grams = [gram for words in map(str.split, written) for gram in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def parses_as_python(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the code that is parsed
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False
    return bool(text.strip())
