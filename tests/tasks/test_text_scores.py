"""Scores of written texts are those of the field's own programs, and of small cases by hand."""

import json
import subprocess
import sys

import pytest

from permafrost.tasks.text_scores import distinct, is_match, parses_as_python, rouge_l, signatures, text_scores

WRITTEN = ["the cat sat on the mat", "it is raining again today", "nothing", ""]
REFERENCES = [
    ["the cat is on the mat", "there is a cat on the mat"],
    ["it rains again today"],
    ["nothing", "nothing at all", "none"],
    ["something"],
]


def sacrebleu_command(tmp_path, metric: str) -> float:
    """The program itself, which reads a file of references for each place, blank where there is none."""
    (tmp_path / "written.txt").write_text("".join(f"{text}\n" for text in WRITTEN))
    for place in range(3):
        lines = [row[place] if place < len(row) else "" for row in REFERENCES]
        (tmp_path / f"{place}.txt").write_text("".join(f"{line}\n" for line in lines))
    command = [sys.executable, "-m", "sacrebleu", *(str(tmp_path / f"{place}.txt") for place in range(3))]
    command += ["-i", str(tmp_path / "written.txt"), "-m", metric, "-w", "6"]
    ran = subprocess.run(command, capture_output=True, text=True)
    return json.loads(ran.stdout)["score"]


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_bleu_and_chrf_are_sacrebleus_own_commands(metric, tmp_path):
    assert text_scores(WRITTEN, REFERENCES)[metric] == pytest.approx(sacrebleu_command(tmp_path, metric), abs=1e-5)


def test_signatures_say_how():
    signed = signatures(WRITTEN, REFERENCES)
    assert "tok:13a" in signed["bleu"]
    assert "version:" in signed["chrf"]


def test_rouge_l_by_hand():
    """The longest common subsequence of 5 of 6 words, in both directions: F1 of 5/6 and 5/6."""
    assert rouge_l(["the cat sat on the mat"], [["the cat is on the mat"]]) == pytest.approx(5 / 6)
    assert rouge_l(["a b"], [["x y", "a b"]]) == 1


def test_distinct_by_hand():
    assert distinct(["a b a", "b"], 1) == 2 / 4
    assert distinct(["a b a", "b"], 2) == 2 / 2
    assert distinct(["", "a"], 2) == 0


def test_a_match_is_exact_but_for_its_ends():
    assert is_match(" yes\n", ["no", "yes"])
    assert not is_match("Yes", ["yes"])
    assert text_scores(WRITTEN, REFERENCES)["exact_match"] == 0.25


@pytest.mark.parametrize(
    ("text", "parses"),
    [("x = 1", True), ("def f(:", False), ("", False), ("   ", False), ("a\x00b", False), ("'\\d'", True)],
)
def test_what_parses_as_python(text, parses):
    assert parses_as_python(text) is parses


def test_rouge_knows_words_of_any_script():
    assert rouge_l(["ein schöner Tag"], [["ein schöner Tag"]]) == 1.0
    assert rouge_l(["ein schäner Tag"], [["ein schöner Tag"]]) == pytest.approx(2 / 3)  # a word of three is another
    assert rouge_l(["की"], [["का"]]) == 0.0  # a vowel's sign is part of its word
    assert rouge_l(["scho\u0308ner"], [["schöner"]]) == 1.0
    assert rouge_l(["日本 語"], [["日本 語"]]) == 1.0
    assert rouge_l(["The cat's mat_2"], [["the cat s mat 2"]]) == 1.0  # as rouge_score's own, of these letters
