"""Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021, arXiv 1911.00068).

Each training row's class probabilities come from TF-IDF and logistic regression fitted on other rows, by cross-
validation: cheap, and blind to what the run's own model has learned by heart.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from permafrost.data.fields.by_role import Notes
from permafrost.data.problems import Problem
from permafrost.data.quality.duplicates import asked_texts
from permafrost.data.rows import WHERE, StoredRows, select
from permafrost.errors import ConfigError

Splits = dict[str, StoredRows]
FOLDS = 5
WHAT_TO_DO = {
    "report": "look at it; cleaning.wrong_labels=drop leaves such rows out",
    "drop": "it is left out of train",
    "weigh": "it weighs {:.2f} of a row",
}


def judged(splits: Splits, what: Literal["none", "report", "drop", "weigh"], notes: Notes, directory: Path) -> Splits:
    """Tell of training labels that are probably wrong, and leave those rows out, or let them weigh less.

    Raises:
        ConfigError: the rows have not one label each, or cleanlab is not installed.
    """
    if what == "none":
        return splits
    train = splits["train"]
    if "label" not in train.column_names:
        raise ConfigError(f"cleaning.wrong_labels={what} is for rows with one label each; set it to none")
    texts = [text for part in train.slices() for text in asked_texts(part)]
    labels, places = train["label"].to_pylist(), train[WHERE].to_pylist()
    quality, wrong, suggested = label_quality(texts, labels)
    for row in np.flatnonzero(wrong):
        message = f"label {labels[row]!r} is probably wrong, perhaps {suggested[row]!r} (quality {quality[row]:.2f})"
        fix = WHAT_TO_DO[what].format(quality[row])
        notes.log.add(Problem(code="W404", where=places[row], message=message, fix=fix, text=texts[row]))
    notes.add(f"cleaning.wrong_labels={what}: {wrong.sum():,} of {len(labels):,} training labels are probably wrong")
    if what == "drop":
        return splits | {"train": select(train, np.flatnonzero(~wrong), directory)}
    if what == "weigh":
        notes.row_quality = np.where(wrong, quality, 1.0)
    return splits


def label_quality(texts: list[str], labels: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(rows,) how sure each label is, 0 to 1; (rows,) whether it is probably wrong; and each row's likeliest label."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise ConfigError("cleaning.wrong_labels needs cleanlab; pip install -e '.[labels]'") from None

    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < 2:
        rarest = f"{str(classes[counts.argmin()])!r} has one"
        raise ConfigError(f"cleaning.wrong_labels needs two rows of each label at least, and {rarest}; set it to none")
    probabilities = cross_validated(texts, numbers)
    quality = get_label_quality_scores(numbers, probabilities)
    wrong = find_label_issues(numbers, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    return quality, wrong, classes[probabilities.argmax(1)].tolist()


def cross_validated(texts: list[str], labels: np.ndarray) -> Any:
    """(rows, K) probabilities of each row by a model that has not seen it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    folds = min(FOLDS, int(np.bincount(labels).min()))
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=300)
    )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    return cross_val_predict(model, texts, labels, cv=splitter, method="predict_proba")
