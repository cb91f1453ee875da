"""Roles: which columns fill them, what their values become, and faults with their place."""

import pytest

from permafrost.data.fields.columns import columns_here, columns_of
from permafrost.data.fields.roles import (
    ROLES,
    as_text,
    place_of,
    read_label,
    read_labels,
    read_tagged,
    read_text,
    read_turns,
    to_bio,
)
from permafrost.data.files.sources import Notes, rows_by_role
from permafrost.errors import DataError

AT = {"where": "f.jsonl:3"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["O", "B-A", "I-A", "O"], ["O", "B-A", "I-A", "O"]),
        (["I-A", "I-A", "B-A", "I-B", "O"], ["B-A", "I-A", "B-A", "B-B", "O"]),  # IOB1
        (["S-A", "B-A", "I-A", "E-A", "S-A"], ["B-A", "B-A", "I-A", "I-A", "B-A"]),  # BIOES
        (["U-A", "B-A", "L-A", "L-A"], ["B-A", "B-A", "I-A", "B-A"]),  # BILOU, and one that goes on from an end
        ([], []),
    ],
)
def test_tags_of_any_scheme_become_bio(given, expected):
    assert to_bio(given) == expected


def test_bio_of_iob1_is_what_seqeval_reads_in_both():
    from seqeval.metrics.sequence_labeling import get_entities

    rng = __import__("random").Random(0)
    for _ in range(200):
        tags = [rng.choice(["O", "O", "I-A", "I-B", "B-A"]) for _ in range(rng.randint(1, 12))]
        assert get_entities(to_bio(tags)) == get_entities(tags)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a text", "a text"),
        (["one.", "two."], "one. two."),
        ([["a", "r", "b"], ["c", "s", "d"]], "a | r | b; c | s | d"),
        (None, ""),
        (float("nan"), ""),  # as tables write it
    ],
)
def test_lists_become_texts(value, expected):
    assert as_text(value) == expected


def test_a_text_that_is_a_list_is_its_members():
    row = AT | {"x": ["one.", "two."], "y": [["a", "r", "b"]]}
    assert read_text(row, ["x", "y"]) == {"text": "one. two.", "text_pair": "a | r | b"}


@pytest.mark.parametrize("value", [["b", "a", "b"], "a|b", "b, a", "a;b"])
def test_labels_of_a_row_are_a_sorted_set(value):
    assert read_labels(AT | {"x": value}, ["x"]) == {"labels": ["a", "b"]}


@pytest.mark.parametrize("value", [[], "", None, float("nan")])
def test_no_label_of_several_is_no_fault(value):
    assert read_labels(AT | {"x": value}, ["x"]) == {"labels": []}


def test_a_label_may_be_the_number_zero():
    assert read_labels(AT | {"x": 0}, ["x"]) == {"labels": ["0"]}
    assert read_label(AT | {"x": 0}, ["x"]) == {"label": "0"}


@pytest.mark.parametrize("value", [["a", "b"], ["a"], {"name": "a"}])
def test_one_label_is_no_list(value):
    with pytest.raises(DataError, match=r"f.jsonl:3: no single label in column 'x'.*task=multi_label"):
        read_label(AT | {"x": value}, ["x"])


@pytest.mark.parametrize("value", [None, " ", [], float("nan")])
def test_no_label_is_told(value):
    with pytest.raises(DataError, match=r"f.jsonl:3: no label in column 'x'"):
        read_label(AT | {"x": value}, ["x"])


def test_turns_are_texts_or_objects():
    texts = read_turns(AT | {"turns": ["hi", "hello", "bye"]}, ["turns"])
    assert texts == {"speakers": ["A", "B", "A"], "turns": ["hi", "hello", "bye"]}
    numbers = [{"speaker": 1, "text": "hi"}, {"speaker": 0, "text": "hello"}]
    assert read_turns(AT | {"m": numbers}, ["m"])["speakers"] == ["1", "0"]
    objects = [{"speaker": "user", "text": "hi"}, {"role": "system", "content": "hello"}]
    assert read_turns(AT | {"m": objects}, ["m"]) == {"speakers": ["user", "system"], "turns": ["hi", "hello"]}


