"""Each step by hand, their order, the counts, and what is never lost: words, tags, and the meaning of code."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permafrost.data.transforms.cleaning import (
    Cleaner,
    Steps,
    even_whitespace,
    mend_encoding,
    without_hidden,
    without_html,
)

ALL = Steps(encoding=True, html=True, unicode="NFC", control=True, boilerplate=["Sent from my \\w+"], whitespace=True)
ORIGINALS = [
    "café", "naïve", "“quoted”", "it\u2019s", "dash \u2013 here", "more…", "Zürich", "São Paulo", "piñata", "10 €",
    "½ cup", "résumé", "Ærø", "žena", "Łódź", "привет", "smörgås", "© 2020", "Dvořák", "20 °C",
]  # fmt: skip


@pytest.mark.parametrize("original", ORIGINALS)
def test_text_read_as_windows_1252_is_mended(original):
    broken = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in original.encode("utf-8"))
    assert broken != original
    assert mend_encoding(broken) == original


def test_what_ftfy_does_not_dare():
    """A blank that is one half of a broken letter may as well be a blank."""
    assert mend_encoding("Å\xa0koda") == "Å\xa0koda"


@pytest.mark.parametrize("text", [*ORIGINALS, "plain", "AT&T", "“as it is”", "中文", "¿Qué?", "Ã"])
def test_text_that_is_right_is_left_alone(text):
    assert mend_encoding(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>one<br/>two</p>", " one two "),
        ("a <b class='x'>bold</b> word", "a  bold  word"),
        ("AT&amp;T &lt;b&gt; &#39;s #39;s quot;x", "AT&T <b> 's 's \"x"),
        ("a < b and b > c <unk> <3", "a < b and b > c <unk> <3"),
        ("x<script>alert('no')</script>y<!-- note -->z", "x y z"),
        ("list: a; b", "list: a; b"),
        ('<a href="x.html" target=_blank>go</a><hr noshade /><INPUT disabled>', " go   "),
        ("if a<b and c>d then x<i and j>y, n<p or q>r", "if a<b and c>d then x<i and j>y, n<p or q>r"),
        ("closes PR #1234; he is #42; she", "closes PR #1234; he is #42; she"),
        ("a new amp; love it, R amp;B", "a new amp; love it, R &B"),
        ("#151;#038; #160;caf#233;", "\u2014& \xa0caf#233;"),
    ],
)
def test_html(text, expected):
    assert without_html(text) == expected


PIECES = st.sampled_from(
    ["<script>", "<STYLE a='b'>", "</script>", "</Style>", "<!--", "-->", "<script", "x", "\n", ">"]
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(PIECES, max_size=12))
def test_what_a_page_does_not_show_is_what_one_pattern_finds(pieces):
    text = "".join(pieces)
    pattern = re.compile(r"<(script|style)\b[^<>]*>.*?</\1>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
    assert without_hidden(text) == pattern.sub(" ", text)


@pytest.mark.parametrize(
    "piece",
    [
        *("<script>", "<!--", "<script ", "<a ", "&#", "\r", " \n", "\u200b", "<style></script>"),
        *(" href='x'", " x=1", " = ", " "),
    ],
)
def test_30_a_long_text_of_any_piece_takes_no_minutes(piece):
    start = time.process_time()
    Cleaner(ALL)({"text": f"a <a{piece * 200_000} b"})
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t b\u00a0c  ", "a b c"),
        ("one  \r\n  two\n\n\n\nthree", "one\ntwo\n\nthree"),
        ("", ""),
    ],
)
def test_white_space(text, expected):
    assert even_whitespace(text) == expected


@given(st.text(alphabet=" a\t\n\r\u00a0\u2003\x1f", max_size=12))
def test_white_space_by_the_shorter_way_is_as_by_the_patterns(text):
    expected = re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\r?\n ?", "\n", re.sub(r"[^\S\n]+", " ", text))).strip()
    assert even_whitespace(text) == expected


def test_patterns_of_boilerplate_have_flags_and_groups_of_their_own():
    steps = Steps(boilerplate=["(?i)SENT from my \\w+", "(\\w)\\1\\1"])
    assert Cleaner(steps)({"text": "so aaa it is; Sent from my phone"})["text"] == "so  it is; "


def test_all_steps_in_their_order_and_counted():
    cleaner = Cleaner(ALL)
    text = "<p>cafÃ©\u200b&nbsp;e\u0301</p>\nSent from my phone"
    assert cleaner({"where": "f:1", "text": text, "label": "a"}) == {"where": "f:1", "text": "café é", "label": "a"}
    assert cleaner({"where": "f:2", "text": "clean"}) == {"where": "f:2", "text": "clean"}
    steps = ("encoding", "html", "unicode", "control", "boilerplate", "whitespace")
    assert cleaner.changed == dict.fromkeys(steps, 1)
    assert list(ALL.functions()) == list(steps)


@pytest.mark.parametrize("step", ["encoding", "html", "unicode", "control", "whitespace"])
def test_each_step_can_be_left_out(step):
    text = "<p>cafÃ©\u200b  e\u0301</p>"
    left = Steps(**{**vars(ALL), "boilerplate": [], step: False or None})
    cleaner = Cleaner(left)
    cleaner({"text": text})
    assert step not in cleaner.changed
    assert len(cleaner.changed) == 4


def test_no_step_is_no_cleaner():
    assert not Cleaner(Steps())
    assert Cleaner(Steps(html=True))


def test_a_row_of_which_nothing_is_left_is_left_out():
    assert Cleaner(ALL)({"text": "<br><br>"}) is None
    assert Cleaner(ALL)({"source": "\u200b", "references": ["x"]}) is None


def test_words_stay_with_their_tags():
    row = {"tokens": ["cafÃ©", "\u200b", "<b>", "New\u00a0York"], "tags": ["B-LOC", "O", "O", "B-LOC"]}
    made = Cleaner(ALL)(row)
    assert made == {"tokens": ["café", "\u200b", "<b>", "New\u00a0York"], "tags": row["tags"]}


def test_code_that_is_to_be_written_keeps_its_signs_and_its_indentation():
    code = "if a < b:\n    return '<p>'  # cafÃ©"
    assert Cleaner(ALL)({"source": "x", "references": [code]})["references"] == ["if a < b:\n    return '<p>'  # café"]


def test_dialogues_keep_their_turns():
    assert Cleaner(ALL)({"turns": ["<b>hi</b>", "<br>"], "acts": ["a", "b"]})["turns"] == ["hi", "<br>"]
