"""Which language a text is in, told by its commonest words: a guess, which is all that the data card needs.

Languages that have a script of their own are told by it (data/quality/card.py); these share one with others.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

WORD = re.compile(r"[^\W\d_]+")
MIN_WORDS = 2  # of a language that a text is in: a single one may be a name, or a letter of a formula


@cache
def languages_by_word() -> dict[str, list[str]]:
    found = defaultdict(list)
    for language, words in json.loads(Path(__file__).with_name("common_words.json").read_text("utf-8")).items():
        for word in words.split():
            found[word].append(language)
    return dict(found)


def language_of(text: str) -> str | None:
    """None where its words tell nothing, or two languages as much."""
    known = languages_by_word()
    counts = Counter(language for word in WORD.findall(text.lower()) for language in known.get(word, ()))
    best = counts.most_common(2)
    if not best or best[0][1] < MIN_WORDS or (len(best) > 1 and best[0][1] == best[1][1]):
        return None
    return best[0][0]


def languages_of(texts: Iterable[str]) -> dict[str, float]:
    """Language -> its share of those texts that tell one, the commonest first."""
    counts = Counter(language for text in texts if (language := language_of(text)))
    return {language: round(count / counts.total(), 4) for language, count in counts.most_common(5)}
