"""What a fine-tuned classifier has to beat, on the same rows: the commonest label, and words with a linear model."""

from collections import Counter
from collections.abc import Mapping

from permafrost.data.rows import StoredRows


def majority_accuracy(splits: Mapping[str, StoredRows]) -> float:
    """Test accuracy of always answering the commonest training label."""
    commonest = Counter(splits["train"]["label"].to_pylist()).most_common(1)[0][0]
    labels = splits["test"]["label"].to_pylist()
    return sum(label == commonest for label in labels) / len(labels)


def tfidf_accuracy(splits: Mapping[str, StoredRows]) -> float:
    """Test accuracy of TF-IDF over words and word pairs with logistic regression, C chosen on validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = {"train": vectorizer.fit_transform(_texts(splits["train"]))}
    features |= {name: vectorizer.transform(_texts(splits[name])) for name in ("validation", "test")}
    labels = {name: table["label"].to_pylist() for name, table in splits.items()}
    models = [LogisticRegression(C=c, max_iter=300).fit(features["train"], labels["train"]) for c in (3.0, 30.0)]
    best = max(models, key=lambda model: model.score(features["validation"], labels["validation"]))
    return float(best.score(features["test"], labels["test"]))


def _texts(table: StoredRows) -> list[str]:
    texts = table["text"].to_pylist()
    if "text_pair" not in table.column_names:
        return texts
    return [f"{first} {second}" for first, second in zip(texts, table["text_pair"].to_pylist(), strict=True)]
