"""One model of several runs that began alike: the mean of their weights (Wortsman et al. 2022, arXiv:2203.05482).

It costs what one of them costs. Runs that began apart lie in other valleys, and what lies between them is no model.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from permafrost.deployment.export import DESCRIPTION, check_new
from permafrost.deployment.predictor import model_directory
from permafrost.errors import ConfigError
from permafrost.storage.atomic import complete_or_absent
from permafrost.storage.checksums import check_files, write_checksums

# Of a description, what runs that began alike need not share: what is stored of it, and how files are read.
OWN = ("trunk", "columns", "format")
# What a run's weights, its head's among them, were before the first step.
BEGINNINGS = ("seed", "init_from", "head", "model.name", "model.path", "model.init", "task.name")


def average(runs: Sequence[Path], directory: Path) -> None:
    """Write the mean of the runs' models, in Hugging Face layout.

    Raises:
        ConfigError: they did not begin alike, or answer otherwise.
    """
    from safetensors.torch import load_file, save_file

    if len(runs) < 2:
        raise ConfigError("an average is of two runs or more")
    check_new(directory)
    models = [model_directory(run) for run in runs]
    for run, model in zip(runs, models, strict=True):
        check_files(model)
        check_alike(runs[0], models[0], run, model)
    with complete_or_absent(directory) as partial:
        shutil.copytree(models[0], partial, ignore=shutil.ignore_patterns("*.safetensors"))
        for path in models[0].glob("*.safetensors"):
            save_file(
                mean_of([load_file(model / path.name) for model in models]), partial / path.name, {"format": "pt"}
            )
        write_description(models, partial)
        names = ", ".join(run.name for run in runs)
        (partial / "README.md").write_text(f"# The mean of {names}\n\nIts scores: `permafrost evaluate`.\n", "utf-8")
        write_checksums(partial)
        if directory.is_dir():  # and empty, as it was checked
            directory.rmdir()


def mean_of(weights: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """In double precision, so that the mean of what is the same is the same."""
    return {
        name: torch.stack([each[name].double() for each in weights]).mean(0).to(weight.dtype)
        for name, weight in weights[0].items()
    }


def check_alike(first: Path, first_model: Path, run: Path, model: Path) -> None:
    for name, ours, theirs in (
        *((key, beginning(first, key), beginning(run, key)) for key in BEGINNINGS),
        ("the architecture", without_own_facts(first_model / "config.json"), without_own_facts(model / "config.json")),
        ("the task", without_own_facts(first_model / DESCRIPTION), without_own_facts(model / DESCRIPTION)),
    ):
        if ours != theirs:
            raise ConfigError(f"{run} did not begin as {first}: {name} is {theirs} there, and {ours} here")


def beginning(run: Path, key: str) -> Any:
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run}: no run directory (no config.yaml), so it is not known how it began")
    found = yaml.safe_load(path.read_text("utf-8"))
    for name in key.split("."):
        found = found[name]
    return found


def without_own_facts(path: Path) -> dict[str, Any]:
    """But for what is each run's own."""
    content = json.loads(path.read_text("utf-8"))
    return {name: value for name, value in content.items() if name not in OWN}


def write_description(models: Sequence[Path], directory: Path) -> None:
    """What the runs have stored serves their mean where all have the same frozen part."""
    contents = [json.loads((model / DESCRIPTION).read_text("utf-8")) for model in models]
    trunks = [content["trunk"] for content in contents]
    shared = trunks[0] if all(trunk == trunks[0] for trunk in trunks) else None
    (directory / DESCRIPTION).write_text(json.dumps(contents[0] | {"trunk": shared}, indent=2) + "\n", "utf-8")
