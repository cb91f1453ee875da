"""`permafrost check-data`: planted faults are told by code, place and fix; no file ends in a traceback."""

import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.data.problems import CODES, LEAKS_ALLOWED
from permafrost.data.quality.card import drawn_lines, token_figures
from permafrost.errors import ConfigError
from permafrost.runs.check import check_data, report_lines
from permafrost.settings.config import read_data_settings
from permafrost.settings.schema import DataSettings
from permafrost.tasks.binding import kind_of
from permafrost.tasks.declared import declared_roles
from tests.planted import (
    CSV,
    DIALOGUES,
    FAULTS,
    HELD_OUT,
    JSONL,
    LISTS,
    PAIRS,
    SENTENCES,
    TARGETS,
    WHOLE,
    Fault,
    as_csv,
    as_parquet,
    labelled,
    texts,
)
from tests.runs.conftest import CONF, ROOT, compose_config

SPLITS = ("train", "validation", "test")


@cache
def settings_of(task: str) -> DataSettings:
    return read_data_settings(compose_config("data=files", f"task={task}", "data.train=train.csv"))


def checked(directory: Path, task: str | DataSettings, files: dict[str, str | bytes], train: str | None = None, **data):
    """The card, all problems as check-data writes them down, and the log."""
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    paths = {name: str(next(directory.glob(f"{name}.*"), directory / name)) for name in SPLITS}
    paths["train"] = str(directory / train) if train else paths["train"]
    asked = settings_of(task) if isinstance(task, str) else task
    section = asked.data.model_copy(update=paths | {"cache_dir": str(directory / "cache")} | data)
    card, log = check_data(asked.model_copy(update={"data": section}), directory / "problems.jsonl")
    lines = (directory / "problems.jsonl").read_text("utf-8").splitlines()
    return card, [json.loads(line) for line in lines], log


def files_of(fault: Fault) -> dict[str, str | bytes]:
    """The fault's own, and those of the other splits."""
    own = {name.split(".")[0] for name in fault.files}
    others = {name: content for name, content in WHOLE[fault.task].items() if name.split(".")[0] not in own}
    if fault.named or "train" in own or "trian" in own:
        others = {name: content for name, content in others.items() if not name.startswith("train")}
    return others | fault.files


def test_there_are_forty_and_nearly_every_code_is_planted():
    assert len(FAULTS) >= 40
    assert CODES.keys() - {fault.code for fault in FAULTS} == {
        "E205",
        "E503",
        "E505",
        "W404",
    }  # below, and in test_wrong_labels


@pytest.mark.parametrize("task", WHOLE)
def test_files_without_a_fault_have_no_error(task, tmp_path):
    card, problems, _ = checked(tmp_path, task, WHOLE[task])
    assert [problem for problem in problems if problem["severity"] == "error"] == []
    assert card["rows"]["validation"] > 0


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_24_to_31_a_planted_fault_is_told_with_its_place_and_its_fix(fault, tmp_path):
    _, problems, log = checked(tmp_path, fault.task, files_of(fault), fault.named)
    found = [problem for problem in problems if problem["code"] == fault.code]
    assert len(found) == 1, problems
    assert found[0]["where"].endswith(fault.place)
    assert bool(found[0]["where"]) == bool(fault.place)
    assert fault.fix in found[0]["fix"]
    if fault.place and fault.code not in ("E101", "E102", "E103"):  # which are of no row
        assert found[0]["excerpt"].strip()
    if fault.code.startswith("E"):
        assert {problem["code"] for problem in problems if problem["severity"] == "error"} == {fault.code}
        assert log.errors == 1


def test_every_problem_of_a_file_is_told_in_one_pass(tmp_path):
    lines = CSV.encode().split(b"\n")
    lines[2:6] = [b"a,b,c", b"caf\xe9,warm", b'"open,warm', b"words,"]
    _, problems, _ = checked(tmp_path, "classification", WHOLE["classification"] | {"train.csv": b"\n".join(lines)})
    told = [(problem["code"], problem["where"][-1]) for problem in problems if problem["severity"] == "error"]
    assert told == [("E201", "3"), ("E104", "4"), ("E202", "5"), ("E401", "6")]


