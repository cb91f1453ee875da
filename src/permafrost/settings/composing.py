"""From overrides to a configuration, as the command line would compose it; what is wrong with them in our words."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from omegaconf import DictConfig

from permafrost.errors import ConfigError
from permafrost.safety.trust import check_override

CONFIG_DIR = Path(__file__).parents[3] / "conf"  # of the clone
# Groups that each part of task=multi has for itself; the others are shared by all.
OF_A_PART = ("task", "data", "cleaning", "augmentation", "head", "loss")


def with_parts(cfg: DictConfig, config_dir: Path) -> DictConfig:
    """The configuration with that of each of its `task.parts`, composed of what the part's command line would be.

    Raises:
        ConfigError: a part sets what all parts share, or what there is not.
    """
    from omegaconf import OmegaConf

    parts = {}
    for name, line in (cfg.task.parts or {}).items():
        part = composed_part(name, shlex.split(str(line)), config_dir)
        part.data.cache_dir = cfg.data.cache_dir
        parts[name] = {key: part[key] for key in OF_A_PART}
    return OmegaConf.create({**cfg, "parts": parts}) if parts else cfg


def configs_by_part(cfg: DictConfig, config_dir: Path) -> dict[str, DictConfig]:
    """Of several tasks each one's configuration, as if it were trained alone; else this one, under the name "".

    Raises:
        ConfigError: as `with_parts`, or task=multi has none.
    """
    from omegaconf import OmegaConf

    from permafrost.settings.preflight import MULTI_TASK, NO_PARTS

    if cfg.task.kind == MULTI_TASK and not cfg.task.parts:
        raise ConfigError(NO_PARTS)
    cfg = with_parts(cfg, config_dir)
    return {name: OmegaConf.create({**cfg, **part}) for name, part in cfg.parts.items()} or {"": cfg}


def composed_part(name: str, overrides: Sequence[str], config_dir: Path) -> DictConfig:
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].split(".")[0] not in ("experiment", *OF_A_PART):
            raise ConfigError(
                f"task.parts.{name}: {override} is of the whole run; a part has {', '.join(OF_A_PART)} of its own"
            )
    try:
        return compose_or_explain(overrides, config_dir)
    except ConfigError as error:
        raise ConfigError(f"task.parts.{name}: {error}") from None


def compose_or_explain(overrides: Sequence[str], config_dir: Path) -> DictConfig:
    """As the command line would be composed; what Hydra finds wrong is told in our words.

    Raises:
        ConfigError
    """
    for override in overrides:
        check_override(override)
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    is_at_work = GlobalHydra.instance().is_initialized()  # not in a sweep's worker
    with (
        explained(overrides, config_dir),
        nullcontext() if is_at_work else initialize_config_dir(str(config_dir), version_base="1.3"),
    ):
        return compose("train", overrides=list(overrides))


@contextmanager
def explained(overrides: Sequence[str], config_dir: Path) -> Iterator[None]:
    """What Hydra finds wrong with them, in our words: a ConfigError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from permafrost.settings.overrides import explain

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides, config_dir).removeprefix("error: ")) from None