FAULTS = [
    (["turns"], {"turns": ["alone"]}, "f.jsonl:3: 1 turns in column 'turns'; a dialogue needs two"),
    (["turns"], {"turns": ["hi", " "]}, "f.jsonl:3: turn 2 of column 'turns' is empty"),
    (["source", "references"], {"source": "x", "target": ""}, "f.jsonl:3: column 'target' is empty"),
    (["source", "references"], {"source": "x", "target": ["", " "]}, "f.jsonl:3: column 'target' is empty"),
    (["tagged"], {"tokens": ["a"], "tags": ["O", "O"]}, "f.jsonl:3: 1 words in 'tokens' and 2 tags in 'tags'"),
    (["tagged"], {"tokens": ["a", "b"], "tags": ["O", "X-A"]}, "f.jsonl:3, word 2: 'X-A' is no tag"),
    (["tagged"], {"tokens": ["a"], "tags": ["BA"]}, "f.jsonl:3, word 1: 'BA' is no tag"),
    (["tagged"], {"tokens": ["", "Bob"], "tags": ["O", "B-PER"]}, "f.jsonl:3, word 1: a blank word; remove it"),
    (["tagged"], {"tokens": ["Bob", " "], "tags": ["B-PER", "O"]}, "f.jsonl:3, word 2: a blank word; remove it"),
    (["words"], {"tokens": ["Bob", None]}, "f.jsonl:3, word 2: a blank word; remove it"),
    (["words"], {"tokens": "Bob"}, "f.jsonl:3: column 'tokens' holds no list"),
    (["history"], {"turns": []}, "f.jsonl:3: 0 turns in column 'turns'; a dialogue needs one or more"),
]


def pick(rows, roles, columns=None):
    notes = Notes()
    tables = list(rows_by_role(rows, roles, columns or {}, "train", notes))
    return [row for table in tables for row in table.to_pylist()], notes.lines


@pytest.mark.parametrize(("roles", "row", "message"), FAULTS, ids=[message[:40] for *_, message in FAULTS])
def test_faults_name_the_place(roles, row, message):
    with pytest.raises(DataError) as raised:
        pick([AT | row], roles)
    assert str(raised.value).startswith(message)


def test_all_faults_are_told_at_once():
    rows = [{"text": "x", "label": "" if i % 3 == 0 else "a", "where": f"f:{i}"} for i in range(1, 10)]
    with pytest.raises(DataError) as raised:
        pick(rows, ["text", "label"])
    assert [line.split(":")[1] for line in str(raised.value).splitlines()] == ["3", "6", "9"]


@pytest.mark.parametrize("source", [None, "", " ", []])
def test_rows_without_a_source_are_left_out_and_counted(source):
    rows = [{"source": source, "target": "x", "where": "f:1"}, {"source": "a", "target": "b", "where": "f:2"}]
    found, notes = pick(rows, ["source", "references"])
    assert [row["where"] for row in found] == ["f:2"]
    assert notes[-1] == "train: left out 1 rows without text, the first at f:1"


def test_no_more_faults_are_told_than_can_be_read():
    with pytest.raises(DataError) as raised:
        pick([{"text": "x", "label": "", "where": f"f:{i}"} for i in range(100)], ["text", "label"])
    lines = str(raised.value).splitlines()
    assert lines[19].startswith("f:19: no label")
    assert lines[20:] == ["and 80 more; permafrost check-data lists all"]


def test_a_column_files_first_and_last_columns_are_found_and_said():
    row = {"0": ["a", "b"], "1": ["NN", "VB"], "2": ["B-X", "O"], "where": "f.conll:5", "first_line": 5}
    found, notes = pick([row], ["tagged"])
    assert found == [{"where": "f.conll:5", "tokens": ["a", "b"], "tags": ["B-X", "O"]}]
    assert notes == ["data.columns.token=0 data.columns.tag=2, first and last column"]


@pytest.mark.parametrize("tag", [1, "1", -2])
def test_columns_of_a_column_file_have_numbers(tag):
    row = {"0": ["a"], "1": ["B-X"], "2": ["O"], "where": "f.conll:5", "first_line": 5}
    assert pick([row], ["tagged"], {"token": 0, "tag": tag})[0][0]["tags"] == ["B-X"]


