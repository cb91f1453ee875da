"""From a task's name and its data, or from what an export says of it, to the task itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from permafrost.model.heads import Initialization, Pooling
from permafrost.tasks.base import Columns, Mode, Task
from permafrost.tasks.classification import Classification, labels_of
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.regression import Regression, Scale, Scaling, fit_scale

# task=NAME -> what it is; sentiment is classification under the name people look for
KINDS: Mapping[str, type[Classification] | type[Regression] | type[LanguageModeling]] = {
    "classification": Classification,
    "sentiment": Classification,
    "regression": Regression,
    "language_modeling": LanguageModeling,
}


def metrics_of(name: str) -> Mapping[str, Mode]:
    return KINDS[name].metrics_logged


def columns_of(name: str) -> Sequence[str]:
    return KINDS[name].columns


def bind(
    name: str,
    splits: Mapping[str, Columns],
    *,
    labels: Sequence[str] | None,
    scaling: Scaling,
    pooling: Pooling,
    init: Initialization,
) -> Task:
    """The task, with labels or scale read from the training rows."""
    kind = KINDS[name]
    if kind is Classification:
        return Classification(labels_of(splits, labels), pooling=pooling, init=init)
    if kind is Regression:
        return Regression(fit_scale(splits["train"]["target"].to_numpy(), scaling), pooling=pooling, init=init)
    return LanguageModeling()


def bind_described(description: Mapping[str, Any]) -> Task:
    """The task as `Task.describe` told of it; the head's weights come from the export, so its start is of no matter."""
    if description["task"] == Classification.name:
        return Classification(description["labels"], pooling=description["pooling"], init="normal")
    if description["task"] == Regression.name:
        return Regression(Scale(**description["scale"]), pooling=description["pooling"], init="normal")
    return LanguageModeling()
