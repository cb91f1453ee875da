"""From what a configuration or an export calls a task to the task itself."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from permafrost.errors import ConfigError
from permafrost.tasks.base import LOSS, Mode, Task, WritesAnswers, in_part
from permafrost.tasks.declared import KIND


def kind_of(path: str) -> Any:
    """The class that `tagging.Tagging` names: of a module in this directory, and of no other place.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = path.partition(".")
    try:
        found = getattr(import_module(f"permafrost.tasks.{module}"), name) if KIND.fullmatch(path) else None
    except (ImportError, AttributeError):
        found = None
    if not hasattr(found, "from_rows"):
        raise ConfigError(f"task.kind={path}: no such task; give MODULE.Class of src/permafrost/tasks/")
    return found


def metrics_logged(kinds: Mapping[str, str]) -> dict[str, Mode]:
    """Metric -> whether less or more is better, of the kind of each part; of several each is PART/METRIC."""
    of_parts: dict[str, Mode] = {
        in_part(name, metric): mode
        for name, kind in kinds.items()
        for metric, mode in kind_of(kind).metrics_logged.items()
    }
    return of_parts | {LOSS: "min"}


def predicts_tokens(kind: str) -> bool:
    """Whether each token is learned from those before it."""
    return "perplexity" in kind_of(kind).metrics_logged


def writes(kind: str) -> bool:
    """Whether its answers are texts, of which validation scores a sample."""
    return issubclass(kind_of(kind), WritesAnswers)


def bind_described(description: Mapping[str, Any]) -> Task:
    """The task as `Task.describe` told of it; the head's weights come from the export, so its start is of no matter."""
    return kind_of(description["kind"]).from_description(description)
