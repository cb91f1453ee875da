"""What a fine-tuned model has to beat, on the same rows and by the same scores: answers that need no GPT-2."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from permafrost.data.fields.roles import to_bio
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.tasks.base import Table, Task, WritesAnswers
from permafrost.tasks.dialogue import Dialogue
from permafrost.tasks.multi_label import best_thresholds, label_scores
from permafrost.tasks.positions import NOT_SCORED
from permafrost.tasks.spans import span_scores
from permafrost.tasks.text_scores import text_scores

Splits = Mapping[str, Table]
TFIDF: Mapping[str, Any] = {"ngram_range": (1, 2), "sublinear_tf": True}
Scores = dict[str, float]  # "METRIC of what answers" -> its test score


def yardsticks_of(task: Task, splits: Splits) -> Scores:
    """Those of the task's kind, told by what its rows hold; none for a language model, which has the next one."""
    if isinstance(task, WritesAnswers):
        splits = {"test": as_asked(task, splits["test"])}
    return YARDSTICKS[task.roles[-1]](splits) if task.roles[-1] in YARDSTICKS else {}


def as_asked(task: WritesAnswers, rows: Table) -> pa.Table:
    """The rows that it is scored on."""
    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    given = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(task, Dialogue):  # one in which nobody replies is not scored
        given = [row for row in given if any(task.are_replies(row))]
    return pa.Table.from_pylist([dict(task.asked(row)) for row in given])


def of_next_tokens(train: TokenizedSplit, test: TokenizedSplit) -> Scores:
    """Each token foretold by how often it was one to foretell in train, whatever stands before it; add-one smoothed."""
    learned, asked = scored_tokens(train), scored_tokens(test)
    counts = np.bincount(learned, minlength=int(asked.max(initial=0)) + 1) + 1.0
    return {"perplexity of token frequencies": float(np.exp(-np.log(counts[asked] / counts.sum()).mean()))}


def scored_tokens(split: TokenizedSplit) -> np.ndarray:
    """(targets,) all but each row's first token, or those that have a label."""
    of_rows = split.input_ids if split.labels is None else split.labels
    tokens = np.concatenate([of_rows[row][1:] for row in range(len(split))])
    return tokens[tokens != NOT_SCORED]


def of_labels(splits: Splits) -> Scores:
    majority = {"accuracy of the majority label": majority_accuracy(splits)}
    if not have_words(splits["train"]):
        return majority
    return majority | {"accuracy of TF-IDF + logistic regression": tfidf_accuracy(splits)}


def majority_accuracy(splits: Splits) -> float:
    """Test accuracy of always answering the commonest training label."""
    commonest = Counter(splits["train"]["label"].to_pylist()).most_common(1)[0][0]
    labels = splits["test"]["label"].to_pylist()
    return sum(label == commonest for label in labels) / len(labels)


def tfidf_accuracy(splits: Splits) -> float:
    """Test accuracy of TF-IDF over words and word pairs with logistic regression, C chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    features = tfidf(splits)
    labels = {name: splits[name]["label"].to_pylist() for name in splits}
    models = [LogisticRegression(C=c, max_iter=300).fit(features["train"], labels["train"]) for c in (3.0, 30.0)]
    best = max(models, key=lambda model: model.score(features["validation"], labels["validation"]))
    return float(best.score(features["test"], labels["test"]))


def of_label_lists(splits: Splits) -> Scores:
    """One logistic regression for each label, its threshold chosen on validation as the task's are."""
    import torch
    from sklearn.linear_model import LogisticRegression

    if not have_words(splits["train"]):
        return {}
    names = sorted({label for row in splits["train"]["labels"].to_pylist() for label in row})
    features, true = tfidf(splits), {name: _indicators(splits[name], names) for name in splits}
    probabilities: dict[str, list[np.ndarray]] = defaultdict(list)
    for column in range(len(names)):
        model = LogisticRegression(C=30.0, max_iter=300, class_weight="balanced")
        always = bool(true["train"][:, column].all())  # then there is nothing to tell apart
        if not always:
            model.fit(features["train"], true["train"][:, column])
        for name in ("validation", "test"):
            count = splits[name].num_rows
            probabilities[name].append(np.ones(count) if always else model.predict_proba(features[name])[:, 1])
    scores = {name: torch.from_numpy(np.stack(columns, axis=1)) for name, columns in probabilities.items()}
    thresholds = best_thresholds(scores["validation"], torch.from_numpy(true["validation"].astype(np.float32)))
    found = label_scores((scores["test"] >= thresholds).numpy(), true["test"], names)
    return {f"{metric} of TF-IDF + logistic regression": found[metric] for metric in ("f1_macro", "f1_micro")}


