"""Rows by role: columns found or named, splits cut by the text, faults with their place."""

from collections import Counter

import pyarrow as pa
import pytest

from permafrost.data.fields import by_role
from permafrost.data.files import sources
from permafrost.data.files.sources import Notes, SplitPlan, read_hub, rows_by_role, sample_of_each_label, sample_rows
from permafrost.data.rows import keep
from permafrost.errors import ConfigError, DataError, ResourceError

PLAN = SplitPlan(seed=0, validation_fraction=0.2, test_fraction=0.1)


def rows(count: int, **columns) -> list[dict]:
    made = [{"text": f"text {i}", "label": "ab"[i % 2], "where": f"f.csv:{i + 2}"} for i in range(count)]
    return [row | columns for row in made]


def pick(given, roles=("text", "label"), columns=None, notes=None):
    return pa.concat_tables(rows_by_role(given, roles, columns or {}, "train", notes or Notes()))


@pytest.fixture(params=[7, 20_000], ids=lambda size: f"slices of {size}")
def split_rows(request, tmp_path, monkeypatch):
    monkeypatch.setattr(by_role, "SLICE_ROWS", request.param)

    def split(given, plan=PLAN):
        return sources.split_rows(given, ("text", "label"), {}, plan, Notes(), tmp_path)

    return split


@pytest.fixture
def sample(tmp_path):
    def texts_and_labels(table, max_rows, seed):
        return pa.concat_tables(sample_rows(keep([table], tmp_path), max_rows, seed, tmp_path).slices())

    return texts_and_labels


def test_columns_are_found_by_their_names_and_stated():
    notes = Notes()
    table = pick([{"sentence": "x", "category": "a", "where": "f:1"}], notes=notes)
    assert table.to_pylist() == [{"where": "f:1", "text": "x", "label": "a"}]
    assert notes.lines == [
        "data.columns.text=sentence, found by its name",
        "data.columns.label=category, found by its name",
    ]


def test_a_pair_is_found_before_a_single_text():
    table = pick([{"sentence1": "x", "sentence2": "y", "score": "2.5", "where": "f:1"}], ("text", "number"))
    assert table.to_pylist() == [{"where": "f:1", "text": "x", "text_pair": "y", "target": 2.5}]


def test_of_a_pair_of_columns_one_may_be_named():
    words = {"0": ["EU"], "1": ["B-ORG"], "2": ["O"], "where": "f:1", "first_line": 1}
    notes = Notes()
    assert pick([words], ("tagged",), {"tag": 1}, notes).to_pylist()[0]["tags"] == ["B-ORG"]
    assert notes.lines == ["data.columns.token=0, first column"]
    listed = {"tokens": ["EU"], "tags": ["O"], "ner": ["B-ORG"], "where": "f:1"}
    assert pick([listed], ("tagged",), {"tag": "ner"}).to_pylist()[0]["tags"] == ["B-ORG"]
    assert pick([words], ("tagged",)).to_pylist()[0]["tags"] == ["O"]


def test_named_columns_come_first():
    given = rows(2, title="the title")
    assert pick(given, columns={"text": "title"})["text"].to_pylist() == ["the title"] * 2


FAULTS = [
    (
        [{"txt": "x", "label": "a", "where": "f:1"}],
        {},
        r"f:1: no column looks like the text; did you mean 'txt'",
    ),
    (rows(1), {"text": "texte"}, r"f.csv:2: no column 'texte' .*did you mean 'text'"),
    (rows(1, label=""), {}, r"f.csv:2: no label in column 'label'"),
    (rows(1, label=None), {}, r"f.csv:2: no label"),
]


@pytest.mark.parametrize(("given", "columns", "message"), FAULTS)
def test_26_faults_name_the_row_and_the_nearest_column(given, columns, message):
    with pytest.raises(DataError, match=message):
        pick(given, columns=columns)


def test_a_target_that_is_no_number():
    with pytest.raises(DataError, match=r"f.csv:2: 'high' in column 'score' is not a number"):
        pick(rows(1, score="high"), ("text", "number"))


def test_27_rows_without_text_are_left_out_and_counted():
    notes, given = Notes(), rows(4)
    given[1]["text"], given[2]["text"] = "  ", None
    assert pick(given, notes=notes).num_rows == 2
    assert notes.lines[-1] == "train: left out 2 rows without text, the first at f.csv:3"


def test_missing_splits_are_cut_from_train_whatever_the_order(split_rows):
    cut = split_rows({"train": rows(2000)})
    turned = split_rows({"train": rows(2000)[::-1]})
    parts = {name: set(table["text"].to_pylist()) for name, table in cut.items()}
    assert sum(len(part) for part in parts.values()) == 2000 == len(set.union(*parts.values()))
    assert parts == {name: set(table["text"].to_pylist()) for name, table in turned.items()}
    assert 340 < len(parts["validation"]) < 460  # 400 expected, 3.4 standard deviations
    assert 150 < len(parts["test"]) < 250


