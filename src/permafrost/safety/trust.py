"""What a config file, a command line or a model directory of a stranger may not bring: code, or names of it.

`building` makes objects of what is on its list alone. What is refused here is what Hydra itself, the logging module
that it sets up, and Transformers would make of such files, before any of it is composed or imported.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import yaml

from permafrost.errors import ConfigError
from permafrost.safety.building import ALLOWED_TARGETS
from permafrost.safety.redaction import check_no_secret_in

OF_HYDRA = frozenset({"permafrost.reporting.sweep.SweepTable"})  # Hydra builds it, not we
# Keys that make the logging module or Hydra call something, or change the environment.
CALLING_KEYS = frozenset({"()", "class", "env_set", "searchpath"})
# Logging's names of objects; the environment, and what a text decodes to; and a name that is put together from others.
CALLING_TEXT = re.compile(r"ext://|\$\{\s*oc\.|\$\{[^}:]*\$\{")
# In the name of an option: a directory above, or what is known only later.
ELSEWHERE = re.compile(r"(?<![^\[\]{},:/\\\s'\"])\.\.(?![^\[\]{},:/\\\s'\"])|\$\{")
DIRECTORY, PATH, NAME, RERUN = "--config-dir", "--config-path", "--config-name", "--experimental-rerun"
SHORT_FLAGS = {"-cd": DIRECTORY, "-cp": PATH, "-cn": NAME}
PATHS = ("resume", "init_from")  # keys without a dot whose values are paths
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
    for directory in [config_dir, *given_directories(config_dir, arguments)]:
        for path in config_files(directory):
            check_file(path)
    for argument in arguments:
        check_override(argument)


def given_directories(config_dir: Path, arguments: Sequence[str]) -> list[Path]:
    """Where Hydra's flags send it for config files.

    Raises:
        ConfigError: it is sent to a pickle, to a package, or to a file that is named by its path.
    """
    found: list[Path] = []
    for flag, value in flags_in(arguments):
        if flag == RERUN:
            raise ConfigError(f"{RERUN} reads a pickle, which can be any code; give the command again, with resume=")
        if "://" in value or (flag == NAME and re.search(r"[/\\.]", value)):
            raise ConfigError(f"{flag} {value}: config files lie in directories; give one with {DIRECTORY}")
        if flag != NAME:
            found.append(Path(value))
        if flag == PATH:
            found.append(config_dir.parent / value)  # it is relative to the program
    return found


def flags_in(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Those of Hydra's flags that name files, with their values; the program takes their beginnings for them, too."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, is_given, value = argument.partition("=")
        longer = [flag for flag in (DIRECTORY, PATH, NAME, RERUN) if flag.startswith(name) and len(name) > 2]
        for flag in longer or filter(None, [SHORT_FLAGS.get(name)]):
            yield flag, value if is_given else following


def config_files(directory: Path) -> Iterator[Path]:
    """Through links, too, as Hydra goes; a directory that is reached twice once."""
    seen: set[str] = set()
    for parent, children, names in os.walk(directory, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:
            children.clear()
            continue
        seen.add(place)
        children.sort()
        yield from (Path(parent) / name for name in sorted(names) if name.endswith((".yaml", ".yml")))


def check_file(path: Path) -> None:
    try:
        text = path.read_text("utf-8")
        content = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # Hydra's reader may be of another opinion
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} holds no keys: a config file has lines such as `seed: 1`")
    check_no_secret_in(path, text, pairs(content))
    for named in chain.from_iterable(pairs((content or {}).get("defaults"))):
        if isinstance(named, str) and ELSEWHERE.search(named):
            raise ConfigError(f"{path}: defaults: {named}: give the name of an option, which is a file of its group")
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
    key, _, value = argument.lstrip("+~").partition("=")
    is_choice = not argument.startswith("-") and "." not in key and key not in PATHS
    if is_choice and ELSEWHERE.search(value):
        raise ConfigError(f"{argument}: give the name of an option, which is a file of its group")
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