def test_the_screen_has_the_first_of_each_code_and_the_file_has_all(tmp_path):
    faulty = CSV + "".join(f"{text},\n" for text in texts(30, 400))
    card, problems, log = checked(tmp_path, "classification", WHOLE["classification"] | {"train.csv": faulty})
    assert sum(problem["code"] == "E401" for problem in problems) == log.counts["E401"] == 30
    lines = list(report_lines(card, log, tmp_path / "problems.jsonl"))
    assert sum("no label in column" in line for line in lines) == 20
    assert "  and 10 more" in lines
    assert card["rows"]["train"] == 12  # the others were looked at all the same


def test_half_a_character_beside_the_text_can_be_shown(tmp_path):
    train = "\n".join([JSONL, '{"text": "", "label": "\\ud83d"}', '{"text": "words", "more": "\\ud83d"}'])
    card, _, log = checked(tmp_path, "classification", WHOLE["classification"] | {"train.jsonl": train}, "train.jsonl")
    lines = [line for line in report_lines(card, log, tmp_path) if "[" in line]
    assert [line.partition("[")[2] for line in lines] == ["words | \\ud83d]", " | \\ud83d]"]
    assert "\n".join(lines).encode()


def test_texts_too_long_to_read_or_to_write(tmp_path):
    long = [{"source": "sun " * 700, "target": "short"}, {"source": "short", "target": ["one", "ice " * 700]}]
    train = "\n".join([PAIRS, *map(json.dumps, long)])
    _, problems, _ = checked(tmp_path, "generation", WHOLE["generation"] | {"train.jsonl": train})
    told = [(problem["where"], problem["message"].partition("tokens ")[2]) for problem in problems]
    kept = settings_of("generation").task.decoding.max_new_tokens
    assert told == [
        ("train.jsonl:13", f"to read, and there is room for {512 - kept}"),
        ("train.jsonl:14", f"to write, and there is room for {kept - 1}"),
    ]
    assert all(problem["code"] == "W401" and "task.decoding.max_new_tokens=" in problem["fix"] for problem in problems)


