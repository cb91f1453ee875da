"""What is trained in each comparison, and the two command lines that train it: both are written from one `Contest`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import materials

LR = 1e-3
SWEEP = "optimizer=adam,adamw,rmsprop,momentum scheduler=linear,cosine seed=1,2"
TRIALS, MEASURED_SEEDS = 16, (1, 2)
TUTORIAL_ROWS = {"train": 48, "validation": 32}  # of the tutorial's script; the rest is extrapolated


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The same weights, rows and recipe on both sides."""

    title: str
    model: str  # gpt2 (its shape) or mini
    data: str  # ag_news or pydocs
    task: str = "classification"
    frozen_blocks: int = 0
    epochs: int = 3
    dropout: float = 0.1
    label_smoothing: float = 0.0
    head_init: str = "normal"
    max_length: int = 512  # tokens
    share_of_rows: float = 1.0
    is_default: bool = False  # `python train.py` with no recipe on its command line
    peer: str = "trainer"
    trials: int = 1
    side_by_side: int = 1  # trials at a time, each with its share of the cores
    tests_last_epoch: bool = False  # not the best by validation, and writes no checkpoints: as Trainer does

    @property
    def metric(self) -> str:
        return "loss" if self.task == "language_modeling" else "accuracy"


FROZEN = Contest(
    title="GPT-2 124M's shape, 10 of 12 blocks frozen, no dropout, ag_news, 3 epochs",
    model="gpt2",
    data="ag_news",
    frozen_blocks=10,
    dropout=0.0,  # Trainer leaves it on in frozen blocks, where it costs time and accuracy: this is its best setting
    tests_last_epoch=True,
)
CONTESTS = {
    "frozen": FROZEN,
    "default": Contest(
        title="The default: mini on pydocs, nothing frozen, 6 epochs",
        model="mini",
        data="pydocs",
        epochs=6,
        dropout=0.0,
        label_smoothing=0.1,
        head_init="xavier",
        max_length=128,
        is_default=True,
    ),
    "frozen_mini": Contest(
        title="mini, 4 of 6 blocks frozen, no dropout, ag_news, 3 epochs",
        dropout=0.0,  # Trainer would leave it on in frozen blocks, where it is computed for nothing
        model="mini",
        data="ag_news",
        frozen_blocks=4,
        tests_last_epoch=True,
    ),
    "unfrozen_gpt2": Contest(
        title="GPT-2 124M's shape, nothing frozen, a quarter of the ag_news sample, 2 epochs",
        model="gpt2",
        data="ag_news",
        epochs=2,
        share_of_rows=0.25,
    ),
    "unfrozen_mini": Contest(title="mini, nothing frozen, ag_news, 3 epochs", model="mini", data="ag_news"),
    "unfrozen_language_modeling": Contest(
        title="mini as a language model of ag_news, nothing frozen, windows of 512 tokens, 3 epochs",
        model="mini",
        data="ag_news",
        task="language_modeling",
    ),
    "sweep": replace(FROZEN, title=f"16 trials, `{SWEEP}`, each as in `frozen`", trials=TRIALS, side_by_side=2),
    "tutorial": replace(
        FROZEN,
        title="GPT-2 124M's shape, 10 of 12 blocks frozen, ag_news, 3 epochs",
        peer="tutorial",
        dropout=0.1,  # which the script has, too
        tests_last_epoch=False,
    ),
}


def materials_of(contest: Contest, rows: int) -> dict[str, Any]:
    """Paths of the model and the splits, and Trainer's rows per batch. `rows` of ag_news are trained on."""
    model = materials.gpt2_shape() if contest.model == "gpt2" else materials.MINI
    files = materials.pydocs() if contest.data == "pydocs" else materials.ag_news(int(rows * contest.share_of_rows))
    if contest.task == "language_modeling":
        batch_rows = materials.TOKENS_PER_BATCH // contest.max_length  # windows are all of one length
    else:
        batch_rows = materials.rows_per_batch(model, files["train"], contest.max_length)
    return {"model": model, "batch_rows": batch_rows, **files}


def our_command(contest: Contest, material: Mapping[str, Any], run: Path, seed: int) -> str:
    recipe = "" if contest.is_default else our_recipe(contest, material)
    quiet = "logger=none yardsticks=false callbacks.early_stopping=null"
    cold = "" if contest.is_default else f"data.cache_dir={run}/cache"
    if contest.frozen_blocks:
        cold += f" store=on store.dir={run}/activations"
    if contest.trials > 1:
        jobs = f"hydra.launcher.n_jobs={contest.side_by_side}"
        return joined("python train.py -m", SWEEP, recipe, quiet, cold, f"hydra.sweep.dir={run}", jobs)
    return joined("python train.py", recipe, quiet, cold, f"seed={seed} hydra.run.dir={run}")


def our_recipe(contest: Contest, material: Mapping[str, Any]) -> str:
    model = f"model=gpt2 model.path={material['model']}" if contest.model == "gpt2" else "model=mini"
    splits = " ".join(f"data.{split}={material[split]}" for split in ("train", "validation", "test"))
    rate = "" if contest.trials > 1 else f"optimizer.lr={LR:g}"  # each optimizer of the sweep has its own
    return joined(
        "" if contest.task == "classification" else f"task={contest.task}",
        f"{model} model.dropout={contest.dropout} freezing.blocks={contest.frozen_blocks}",
        f"data=files {splits} data.max_length={contest.max_length}",
        f"trainer.max_epochs={contest.epochs} {rate} head.init={contest.head_init}",
        f"loss.label_smoothing={contest.label_smoothing:g}",
        "callbacks.best=null callbacks.last=null" if contest.tests_last_epoch else "",
    )


def peer_commands(contest: Contest, material: Mapping[str, Any], pair: int, settings: str) -> list[str]:
    if contest.peer == "tutorial":
        return [tutorial_command(material, pair)]
    seeds: Sequence[int] = MEASURED_SEEDS if contest.trials > 1 else (pair,)
    return [trainer_command(contest, material, seed, settings) for seed in seeds]


def trainer_command(contest: Contest, material: Mapping[str, Any], seed: int, settings: str) -> str:
    return joined(
        f"python benchmarks/peers.py trainer {_files(material)} --test {material['test']}",
        "" if contest.task == "classification" else f"--task {contest.task}",
        f"--frozen-blocks {contest.frozen_blocks} --epochs {contest.epochs} --batch-rows {material['batch_rows']}",
        f"--max-length {contest.max_length} --lr {LR:g} --dropout {contest.dropout}",
        f"--label-smoothing {contest.label_smoothing:g} --head-init {contest.head_init} --seed {seed}",
        settings,
    )


def tutorial_command(material: Mapping[str, Any], seed: int) -> str:
    sample = " ".join(f"--max-{split}-rows {count}" for split, count in TUTORIAL_ROWS.items())
    return joined(
        f"python benchmarks/peers.py tutorial {_files(material)} {sample}",
        f"--epochs 1 --batch-rows 8 --lr 5e-5 --seed {seed}",
    )


def overridden(command: str, overrides: str) -> str:
    """The command with these overrides in place of its own for the same keys."""
    keys = {override.partition("=")[0] for override in overrides.split()}
    return joined(*(part for part in command.split() if part.partition("=")[0] not in keys), overrides)


def joined(*parts: str) -> str:
    return " ".join(" ".join(parts).split())


def _files(material: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {material[name]}" for name in ("model", "train", "validation"))
