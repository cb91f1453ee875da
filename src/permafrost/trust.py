"""What a config file, a command line or a model directory of a stranger may not bring: code, or names of it.

`building` makes objects of what is on its list alone. What is refused here is what Hydra itself, the logging module
that it sets up, and Transformers would make of such files, before any of it is composed or imported.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from permafrost.building import ALLOWED_TARGETS
from permafrost.errors import ConfigError
from permafrost.redaction import check_no_secret_in

OF_HYDRA = frozenset({"permafrost.reporting.sweep.SweepTable"})  # Hydra builds it, not we
# Keys that make the logging module or Hydra call something, or change the environment.
CALLING_KEYS = frozenset({"()", "class", "env_set", "searchpath"})
CALLING_TEXT = re.compile(r"ext://|\$\{\s*oc\.")  # logging's names of objects; the environment and what it decodes to
CONFIG_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")
WEAKENED = "HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE"
CODE_IN_MODEL = ("auto_map", "custom_pipelines", "_attn_implementation_internal")
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_start(config_dir: Path, arguments: Sequence[str]) -> None:
    """Refuse config files and overrides that name code which is not on the list; before Hydra reads them.

    Raises:
        ConfigError
    """
    if WEAKENED in os.environ:
        raise ConfigError(f"{WEAKENED} would let a config file name any code; unset it")
    for directory in [config_dir, *given_directories(arguments)]:
        for path in sorted(directory.rglob("*.y*ml")):
            check_file(path)
    for argument in arguments:
        check_override(argument)


def given_directories(arguments: Sequence[str]) -> list[Path]:
    found = [value for flag, value in pairwise(arguments) if flag in CONFIG_FLAGS]
    found += [argument.partition("=")[2] for argument in arguments if argument.partition("=")[0] in CONFIG_FLAGS]
    return [Path(value) for value in found]


def check_file(path: Path) -> None:
    try:
        text = path.read_text("utf-8")
        content = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # Hydra's reader may be of another opinion
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} holds no keys: a config file has lines such as `seed: 1`")
    check_no_secret_in(path, text, pairs(content))
    for key, value in pairs(content):
        if key == "_target_" and (not isinstance(value, str) or value not in ALLOWED_TARGETS | OF_HYDRA):
            raise ConfigError(f"{path}: _target_: {value} is not on the list of what a config may build")
        if key in CALLING_KEYS or (isinstance(value, str) and (CALLING_TEXT.search(value) or "_target_" in value)):
            raise ConfigError(f"{path}: {key}: {value} could run code or read the environment; remove it")


def pairs(node: Any, seen: frozenset[int] = frozenset()) -> Iterator[tuple[Any, Any]]:
    """Every key with its value, at any depth; an element of a list has the key None."""
    if id(node) in seen:  # an alias of what it stands in
        return
    within = seen | {id(node)}
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from pairs(key, within)
            yield from pairs(value, within)
    elif isinstance(node, list | tuple):
        for value in node:
            yield None, value
            yield from pairs(value, within)


def check_override(argument: str) -> None:
    """An override may choose a target by name, of those on the list."""
    for target in re.findall(r"_target_\W*([\w.]*)", argument):
        if target not in ALLOWED_TARGETS | OF_HYDRA:
            raise ConfigError(f"{argument}: {target} is not on the list of what a config may build")
    is_hydras = re.match(r"[+~]*hydra\b", argument)
    if CALLING_TEXT.search(argument) or (is_hydras and re.search(r"\(\)|\bclass\W*[:=]|env_set|searchpath", argument)):
        raise ConfigError(f"{argument}: this could run code or read the environment; leave it out")


def check_model_directory(directory: Path) -> None:
    """Refuse a model that would bring code of its own, or have some fetched.

    Raises:
        ConfigError
    """
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue  # which its reader will say
        for key, _ in pairs(content):
            if key in CODE_IN_MODEL:
                raise ConfigError(f"{path}: {key} names code to be run with the model, which this program never does")