def test_of_several_windows_only_what_is_longer_is_cut(tmp_path):
    asked = settings_of("classification")
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"max_windows": 3})})
    rows = [*labelled(12), ("sun " * 300, "warm"), ("sun " * 2000, "warm")]
    _, problems, _ = checked(tmp_path, asked, WHOLE["classification"] | {"train.csv": as_csv(rows)})
    (told,) = [problem for problem in problems if problem["code"] == "W401"]
    assert told["where"] == "train.csv:15"
    room = 511 + 2 * (511 - 511 // 8)
    assert told["message"].endswith(f"and the model reads {room:,} of a row")
    assert told["fix"] == "data.max_windows=6"


def test_what_ends_the_reading_is_told_beside_what_was_found_before(tmp_path):
    files = WHOLE["classification"] | {"train.csv": f"{CSV}one,two,three\n", "validation.csv": "text,label\n ,warm\n"}
    _, problems, _ = checked(tmp_path, "classification", files)
    assert [problem["code"] for problem in problems if problem["severity"] == "error"] == ["E201", "E505"]


def test_a_split_that_loses_all_its_rows_is_told(tmp_path):
    asked = settings_of("classification")
    missing = asked.cleaning.missing.model_copy(update={"label": "drop"})
    asked = asked.model_copy(update={"cleaning": asked.cleaning.model_copy(update={"missing": missing})})
    _, problems, _ = checked(tmp_path, asked, WHOLE["classification"] | {"test.csv": "text,label\nsome words,\n"})
    (told,) = [problem for problem in problems if problem["severity"] == "error"]
    assert (told["code"], told["fix"]) == ("E505", "data.test has none that can be used")


def test_a_label_whose_rows_are_all_copies_of_test_rows_is_told(tmp_path):
    (text,) = texts(1, 200)
    train, test = f"{CSV}{text},rare\n", f"{HELD_OUT}{text},rare\n"
    _, problems, _ = checked(
        tmp_path, "classification", WHOLE["classification"] | {"train.csv": train, "test.csv": test}
    )
    (told,) = [problem for problem in problems if problem["severity"] == "error"]
    assert (told["code"], told["fix"]) == ("E502", "its rows in train were left out as copies; give others")


def test_parallel_files_that_do_not_fit(tmp_path):
    for name, content in {"a.en": "one\ntwo\n\nfour\n", "a.de": "eins\nzwei\ndrei\n"}.items():
        (tmp_path / name).write_text(content)
    both = [str(tmp_path / "a.en"), str(tmp_path / "a.de")]
    _, problems, _ = pair(tmp_path, both)
    told = [(problem["code"], problem["where"].removeprefix(str(tmp_path))) for problem in problems]
    assert told[:2] == [("E205", "/a.en:3"), ("E205", "/a.de:4")]


def pair(directory: Path, both: list[str]):
    asked = settings_of("translation")
    section = asked.data.model_copy(update={"train": both, "cache_dir": str(directory / "cache")})
    card, log = check_data(asked.model_copy(update={"data": section}), directory / "problems.jsonl")
    return card, [json.loads(line) for line in (directory / "problems.jsonl").read_text().splitlines()], log


def test_a_label_that_task_labels_does_not_name(tmp_path):
    for name, content in WHOLE["classification"].items():
        (tmp_path / name).write_text(str(content))
    asked = settings_of("classification")
    paths = {name: str(tmp_path / f"{name}.csv") for name in SPLITS}
    section = asked.data.model_copy(update=paths | {"cache_dir": str(tmp_path / "cache")})
    task = asked.task.model_copy(update={"labels": ["warm", "cool"]})
    _, log = check_data(asked.model_copy(update={"data": section, "task": task}), tmp_path / "problems.jsonl")
    assert log.counts["E503"] == 6
    assert log.first["E503"][0].where == "train.csv:3"


def test_train_that_is_the_test_file_has_no_rows_left(tmp_path):
    _, problems, _ = checked(tmp_path, "classification", WHOLE["classification"] | {"train.csv": HELD_OUT})
    assert problems[-1]["code"] == "E505"
    assert "data.allow_leaks=true" in problems[-1]["fix"]


def test_allowed_leaks_are_said_in_the_card(tmp_path):
    files = WHOLE["classification"] | {"train.csv": f"{CSV}{texts(1, 200)[0]},warm\n"}
    card, _, log = checked(tmp_path, "classification", files, allow_leaks=True)
    assert card["rows"]["train"] == 13
    assert card["leaks"] == {"exact": 1, "near": 0, "removed": 0}
    assert any("data.allow_leaks=true" in line for line in report_lines(card, log, tmp_path))


def test_the_screen_has_what_was_decided_and_each_step_in_its_order(tmp_path):
    rows = [*labelled(12), ("<b>so</b>  it is", "warm"), (texts(1)[0], "warm"), (" ", "warm"), ("three words here", "")]
    asked = settings_of("classification")
    missing = asked.cleaning.missing.model_copy(update={"text": "constant", "label": "most_frequent", "constant": "-"})
    steps = {"whitespace": True, "html": True, "duplicates": "exact", "missing": missing}
    asked = asked.model_copy(update={"cleaning": asked.cleaning.model_copy(update=steps)})
    card, _, log = checked(tmp_path, asked, WHOLE["classification"] | {"train.csv": as_csv(rows)})
    assert log.errors == 0
    assert list(card["cleaned"].items()) == [("html", 1), ("whitespace", 1)]
    assert card["decided"] == [
        "data.columns.text=text, found by its name",
        "data.columns.label=label, found by its name",
        "train: filled in '-' for 1 rows without text, the first at train.csv:16",
        "train: filled in 'warm' for 1 rows without a label",
        "cleaning.duplicates=exact: 1 copies left out of train",
    ]
    assert card["decided"] == list(report_lines(card, log, tmp_path))[:5]


def test_the_card_by_hand(tmp_path):
    rows = [("sun sun sun", "warm"), ("ice", "cold"), ("Sun  sun sun", "warm"), ("снег", "cold")]
    files = {"train.csv": "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)}
    card, _, _ = checked(tmp_path, "classification", WHOLE["classification"] | files)
    assert card["rows"] == {"train": 4, "validation": 12, "test": 12}
    assert card["classes"]["train"] == {"warm": 2, "cold": 2}
    assert card["copies"]["train"] == {"exact": 1, "near": 0}
    assert card["scripts"]["train"] == {"LATIN": 0.84, "CYRILLIC": 0.16}  # 21 and 4 letters
    assert card["examples"][1] == {"of": "cold", "text": "ice"}
    assert sum(card["tokens"]["splits"]["train"]["histogram"]) == 4
    assert card["languages"]["train"] == {}  # four nouns tell none


def test_the_screen_has_languages_lengths_and_examples(tmp_path):
    rows = [("the sun is hot", "warm"), ("it was the coldest of days " * 9, "cold"), ("der Schnee ist kalt", "cold")]
    files = {"train.csv": "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)}
    card, _, log = checked(tmp_path, "classification", WHOLE["classification"] | files)
    lines = list(report_lines(card, log, tmp_path))
    assert "train languages, of the rows whose words tell one: English 66.7%, German 33.3%" in lines
    assert "an example of warm: 'the sun is hot'" in lines
    (drawn,) = [line for line in lines if line.startswith("train tokens of a row |")]
    bars = drawn.split("|")[1]
    assert bars[-1] != " "  # the longest row is the last bar
    assert sum(bar != " " for bar in bars) in (2, 3)
    assert drawn.endswith("the model's window is 512")


def test_a_split_without_rows_draws_nothing():
    lengths = {"train": np.array([0, 7, 5000]), "validation": np.array([], np.int64), "test": np.array([0])}
    figures = token_figures(lengths, window=512)
    assert {name: sum(of_split["histogram"]) for name, of_split in figures["splits"].items()} == {"train": 3, "test": 1}
    lines = list(drawn_lines({"tokens": figures, "examples": []}))
    assert [line.split()[0] for line in lines] == ["train", "test"]


def test_declared_roles_are_those_of_the_classes():
    kinds = set(re.findall(r"kind: (\w+\.\w+)", "".join(path.read_text() for path in (CONF / "task").glob("*.yaml"))))
    assert len(kinds) > 7
    assert {kind: declared_roles(kind) for kind in kinds} == {kind: tuple(kind_of(kind).roles) for kind in kinds}


def command(*arguments: str) -> subprocess.CompletedProcess:
    """`permafrost check-data ARGUMENTS`, and on stderr whether torch came in."""
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
    code += "sys.argv[0] = 'permafrost'; from permafrost.cli import main; main()"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    arguments = (sys.executable, "-c", code, "check-data", *arguments)
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_the_command_needs_no_torch_and_ends_with_3(tmp_path):
    for name, content in (WHOLE["classification"] | {"train.csv": f"{CSV}alone\n"}).items():
        (tmp_path / name).write_text(str(content))
    paths = [f"data.{name}={tmp_path}/{name}.csv" for name in SPLITS]
    done = command("data=files", *paths, f"data.cache_dir={tmp_path}/cache", "--output", f"{tmp_path}/out.jsonl")
    assert done.stderr.splitlines() == ["False"]
    assert done.returncode == 3
    assert "train.csv:14: 1 columns, but the header has 2" in done.stdout
    assert done.stdout.splitlines()[-1] == f"1 errors, 0 warnings; all of them: {tmp_path}/out.jsonl"


def test_each_part_of_several_tasks_is_checked_by_itself(tmp_path):
    for name, content in (WHOLE["classification"] | {"test.csv": HELD_OUT.replace("cold", "hot")}).items():
        (tmp_path / name).write_text(str(content))
    (tmp_path / "texts.txt").write_text("\n".join(texts(12)))
    files = " ".join(f"data.{name}={tmp_path}/{name}.csv" for name in SPLITS)
    held_out = f"data.validation={tmp_path}/texts.txt data.test={tmp_path}/texts.txt"
    texts_too = f"task=language_modeling data=files data.train={tmp_path}/texts.txt {held_out}"
    parts = f'task.parts={{days: "data=files {files}", more: "{texts_too}"}}'
    where = ["--output", f"{tmp_path}/out.jsonl", "--allow-leaks"]
    done = CliRunner().invoke(app, ["check-data", "task=multi", f"data.cache_dir={tmp_path}/cache", parts, *where])
    assert done.exit_code == 3
    lines = done.stdout.splitlines()
    assert {"days", "more"} <= set(lines)
    assert "E502" in (tmp_path / "out-days.jsonl").read_text()
    assert "W304" in (tmp_path / "out-more.jsonl").read_text()
    assert lines.count(LEAKS_ALLOWED) == 2


def test_several_tasks_need_parts():
    with pytest.raises(ConfigError, match="task=multi has no parts"):
        CliRunner().invoke(app, ["check-data", "task=multi"], catch_exceptions=False)


FUZZED = {
    "train.csv": ("classification", CSV.encode()),
    "train.tsv": ("classification", CSV.replace(",", "\t").encode()),
    "train.jsonl": ("classification", JSONL.encode()),
    "train.json": ("classification", ("[" + ",".join(JSONL.splitlines()) + "]").encode()),
    "train.jsonl.gz": ("acts", gzip.compress(DIALOGUES.encode())),
    "train.conll": ("ner", SENTENCES.encode()),
    "train.txt": ("language_modeling", CSV.encode()),
    "train.parquet": ("classification", as_parquet()),
    "train.conll.gz": ("ner", gzip.compress(SENTENCES.encode())),
    "train.mult.jsonl": ("multi_label", LISTS.encode()),
    "train.pair.jsonl": ("generation", PAIRS.encode()),
    "train.score.csv": ("regression", TARGETS.encode()),
}
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=6)), min_size=1, max_size=8)


