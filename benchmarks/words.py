"""What a bag of words is worth by other words, and how many tokens one takes: `python benchmarks/run.py words`."""

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

from materials import MINI
from stated import ROOT, SHARED, publish

from permafrost.data.files.readers import read_rows
from permafrost.data.tokens.tokenization import train_tokenizer
from permafrost.tasks.preparation import load_tokenizer

Split = tuple[list[str], list[str]]  # texts and their labels
DATA = {
    "sst2": ("train.tsv", "dev.tsv", "sentence", "label"),
    "sst5": ("train.jsonl", "dev.jsonl", "text", "label"),
    "ag_news": ("train.csv", "val.csv", "text", "label"),
    "cuad_clauses": ("train.jsonl.gz", "val.jsonl", "clause", "category"),
}
TOKENS = 8_192  # as mini's own


def words() -> None:
    """Validation accuracy of logistic regression over TF-IDF of single units, the better of two values of C: of words,
    of mini's own tokens, and of those that `model.tokenizer=train` learns from the training texts."""
    if not SHARED.is_dir():
        print("words: left out, its data are not beside this clone")
        return
    lines = ["# Bags of words, and of tokens", ""]
    lines += [f"{date.today()}; `python benchmarks/run.py words`: validation accuracy of TF-IDF + logistic regression"]
    lines += ["over single units, C the better of 3 and 30 there, and how many tokens a word of these texts takes.", ""]
    lines += ["| | words | mini's tokens | trained tokens | mini's tokens a word | trained tokens a word |"]
    lines += ["|---" * 6 + "|"]
    figures = {}
    for name, (*files, text, label) in DATA.items():
        train, validation = (read(name, file, text, label) for file in files)
        own, trained = units(load_tokenizer(str(ROOT / MINI))), units(train_tokenizer(train[0], TOKENS, 512))
        scores = [accuracy(train, validation, of_units) for of_units in (None, own, trained)]
        lengths = [per_word(validation[0], of_units) for of_units in (own, trained)]
        figures[name] = {"accuracy": scores, "tokens_per_word": lengths}
        cells = [name, *(f"{score:.3f}" for score in scores), *(f"{length:.2f}" for length in lengths)]
        lines.append("| " + " | ".join(cells) + " |")
    publish("words", lines, figures, kept={"figures": figures})


def read(name: str, file: str, text: str, label: str) -> Split:
    rows = list(read_rows(SHARED / name / file))
    return [str(row[text]) for row in rows], [str(row[label]) for row in rows]


def units(tokenizer: Any) -> Callable[[str], list[str]]:
    """A text's tokens, its first word as any other."""
    return lambda text: tokenizer.backend_tokenizer.encode(f" {text}", add_special_tokens=False).tokens


def accuracy(train: Split, validation: Split, of_units: Callable[[str], list[str]] | None) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=of_units or "word", sublinear_tf=True).fit(train[0])
    features, asked = vectorizer.transform(train[0]), vectorizer.transform(validation[0])
    models = [LogisticRegression(C=c, max_iter=1_000).fit(features, train[1]) for c in (3.0, 30.0)]
    return max(float(model.score(asked, validation[1])) for model in models)


def per_word(texts: Sequence[str], of_units: Callable[[str], list[str]]) -> float:
    return sum(len(of_units(text)) for text in texts) / sum(len(text.split()) for text in texts)
