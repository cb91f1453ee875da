"""Changed copies: the same for a seed whatever else happens, valid tags, and never a row that is to be tested on."""

import random
from collections import Counter
from functools import partial

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permafrost.data.fields.by_role import Notes
from permafrost.data.rows import keep
from permafrost.data.transforms import augmentation
from permafrost.data.transforms.augmentation import (
    PUNCTUATION,
    Word,
    aeda,
    augmented,
    changed_row,
    deleted,
    eda,
    inserted,
    joined,
    names_by_type,
    renamed,
    replaced,
    slip,
    swapped,
    typos,
    words_of,
)
from permafrost.data.transforms.related_words import related_words
from permafrost.errors import ConfigError
from permafrost.tasks.spans import spans_of

RELATED = {"sun": ["moon"], "bright": ["light", "clear"]}
SENTENCE = words_of("The bright sun shines on Paris today")
KINDS = {"eda": eda, "aeda": aeda, "typos": typos}


def change_of(kind: str):
    return partial(KINDS[kind], share=0.2, related=RELATED)


def rng(seed: int = 0) -> random.Random:
    return random.Random(seed)


@pytest.fixture
def splits(tmp_path):
    def made(train: list[str], test: list[str] = ()):
        tables = {
            name: pa.table({"where": [f"{name}:{i}" for i in range(len(of))], "text": of, "label": ["a"] * len(of)})
            for name, of in {"train": train, "validation": ["v"], "test": list(test) or ["t"]}.items()
        }
        return {name: keep([table], tmp_path) for name, table in tables.items()}

    return made


@given(st.text(alphabet="ab \n\t", max_size=40))
def test_words_and_what_stands_between_them_are_the_text(text):
    assert joined(words_of(text)) == text.strip()


def test_replacing_takes_related_words_alone():
    made = replaced(SENTENCE, rng(), 5, RELATED)
    assert joined(made) in (
        "The light sun shines on Paris today".replace("sun", "moon"),
        "The clear moon shines on Paris today",
    )


def test_inserting_adds_related_words():
    made = [word.text for word in inserted(SENTENCE, rng(), 2, RELATED)]
    new = Counter(made) - Counter(word.text for word in SENTENCE)
    assert new.total() == 2
    assert set(new) <= {"moon", "light", "clear"}


def test_a_word_before_the_first_one_stands_apart():
    made = {joined(inserted(words_of("clear sun"), rng(seed), 1, RELATED)) for seed in range(20)}
    assert all(len(text.split()) == 3 for text in made)
    assert any(not text.startswith("clear") for text in made)


def test_swapping_keeps_the_words():
    made = [word.text for word in swapped(SENTENCE, rng(1), 1, RELATED)]
    assert Counter(made) == Counter(word.text for word in SENTENCE)
    assert sum(a != b.text for a, b in zip(made, SENTENCE, strict=True)) == 2


def test_deleting_leaves_a_word():
    assert len(deleted(SENTENCE, rng(), 3, RELATED)) == 4
    assert len(deleted(SENTENCE[:2], rng(), 5, RELATED)) == 1


@pytest.mark.parametrize("seed", range(20))
def test_aeda_adds_punctuation_and_nothing_else(seed):
    made = aeda(SENTENCE, rng(seed), 0.3, {})
    added = [word for word in made if word.text in PUNCTUATION]
    assert [word.text for word in made if word.text not in PUNCTUATION] == [word.text for word in SENTENCE]
    assert 1 <= len(added) <= 2  # three tenths of seven words


@pytest.mark.parametrize("seed", range(20))
def test_a_slip_is_one_edit_and_spares_the_first_letter(seed):
    made = slip("bright", rng(seed))
    assert made[0] == "b"
    assert abs(len(made) - 6) <= 1
    assert sorted(made) == sorted("bright") or sum((Counter(made) - Counter("bright")).values()) <= 1


def test_short_words_have_no_slips():
    assert typos(words_of("a sun to me"), rng(), 1.0, {}) == words_of("a sun to me")


TAGGED = st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B"]), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(tags=TAGGED, seed=st.integers(0, 99))
def test_spans_keep_their_words_and_their_tags(kind, tags, seed):
    for place, tag in enumerate(tags):  # as BIO as they come from a reader
        if tag == "I-A" and (place == 0 or tags[place - 1] not in ("B-A", "I-A")):
            tags[place] = "B-A"
    row = {"where": "f:1", "tokens": [f"{'sun' if tag == 'O' else 'Rhine'}" for tag in tags], "tags": tags}
    made = changed_row(row, change_of(kind), seed, 0)
    assert len(made["tokens"]) == len(made["tags"])
    kept = [(kind_of_span, last - first) for kind_of_span, first, last in spans_of(made["tags"])]
    assert kept == [(kind_of_span, last - first) for kind_of_span, first, last in spans_of(tags)]
    if kind != "typos":
        words = [made["tokens"][i] for _, first, last in spans_of(made["tags"]) for i in range(first, last + 1)]
        assert set(words) <= {"Rhine"}


@pytest.mark.parametrize("kind", KINDS)
def test_34_copies_follow_the_rows_and_keep_their_labels(kind, splits):
    texts = [f"the bright sun number {number} shines again" for number in range(30)]
    rows = augmented(splits(texts), kind=kind, copies=2, share=0.2, seed=0, notes=Notes())
    made = list(rows)
    assert [row["text"] for row in made[:30]] == texts
    assert 30 < len(made) <= 90
    assert {row["label"] for row in made} == {"a"}
    assert not {row["text"] for row in made[30:]} & set(texts[:1])
    assert made[30]["where"].endswith(", copy 1")


