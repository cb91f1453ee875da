"""Spans filled and texts there and back: what is kept of a row, whoever writes; the writers are played here."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permafrost.data.transforms.augmentation import words_of
from permafrost.data.transforms.rewriting import MAX_WORDS, filled, gap_in, translated_back, whole_words
from permafrost.tasks.spans import spans_of

TAGS = st.lists(st.sampled_from(["O", "O", "B-A", "I-A", "B-B"]), min_size=1, max_size=12)
TEXT = {"where": "f:1", "text": "one two three\tfour five six seven eight nine ten", "label": "a"}


def new_words(texts, count, rngs):
    """As many new words as are asked for, numbered by each text's own randomness, and one more that is cut off."""
    return [" " + " ".join(f"new{rng.randrange(10**6)}" for _ in range(count)) + " cu" for rng in rngs]


def copy_with(row, continued=new_words, *, share=0.3, seed=0, copy=0):
    (made,) = filled([row], copy, share=share, seed=seed, continued=continued)
    return made


@pytest.mark.parametrize("seed", range(20))
def test_one_span_is_new_and_all_else_stays(seed):
    made = copy_with(TEXT, seed=seed)
    before, after = TEXT["text"].split(), made["text"].split()
    changed = [place for place, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert len(changed) == 3
    assert changed == list(range(changed[0], changed[0] + 3))
    assert changed[0] > 0
    assert made["label"] == "a"
    assert made["where"] == "f:1, copy 1"


def test_the_white_space_around_a_span_stays():
    texts = {copy_with(TEXT, seed=seed, share=0.1)["text"] for seed in range(40)}
    assert all("\t" in text for text in texts)


def test_the_writer_is_given_what_stands_before_the_span():
    asked = []

    def heard(texts, count, rngs):
        asked.extend(texts)
        return new_words(texts, count, rngs)

    made = copy_with(TEXT, heard)
    assert TEXT["text"].startswith(asked[0])
    assert made["text"].startswith(asked[0])


def test_a_copy_depends_on_the_seed_its_number_and_the_row_alone():
    rows = [TEXT, {"where": "f:2", "text": "other words that stand in another row of it"}, TEXT | {"where": "f:3"}]
    here = filled(rows, 0, share=0.3, seed=0, continued=new_words)
    turned = filled(rows[::-1], 0, share=0.3, seed=0, continued=new_words)
    assert here == turned[::-1]
    assert here[0]["text"] == here[2]["text"]
    assert copy_with(TEXT) == here[0]
    assert copy_with(TEXT, copy=1)["text"] != here[0]["text"]
    assert copy_with(TEXT, seed=1)["text"] != here[0]["text"]


@pytest.mark.parametrize("written", ["", "fix", " cut"])
def test_what_is_no_whole_word_changes_nothing(written):
    assert copy_with(TEXT, lambda texts, count, rngs: [written])["text"] == TEXT["text"]


def test_what_stood_there_before_changes_nothing():
    def same(texts, count, rngs):
        rest = TEXT["text"].removeprefix(texts[0])
        return [f" {' '.join(rest.split()[:count]).upper()} and"]

    assert copy_with(TEXT, same)["text"] == TEXT["text"]


def test_both_texts_of_a_pair_are_filled():
    row = TEXT | {"text_pair": "a second text of some words"}
    made = copy_with(row)
    assert made["text"] != row["text"]
    assert made["text_pair"] != row["text_pair"]


def test_one_word_has_no_room():
    assert copy_with(TEXT | {"text": "alone"})["text"] == "alone"


def test_long_texts_have_short_spans():
    gap = gap_in({}, "text", words_of("word " * 500), 0.5, random.Random(0))
    assert gap.count == MAX_WORDS


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        (" one two three", 2, ["one", "two"]),
        (" one two", 2, ["one"]),
        ("ly one two three", 2, ["one", "two"]),
        ("", 2, []),
        (" \n one\n two x", 2, ["one", "two"]),
    ],
)
def test_words_that_are_whole(text, count, words):
    assert whole_words(text, count) == words


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(tags=TAGS, seed=st.integers(0, 99))
def test_spans_keep_their_words_and_their_tags(tags, seed):
    for place, tag in enumerate(tags):  # as BIO as they come from a reader
        if tag == "I-A" and (place == 0 or tags[place - 1] not in ("B-A", "I-A")):
            tags[place] = "B-A"
    row = {"where": "f:1", "tokens": [f"{tag}{place}" for place, tag in enumerate(tags)], "tags": tags}
    made = copy_with(row, seed=seed)
    assert spans_of(made["tags"]) == spans_of(tags)
    for before, after, tag in zip(row["tokens"], made["tokens"], tags, strict=True):
        assert tag == "O" or after == before


def test_texts_come_back_or_stay():
    rows = [TEXT, TEXT | {"text": "lost", "text_pair": "pair"}]
    made = translated_back(rows, 1, round_trip=lambda texts, copy: ["" if t == "lost" else t[::-1] for t in texts])
    assert [row["text"] for row in made] == [TEXT["text"][::-1], "lost"]
    assert made[1]["text_pair"] == "riap"
    assert "text_pair" not in made[0]
    assert made[0]["where"] == "f:1, copy 2"
