"""Texts made clean, step by step in this order: encoding, html, unicode, control, boilerplate, whitespace.

Every step is a function of a text alone, can be left out, and is counted by the rows it changed. The words of a tagged
sentence are cleaned one by one and never vanish, so that tags stay with their words. Texts that are to be written are
spared `html`, `boilerplate` and `whitespace`: in code, signs and indentation mean something.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

from permafrost.errors import ConfigError

Step = Callable[[str], str]

TAGS = (
    "a|abbr|article|b|blockquote|body|br|button|center|code|dd|div|dl|dt|em|font|footer|form|h[1-6]|head|header|hr|html|"
    "i|iframe|img|input|label|li|link|meta|nav|ol|option|p|pre|s|script|section|select|small|span|strike|strong|style|"
    "sub|sup|svg|table|tbody|td|textarea|th|thead|title|tr|u|ul"
)
FLAGS = "async|autoplay|checked|controls|defer|disabled|hidden|loop|multiple|noshade|nowrap|readonly|required|selected"
ATTRIBUTE = rf"""\s+(?:[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s<>"']+)|{FLAGS})"""
# By name, and with attributes alone: `<unk>`, `a < b` and `a<b and c>d` are texts.
TAG = re.compile(rf"</?(?:{TAGS})(?:{ATTRIBUTE})*\s*(?:/\s*)?>", re.IGNORECASE)
HIDING = re.compile(r"<(script|style)\b[^<>]*>|<!--", re.IGNORECASE)
CLOSING = {name: re.compile(f"</{name}>", re.IGNORECASE) for name in ("script", "style")} | {"": re.compile("-->")}
# As in `#39;s`. Numbers are those of quotes, accented letters and dashes: `PR #1234;` is a text, and so is `an amp; `.
CODES = "3[4689]|6[02]|12[89]|1[3-9]\\d|2[0-4]\\d|25[0-5]|820[89]|82[1-4]\\d|8250"
LOST_AMPERSAND = re.compile(rf"(?<![&\w])(#0*(?:{CODES});|(?:quot|lt|gt|nbsp);|amp;(?=\S))")
INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
BLANKS, LINE_ENDS, MANY_LINES = re.compile(r"[^\S\n]+"), re.compile(r" ?\r?\n ?"), re.compile(r"\n{3,}")

OF_TEXTS = ("encoding", "html", "unicode", "control", "boilerplate", "whitespace")
OF_WORDS = OF_ANSWERS = ("encoding", "unicode", "control")
STEPS_OF_FIELD: Mapping[str, Sequence[str]] = {
    "text": OF_TEXTS,
    "text_pair": OF_TEXTS,
    "source": OF_TEXTS,
    "turns": OF_TEXTS,
    "tokens": OF_WORDS,
    "references": OF_ANSWERS,
}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Which steps are taken; `boilerplate` are patterns of what is cut out wherever it stands."""

    encoding: bool = False
    html: bool = False
    unicode: Literal["NFC", "NFKC"] | None = None
    control: bool = False
    boilerplate: Sequence[str] = ()
    whitespace: bool = False

    def functions(self) -> dict[str, Step]:
        """Step -> what it does, in order, of those that are taken."""
        found: dict[str, Step] = {}
        if self.encoding:
            found["encoding"] = mend_encoding
        if self.html:
            found["html"] = without_html
        if self.unicode:
            form = self.unicode
            found["unicode"] = lambda text: text if text.isascii() else unicodedata.normalize(form, text)
        if self.control:
            found["control"] = lambda text: text if text.isprintable() else INVISIBLE.sub("", text)
        if self.boilerplate:
            patterns = compiled(self.boilerplate)
            found["boilerplate"] = lambda text: reduce(lambda left, pattern: pattern.sub("", left), patterns, text)
        if self.whitespace:
            found["whitespace"] = even_whitespace
        return found


def compiled(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    """One by one, as each may have flags and groups of its own.

    Raises:
        ConfigError: one that is no regular expression.
    """
    made = []
    for pattern in patterns:
        try:
            made.append(re.compile(pattern))
        except re.error as error:
            raise ConfigError(f"cleaning.boilerplate: {pattern!r} is no regular expression: {error}") from None
    return made


def mend_encoding(text: str) -> str:
    """Text that was decoded by the wrong table, by ftfy (Speer 2019); other text is left as it is."""
    if text.isascii():
        return text
    from ftfy import fix_encoding

    return fix_encoding(text)


def without_html(text: str) -> str:
    """Tags become blanks, entities characters, those too that lost their `&`."""
    if "<" in text:
        text = TAG.sub(" ", without_hidden(text))
    if ";" in text:
        text = html.unescape(LOST_AMPERSAND.sub(r"&\1", text))
    return text


def without_hidden(text: str) -> str:
    """Without scripts, styles and comments. What is not closed stays, and its end is looked for once: a single pattern
    would look again from each beginning, which takes minutes of a long text that is made so."""
    kept, start, unclosed = [], 0, set[str]()
    for opening in HIDING.finditer(text):
        kind = (opening[1] or "").lower()
        if opening.start() < start or kind in unclosed:
            continue
        if closing := CLOSING[kind].search(text, opening.end()):
            kept += [text[start : opening.start()], " "]
            start = closing.end()
        else:
            unclosed.add(kind)
    return "".join([*kept, text[start:]])


def even_whitespace(text: str) -> str:
    """One blank for several, none at the ends of lines, one empty line at most."""
    if "  " not in text and text.isprintable():  # of white space this leaves single blanks
        return text.strip()
    return MANY_LINES.sub("\n\n", LINE_ENDS.sub("\n", BLANKS.sub(" ", text))).strip()


@dataclass
class Cleaner:
    """Cleans rows of any role; `changed` counts the rows of each step."""

    steps: Steps
    changed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._functions = self.steps.functions()

    def __bool__(self) -> bool:
        return bool(self._functions)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row with clean texts; None if nothing is left of one that is read."""
        taken, made = set[str](), dict(row)
        for name in STEPS_OF_FIELD.keys() & row.keys():
            steps = {step: self._functions[step] for step in STEPS_OF_FIELD[name] if step in self._functions}
            value = row[name]
            if isinstance(value, list):
                made[name] = [cleaned(one, steps, taken) or one for one in value]
            elif value is not None:
                made[name] = cleaned(value, steps, taken)
                if not made[name].strip():
                    return None
        self.changed.update(taken)
        return made


def cleaned(text: str, steps: Mapping[str, Step], taken: set[str]) -> str:
    """`taken` gets the names of the steps that changed it."""
    for name, step in steps.items():
        after = step(text)
        if after != text:
            taken.add(name)
            text = after
    return text
