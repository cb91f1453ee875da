"""Objects from config: one function, and the exact list of what it may call.

A config file from a stranger names what it likes; what is not on the list is refused, so it runs no code.
"""

import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from permafrost.errors import ConfigError, nearest

Node = dict[str, Any]  # a mapping with `_target_`

ALLOWED_TARGETS = frozenset(
    {
        "torch.optim.SGD",
        "torch.optim.RMSprop",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.Adafactor",
        "permafrost.training.optimizers.muon",
        "permafrost.training.schedulers.constant",
        "permafrost.training.schedulers.linear",
        "permafrost.training.schedulers.exponential",
        "permafrost.training.schedulers.cosine",
        "permafrost.training.schedulers.cosine_restarts",
        "permafrost.training.schedulers.polynomial",
        "permafrost.training.schedulers.wsd",
        "permafrost.training.schedulers.plateau",
        "permafrost.training.schedulers.one_cycle",
        "permafrost.tasks.losses.CrossEntropy",
        "permafrost.tasks.losses.Focal",
        "permafrost.tasks.losses.BinaryCrossEntropy",
        "permafrost.tasks.losses.MeanSquared",
        "permafrost.tasks.losses.Huber",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.RichProgressBar",
        "permafrost.training.callbacks.epoch_line.EpochLine",
        "permafrost.training.callbacks.gradient_norm.GradientNorm",
        "permafrost.training.callbacks.instability.Instability",
        "permafrost.training.callbacks.resume_point.ResumePoint",
        "permafrost.training.callbacks.throughput.Throughput",
        "permafrost.training.callbacks.weight_average.WeightAverage",
        "permafrost.training.loggers.wandb",
        "permafrost.training.loggers.tensorboard",
        "permafrost.training.loggers.csv",
    }
)


def build(node: Node, *args: Any, **runtime: Any) -> Any:
    """Call the allowed target of `node` with its keys; `runtime` fills in parameters that the node leaves open.

    The one place where a name in a config becomes an object.
    """
    target = _resolve(node, "config")
    accepted = inspect.signature(target).parameters
    given = {key: value for key, value in node.items() if key != "_target_"}
    return target(*args, **{key: value for key, value in runtime.items() if key in accepted} | given)


def check_node(node: Node, where: str) -> None:
    """Refuse a node whose target is not allowed, or whose keys its target does not take."""
    parameters = inspect.signature(_resolve(node, where)).parameters
    keywords = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for key, value in node.items():
        if key == "_target_":
            continue
        if key not in keywords:
            raise ConfigError(f"unknown key {where}.{key}{nearest(key, keywords)}")
        if not _fits(value, keywords[key].annotation):
            raise ConfigError(f"{where}.{key}={value!r}: expected {_readable(keywords[key].annotation)}")


def _resolve(node: Node, where: str) -> Callable[..., Any]:
    target = node.get("_target_")
    if target is None:
        raise ConfigError(f"{where} has no _target_{nearest('_target_', node)}")
    if not isinstance(target, str) or target not in ALLOWED_TARGETS:
        raise ConfigError(f"{where}._target_={target}: not on the list of what a config may build{_similar(target)}")
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _similar(target: object) -> str:
    """A hint only where a known name is close: the whole list says nothing to anybody."""
    hint = nearest(str(target), ALLOWED_TARGETS)
    return hint if hint.startswith("; did you mean") else ""


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain config value can be what the annotation says; annotations beyond plain values pass."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    if annotation in (None, type(None)):
        return value is None
    if get_origin(annotation) in (list, tuple):
        element = (*get_args(annotation), object)[0]
        return isinstance(value, list) and all(_fits(item, element) for item in value)
    return not isinstance(annotation, type) or annotation is inspect.Parameter.empty


def _readable(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
