"""The benchmarks' own parts: python -m pytest tests/test_benchmarks.py"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize(
    "name", ["frozen", "frozen_mini", "default", "unfrozen_gpt2", "unfrozen_mini", "unfrozen_language_modeling"]
)
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


def test_every_script_is_run_by_make_bench(module):
    """But for those that are part of another, or need a run to be given."""
    run = module("run")
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    named = {script.split()[0] for script, _ in run.SCRIPTS.values()}
    assert scripts - {"run.py", "peers.py", "contract_review.py"} == named
    assert {script.split()[1] for script, _ in run.SCRIPTS.values() if script.startswith("speed.py")} == set(
        module("speed").STUDIES
    )
    assert "benchmarks/run.py\n" in (ROOT / "Makefile").read_text()


def test_every_study_and_script_is_in_the_readme(module):
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    run = module("run")
    for name in run.studies(missing=False, jobs=1):
        assert f"| `{name}` |" in readme
    for script in {script.split()[0] for script, _ in run.SCRIPTS.values()}:
        assert f"benchmarks/{script}" in readme


def test_an_unknown_study_is_told_before_any_is_run(module, monkeypatch):
    run = module("run")
    monkeypatch.setattr(run, "studies", lambda **_: {"launch": lambda: pytest.fail("it ran")})
    monkeypatch.setattr(sys, "argv", ["run.py", "launch", "lunch"])
    with pytest.raises(SystemExit, match="no study 'lunch'; there are launch, speed_default"):
        run.main()


def test_what_is_published_ends_with_one_line_of_json(module, monkeypatch, tmp_path, capsys):
    stated = module("stated")
    monkeypatch.setattr(stated, "RESULTS", tmp_path)
    stated.publish("launch", ["# Title", "", "| a |"], {"a": 1.5}, kept={"runs": [1, 2]})
    *table, last = capsys.readouterr().out.splitlines()
    assert table == (tmp_path / "launch.md").read_text().splitlines() == ["# Title", "", "| a |"]
    assert (json.loads(last)["study"], json.loads(last)["figures"]) == ("launch", {"a": 1.5})
    assert json.loads((tmp_path / "launch.json").read_text())["runs"] == [1, 2]


def run_of(seed: int, accuracy: float) -> dict:
    scores = {"validation": {"accuracy": accuracy}, "test": {"accuracy": accuracy, "loss": 1.0}}
    return {"seed": seed, "frozen_blocks": 4, "seconds": {"fit": 10.0 + seed}, **scores}


def test_a_study_shows_mean_and_range_of_each_row_and_what_changed(module, monkeypatch, tmp_path, capsys):
    run = module("run")
    monkeypatch.setattr(module("stated"), "RESULTS", tmp_path)
    scores = {"computed": [0.5, 0.7], "stored": [0.5, 0.6]}
    rows = [
        {"row": name, "command": "python train.py", "runs": [run_of(*pair) for pair in enumerate(of_row)]}
        for name, of_row in scores.items()
    ]
    run.write("store", "Title", rows, run.changes)
    lines = capsys.readouterr().out.splitlines()
    assert "The largest change of a seed's test accuracy beside computed: stored 0.1000." in lines
    scores = ["0.5500 (0.5000 to 0.6000)"] * 2
    cells = ["stored", "accuracy", *scores, "0, 1", "4", "10 (10 to 11)", "`python train.py`"]
    assert f"| {' | '.join(cells)} |" in lines
    assert json.loads(lines[-1])["figures"] == {"computed": {"accuracy": 0.6}, "stored": {"accuracy": 0.55}}


def test_padding_of_what_is_filled_up_by_hand(module):
    batches, lengths = [np.array([0, 1]), np.array([2])], np.array([30, 34, 65])
    share = module("padding").filled_share(batches, lengths)  # 2 x 34 and 1 x 65 tokens, each computed as 128
    assert share == pytest.approx(1 - 129 / 256)


@pytest.mark.slow
def test_padding_on_public_data_is_below_three_percent(module, shared, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module("stated"), "RESULTS", tmp_path)
    module("padding").padding()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert set(figures) == {"ag_news", "sst2"}
    assert all(share < 3 for ways in figures.values() for share in ways.values())


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