def test_a_number_that_is_no_column():
    row = {"0": ["a"], "1": ["O"], "where": "f.conll:5", "first_line": 5}
    with pytest.raises(DataError, match=r"f.conll:5: no column '7' for data.columns.tag; known here: 0, 1"):
        columns_of("tagged", {"token": 0, "tag": 7}, row)


def test_a_words_place_is_its_line_in_a_column_file():
    assert place_of({"where": "f.conll:5", "first_line": 5}, 3) == "f.conll:8"
    with pytest.raises(DataError, match=r"f.conll:6: 'Q' is no tag"):
        read_tagged({"0": ["a", "b"], "1": ["O", "Q"], "where": "f.conll:5", "first_line": 5}, ["0", "1"])


def test_all_that_is_wrong_with_a_sentence_is_told():
    tokens, tags = ["a", "", "c", "d"], ["Q", "O", "X-A", "B-"]
    with pytest.raises(DataError) as raised:
        read_tagged({"0": tokens, "1": tags, "where": "f.conll:5-8", "first_line": 5}, ["0", "1"])
    assert [line.partition(";")[0] for line in str(raised.value).splitlines()] == [
        "f.conll:6: a blank word",
        "f.conll:5: 'Q' is no tag",
        "f.conll:7: 'X-A' is no tag",
        "f.conll:8: 'B-' is no tag",
    ]


def test_what_is_to_be_answered_needs_no_answer():
    assert ROLES["history"].read(AT | {"turns": ["hi"]}, ["turns"]) == {"speakers": ["A"], "turns": ["hi"]}
    row = {"0": ["a", "b"], "where": "f.conll:5-6", "first_line": 5}
    found, notes = pick([row], ["words"])
    assert found == [{"where": "f.conll:5-6", "tokens": ["a", "b"]}]
    assert notes == ["data.columns.token=0, first column"]


@pytest.mark.parametrize(
    ("given", "here"),
    [
        ({"text": "a", "label": "z"}, {"text": "a"}),
        ({"text": ["a", "b"]}, {"text": ["a", "b"]}),
        ({"text": ["a", "z"]}, {}),
        ({"token": 0, "tag": 3}, {"token": 0}),
        ({"token": 0, "tag": -1}, {"token": 0, "tag": -1}),
        ({"tag": -9, "label": "where"}, {}),
    ],
)
def test_columns_of_another_file_count_where_this_one_has_them(given, here):
    assert columns_here(given, AT | {"a": "x", "b": "y", "0": "z"}) == here


def test_what_is_missing_in_a_list_is_no_label():
    assert ROLES["labels"].read(AT | {"labels": ["b", None, "a"]}, ["labels"]) == {"labels": ["a", "b"]}
    with pytest.raises(DataError, match="no label in column 'acts' for turn 2, 3"):
        ROLES["acts"].read(AT | {"acts": ["ask", None, ""]}, ["acts"])


def test_all_turns_without_a_text_are_told():
    with pytest.raises(DataError, match="turns 2, 4 of column 'turns' are empty"):
        ROLES["turns"].read(AT | {"turns": ["a", "", "b", " "]}, ["turns"])


def test_a_sentence_without_a_word_is_left_out_as_a_text_without_one_is():
    found, notes = pick([AT | {"tokens": [], "tags": []}, AT | {"tokens": ["a"], "tags": ["O"]}], ["tagged"])
    assert [row["tokens"] for row in found] == [["a"]]
    assert any("left out 1 rows without text" in note for note in notes)


@pytest.mark.parametrize("role", ["text", "source", "references"])
def test_an_object_is_no_text(role):
    (name,) = ROLES[role].column
    with pytest.raises(DataError, match=f"column '{name}' holds an object, not a text"):
        ROLES[role].read(AT | {name: {"en": "x"}}, [name])


def test_a_number_too_large_for_any_is_no_number():
    with pytest.raises(DataError, match="is not a number"):
        ROLES["number"].read(AT | {"target": 10**400}, ["target"])