def test_given_splits_are_left_alone(split_rows):
    given = {"train": rows(50), "validation": rows(5), "test": rows(6)}
    cut = split_rows(given)
    assert {name: table.num_rows for name, table in cut.items()} == {"train": 50, "validation": 5, "test": 6}


def test_one_missing_split_takes_nothing_for_the_given_one(split_rows):
    cut = split_rows({"train": rows(500), "test": rows(6)})
    assert cut["test"].num_rows == 6
    assert cut["train"].num_rows + cut["validation"].num_rows == 500


def test_a_split_without_rows_says_what_to_set(split_rows):
    with pytest.raises(DataError, match=r"data.validation_fraction"):
        split_rows({"train": rows(2)})


def test_a_sample_is_seeded_and_keeps_every_label(sample):
    table = pick([*rows(300), {"text": "rare", "label": "c", "where": "f:999"}])
    first, again = sample(table, 20, seed=0), sample(table, 20, seed=0)
    assert first.equals(again)
    assert first.num_rows == 20
    assert set(first["label"].to_pylist()) == {"a", "b", "c"}
    assert not first.equals(sample(table, 20, seed=1))


def test_a_sample_has_so_many_rows_of_each_label(tmp_path):
    table = pick([*rows(300), {"text": "rare", "label": "c", "where": "f:999"}])
    kept = keep([table], tmp_path)
    first = pa.concat_tables(sample_of_each_label(kept, 20, 0, tmp_path).slices())
    assert Counter(first["label"].to_pylist()) == {"a": 20, "b": 20, "c": 1}
    assert first["where"].to_pylist() == sorted(first["where"].to_pylist(), key=table["where"].to_pylist().index)
    assert first.equals(pa.concat_tables(sample_of_each_label(kept, 20, 0, tmp_path).slices()))
    assert not first.equals(pa.concat_tables(sample_of_each_label(kept, 20, 1, tmp_path).slices()))
    more = set(pa.concat_tables(sample_of_each_label(kept, 30, 0, tmp_path).slices())["text"].to_pylist())
    assert set(first["text"].to_pylist()) < more


def test_rows_without_labels_have_no_sample_of_each(tmp_path):
    unlabelled = keep([pa.table({"where": ["f:1"], "text": ["x"]})], tmp_path)
    with pytest.raises(ConfigError, match=r"data.max_rows_per_label=5 is for rows with one label each"):
        sample_of_each_label(unlabelled, 5, 0, tmp_path)


def test_an_unreachable_hub_is_a_resource_error():
    with pytest.raises(ResourceError, match="hub cannot be reached"):
        read_hub("nobody/nothing", None, {"train": "train"})


def test_a_named_pair_needs_both_columns():
    given = [{"a": "x", "b": "y", "label": "n", "where": "f:1"}]
    assert pick(given, columns={"text": ["b", "a"]}).to_pylist()[0].items() >= {"text": "y", "text_pair": "x"}.items()
    with pytest.raises(DataError, match=r"f:1: no column 'c' for data.columns.text; known here: a, b, label"):
        pick(given, columns={"text": ["a", "c"]})


def test_a_pair_without_one_of_its_texts_is_left_out():
    notes = Notes()
    given = [{"text1": "x", "text2": "y", "where": "f:1"}, {"text1": "x", "text2": "", "where": "f:2"}]
    assert pick(given, ("text",), notes=notes)["where"].to_pylist() == ["f:1"]
    assert notes.lines[-1] == "train: left out 1 rows without text, the first at f:2"


def test_a_row_without_the_target_column_names_its_line():
    given = [{"text": "x", "score": 1, "where": "f.jsonl:1"}, {"text": "y", "where": "f.jsonl:2"}]
    with pytest.raises(DataError, match=r"f.jsonl:2: None in column 'score' is not a number"):
        pick(given, ("text", "number"))


@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), None])
def test_a_target_must_be_finite(value):
    """One of these would make every loss after it NaN."""
    with pytest.raises(DataError, match=r"f.csv:2: .* in column 'score' is not a number"):
        pick(rows(1, score=value), ("text", "number"))


def test_half_a_character_names_its_line():
    """JSON can hold one half of a surrogate pair; neither Arrow nor a tokenizer can."""
    with pytest.raises(DataError, match=r"f.csv:2: "):
        pick(rows(1, text="\ud83d"))


def test_finding_the_first_row_without_text_compares_no_rows():
    """Comparing rows takes minutes where the first empty text of 100,000 rows is the last."""

    class Incomparable(dict):
        def __eq__(self, other):
            raise AssertionError("rows were compared")

        __hash__ = None  # type: ignore[assignment]

    given = [Incomparable(row) for row in [*rows(3), *rows(1, text="")]]
    assert pick(given).num_rows == 3


def test_equal_texts_fall_into_one_split(split_rows):
    given = [row | {"where": f"f:{i}"} for i, row in enumerate(rows(300) * 2)]
    cut = split_rows({"train": given})
    parts = [set(table["text"].to_pylist()) for table in cut.values()]
    assert sum(table.num_rows for table in cut.values()) == 600
    assert sum(map(len, parts)) == 300


