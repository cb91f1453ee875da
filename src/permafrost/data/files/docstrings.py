"""Text that every Python installation holds: the docstrings of its standard library and of its installed packages.

`library_rows` labels each standard-library docstring with the chapter of the Python Library Reference that documents
its module (data=pydocs). `package_rows` gives the docstrings of installed packages, without any that the standard
library also holds: they are what the mini model is pretrained on (data=docstrings).
"""

import ast
import inspect
import json
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

MIN_CHARACTERS = 20  # shorter ones ("Return self.") say nothing of their module


def docstrings_of(source: str) -> Iterator[str]:
    """Docstrings of the module, its classes and functions, in order, cleaned of their indentation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(cleaned := inspect.cleandoc(text).strip()) >= MIN_CHARACTERS:
                yield cleaned


def chapters() -> dict[str, list[str]]:
    """Chapter of the Library Reference -> its modules (a package stands for its submodules too)."""
    return json.loads(Path(__file__).with_name("library_chapters.json").read_text("utf-8"))


def library_rows(root: Path | None = None) -> list[dict[str, str]]:
    """`{"text", "label", "source"}` for each distinct docstring of the documented standard-library modules."""
    root = root or Path(sysconfig.get_path("stdlib"))
    rows: dict[str, dict[str, str]] = {}
    for chapter, modules in chapters().items():
        for module in modules:
            for path in _module_files(root, module):
                for text in docstrings_of(path.read_text("utf-8", errors="replace")):
                    rows.setdefault(text, {"text": text, "label": chapter, "source": str(path.relative_to(root))})
    return list(rows.values())


def package_rows(root: Path | None = None) -> list[dict[str, str]]:
    """`{"text", "source"}` for each distinct, mostly ASCII docstring of the installed packages."""
    root = root or Path(sysconfig.get_path("purelib"))
    held_back = {_fingerprint(text) for text in _texts(Path(sysconfig.get_path("stdlib")), skip={"site-packages"})}
    rows: dict[str, dict[str, str]] = {}
    for path in sorted(root.rglob("*.py")):
        for text in docstrings_of(path.read_text("utf-8", errors="replace")):
            mark = _fingerprint(text)
            if mark not in held_back and mark not in rows and _mostly_ascii(text):
                rows[mark] = {"text": text, "source": str(path.relative_to(root))}
    return list(rows.values())


def _module_files(root: Path, module: str) -> list[Path]:
    base = root.joinpath(*module.split("."))
    if base.is_dir():
        return sorted(path for path in base.rglob("*.py") if "test" not in str(path.relative_to(base)))
    return [file for file in (base.with_suffix(".py"),) if file.is_file()]


def _texts(root: Path, skip: Iterable[str]) -> Iterator[str]:
    for path in root.rglob("*.py"):
        if not set(path.relative_to(root).parts) & set(skip):
            yield from docstrings_of(path.read_text("utf-8", errors="replace"))


def _fingerprint(text: str) -> str:
    """Copies of the standard library inside packages differ by white space and case at most."""
    return " ".join(text.lower().split())


def _mostly_ascii(text: str) -> bool:
    return sum(ord(character) < 128 for character in text) >= 0.95 * len(text)
