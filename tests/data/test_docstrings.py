"""Docstrings as data, and what the mini model must not have seen."""

import sysconfig
from pathlib import Path

import pytest

from permafrost.data.files import docstrings
from permafrost.data.files.docstrings import chapters, docstrings_of, library_rows, package_rows

SOURCE = '''"""The module, in one long sentence."""
class A:
    """A class with a docstring.

        Indented further.
    """
    def f(self):
        "short"
    async def g(self):
        """An asynchronous method of it."""
'''


def test_docstrings_of_module_class_and_function():
    assert list(docstrings_of(SOURCE)) == [
        "The module, in one long sentence.",
        "A class with a docstring.\n\nIndented further.",
        "An asynchronous method of it.",
    ]


def test_source_that_does_not_parse_has_none():
    assert list(docstrings_of("def (")) == []


def test_library_rows_carry_the_chapter_of_their_module(tmp_path):
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text('"""Encode and decode JSON documents."""')
    (tmp_path / "queue.py").write_text('"""A synchronized queue for threads."""')
    rows = {row["text"]: row["label"] for row in library_rows(tmp_path)}
    assert rows == {
        "Encode and decode JSON documents.": "Internet data handling",
        "A synchronized queue for threads.": "Concurrent execution",
    }


def test_no_module_stands_in_two_chapters():
    modules = [module for names in chapters().values() for module in names]
    assert len(modules) == len(set(modules)) > 40


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    library, packages = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    (packages / "copied").mkdir(parents=True)
    (library / "queue.py").write_text('"""A synchronized  Queue\nfor threads."""')
    (packages / "copied" / "backport.py").write_text('def f():\n    """A synchronized queue for THREADS."""')
    (packages / "copied" / "own.py").write_text('"""Text of the package alone."""')
    (packages / "copied" / "other.py").write_text('"""説明 of the package in another script, 日本語の説明。"""')
    paths = {"stdlib": str(library), "purelib": str(packages)}
    monkeypatch.setattr(docstrings.sysconfig, "get_path", paths.get)


@pytest.mark.usefixtures("small_library")
def test_the_pretraining_corpus_leaves_out_copies_of_the_standard_library():
    assert [row["text"] for row in package_rows()] == ["Text of the package alone."]


@pytest.mark.slow
def test_no_fine_tuning_docstring_is_in_the_pretraining_corpus():
    """On this very installation: the default task's rows against the corpus of experiment=pretrain_mini."""
    fine_tuning = {" ".join(row["text"].lower().split()) for row in library_rows()}
    corpus = {" ".join(row["text"].lower().split()) for row in package_rows()}
    assert len(fine_tuning) > 3000
    assert len(corpus) > 10_000
    assert not fine_tuning & corpus
    assert Path(sysconfig.get_path("purelib")).is_dir()


def test_a_docstring_comes_once_from_packages(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "packages").mkdir()
    for name in ("a.py", "b.py"):
        (tmp_path / "packages" / name).write_text('"""The same words   in both files."""')
    paths = {"stdlib": str(tmp_path / "lib"), "purelib": str(tmp_path / "packages")}
    monkeypatch.setattr(docstrings.sysconfig, "get_path", paths.get)
    assert package_rows() == [{"text": "The same words   in both files.", "source": "a.py"}]


def test_tests_inside_a_library_package_are_no_rows(tmp_path):
    (tmp_path / "json" / "tests").mkdir(parents=True)
    (tmp_path / "json" / "decoder.py").write_text('"""Decode what is encoded."""')
    (tmp_path / "json" / "tests" / "one.py").write_text('"""Only a test of the decoder."""')
    (tmp_path / "undocumented_module.py").write_text('"""A module of no chapter at all."""')
    assert [row["source"] for row in library_rows(tmp_path)] == ["json/decoder.py"]


def test_source_with_odd_bytes_and_escapes_is_read(tmp_path):
    (tmp_path / "queue.py").write_bytes(b'"""A queue of caf\xe9s, with \\d escapes."""')
    assert [row["text"] for row in library_rows(tmp_path)] == ["A queue of caf\ufffds, with \\d escapes."]
