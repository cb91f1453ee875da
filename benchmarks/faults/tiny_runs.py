"""Runs of seconds on the tests' model and rows, which tell another process what they are at."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

STAGES = ("none of these", "a save", "the store's build", "validation", "export")
STEPS, SAVE_EVERY = 12, 2
# Six batches an epoch, so that validation, every fifth step, and saves come within epochs and at their ends.
RECIPE = ["model.dropout=0.3", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=10", "store=on"]
RECIPE += ["trainer.log_every_n_steps=1", f"trainer.max_steps={STEPS}", "trainer.max_epochs=9"]
RECIPE += [f"save_every={SAVE_EVERY}", "callbacks.early_stopping=null"]
# For the process that kills a run, by the run: what it is at, its step from 1, how often it came to each stage, and how
# long it was there. Without locks, which a killed process would keep.
stage, step_at = (multiprocessing.Value("i", 0, lock=False) for _ in range(2))
begun, spent_s = (multiprocessing.Array(kind, len(STAGES), lock=False) for kind in "id")


def tiny_overrides(root: Path, recipe: Sequence[str] = RECIPE, test_rows: int = 16) -> list[str]:
    """The model and the rows of the tests."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from permafrost.data.tokens.tokenization import train_tokenizer
    from tests.conftest import TEXTS
    from tests.runs.conftest import SPLITS, write_rows

    tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=64)
    end: dict[str, Any] = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape: dict[str, Any] = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**shape, **end)).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    write_rows(root, {"train": 40, "validation": 16, "test": test_rows})
    files = ["data=files", *(f"data.{name}={root}/{name}.csv" for name in SPLITS)]
    own = [f"data.cache_dir={root}/cache", f"model.path={root}/model", "data.max_tokens_per_batch=200"]
    quiet = ["logger=none", "yardsticks=false", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    return [*files, *own, *quiet, "freezing.blocks=1", *recipe]


def begin(overrides: Sequence[str], run_dir: Path) -> BaseProcess:
    """A run in a process of its own, which has all modules already."""
    from tests.runs.conftest import compose_config

    arguments = (compose_config(*overrides), run_dir)
    process = multiprocessing.get_context("fork").Process(target=run_in_process, args=arguments)
    stage.value = step_at.value = 0
    begun[:], spent_s[:] = [0] * len(STAGES), [0.0] * len(STAGES)
    process.start()
    return process


def run_in_process(cfg: Any, run_dir: Path) -> None:
    from permafrost.experiment import run
    from permafrost.reporting import html

    with Path(f"{run_dir}.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        mark_stages()
        html.write_report = lambda run_dir: run_dir  # plots take longer than the training
        run(cfg, run_dir)


def mark_stages() -> None:
    """Tell the process outside what this one is at."""
    from permafrost import experiment
    from permafrost.training import checkpoints, trunk_pass
    from permafrost.training.callbacks import resume_point
    from permafrost.training.callbacks.gradient_norm import GradientNorm
    from permafrost.training.module import FineTuning

    for owner, name, number in (
        (checkpoints, "write_sealed", 1),
        (resume_point, "shift", 1),
        (trunk_pass, "write_entry", 2),
        (FineTuning, "validation_step", 3),
        (experiment, "write_run", 4),
    ):
        setattr(owner, name, marked(getattr(owner, name), number))
    GradientNorm.on_before_optimizer_step = counted(GradientNorm.on_before_optimizer_step)  # type: ignore[method-assign]


def marked(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        stage.value = number
        begun[number] += 1
        try:
            return function(*arguments, **options)
        finally:
            stage.value = 0
            spent_s[number] += time.perf_counter() - start

    return call


def counted(hook: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, trainer: Any, *arguments: Any) -> Any:
        step_at.value = trainer.global_step + 1
        return hook(self, trainer, *arguments)

    return call


def run_whole(overrides: Sequence[str], run_dir: Path) -> float:
    """Seconds of a run that nothing stops, the second of two: the first has rows to tokenise."""
    for directory in (run_dir.with_name("first"), run_dir):
        start = time.perf_counter()
        process = begin([*overrides, f"store.dir={directory}.store"], directory)
        process.join()
        if process.exitcode:
            raise SystemExit(Path(f"{directory}.log").read_text())
    return time.perf_counter() - start
