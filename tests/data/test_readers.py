"""Every format gives the same rows, and every fault is one sentence with file and line."""

import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from permafrost.data.files import readers
from permafrost.data.problems import problems_of
from permafrost.errors import DataError


def read_rows(*arguments) -> list[dict]:
    return list(readers.read_rows(*arguments))


ROWS = [{"text": 'he said "no"', "label": "a"}, {"text": "two, three", "label": "b"}, {"text": "ü", "label": "a"}]
CONTENT = {
    "csv": 'text,label\n"he said ""no""",a\n"two, three",b\nü,a\n',
    "tsv": 'text\tlabel\nhe said "no"\ta\ntwo, three\tb\nü\ta\n',
    "jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "json": json.dumps(ROWS),
}
FIRST_LINE = {"csv": 2, "tsv": 2, "jsonl": 1, "json": 1, "parquet": 1}


@pytest.mark.parametrize("name", [f"{f}{gz}" for f in CONTENT for gz in ("", ".gz")])
def test_every_text_format_gives_the_same_rows(name, tmp_path):
    suffix = name.split(".")[0]
    content, path = CONTENT[suffix].encode(), tmp_path / f"rows.{name}"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = read_rows(path)
    assert [{key: row[key] for key in ("text", "label")} for row in rows] == ROWS
    assert rows[0]["where"] == f"rows.{name}:{FIRST_LINE[suffix]}"


@pytest.mark.parametrize("name", ["rows.parquet", "rows.parquet.gz"])
def test_parquet_gives_the_same_rows(name, tmp_path):
    path = tmp_path / name
    parquet.write_table(pa.Table.from_pylist(ROWS), path)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    rows = read_rows(path)
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert rows[2]["where"] == f"{name}:3"


def test_half_a_gzipped_parquet_file_is_told(tmp_path):
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    half = gzip.compress((tmp_path / "rows.parquet").read_bytes())[:100]
    (tmp_path / "rows.parquet.gz").write_bytes(half)
    with pytest.raises(DataError, match=r"rows.parquet.gz: not a complete gzip file"):
        read_rows(tmp_path / "rows.parquet.gz")


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r": a directory, not a file; give the path of a file in it"):
        read_rows(tmp_path)


def test_txt_is_a_text_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  two  \n")
    assert read_rows(tmp_path / "a.txt") == [{"text": "one", "where": "a.txt:1"}, {"text": "two", "where": "a.txt:3"}]


def test_25_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + CONTENT["csv"].encode())
    assert "text" in read_rows(tmp_path / "a.csv")[0]