def test_34_copies_depend_on_the_seed_and_the_row_and_not_on_the_others(splits):
    texts = [f"the bright sun number {number} shines" for number in range(9)]

    def copies(of, seed=0):
        rows = augmented(splits(of), kind="typos", copies=1, share=0.3, seed=seed, notes=Notes())
        return {row["where"]: row["text"] for row in list(rows)[len(of) :]}

    assert copies(texts) == copies(texts)
    assert copies(texts) != copies(texts, seed=1)
    assert set(copies(texts[::-1]).values()) == set(copies(texts).values())


def test_copies_of_one_row_differ(splits):
    rows = list(
        augmented(
            splits(["bright sunny summer morning weather"]), kind="typos", copies=6, share=0.4, seed=0, notes=Notes()
        )
    )
    assert len({row["text"] for row in rows}) > 4


def test_34_no_copy_is_a_row_of_test(splits, monkeypatch):
    monkeypatch.setitem(augmentation.KINDS, "typos", lambda words, rng, share, related: words_of("The test row"))
    rows = augmented(
        splits(["one", "two"], ["the  test row"]), kind="typos", copies=1, share=0.1, seed=0, notes=Notes()
    )
    assert rows.num_rows == 2


def test_weights_go_with_the_rows_that_are_copied(splits):
    import numpy as np

    notes = Notes(row_quality=np.array([0.1, 1.0]))
    rows = augmented(splits(["a", "weather"]), kind="typos", copies=1, share=1.0, seed=0, notes=notes)
    assert rows.num_rows == 3  # "a" has no slip
    assert notes.row_quality.tolist() == [0.1, 1.0, 1.0]


def tagged(directory, *sentences: tuple[str, str]):
    """Of words and tags that are apart by blanks."""
    columns = {"where": [f"f:{i}" for i in range(len(sentences))]}
    columns |= {"tokens": [words.split() for words, _ in sentences], "tags": [tags.split() for _, tags in sentences]}
    return keep([pa.table(columns)], directory)


def test_names_are_those_of_each_type(tmp_path):
    train = tagged(tmp_path, ("New York and Rome", "B-P I-P O B-P"), ("Ann Rome Bo", "B-N B-P B-N"), ("x", "O"))
    assert names_by_type(train) == {"P": ["New York", "Rome", "Rome"], "N": ["Ann", "Bo"]}


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(tags=TAGGED, seed=st.integers(0, 99), share=st.sampled_from([0.1, 0.5, 1.0]))
def test_names_take_the_place_of_names_of_their_type_and_no_other_word_changes(tags, seed, share):
    for place, tag in enumerate(tags):
        if tag == "I-A" and (place == 0 or tags[place - 1] not in ("B-A", "I-A")):
            tags[place] = "B-A"
    words = [Word(f"w{place}", tag) for place, tag in enumerate(tags)]
    made = renamed(words, rng(seed), share, {"A": ["Ann", "Bo van Dyk"], "B": ["Rome", "New York"]})
    spans = spans_of(tags)
    after = [word.tag for word in made]
    assert [kind for kind, *_ in spans_of(after)] == [kind for kind, *_ in spans]
    assert [word for word in made if word.tag == "O"] == [word for word in words if word.tag == "O"]
    names = [" ".join(word.text for word in made[first : last + 1]) for _, first, last in spans_of(after)]
    new = [name for name in names if not name.startswith("w")]
    assert len(new) == min(len(spans), max(1, round(share * len(spans))))
    assert all(
        name in (["Ann", "Bo van Dyk"] if kind == "A" else ["Rome", "New York"])
        for name, (kind, *_) in zip(names, spans, strict=True)
        if not name.startswith("w")
    )


def test_sentences_without_names_have_no_copies(tmp_path):
    rows = {
        "train": tagged(tmp_path, ("Ann sees Bo", "B-N O B-N"), ("nobody is here", "O O O")),
        "validation": tagged(tmp_path, ("v", "O")),
        "test": tagged(tmp_path, ("t", "O")),
    }
    made = list(augmented(rows, kind="mentions", copies=4, share=1.0, seed=0, notes=Notes()))
    assert {tuple(row["tags"]) for row in made[2:]} == {("B-N", "O", "B-N")}
    assert {row["tokens"][1] for row in made[2:]} == {"sees"}


def test_names_of_texts_without_tags_are_refused(splits):
    with pytest.raises(ConfigError, match="augmentation=mentions is for words that are tagged"):
        augmented(splits(["a"]), kind="mentions", copies=1, share=0.1, seed=0, notes=Notes())


def test_rows_without_an_answer_are_refused(tmp_path):
    rows = keep([pa.table({"where": ["f:1"], "source": ["x"], "references": [["y"]]})], tmp_path)
    with pytest.raises(ConfigError, match="augmentation=eda is for texts and words with labels"):
        augmented({"train": rows}, kind="eda", copies=1, share=0.1, seed=0, notes=Notes())


def test_related_words_stand_among_the_same_words():
    rng, texts = random.Random(0), []
    for _ in range(400):
        animal, tool = rng.choice(["cat", "dog", "fox"]), rng.choice(["saw", "drill", "hammer"])
        texts.append(rng.choice([f"the {animal} runs home quickly", f"he uses a {tool} for wood"]))
    related = related_words(texts)
    assert set(related["cat"][:2]) == {"dog", "fox"}
    assert set(related["saw"][:2]) == {"drill", "hammer"}


def test_few_words_have_no_related_ones():
    assert related_words(["a few words", "and no more"]) == {}
