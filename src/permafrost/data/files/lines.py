"""A file as lines of text, each with its number and, where its bytes are no text, with what is wrong with them."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from permafrost.data.files.encodings import UTF16_MARKS, guessed_encoding
from permafrost.data.problems import Problem, fault

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NULS_OF_UTF16 = 0.4  # of its bytes, where there is no mark: every Latin letter has one


class Line(NamedTuple):
    number: int  # from 1
    text: str  # with its end; odd bytes as U+FFFD
    problem: Problem | None = None

    @property
    def shown(self) -> str:
        """Its text without its end; of odd bytes what they may be."""
        return (self.problem.text if self.problem else self.text).rstrip("\r\n")


def text_lines(path: Path) -> Iterator[Line]:
    """Lines that end with a line feed; a byte order mark at the start is no part of the first.

    Raises:
        DataError: UTF-16, which has no lines of bytes, or a damaged gzip file.
    """
    offset = 0
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            if number == 1 and raw.startswith(UTF16_MARKS):
                raise _not_utf8(path, 1, raw, 0, 0)
            content = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
            yield _decoded(content, path, number, offset + len(raw) - len(content))
            offset += len(raw)


def whole_text(path: Path) -> str:
    """All of it.

    Raises:
        DataError: bytes that are no text; the first of them.
    """
    lines = list(text_lines(path))
    for line in lines:
        if line.problem:
            raise fault(**vars(line.problem))
    return "".join(line.text for line in lines)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Its bytes, unpacked.

    Raises:
        DataError: a damaged gzip file, or one that cannot be read.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        fix = "copy it again, or unpack it as far as it goes"
        raise fault("E103", str(path), f"not a complete gzip file ({error})", fix) from error
    except OSError as error:
        raise fault("E101", str(path), f"cannot be read: {error.strerror}", "look at its permissions") from error


def _decoded(content: bytes, path: Path, number: int, offset: int) -> Line:
    """`offset` is the content's, in bytes from the file's start."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = _not_utf8(path, number, content, error.start, offset).args[0]
        return Line(number, content.decode("utf-8", "replace").replace("\x00", "\ufffd"), problem)
    if "\x00" not in text:
        return Line(number, text)
    place = offset + content.index(0)
    text, message = text.replace("\x00", "\ufffd"), f"byte {place} is a NUL"
    if content.count(0) >= NULS_OF_UTF16 * len(content):
        guess = "utf-16-le" if place % 2 else "utf-16-be"
        problem = _problem("E104", path, number, f"{message}, as in {guess}", _conversion(guess, path), text)
        return Line(number, text, problem)
    fix = f"remove them: tr -d '\\000' < {path.name}"
    return Line(number, text, _problem("E105", path, number, message, fix, text))


def _not_utf8(path: Path, number: int, content: bytes, start: int, offset: int):
    guess = guessed_encoding(content, at_start=offset == 0)
    message = f"byte {offset + start} (0x{content[start]:02x}) is not UTF-8, perhaps {guess}"
    return fault(
        "E104", f"{path}:{number}", message, _conversion(guess, path), content.decode(guess, "replace").strip()
    )


def _conversion(encoding: str, path: Path) -> str:
    return f"convert it with: iconv -f {encoding} -t utf-8 {path.name}"


def _problem(code: str, path: Path, number: int, message: str, fix: str, text: str) -> Problem:
    return Problem(code=code, where=f"{path}:{number}", message=message, fix=fix, text=text.strip())
