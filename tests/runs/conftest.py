"""Whole runs on the tiny model: the real configuration, composed as the command line does, and the real program."""

import csv
import io
import json
import os
import random
import runpy
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SPLITS = ("train", "validation", "test")
WARM, COLD = ["sunny", "hot", "warm", "bright"], ["snow", "cold", "frost", "ice"]


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Its plots take as long as the rest of such a run."""
    from permafrost.reporting import html

    monkeypatch.setattr(html, "write_report", lambda run_dir: run_dir)


def compose_config(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def write_rows(directory: Path, counts: dict[str, int]) -> None:
    """NAME.csv with text, other, label (warm or cold) and score (how many warm words)."""
    rng, others = random.Random(0), random.Random(1)
    for name, count in counts.items():
        rows = []
        for number in range(count):
            words, is_warm = rng.choices(WARM if number % 2 else COLD, k=rng.randint(3, 9)), number % 2
            label = "warm" if is_warm else "cold"
            rows.append(
                [f"{' '.join(words)} {number}", " ".join(others.choices(WARM + COLD, k=2)), label, len(words) * is_warm]
            )
        with (directory / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "other", "label", "score"], *rows])


def write_sentences(directory: Path, counts: dict[str, int]) -> None:
    """NAME.conll, where runs of warm and of cold words are spans; NAME.src and NAME.tgt, where each word has one that
    answers it; NAME.jsonl, dialogues of such words with one label or several a row."""
    rng = random.Random(1)
    for name, count in counts.items():
        drawn = [rng.choices([*WARM[:2], *COLD[:2], "the", "of"], k=rng.randint(3, 8)) for _ in range(count)]
        tagged = [zip(words, tags_of_words(words), strict=True) for words in drawn]
        blocks = ["".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in tagged]
        (directory / f"{name}.conll").write_text("\n".join(blocks))
        (directory / f"{name}.src").write_text("".join(" ".join(words) + "\n" for words in drawn))
        (directory / f"{name}.tgt").write_text(
            "".join(" ".join(word[::-1] for word in words) + "\n" for words in drawn)
        )
        rows = [
            {
                "turns": [" ".join(words), " ".join(word[::-1] for word in words), words[0], words[0][::-1]],
                "text": " ".join(words),
                "acts": ["say", "mirror", "say", "mirror"],
                "labels": sorted({kind for word in words if (kind := kind_of(word))}),
            }
            for words in drawn
        ]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def kind_of(word: str) -> str | None:
    return "warm" if word in WARM else "cold" if word in COLD else None


def tags_of_words(words: list[str]) -> list[str]:
    kinds = [kind_of(word) for word in words]
    return [
        "O" if kind is None else f"{'I' if kind == before else 'B'}-{kind}"
        for before, kind in zip([None, *kinds], kinds, strict=False)
    ]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("rows")
    write_rows(directory, {"train": 40, "validation": 16, "test": 16})
    write_sentences(directory, {"train": 60, "validation": 16, "test": 16})
    return directory


@pytest.fixture(scope="session")
def of_task(data_dir):
    """Overrides that give a task tiny rows of its own."""

    def overrides(task: str) -> list[str]:
        if task == "ner":
            return [f"task={task}", *(f"data.{name}={data_dir}/{name}.conll" for name in SPLITS)]
        if task in ("generation", "translation"):
            files = [f"data.{name}=[{data_dir}/{name}.src,{data_dir}/{name}.tgt]" for name in SPLITS]
            return [f"task={task}", *files, "task.decoding.max_new_tokens=24", "task.validation_generations=4"]
        if task in ("dialogue", "multi_label", "acts"):
            files = [f"data.{name}={data_dir}/{name}.jsonl" for name in SPLITS]
            return [f"task={task}", *files, "task.decoding.max_new_tokens=8", "task.validation_generations=4"]
        return [f"task={task}"]

    return overrides


@pytest.fixture(scope="session")
def tiny(tiny_model_dir, data_dir, tmp_path_factory) -> list[str]:
    """Overrides that make any run small: the tiny model on the tiny rows, quiet, two epochs."""
    return [
        "data=files",
        *(f"data.{name}={data_dir}/{name}.csv" for name in ("train", "validation", "test")),
        f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
        "data.max_tokens_per_batch=200",
        f"store.dir={tmp_path_factory.mktemp('activations')}",
        "store.dtype=float32",  # where equality is asked for, nothing is rounded: neither what is stored
        "trainer.precision=32-true",  # nor what is computed, whatever this machine's CPU multiplies fastest
        f"model.path={tiny_model_dir}",
        "freezing.blocks=1",
        "logger=none",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "yardsticks=false",
    ]


@pytest.fixture
def run_tiny(tiny, tmp_path):
    """Run in this process, with a store that no other test has filled; gives the result and the run directory."""
    from permafrost.experiment import run

    def go(*overrides: str, name: str = "run"):
        run_dir = tmp_path / name
        return run(compose_config(*tiny, f"store.dir={tmp_path}/activations", *overrides), run_dir), run_dir

    return go


@pytest.fixture(scope="session")
def finished_run(tiny, tmp_path_factory):
    """One classification run that many tests look at."""
    from permafrost.experiment import run

    run_dir = tmp_path_factory.mktemp("finished") / "run"
    return run(compose_config(*tiny, "yardsticks=true"), run_dir), run_dir


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """`python train.py ARGUMENTS` as a user types it."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def command_here(*arguments: str) -> tuple[int, str, str]:
    """The same program without a process for it: exit code, output and errors. For what ends before a run begins."""
    program, out, err = str(ROOT / "train.py"), io.StringIO(), io.StringIO()
    listening, code = signal.getsignal(signal.SIGTERM), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setenv("HYDRA_FULL_ERROR", "1")  # which the program sets for itself, and others would see here
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
    signal.signal(signal.SIGTERM, listening)
    return code, out.getvalue(), err.getvalue()
