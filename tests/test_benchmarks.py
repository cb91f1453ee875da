"""The speed benchmark's own parts: python -m pytest tests/test_benchmarks.py"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
PAIRS = [
    {"ours": {"fit_seconds": 10.0, "test": 0.5}, "peer": {"fit_seconds": 40.0, "test": None}},
    {"ours": {"fit_seconds": 10.0, "test": 0.5}, "peer": {"fit_seconds": 20.0, "test": None}},
    {"ours": {"fit_seconds": 20.0, "test": 0.5}, "peer": {"fit_seconds": 60.0, "test": None}},
]


@pytest.fixture
def module(monkeypatch):
    """Modules of benchmarks/ by name, as its scripts import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_sides_take_turns_at_going_first(module):
    assert [module("pairs").order(pair) for pair in range(3)] == [("ours", "peer"), ("peer", "ours"), ("ours", "peer")]


def test_a_ratio_is_taken_within_each_pair(module):
    pairs = module("pairs")
    assert pairs.ratios(PAIRS, "fit_seconds") == [4.0, 2.0, 3.0]
    assert pairs.summary(PAIRS, [pairs.Figure("fit_seconds", "fit, s", 0, compared=True)]) == {
        "fit_seconds": {"median": 3.0, "smallest": 2.0, "largest": 4.0}
    }


def test_table_shows_what_each_side_measures(module):
    pairs = module("pairs")
    figures = [
        pairs.Figure("fit_seconds", "fit, s", 0, compared=True),
        pairs.Figure("test", "test accuracy", 2),
        pairs.Figure("nothing", "measured by neither", 2),
    ]
    assert pairs.table(PAIRS, figures, "Trainer")[2:] == [
        "| fit, s | 10 (10 to 20) | 40 (20 to 60) | 3.00 (2.00 to 4.00) |",
        "| test accuracy | 0.50 | - |  |",
    ]


def test_epoch_seconds_are_those_between_its_lines(module):
    lines = [
        (5.0, "epoch 1/3  step 2"),
        (7.0, "epoch 2/3  step 4"),
        (8.0, "other"),
        (10.0, "epoch 3/3  step 6"),
        (20.0, "epoch 1/3  step 2"),  # the next trial of a sweep
        (24.0, "epoch 2/3  step 4"),
    ]
    assert module("speed").later_epoch_seconds(lines) == [2.0, 3.0, 4.0]


def test_trials_not_measured_count_as_those_measured(module):
    runs = [
        {"fit_seconds": 2.0, "memory_mb": 5.0, "validation": 0.5, "test": 0.25, "is_peers_recipe": True},
        {"fit_seconds": 4.0, "memory_mb": 6.0, "validation": 0.9, "test": 0.75, "is_peers_recipe": False},
    ]
    expected = {"fit_seconds": 24.0, "memory_mb": 6.0, "validation": 0.5, "test": 0.25}  # two at a time
    assert module("speed").combined(runs, module("contests").CONTESTS["sweep"]) == expected


def test_tutorial_is_extrapolated_by_the_row(module, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"two\nlines",a\nb,b\n')
    run = {"train_row_seconds": 2.0, "validation_row_seconds": 0.5, "fit_seconds": 1.0, "process_seconds": 4.0}
    figures = module("speed").extrapolated(
        module("contests").FROZEN, run | {"memory_mb": 1.0}, {"train": path, "validation": path}
    )
    assert (figures["fit_seconds"], figures["process_seconds"]) == (3 * (2 * 2.0 + 2 * 0.5), 15.0 + 3.0)


def test_every_fault_of_the_catalogue_has_a_test(module, tmp_path):
    told, *_, last = module("reliability").catalogue(tmp_path)
    assert told.endswith("No test has: none.")
    assert last.startswith("| 54 |")


@pytest.mark.parametrize("name", ["frozen", "default", "unfrozen_gpt2", "unfrozen_mini", "unfrozen_language_modeling"])
def test_both_sides_are_told_the_same(module, name):
    from permafrost.config import read_settings

    contests, contest = module("contests"), module("contests").CONTESTS[name]
    material = {key: Path(f"{key}.csv") for key in ("model", "train", "validation", "test")} | {"batch_rows": 38}
    ours = contests.our_command(contest, material, Path("run"), 1).split()[2:]
    (theirs,) = contests.peer_commands(contest, material, 1, "--precision bf16")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = read_settings(compose("train", [key for key in ours if not key.startswith("hydra.")]))
    options = module("peers").read_options(theirs.split()[2:])
    assert (options.frozen_blocks, options.epochs) == (settings.freezing.blocks, settings.trainer.max_epochs)
    assert (options.lr, options.weight_decay) == (settings.optimizer["lr"], settings.optimizer["weight_decay"])
    assert (options.dropout, options.warmup) == (settings.model.dropout, settings.scheduler["warmup"])
    assert options.label_smoothing == settings.loss["label_smoothing"]
    assert (options.max_length, options.head_init) == (settings.data.max_length, settings.head.init)
    assert (options.task, options.seed, options.precision) == (settings.task.name, settings.seed, "bf16")
    assert settings.data.max_tokens_per_batch == module("materials").TOKENS_PER_BATCH
    assert settings.trainer.gradient_clip_val == 1.0


def test_overrides_take_the_place_of_the_commands_own(module):
    command = module("contests").overridden("python train.py store=on store.dir=a seed=1", "store=off trainer=cpu")
    assert command == "python train.py store.dir=a seed=1 store=off trainer=cpu"


@pytest.fixture
def rows(module, tmp_path) -> list[str]:
    """Options that name CSV files of a few rows."""
    lines = [{"text": f"the quick brown fox {number}", "label": number % 2} for number in range(8)]
    for split in ("train", "validation", "test"):
        module("materials").write_rows(tmp_path / f"{split}.csv", lines)
    return [
        part for split in ("train", "validation", "test") for part in (f"--{split}", str(tmp_path / f"{split}.csv"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "options"),
    [
        ("trainer", ["--frozen-blocks", "1", "--attention", "eager", "--fused-gelu", "--head-init", "xavier"]),
        ("trainer", ["--task", "language_modeling", "--max-length", "16"]),
        ("tutorial", ["--max-length", "64"]),
    ],
)
def test_peers_print_their_figures(tiny_model_dir, rows, peer, options):
    if peer == "trainer":
        pytest.importorskip("accelerate", reason="the bench extra is not installed")
    command = [sys.executable, "benchmarks/peers.py", peer, "--model", str(tiny_model_dir), *rows, *options]
    ended = subprocess.run([*command, "--epochs", "2"], cwd=ROOT, text=True, capture_output=True, check=True)
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures["fit_seconds"] > 0
    assert figures["memory_mb"] > 0
    assert figures["tokens_trained"] > 0
    assert len(figures.get("epoch_seconds", [0, 0])) == 2
    metric = "loss" if "language_modeling" in options else "accuracy"
    assert figures["validation"][metric] >= 0
