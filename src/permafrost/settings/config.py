"""A configuration as settings: checked against the schema, with errors that name the key and the nearest right one."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from permafrost.errors import ConfigError, nearest
from permafrost.safety.building import check_node
from permafrost.settings.schema import DataSettings, Section, Settings

Checked = TypeVar("Checked", bound=Section)


def read_data_settings(cfg: DictConfig) -> DataSettings:
    """Of a whole configuration the part that says what the data are.

    Raises:
        ConfigError: as `read_settings`, for these sections.
    """
    return _validated(
        {name: value for name, value in _plain(cfg).items() if name in DataSettings.model_fields}, DataSettings
    )


def read_settings(cfg: DictConfig) -> Settings:
    """The whole configuration, checked against the schema and the signatures of all that it names.

    Raises:
        ConfigError: an unknown key at any depth, a wrong type, a value out of range, a target not allowed.
    """
    settings = _validated(_plain(cfg), Settings)
    for name in ("optimizer", "scheduler", "loss"):
        check_node(getattr(settings, name), name)
    for name, part in settings.parts.items():
        check_node(part.loss, f"parts.{name}.loss")
    for group in ("callbacks", "logger"):
        for name, node in getattr(settings, group).items():
            if node is not None:
                check_node(node, f"{group}.{name}")
    return settings


def _plain(cfg: DictConfig) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {error}".split("\n")[0]) from error


def _validated(plain: Mapping[str, Any], schema: type[Checked]) -> Checked:
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, schema) for problem in error.errors())) from None


def _explain(problem: Mapping[str, Any], schema: type[BaseModel]) -> str:
    path = [part for part in problem["loc"] if _is_key(part)]
    where = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{nearest(str(path[-1]), _known_keys(schema, path[:-1]))}"
    if problem["type"] == "missing":
        return f"missing key {where}"
    message = problem["msg"].replace("Input should be", "should be")
    return f"{where}={problem['input']!r}: {message}"


def _is_key(part: Any) -> bool:
    """Pydantic puts the branch of a union into the path, too: `literal['all']`, `constrained-int`."""
    return isinstance(part, int) or (
        isinstance(part, str) and part.isidentifier() and part not in {"int", "str", "float", "bool"}
    )


def _known_keys(schema: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        if part in schema.model_fields:  # else it is a name that the user gave: of a part, or of a mixture's rows
            schema = _section_in(schema.model_fields[part].annotation) or schema
    return list(schema.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds: itself, or in a mapping, or unless it is None."""
    if inner := get_args(annotation):
        return next(filter(None, map(_section_in, inner)), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
