"""Hydra's complaints about the command line and config files, in one line with the nearest right name."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from permafrost.errors import nearest


def explain(error: Exception, arguments: Sequence[str], config_dir: Path) -> str:
    """One sentence for an error that Hydra, OmegaConf or YAML raised while composing the configuration."""
    text = str(error) or str(error.__cause__ or "") or f"a config file cannot be read: {type(error).__name__}"
    if isinstance(error, YAMLError):  # the place stands in its last line
        return f"error: {' '.join(text.split())}"
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = missing[1], missing[2]
        return f"error: {group}={option}: no such option{nearest(option, options(config_dir, group))}"
    if key := re.search(r"Could not (?:override|append to config\. An item is already at) '([^']+)'", text):
        return f"error: unknown key {key[1]}{nearest(key[1].split('.')[-1], siblings(key[1], arguments, config_dir))}"
    if key := re.search(r"full_key: (\S+)", text):
        return f"error: {key[1]}: {text.splitlines()[0]}"
    return f"error: {text.splitlines()[0]}"


def options(config_dir: Path, group: str) -> list[str]:
    return [path.stem for path in (config_dir / group).glob("*.yaml") if path.stem != "defaults"]


def siblings(key: str, arguments: Sequence[str], config_dir: Path) -> list[str]:
    """Keys that stand where `key` should, in the configuration of the groups that the command line chose."""
    node = compose_groups(arguments, config_dir)
    *parents, _ = key.split(".")
    for parent in parents:
        if not isinstance(node, DictConfig) or parent not in node:
            return [str(name) for name in node] if isinstance(node, DictConfig) else []
        node = OmegaConf.select(node, parent, throw_on_missing=False)
    names = [str(name) for name in node] if isinstance(node, DictConfig) else []
    return names if parents else [*names, "experiment", "hydra"]


def compose_groups(arguments: Sequence[str], config_dir: Path) -> DictConfig:
    """The configuration with only the well-formed `group=option` arguments applied."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    chosen = []
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option and option in options(config_dir, group):
            chosen.append(argument)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        return compose("train", overrides=chosen)
