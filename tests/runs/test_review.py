"""A document's passages are its text with exact places, and a review ranks them as the run scores them."""

import json
import random

import pytest
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.deployment.predictor import Predictor
from permafrost.deployment.review import LONGEST, passages, read_whole, review
from permafrost.errors import ConfigError
from permafrost.tasks.base import Encoding

HEADING = "1. TERM"
FIRST = "This Agreement begins on the Effective Date and goes on for two (2) years."
SECOND = "Either party may end it by a notice of thirty days; no cause is needed for that."
DOCUMENT = f"  {HEADING}\n\n{FIRST} {SECOND}\nGoverning law: the laws of the State of Delaware apply to all of it."


def test_passages_by_hand():
    found = passages(DOCUMENT)
    assert [part.text for part in found] == [
        f"{HEADING}\n\n{FIRST}",  # a heading goes with what it heads
        SECOND,
        "Governing law: the laws of the State of Delaware apply to all of it.",
    ]


@pytest.mark.parametrize("seed", range(20))
def test_places_are_exact_and_nothing_is_left_out(seed):
    rng = random.Random(seed)
    pieces = ["Word", " ", "\n", ". ", "; ", "(a) ", "\r\n", "é", "🦊", "x" * 40, " and so on", "\t", "y" * 1700]
    document = "".join(rng.choices(pieces, k=rng.randint(0, 120)))
    found = passages(document)
    assert all(document[part.start : part.end] == part.text == part.text.strip() != "" for part in found)
    assert all(len(part.text) <= LONGEST for part in found)
    assert "".join("".join(part.text.split()) for part in found) == "".join(document.split())
    assert [part.start for part in found] == sorted(part.start for part in found)


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("text", ["warm " * 60, "日本語" * 30, "🎉" * 30, "x", "a " * 9])
def test_a_passage_is_no_longer_than_what_the_run_reads(tiny_tokenizer, text, windows):
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=12, max_windows=windows)
    found = read_whole(passages(text), encoding)
    limit = 11 if windows == 1 else 11 + 2 * 10
    assert all(len(tiny_tokenizer(part.text)["input_ids"]) <= limit for part in found)
    assert all(text[part.start : part.end] == part.text == part.text.strip() != "" for part in found)
    assert "".join("".join(part.text.split()) for part in found) == "".join(text.split())


def test_a_review_ranks_passages_by_the_runs_own_scores(finished_run):
    predictor = Predictor(finished_run[1])
    lines = ["sunny hot warm bright " * 4, "snow cold frost ice " * 4, "hot hot cold warm sunny " * 4]
    document = "\n".join(lines)
    by_category = {found["category"]: found["evidence"] for found in review(predictor, document, top=9, min_score=0)}
    assert by_category.keys() == {"cold", "warm"}
    for category, evidence in by_category.items():
        assert [found["score"] for found in evidence] == sorted((found["score"] for found in evidence), reverse=True)
        for found in evidence:
            assert document[found["start"] : found["end"]] == found["text"]
            answer = predictor.predict([found["text"]])[0]
            score = answer["score"] if answer["label"] == category else 1 - answer["score"]
            assert found["score"] == pytest.approx(score, abs=1e-5)


def test_what_is_below_the_threshold_is_no_evidence(finished_run):
    predictor = Predictor(finished_run[1])
    found = review(predictor, "snow cold frost ice " * 4, top=3, min_score=0.5)
    assert sorted(len(category["evidence"]) for category in found) == [0, 1]


def test_an_unknown_category_and_a_run_that_does_not_classify_are_told(finished_run, run_tiny):
    with pytest.raises(ConfigError, match="the run has no category 'hot'; it has cold, warm"):
        review(Predictor(finished_run[1]), "text", top=1, min_score=0, categories=["hot"])
    _, run_dir = run_tiny("task=regression", "data.columns.target=score", "trainer.max_epochs=1")
    with pytest.raises(ConfigError, match="this one is of task=regression"):
        review(Predictor(run_dir), "text", top=1, min_score=0)


def test_the_command_prints_a_line_for_each_category(finished_run, tmp_path):
    (tmp_path / "contract.txt").write_text("snow cold frost ice " * 4, "utf-8")
    done = CliRunner().invoke(
        app, ["review", str(finished_run[1]), str(tmp_path / "contract.txt"), "--category", "cold"]
    )
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["category"] == "cold"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"\xff\xfe", "not UTF-8 at byte 0"), (b" \n", "has no text")]
)
def test_a_document_that_cannot_be_read_is_told(finished_run, tmp_path, content, message):
    path = tmp_path / "contract.txt"
    if content is not None:
        path.write_bytes(content)
    done = CliRunner().invoke(app, ["review", str(finished_run[1]), str(path)])
    assert message in str(done.exception)
