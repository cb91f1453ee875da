"""What bytes that are not UTF-8 may be instead: a guess from one line, for the advice to convert the file."""

import unicodedata
from collections.abc import Mapping

WESTERN, UTF16_MARKS = "windows-1252", (b"\xff\xfe", b"\xfe\xff")
# Of two bytes a letter; each with the scripts that all its letters are of, in Unicode's names.
EASTERN: Mapping[str, tuple[str, ...]] = {
    "shift_jis": ("HIRAGANA", "KATAKANA", "CJK"),
    "euc-kr": ("HANGUL",),
    "gb18030": ("CJK",),
}
CYRILLIC_BYTES, CYRILLIC_SHARE = range(0xC0, 0x100), 0.85
FEW = 4  # odd bytes, of which nothing can be said


def guessed_encoding(content: bytes, *, at_start: bool) -> str:
    """Of texts in Latin letters, where few bytes are odd, the commonest by far; `at_start` is of the file."""
    if at_start and content.startswith(UTF16_MARKS):
        return "utf-16"
    odd = [byte for byte in content if byte >= 0x80]
    blanks = sum(map(content.count, (b" ", b"\t", b",", b"\r", b"\n")))
    if len(odd) < FEW or 2 * len(odd) <= len(content) - blanks:
        return WESTERN
    if sum(byte in CYRILLIC_BYTES for byte in odd) >= CYRILLIC_SHARE * len(odd):
        upper_half = sum(byte >= 0xE0 for byte in odd)  # small letters in one, capitals in the other
        return "windows-1251" if 2 * upper_half >= len(odd) else "koi8-r"
    return next((name for name, scripts in EASTERN.items() if reads_as(content, name, scripts)), WESTERN)


def reads_as(content: bytes, encoding: str, scripts: tuple[str, ...]) -> bool:
    """Whether all letters beyond ASCII are of these scripts, in an encoding that has all of the bytes."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return False
    letters = [character for character in text if character.isalpha() and not character.isascii()]
    return bool(letters) and all(unicodedata.name(letter, "").startswith(scripts) for letter in letters)
