"""From a task's name and its data, or from what an export says of it, to the task itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from permafrost.model.decoding import Decoding
from permafrost.tasks.base import Mode, Table, Task
from permafrost.tasks.classification import Classification, labels_of
from permafrost.tasks.dialogue import Dialogue, speakers_of
from permafrost.tasks.generation import Generation
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.multi_label import MultiLabel, all_labels_of
from permafrost.tasks.regression import Regression, Scale, fit_scale
from permafrost.tasks.tagging import Tagging, tags_of

# task=NAME -> what it is; sentiment is classification under the name people look for
Kind = (
    type[Classification]
    | type[MultiLabel]
    | type[Regression]
    | type[LanguageModeling]
    | type[Tagging]
    | type[Generation]
    | type[Dialogue]
)
KINDS: Mapping[str, Kind] = {
    "classification": Classification,
    "sentiment": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
    "language_modeling": LanguageModeling,
    "ner": Tagging,
    "generation": Generation,
    "translation": Generation,
    "dialogue": Dialogue,
}


def metrics_of(name: str) -> Mapping[str, Mode]:
    return KINDS[name].metrics_logged


def predicts_tokens(name: str) -> bool:
    """Whether each token is learned from those before it."""
    return "perplexity" in KINDS[name].metrics_logged


def roles_of(name: str) -> Sequence[str]:
    return KINDS[name].roles


def bind(name: str, splits: Mapping[str, Table], options: Mapping[str, Any]) -> Task:
    """The task, with labels, tags or scale read from the training rows. `options` are what conf/task and conf/head say,
    and `right_context`, of which each task takes what is its own."""
    kind = KINDS[name]
    if kind is Classification:
        labels = labels_of(splits, options["labels"])
        return Classification(labels, pooling=options["pooling"], init=options["init"])
    if kind is MultiLabel:
        return MultiLabel(all_labels_of(splits), pooling=options["pooling"], init=options["init"])
    if kind is Regression:
        scale = fit_scale(splits["train"]["target"].to_numpy(), options["scaling"])
        return Regression(scale, pooling=options["pooling"], init=options["init"])
    if kind is Tagging:
        return Tagging(tags_of(splits), init=options["init"], right_context=options["right_context"])
    if kind is Generation:
        return Generation(options["template"], Decoding(**options["decoding"]), parses=options["parses"])
    if kind is Dialogue:
        speakers = speakers_of(splits, options["replies"])
        return Dialogue(options["replies"], Decoding(**options["decoding"]), speakers)
    return LanguageModeling()


def bind_described(description: Mapping[str, Any]) -> Task:
    """The task as `Task.describe` told of it; the head's weights come from the export, so its start is of no matter."""
    if description["task"] == Classification.name:
        return Classification(description["labels"], pooling=description["pooling"], init="normal")
    if description["task"] == MultiLabel.name:
        labels, pooling = description["labels"], description["pooling"]
        return MultiLabel(labels, pooling=pooling, init="normal", thresholds=description["thresholds"])
    if description["task"] == Regression.name:
        return Regression(Scale(**description["scale"]), pooling=description["pooling"], init="normal")
    if description["task"] == Tagging.name:
        return Tagging(description["tags"], init="normal", right_context=description["right_context"])
    if description["task"] == Generation.name:
        decoding = Decoding(**description["decoding"])
        return Generation(description["template"], decoding, parses=description["parses"])
    if description["task"] == Dialogue.name:
        decoding = Decoding(**description["decoding"])
        return Dialogue(description["replies"], decoding, description["speakers"])
    return LanguageModeling()
