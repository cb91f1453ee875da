"""How well a run finds clauses in whole contracts: python benchmarks/contract_review.py RUN

RUN is a run of `python train.py experiment=cuad_clauses`. For each of the 104 test contracts and each category that
people marked in it, the contract's passages are ranked; a hit is the first that shares half of its own or the mark's
characters with a mark. Marks are looked up in the text by their words, whatever white space is between them; a pair of
which none is found is left out, and counted. Beside it stand TF-IDF (cosine with the mean of the category's training
clauses) and a random order. Writes results/contract_review.md, and prints the table and, last, one line of JSON.
"""

import gzip
import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from stated import RESULTS, SHARED, hardware

from permafrost.deployment.predictor import Predictor
from permafrost.deployment.review import Passage, category_scores, labels_of_run, passages

DATA = SHARED / "cuad_clauses"
Marks = Mapping[tuple[str, str], Sequence[str]]  # contract, category -> the clauses that people marked


def main() -> None:
    (run,) = sys.argv[1:]
    predictor = Predictor(run)
    labels, marks = labels_of_run(predictor), marked_clauses(DATA / "test.jsonl")
    tfidf = TfidfRanking(read_lines(DATA / "train.jsonl.gz"), labels)
    ranks: dict[str, list[float]] = defaultdict(list)
    shuffled = np.random.default_rng(0)
    for contract in read_lines(DATA / "contracts_test.jsonl.gz"):
        parts = passages(contract["text"])
        texts = [part.text for part in parts]
        scores = {"this run": category_scores(predictor, texts).numpy(), "TF-IDF": tfidf.scores(texts)}
        scores["chance"] = shuffled.random((len(texts), len(labels)))
        for column, label in enumerate(labels):
            hits = passages_marked(contract["text"], parts, marks.get((contract["contract"], label), ()))
            if hits.any():
                for name, found in scores.items():
                    ranks[name].append(first_rank(found[:, column], hits))
    figures = {name: of_ranks(found) for name, found in ranks.items()}
    write(run, figures, len(ranks["this run"]), len(marks))


def marked_clauses(path: Path) -> Marks:
    marks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in read_lines(path):
        marks[row["contract"], row["category"]].append(row["clause"])
    return marks


def passages_marked(document: str, parts: Sequence[Passage], clauses: Sequence[str]) -> np.ndarray:
    """(passages,) bool"""
    places = [found.span() for clause in clauses if (found := words_of(clause).search(document))]
    return np.array([any(is_hit(part, *place) for place in places) for part in parts], bool)


def words_of(clause: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(map(re.escape, clause.split())))


def is_hit(part: Passage, start: int, end: int) -> bool:
    shared = min(part.end, end) - max(part.start, start)
    return shared >= 0.5 * min(part.end - part.start, end - start)


def first_rank(scores: np.ndarray, hits: np.ndarray) -> int:
    """1 is best; of equal scores a hit comes last."""
    return int((scores >= scores[hits].max()).sum() - (scores[hits] == scores[hits].max()).sum() + 1)


class TfidfRanking:
    def __init__(self, clauses: Sequence[Mapping[str, Any]], labels: Sequence[str]):
        self.vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        features = self.vectorizer.fit_transform([row["clause"] for row in clauses])
        of_label = [np.array([row["category"] == label for row in clauses]) for label in labels]
        self.centres = np.stack([np.asarray(features[rows].mean(axis=0)).ravel() for rows in of_label])
        self.centres /= np.linalg.norm(self.centres, axis=1, keepdims=True)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, labels)"""
        return np.asarray(self.vectorizer.transform(texts) @ self.centres.T)


def of_ranks(ranks: Sequence[float]) -> dict[str, float]:
    found = np.array(ranks)
    at = {f"recall at {k}": float((found <= k).mean()) for k in (1, 5, 20)}
    return {**at, "mean reciprocal rank": float((1 / found).mean()), "median rank": float(np.median(found))}


def read_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(run: str, figures: Mapping[str, Mapping[str, float]], count: int, marked: int) -> None:
    lines = ["# Contract review", "", f"`python benchmarks/contract_review.py {run}`; {hardware()}; {date.today()};"]
    lines += [f"{count:,} of {marked:,} pairs of a test contract and a category that people marked in it.", ""]
    names = list(figures["this run"])
    lines += [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[key]:.3f}' for key in names)} |" for name, row in figures.items()]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "contract_review.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
