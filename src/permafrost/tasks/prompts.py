"""A row that asks and is answered, as one sequence of tokens: what stands before the answer, and what is left out.

Every field is written with a blank before it, so that a word has the same tokens wherever it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from permafrost.errors import ConfigError

SOURCE, TARGET = "{source}", "{target}"


@dataclass(frozen=True, kw_only=True)
class Template:
    """`before {source} between {target}`; the end-of-text token follows the target."""

    before: str
    between: str


def read_template(text: str) -> Template:
    """
    Raises:
        ConfigError: it does not hold {source} and then, at its end, {target}.
    """
    before, found, rest = text.partition(SOURCE)
    between, _, after = rest.partition(TARGET)
    if not found or TARGET not in rest or after or not between:
        raise ConfigError(
            f"task.template={text!r}: it must hold {SOURCE}, then words or signs that lead to the answer, and end with "
            f"{TARGET}; for example 'English:{SOURCE}\\nGerman:{TARGET}'"
        )
    return Template(before=before, between=between)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []


def prompt_ids(
    template: Template, sources: Sequence[str], tokenizer: Any, limit: int
) -> tuple[list[list[int]], list[int]]:
    """Tokens before each answer, at most `limit`, and how many of each source's end were left out."""
    before, between = token_ids(tokenizer, template.before), token_ids(tokenizer, template.between)
    room = limit - len(before) - len(between)
    if room < 1:
        raise ConfigError(f"task.template alone has {len(before) + len(between)} tokens, and there is room for {limit}")
    ids = tokenizer([f" {source}" for source in sources], add_special_tokens=False, verbose=False)["input_ids"]
    unread = [max(0, len(source) - room) for source in ids]
    return [[*before, *source[:room], *between] for source in ids], unread