def edited(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """At each place, a share of the length, some bytes are taken out and others put in."""
    for share, gone, new in edits:
        place = int(share * len(content))
        content = content[:place] + new + content[place + gone :]
    return content


def survives(name: str, content: bytes) -> None:
    """Whatever the file holds, there is a list of problems or a card."""
    task = FUZZED[name][0]
    with tempfile.TemporaryDirectory() as directory:
        rest = {file: of for file, of in WHOLE.get(task, {}).items() if not file.startswith("train")}
        card, problems, log = checked(Path(directory), task, rest | {name: content}, name)
        assert "\n".join(report_lines(card, log, Path(directory))).encode()
    assert card is not None or log.errors
    assert all(problem["code"] in CODES for problem in problems)


@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=12, deadline=20_000, derandomize=True, database=None)
@given(edits=EDITS)
def test_54_an_edited_file_never_ends_in_a_traceback(name, edits):
    survives(name, edited(FUZZED[name][1], edits))


@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=6, deadline=20_000, derandomize=True, database=None)
@given(content=st.binary(max_size=300))
def test_54_random_bytes_never_end_in_a_traceback(name, content):
    survives(name, content)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=300, deadline=20_000, derandomize=True, database=None)
@given(edits=EDITS, content=st.binary(max_size=300))
def test_54_many_edited_files_and_random_bytes(name, edits, content):
    survives(name, edited(FUZZED[name][1], edits))
    survives(name, content)
