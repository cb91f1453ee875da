"""What is written under a name is complete or absent, also where two write it at once."""

from pathlib import Path

import pytest

from permafrost.storage.atomic import complete_or_absent, kept_json


def test_a_file_is_there_when_the_block_ends(tmp_path):
    with complete_or_absent(tmp_path / "new" / "a.txt") as partial:
        partial.write_text("all of it")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [("a.txt", "all of it")]


def test_a_file_takes_the_place_of_an_older_one(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with complete_or_absent(tmp_path / "a.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def fail_half_way(path: Path, error: type[BaseException], is_directory: bool) -> None:
    with complete_or_absent(path) as partial:
        if is_directory:
            partial.mkdir()
        (partial / "half" if is_directory else partial).write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("is_directory", [False, True])
def test_what_fails_leaves_nothing(tmp_path, error, is_directory):
    with pytest.raises(error):
        fail_half_way(tmp_path / "a", error, is_directory)
    assert list(tmp_path.iterdir()) == []


def test_of_two_directories_under_one_name_the_first_stays(tmp_path):
    with complete_or_absent(tmp_path / "a") as later:
        later.mkdir()
        (later / "by").write_text("the later")
        with complete_or_absent(tmp_path / "a") as earlier:
            earlier.mkdir()
            (earlier / "by").write_text("the earlier")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "by").read_text() == "the earlier"


def test_what_is_kept_as_json_is_made_once(tmp_path):
    path, made = tmp_path / "new" / "a.json", []
    for _ in range(2):
        assert kept_json(path, lambda: made.append(1) or {"a": [1.5]}) == {"a": [1.5]}
    assert made == [1]
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