def _indicators(rows: Table, names: Sequence[str]) -> np.ndarray:
    """(rows, labels) bool"""
    return np.array([[name in given for name in names] for given in rows["labels"].to_pylist()])


def of_numbers(splits: Splits) -> Scores:
    """The mean of the training rows; and for pairs, how alike their words are."""
    train, test = (splits[name]["target"].to_numpy() for name in ("train", "test"))
    scores = {"rmse of the training mean": float(np.sqrt(np.mean((test - train.mean()) ** 2)))}
    if not has_pairs(splits["test"]) or not have_words(splits["train"]):
        return scores
    first, second = (tfidf(splits, column)["test"] for column in ("text", "text_pair"))
    cosines = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    return scores | {"pearson of the TF-IDF cosine": float(np.corrcoef(cosines, test)[0, 1])}


def of_tags(splits: Splits) -> Scores:
    """Each word's commonest training tag, O for a word that was never seen."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for tokens, tags in zip(splits["train"]["tokens"].to_pylist(), splits["train"]["tags"].to_pylist(), strict=True):
        for token, tag in zip(tokens, tags, strict=True):
            seen[token][tag] += 1
    commonest = {token: tags.most_common(1)[0][0] for token, tags in seen.items()}
    answers = [to_bio([commonest.get(token, "O") for token in row]) for row in splits["test"]["tokens"].to_pylist()]
    return {"span_f1 of each word's commonest tag": span_scores(splits["test"]["tags"].to_pylist(), answers)["span_f1"]}


def of_acts(splits: Splits) -> Scores:
    """Of each turn alone, without those before it."""
    turns = {name: _by_turn(rows) for name, rows in splits.items()}
    return of_labels(turns)


def _by_turn(rows: Table) -> Table:
    columns = {"text": rows["turns"], "label": rows["acts"]}
    return pa.table({name: [one for row in column.to_pylist() for one in row] for name, column in columns.items()})


def of_texts(splits: Splits) -> Scores:
    """The source itself."""
    return _copied(splits["test"]["source"].to_pylist(), splits["test"]["references"].to_pylist(), "the source itself")


def of_turns(splits: Splits) -> Scores:
    """The turn before."""
    if not splits["test"].num_rows:
        return {}
    turns = splits["test"]["turns"].to_pylist()
    return _copied(["".join(row[-2:-1]) for row in turns], [[row[-1]] for row in turns], "the turn before")


def _copied(written: Sequence[str], references: Sequence[Sequence[str]], what: str) -> Scores:
    scores = text_scores(written, references)
    return {f"{metric} of {what}": scores[metric] for metric in ("bleu", "chrf")}


def tfidf(splits: Splits, column: str | None = None) -> dict[str, Any]:
    """Sparse features of each split, fitted on train: of one column, or of all that a row says."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**TFIDF)
    vectorizer.fit(_texts(splits["train"], None))
    return {name: vectorizer.transform(_texts(splits[name], column)) for name in splits}


def have_words(rows: Table) -> bool:
    """Whether any text has a word, as TF-IDF knows them: of two letters or more."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return any(map(TfidfVectorizer(**TFIDF).build_analyzer(), _texts(rows, None)))


def _texts(rows: Table, column: str | None) -> list[str]:
    if column:
        return rows[column].to_pylist()
    texts = rows["text"].to_pylist()
    if not has_pairs(rows):
        return texts
    return [f"{first} {second}" for first, second in zip(texts, rows["text_pair"].to_pylist(), strict=True)]


def has_pairs(rows: Table) -> bool:
    return "text_pair" in rows.column_names


# by the role that answers
YARDSTICKS: Mapping[str, Callable[[Splits], Scores]] = {
    "label": of_labels,
    "labels": of_label_lists,
    "number": of_numbers,
    "tagged": of_tags,
    "acts": of_acts,
    "references": of_texts,
    "turns": of_turns,
}
