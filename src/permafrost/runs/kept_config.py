"""A finished run's configuration, with what is chosen anew for what is done with it now."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from permafrost.errors import ConfigError
from permafrost.safety.trust import check_file, check_override
from permafrost.settings.composing import CONFIG_DIR, compose_or_explain, explained


def config_of_run(run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """The run's own, with these overrides. They mean what they mean to `train.py`: a group of which they choose an
    option is as that option has it, and the other groups are as they were.

    Raises:
        ConfigError: there is none, or an override is not understood.
    """
    from omegaconf import OmegaConf

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir}: no run directory (no config.yaml)")
    if not CONFIG_DIR.is_dir():
        raise ConfigError(f"no configurations at {CONFIG_DIR}; install the project from a clone: pip install -e .")
    check_file(path)
    of_run: Any = OmegaConf.load(path)
    of_run.resume = "never"  # what the run was started with is nothing to what is done with it now
    asked = {override: parsed(override) for override in overrides}
    for override, read in asked.items():
        if read.is_sweep_override():
            raise ConfigError(f"{override}: these are several values, which --sweep tries one by one")
    groups = {"compression", *(read.key_or_group for read in asked.values() if is_group(read.key_or_group))}
    of_groups = [override for override, read in asked.items() if read.key_or_group.split(".")[0] in groups]
    for group, section in chosen(groups, of_groups).items():
        of_run[group] = section
    for override, read in asked.items():
        if override not in of_groups:
            OmegaConf.update(of_run, read.key_or_group, read.value())
    return of_run


def is_group(key: str) -> bool:
    return (CONFIG_DIR / key).is_dir()


def parsed(override: str) -> Any:
    """By Hydra's grammar, in which `on` is a word and no truth value.

    Raises:
        ConfigError: it is not understood, or takes something away.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    check_override(override)
    if "=" not in override:
        raise ConfigError(f"{override}: give KEY=VALUE, as compression=quantization, or to leave a part out KEY=null")
    with explained([override], CONFIG_DIR):
        read = OverridesParser.create().parse_override(override)
    if read.is_delete():
        raise ConfigError(f"{override}: give {read.key_or_group}=null")
    return read


def chosen(groups: set[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Group -> its section, composed of these overrides.

    Raises:
        ConfigError: an option sets keys of other groups, too, as task=legal and optimizer=gd do.
    """
    from omegaconf import OmegaConf

    composed = compose_or_explain(overrides, CONFIG_DIR)
    plain = compose_or_explain([], CONFIG_DIR) if groups != {"compression"} else composed
    others = [name for name in plain if name not in groups and plain[name] != composed[name]]
    if others or groups - set(composed):
        names = ", ".join(sorted(groups - {"compression"}))
        raise ConfigError(
            f"{names}: an option of more than one group cannot be chosen for a run that is done; set single keys, as "
            "optimizer.lr=1e-4"
        )
    return {group: OmegaConf.to_container(composed[group]) for group in groups}


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """Of values with commas between them each with each; what varies is in the name of what is made. `{mlp: 0.5, heads:
    0.0}` and `[a, b]` are one value."""
    asked = {read.key_or_group: values_of(override, read) for override in overrides for read in [parsed(override)]}
    several = [key for key, values in asked.items() if len(values) > 1 and key != "compression"]
    found = []
    for every in itertools.product(*asked.values()):
        by_key = dict(zip(asked, every, strict=True))
        varied = [f"{key.rpartition('.')[2]}{by_key[key]}".replace("/", "_") for key in several]
        name = ["-".join(["compression.name=" + by_key.get("compression", "none"), *varied])] if several else []
        found.append([f"{key}={value}" for key, value in by_key.items()] + name)
    return found


def values_of(override: str, read: Any) -> list[str]:
    return list(read.sweep_string_iterator()) if read.is_sweep_override() else [override.partition("=")[2]]