def test_a_quoted_line_break_counts_in_the_line_number(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",a\nthree,b\n')
    assert [row["where"] for row in read_rows(tmp_path / "a.csv")] == ["a.csv:3", "a.csv:4"]


def test_the_format_can_be_named(tmp_path):
    (tmp_path / "rows.data").write_text(CONTENT["csv"])
    assert len(read_rows(tmp_path / "rows.data", "csv")) == 3


FAULTS = [
    ("a.csv", b"", "the file is empty"),
    ("a.csv", b"text,label\n", "no rows"),
    ("a.json", b'{"text": "x"}', r"a.json:1: expected a list"),
    ("a.json", b"", "the file is empty"),
    ("a.csv", "text".encode("utf-16"), "perhaps utf-16"),
    ("a.csv.gz", gzip.compress(b"text,label\nx,a\n" * 50)[:20], "not a complete gzip file"),
    ("a.parquet", b"PAR1 no", "not a parquet file"),
    ("a.xlsx", b"x", "cannot tell the format"),
]


ROW_FAULTS = [
    ("a.csv", b"text,label\nx,a\nx,a,b\nx\ny,b\n", ["a.csv:3: 3 columns, but", "a.csv:4: 1 columns, but"]),
    (
        "a.jsonl",
        b'{"text": 1}\n{"text": \n[1]\n{"text": 2}\n',
        ["a.jsonl:2: not JSON", "a.jsonl:3: expected an object"],
    ),
    ("a.conll", b"a O\nb B-X extra\n\nc O\n", ["a.conll:2: 3 columns, where most words have 2"]),
    ("b.conll", b"a\nb O\nc O\n", ["b.conll:1: 1 columns, where most words have 2"]),
    (
        "a.tsv",
        b"text\tlabel\nx\ta\ncaf\xe9\ta\ny\tb\n",
        ["a.tsv:3: byte 18 (0xe9) is not UTF-8, perhaps windows-1252"],
    ),
    ("a.txt", b"x\na\x00b\ny\n", ["a.txt:2: byte 3 is a NUL"]),
    ("a.csv", b'text,label\nx,a\n"open,a\ny,b\n', ["a.csv:3: a quote is opened here and not closed"]),
]


@pytest.mark.parametrize(("name", "content", "messages"), ROW_FAULTS, ids=[name for name, *_ in ROW_FAULTS])
def test_24_a_row_that_cannot_be_read_keeps_its_place_among_the_others(name, content, messages, tmp_path):
    (tmp_path / name).write_bytes(content)
    rows = read_rows(tmp_path / name)
    faults = [str(row["fault"]) for row in rows if "fault" in row]
    assert len(faults) == len(messages)
    assert all(message in fault for fault, message in zip(faults, messages, strict=True))
    assert sum("fault" not in row for row in rows) == (0 if name == "b.conll" else 1 if name == "a.conll" else 2)


def test_a_column_file_is_a_sentence_a_row(tmp_path):
    content = "-DOCSTART- O\n\nNew\tB-LOC\nYork\tI-LOC\n\n\nis O\nbig O\n"
    (tmp_path / "a.conll").write_text(content)
    assert read_rows(tmp_path / "a.conll") == [
        {"0": ["New", "York"], "1": ["B-LOC", "I-LOC"], "where": "a.conll:3-4", "first_line": 3},
        {"0": ["is", "big"], "1": ["O", "O"], "where": "a.conll:7-8", "first_line": 7},
    ]


def test_a_document_mark_takes_no_sentence_along(tmp_path):
    (tmp_path / "a.conll").write_text("A O\n-DOCSTART- -X- O O\nEU B-ORG\nrejects O\n")
    assert [row["0"] for row in read_rows(tmp_path / "a.conll")] == [["A"], ["EU", "rejects"]]


def test_all_lines_of_a_sentence_that_cannot_be_read_are_told(tmp_path):
    (tmp_path / "a.conll").write_bytes(b"A O\nB\nC O\ncaf\xe9 O\nD O more\n\nE O\n")
    faulty, read = read_rows(tmp_path / "a.conll")
    assert [line.removeprefix(str(tmp_path))[:20] for line in str(faulty["fault"]).splitlines()] == [
        "/a.conll:2: 1 column",
        "/a.conll:4: byte 13 ",
        "/a.conll:5: 3 column",
    ]
    assert faulty["text"] == "A O\nB\nC O\ncaf\u00e9 O\nD O more"
    assert read["where"] == "a.conll:7"


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_the_last_sentence_needs_no_blank_line(end, tmp_path):
    (tmp_path / "a.iob2").write_bytes(b"a\tO" + end.encode())
    assert [row["0"] for row in read_rows(tmp_path / "a.iob2")] == [["a"]]


def parallel(directory, source: str, target: str) -> list[dict]:
    (directory / "t.en").write_text(source)
    (directory / "t.de").write_text(target)
    return list(readers.read_parallel([directory / "t.en", directory / "t.de"]))


def test_parallel_files_are_pairs_of_lines(tmp_path):
    assert parallel(tmp_path, "one\ntwo\n", "eins\nzwei") == [
        {"source": "one", "target": "eins", "where": "t.en:1"},
        {"source": "two", "target": "zwei", "where": "t.en:2"},
    ]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("one\n\n", "eins\nzwei\n", "t.en:2: an empty line; remove the line in both files"),
        (
            "one\ntwo\n",
            "eins\n",
            "t.de:2: there is no such line, and t.en goes on; "
            "lines of one number belong together; look for one that was left out",
        ),
    ],
)
def test_parallel_files_that_do_not_fit_are_told_where(source, target, message, tmp_path):
    faults = [str(row["fault"]) for row in parallel(tmp_path, source, target) if "fault" in row]
    assert faults == [f"{tmp_path}/{message}"]


