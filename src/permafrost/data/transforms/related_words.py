"""Words that stand among the same words in the training rows: a list of synonyms, of sorts, without a download."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

VOCABULARY, CONTEXTS, MIN_COUNT = 3_000, 1_000, 3
WINDOW, DIMENSIONS = 2, 50
RELATED, MIN_COSINE = 5, 0.4


def related_words(texts: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """Lower-case word -> up to five others, the nearest first.

    Nearness is the cosine of positive pointwise mutual information with the words around, reduced to 50 dimensions
    (Levy and Goldberg 2014, section 3.2). None where the texts have too few words for it.
    """
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD

    sentences = [text.lower().split() for text in texts]
    counts = Counter(word for sentence in sentences for word in sentence if word.isalpha())
    words = [word for word, count in counts.most_common(VOCABULARY) if count >= MIN_COUNT]
    if len(words) < 2 * RELATED:
        return {}
    number = {word: index for index, word in enumerate(words)}
    gap = [""] * WINDOW  # so that no sentence is the next one's context
    ids = np.array([number.get(word, -1) for sentence in sentences for word in (*sentence, *gap)])
    rows, columns = _neighbours(ids, min(CONTEXTS, len(words)))
    together = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(words), len(words)))
    weights = _positive_information(together)
    dimensions = min(DIMENSIONS, len(words) - 1)
    vectors = TruncatedSVD(dimensions, random_state=0).fit_transform(weights)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    return {word: near for word, near in zip(words, _nearest(vectors, words), strict=True) if near}


def _neighbours(ids: np.ndarray, contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each word with each of the commonest words within WINDOW of it."""
    pairs = []
    for distance in range(1, WINDOW + 1):
        before, after = ids[:-distance], ids[distance:]
        pairs += [(before, after), (after, before)]
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    known = (rows >= 0) & (columns >= 0) & (columns < contexts)
    return rows[known], columns[known]


def _positive_information(together):
    total = together.sum()
    of_row, of_column = np.asarray(together.sum(1)).ravel(), np.asarray(together.sum(0)).ravel()
    weights = together.tocoo()
    expected = of_row[weights.row] * of_column[weights.col] / total
    weights.data = np.maximum(0, np.log(weights.data / expected))
    return weights.tocsr()


def _nearest(vectors: np.ndarray, words: Sequence[str]) -> list[list[str]]:
    found = []
    for start in range(0, len(words), 500):
        cosines = (vectors[start : start + 500] @ vectors.T).round(4)  # the last digits are the machine's
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -1
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :RELATED]
        found += [
            [words[other] for other in near if of_word[other] >= MIN_COSINE]
            for of_word, near in zip(cosines, order, strict=True)
        ]
    return found
