"""A conversation with a model of dialogues."""

from collections.abc import Callable

from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError
from permafrost.tasks.dialogue import Dialogue


def converse(predictor: Predictor, read: Callable[[str], str], say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Read what a person says and say the model's reply, until nothing is said; returns the turns.

    The model sees the whole conversation, as far back as its window goes.

    Raises:
        ConfigError: the run was not of task=dialogue.
    """
    task = predictor.task
    if not isinstance(task, Dialogue):
        raise ConfigError(f"the run is of task={task.name}; a chat needs one of task=dialogue")
    person, turns = task.person(), list[tuple[str, str]]()
    while text := read("> ").strip():
        turns.append((person, text))
        row = task.to_answer([speaker for speaker, _ in turns], [said for _, said in turns])
        reply = predictor.answer([row])[0]["text"]
        turns.append((row["speakers"][-1], reply))
        say(reply)
    return turns
