"""Texts that a model writes: one for each row, by the task's own decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

from permafrost.model.decoding import generate
from permafrost.tasks.base import Encoding, Prompts, Writes, WritesAnswers


def write(task: Writes, backbone: Any, rows: Sequence[Mapping[str, Any]], encoding: Encoding) -> list[str]:
    return write_from(task, task.prompts(rows, encoding), backbone, encoding)


def write_from(task: Writes, prompts: Prompts, backbone: Any, encoding: Encoding) -> list[str]:
    """An answer stands by itself, without blanks around it; a text that goes on keeps them."""
    tokenizer = encoding.tokenizer
    written = generate(backbone, prompts.ids, prompts.decoding, end_token_id=tokenizer.eos_token_id)
    texts = [str(tokenizer.decode(ids)) for ids in written]
    return [text.strip() for text in texts] if isinstance(task, WritesAnswers) else texts
