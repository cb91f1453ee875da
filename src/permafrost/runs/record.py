"""What a run directory says of its run: the settings that it was begun with, how others differ, and whether it is done.

The settings are those of config.yaml, in which secrets are not written down: others are compared as they would stand
there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from permafrost.safety.redaction import redacted_text

Changes = dict[str, tuple[Any, Any]]  # by dotted key: what it was, and what it is now


def to_write(cfg: DictConfig) -> str:
    """The text of a run's config.yaml."""
    return redacted_text(OmegaConf.to_yaml(cfg, resolve=True))


def changes_of(path: Path, cfg: DictConfig) -> Changes:
    """How the configuration differs from the one that is written at `path`."""
    written = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else None
    if not written:  # or empty, where the machine went down as it was written
        return {}
    before, now = flat(written), flat(OmegaConf.to_container(OmegaConf.create(to_write(cfg))))
    pairs = {key: (before.get(key, "unset"), now.get(key, "unset")) for key in {**now, **before}}
    return {key: (there, here) for key, (there, here) in pairs.items() if there != here}


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys the dotted paths."""
    if not isinstance(node, Mapping):
        return {path: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flat(child, f"{path}.{name}" if path else str(name)).items()
    }


def finished_result(run_dir: Path) -> dict[str, Any] | None:
    try:
        result = json.loads((run_dir / "result.json").read_text("utf-8"))
    except (OSError, ValueError):  # none, or the program was killed as it wrote
        return None
    return result if result.get("status") == "done" else None