def test_a_sample_holds_the_same_texts_whatever_the_order(sample):
    given = rows(300)
    first, turned = (sample(pick(order), 20, seed=0)["text"].to_pylist() for order in (given, given[::-1]))
    assert first == turned[::-1]


def test_a_sample_keeps_the_rarest_of_several_labels(tmp_path):
    many = [{"text": f"text {i}", "labels": ["a"], "where": f"f:{i}"} for i in range(400)]
    many[123]["labels"] = ["a", "rare"]
    table = pick(many, ("text", "labels"))
    for seed in range(5):
        kept = pa.concat_tables(sample_rows(keep([table], tmp_path), 20, seed, tmp_path).slices())
        assert kept.num_rows == 20
        assert sum("rare" in labels for labels in kept["labels"].to_pylist()) == 1


def test_what_is_wrong_with_all_splits_is_told_at_once(split_rows):
    bad = [{"text": "x", "label": "", "where": "train.csv:2"}, {"text": "y", "label": "", "where": "train.csv:3"}]
    other = [{"text": "x", "label": None, "where": "test.csv:7"}]
    with pytest.raises(DataError) as raised:
        split_rows({"train": bad, "validation": rows(3), "test": other})
    assert [line.split(": ")[0] for line in str(raised.value).splitlines()] == [
        "train.csv:2",
        "train.csv:3",
        "test.csv:7",
    ]


def test_only_training_rows_are_sampled(split_rows):
    plan = SplitPlan(seed=0, validation_fraction=0.2, test_fraction=0.1, max_train_rows=30)
    whole = split_rows({"train": rows(500)})
    part = split_rows({"train": rows(500)}, plan)
    assert part["train"].num_rows == 30
    assert part["validation"] == whole["validation"]
    assert part["test"] == whole["test"]


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("datasets_cache")
def test_a_directory_of_csv_files_is_read_as_a_hub_data_set(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("text,label\nx,a\ny,b\n")
    (tmp_path / "set" / "test.csv").write_text("text,label\nz,a\n")
    name = str(tmp_path / "set")
    read = read_hub(name, None, {"train": "train", "validation": None, "test": "test"})
    assert {split: list(rows) for split, rows in read.items()} == {
        "train": [
            {"text": "x", "label": "a", "where": f"{name}/train:0"},
            {"text": "y", "label": "b", "where": f"{name}/train:1"},
        ],
        "test": [{"text": "z", "label": "a", "where": f"{name}/test:0"}],
    }
    with pytest.raises(DataError, match="has no split 'tset'; did you mean 'test'"):
        read_hub(name, None, {"train": "train", "test": "tset"})


@pytest.mark.usefixtures("datasets_cache")
@pytest.mark.parametrize(("classes", "names"), [([1, 0], ["pos", "neg"]), ([1, None], ["pos", None])])
def test_class_numbers_of_a_hub_data_set_become_names(classes, names, tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    part = Dataset.from_dict({"text": ["x", "y"], "label": classes}, features=features)
    (tmp_path / "set").mkdir()
    part.to_parquet(tmp_path / "set" / "train.parquet")
    read = read_hub(str(tmp_path / "set"), None, {"train": "train"})["train"]
    assert [row["label"] for row in read] == names


@pytest.mark.usefixtures("datasets_cache")
def test_class_numbers_in_lists_become_names(tmp_path):
    from datasets import ClassLabel, Dataset, Features, List, Value

    tags = ClassLabel(names=["O", "B-ORG"])
    features = Features({"tokens": List(Value("string")), "ner_tags": List(tags)})
    part = Dataset.from_dict({"tokens": [["EU", "is"]], "ner_tags": [[1, 0]]}, features=features)
    (tmp_path / "set").mkdir()
    part.to_parquet(tmp_path / "set" / "train.parquet")
    (row,) = read_hub(str(tmp_path / "set"), None, {"train": "train"})["train"]
    assert (row["tokens"], row["ner_tags"]) == (["EU", "is"], ["B-ORG", "O"])


@pytest.mark.usefixtures("datasets_cache")
def test_a_damaged_local_directory_is_not_blamed_on_the_network(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": \n')
    with pytest.raises((DataError, ResourceError)) as raised:
        read_hub(str(tmp_path / "set"), None, {"train": "train"})
    assert "cannot be reached" not in str(raised.value)


def test_docstrings_are_read_once_for_an_installation(tmp_path, monkeypatch):
    made = [{"text": "a docstring", "label": "Text", "source": "a.py"}]
    monkeypatch.setattr(sources, "library_rows", lambda: made)
    first = sources.installed_docstrings("pydocs", tmp_path)
    monkeypatch.setattr(sources, "library_rows", lambda: pytest.fail("read again"))
    assert sources.installed_docstrings("pydocs", tmp_path) == first == [made[0] | {"where": "a.py"}]