@pytest.mark.parametrize(
    ("name", "content", "whole"),
    [
        ("a.jsonl", b'{"text": "a long text that comes before the fault", "label": "a",}\n', None),
        ("a.jsonl", b'{"text": "caf\xe9", "label": "a"}\n', '{"text": "caf\u00e9", "label": "a"}'),
        ("a.jsonl", b"[" * 2_000 + b"\n", None),
        ("a.json", b'[["text", null]]', '["text", null]'),
        ("a.csv", b'text,label\n"one\ncaf\xe9\nthree",a\n', '"one\ncaf\u00e9\nthree",a'),
        ("a.csv", b'text,label\n"one\ntwo",a,b\n', '"one\ntwo",a,b'),
        ("a.conll", b"A\tB-X\nB\nC\tO\n", "A\tB-X\nB\nC\tO"),
        ("a.conll", b"A\tB-X\ncaf\xe9\tO\n", "A\tB-X\ncaf\u00e9\tO"),
        ("a.txt", b"caf\xe9 au lait\n", "caf\u00e9 au lait"),
    ],
)
def test_a_row_that_cannot_be_read_is_given_whole(name, content, whole, tmp_path):
    (tmp_path / name).write_bytes(content)
    (row,) = read_rows(tmp_path / name)
    assert row["text"] == (whole or content.decode().strip())
    assert "fault" in row


def test_no_line_of_two_files_that_do_not_fit_is_lost(tmp_path):
    given = parallel(tmp_path, "one\n\nthree\nfour\n", "eins\nzwei\n")
    told = [{name: row[name] for name in ("source", "target") if name in row} for row in given]
    assert told == [
        {"source": "one", "target": "eins"},
        {"source": "", "target": "zwei"},
        {"source": "three"},
        {"source": "four"},
    ]
    assert ["fault" in row for row in given] == [False, True, True, True]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS, ids=[f"{n}-{m[:20]}" for n, _, m in FAULTS])
def test_faults_name_file_and_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_rows(tmp_path / name)
    assert raised.value.exit_code == 3
    assert str(tmp_path) in str(raised.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.csv").write_text("x")
    with pytest.raises(DataError, match=r"trian.csv: no such file; did you mean 'train.csv'"):
        read_rows(tmp_path / "trian.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_30_a_long_text_is_no_fault(name, tmp_path):
    """The csv module alone stops at 131,072 characters, with an error of its own."""
    delimiter = "," if name == "a.csv" else "\t"
    (tmp_path / name).write_text(f"text{delimiter}label\n{'x' * 200_000}{delimiter}a\n")
    assert len(read_rows(tmp_path / name)[0]["text"]) == 200_000


def test_a_quote_that_opens_a_tab_separated_text_is_kept(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"yes\ta\nno"\tb\n')
    assert [row["text"] for row in read_rows(tmp_path / "a.tsv")] == ['"yes', 'no"']


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_of_windows_and_gzipped_text(name, tmp_path):
    content = b"one\r\ntwo\r\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [(row["text"], row["where"]) for row in read_rows(tmp_path / name)] == [
        ("one", f"{name}:1"),
        ("two", f"{name}:2"),
    ]


def test_29_an_odd_byte_after_a_byte_order_mark_is_placed_by_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfab\n\xe9\n")
    assert "a.txt:2: byte 6 (0xe9)" in str(read_rows(tmp_path / "a.txt")[1]["fault"])


def test_gzip_damaged_inside_is_a_data_error(tmp_path):
    content = bytearray(gzip.compress(b"text,label\n" + bytes(range(48, 123)) * 50))
    content[20] ^= 0xFF
    content[21] ^= 0xFF
    (tmp_path / "a.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a.csv.gz: not a complete gzip file"):
        read_rows(tmp_path / "a.csv.gz")


@pytest.mark.parametrize("part", [slice(10, 200), slice(-60, -10)], ids=["pages", "footer"])
def test_parquet_damaged_inside_is_a_data_error(part, tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": [f"text {i}" for i in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[part] = bytes(byte ^ 0x5A for byte in content[part])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet: not a parquet file"):
        read_rows(path)


def test_json_nested_beyond_reason_is_a_data_error(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"a.json"):
        read_rows(tmp_path / "a.json")


def test_the_line_of_a_fault_inside_a_json_file(tmp_path):
    (tmp_path / "a.json").write_text('[\n  {"text": "x"},\n  {"text": }\n]')
    with pytest.raises(DataError, match=r"a.json:3: not JSON: Expecting value at column 12"):
        read_rows(tmp_path / "a.json")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_is_read_as_its_rows_are_asked_for(suffix, tmp_path):
    """The fault in the last row does not keep the first ones back: the file is never held as a whole."""
    content = b"text\n" + b"a plain line\n" * 100_000 + b"caf\xe9\n"
    (tmp_path / f"a.txt{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    rows = readers.read_rows(tmp_path / f"a.txt{suffix}")
    assert [next(rows)["text"] for _ in range(1000)][-1] == "a plain line"
    assert re.search(r"a.txt.*:100002: byte 1300008 \(0xe9\)", str(list(rows)[-1]["fault"]))


ENCODED = {
    "windows-1252": ["café au lait", "naïve résumé über", "Ærø"],
    "windows-1251": ["снег идёт на пустой улице", "Привет, мир"],
    "koi8-r": ["снег идёт на пустой улице", "Привет, мир"],
    "shift_jis": ["今日は寒いです、雪が降りました", "東京タワーに行きました"],
    "euc-kr": ["오늘은 날씨가 따뜻합니다", "안녕하세요"],
    "gb18030": ["今天天气很好我们去海边", "电影很好看"],
}


@pytest.mark.parametrize(("encoding", "text"), [(name, text) for name, texts in ENCODED.items() for text in texts])
def test_29_the_encoding_is_guessed_from_the_line(encoding, text, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + f"{text},a\n".encode(encoding))
    (row,) = read_rows(tmp_path / "a.csv")
    (problem,) = problems_of(row["fault"])
    assert f"perhaps {encoding}" in problem.message
    assert f"iconv -f {encoding} -t utf-8" in problem.fix
    assert text in problem.text


def test_a_column_by_a_name_that_readers_use_is_not_taken_for_it(tmp_path):
    from permafrost.data.fields.columns import columns_of

    (tmp_path / "a.csv").write_text("text,where\nx,Rome\n")
    (row,) = read_rows(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"no column 'where' for data.columns.label"):
        columns_of("label", {"label": "where"}, row)


def test_rows_of_an_array_are_told_by_the_line_they_begin_on(tmp_path):
    rows = [{"text": "a", "of": [1, 2]}, {"text": "b\n"}, {"text": "c"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    lines = (tmp_path / "a.json").read_text().splitlines()
    starts = [number for number, line in enumerate(lines, 1) if line == "  {"]
    assert [row["where"] for row in read_rows(tmp_path / "a.json")] == [f"a.json:{line}" for line in starts]
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "b"},\n3, {"text": "c"}]')
    places = [row["where"] for row in read_rows(tmp_path / "a.json")]
    assert places == ["a.json:1", "a.json:1, row 2", "a.json:2", "a.json:2, row 4"]


def test_objects_a_line_in_a_json_file_are_told_their_format(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"a.json:2: not JSON: Extra data .*; one object a line is data.format=jsonl"):
        read_rows(tmp_path / "a.json")


def test_bytes_in_a_parquet_file_are_texts(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": pa.array(["caf\u00e9".encode(), b"\xff"], pa.binary())}), path)
    good, bad = read_rows(path)
    assert good == {"text": "caf\u00e9", "where": "a.parquet:1"}
    assert problems_of(bad["fault"])[0].code == "E104"


def test_a_home_that_there_is_not(tmp_path):
    with pytest.raises(DataError, match="home directory; give the path in full"):
        readers.read_rows(Path("~nobody-of-this-name/train.csv"))
