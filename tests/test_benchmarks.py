"""Studies that end in a table, not in an error after an hour: python -m pytest tests/test_benchmarks.py"""

import importlib
import json
import shlex
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


def test_every_row_of_every_study_is_a_command_that_is_understood(module):
    from permafrost.config import read_settings

    run, synthesis = module("run"), module("synthesis")
    lines = [line for rows in (run.PYDOCS, run.REAL, run.TASKS, run.ADAPTATION, run.STORE) for _, line, _ in rows]
    lines += [line.format("/some/where") for line in synthesis.RUNS.values()]
    lines += ["experiment=augmentation_study"]
    assert len(lines) > 30
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for line in lines:
            read_settings(compose("train", shlex.split(line.replace("{shared}", "/some/where"))))


@pytest.fixture
def written(module, monkeypatch, tmp_path) -> Path:
    """Where the studies of run.py and synthesis.py read and write in place of this clone."""
    for name in ("run", "synthesis"):
        monkeypatch.setattr(module(name), "ROOT", tmp_path)
        monkeypatch.setattr(module(name), "RESULTS", tmp_path)
        monkeypatch.setattr(module(name), "SHARED", tmp_path)
    for name in ("train.py", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def result(accuracy: float, seed: int = 0, **more) -> dict:
    scores = {stage: {"loss": 1.0, "accuracy": accuracy} for stage in ("validation", "test")}
    return {"status": "done", "seed": seed, "frozen_blocks": 0, "epochs": 1, "seconds": {"fit": 1.0, "total": 2.0}} | (
        scores | more
    )


def test_the_augmentation_study_says_on_which_changes_all_seeds_agree(module, monkeypatch, written):
    from permafrost.reporting.sweep import Trial, record_trial, write_tables

    accuracies = {("20", "none"): [0.5, 0.6], ("20", "eda"): [0.6, 0.61], ("20", "typos"): [0.6, 0.5]}
    accuracies |= {("100", "none"): [0.7, 0.7], ("100", "eda"): [0.6, 0.65]}
    directory = written / "outputs" / "benchmarks" / "augmentation"

    def sweep(command, **_):
        assert command[1:] == ["train.py", "-m", "experiment=augmentation_study", f"hydra.sweep.dir={directory}"]
        directory.mkdir(parents=True)
        trials = [
            Trial(
                number=number,
                directory=str(number),
                overrides={"seed": str(seed), "data.max_rows_per_label": count, "augmentation": kind},
                monitor="accuracy",
                mode="max",
                result=result(accuracies[count, kind][seed], seed),
            )
            for number, (seed, (count, kind)) in enumerate((seed, key) for seed in (0, 1) for key in accuracies)
        ]
        for trial in trials:
            record_trial(trial, directory)
        write_tables(trials, directory)

    monkeypatch.setattr(module("run").subprocess, "run", sweep)
    module("run").augmentation()
    lines = (written / "augmentation.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| 20 | eda | 2 | 0.6050 ")]
    assert row.count("(0.6000 to 0.6100)") == 2
    assert row.endswith("(+0.0100 to +0.1000) |")
    assert lines[-4:] == [
        "Every seed gains by: eda of 20.",
        "Every seed loses by: eda of 100.",
        "For the other 1 of 3 the seeds disagree: no gain is shown.",
        "If no change did anything, the seeds would agree on 1.5 of 3 by chance.",
    ]
    assert len(json.loads((written / "augmentation.json").read_text())["trials"]) == 10


def test_the_adaptation_study_compares_seed_by_seed(module, monkeypatch, written):
    def train(label: str, line: str, seed: int, jobs: int = 1) -> dict:
        assert ("init_from=outputs/benchmarks/adaptation-texts-0" in line) == ("adapted" in label)
        return result(0.5 + seed / 10 + (0.02 * (seed + 1) if "adapted" in label else 0), seed)

    monkeypatch.setattr(module("run"), "train", train)
    module("run").adaptation()
    assert (written / "adaptation.md").read_text().splitlines()[-2:] == [
        f"{count} rows: test accuracy changes by 0.0400 (0.0200 to 0.0600), over 3 seeds of other rows."
        for count in (200, 1000)
    ]


def test_the_table_of_written_texts(module, written):
    synthesis = module("synthesis")
    seeds = {
        name: [
            {
                "seed": seed,
                "change": 0.1,
                "kept": {label: 3 for label in list(source.labels.values())[:1]},
                "surest": {"positive": "a warm\nday"},
                "told": "refused 2 empty",
                "results": {"rows": result(0.5, seed), "rows and texts": result(0.6, seed)},
            }
            for seed in (0, 1)
        ]
        for name, source in synthesis.SOURCES.items()
    }
    synthesis.write(seeds)
    lines = (written / "synthesis.md").read_text().splitlines()
    same = "{0} ({0} to {0})"
    cells = ["sst2", "2", *map(same.format, ("0.5000", "0.6000", "0.1000", "3", "0"))]
    assert f"| {' | '.join(cells)} |" in lines
    assert "sst2: 2 of 2 seeds gain. Seed 0 refused 2 empty; the surest are:" in lines
    assert "- positive: 'a warm day'" in lines
    assert sum(line.startswith("python train.py") for line in lines) == 3
    assert json.loads((written / "synthesis.json").read_text())["seeds"]["ag_news"][1]["seed"] == 1


@pytest.mark.slow
def test_52_what_checking_costs_grows_as_the_rows_do(module, shared):
    """In seconds of CPU, which a busy machine changes least; 200,000 rows have a minute on two cores."""
    data = module("data")
    costs = {count: data.cost("cleaning=default ", count) for count in (1_000, 50_000, 100_000)}
    seconds, memory = data.growth(costs[100_000], costs[50_000], costs[1_000])
    assert float(seconds) <= 2.2
    assert float(memory) <= 2
    assert costs[100_000]["seconds"] <= 30


@pytest.mark.slow
def test_a_seed_of_the_synthesis_study_from_end_to_end(module, monkeypatch, written, tiny_model_dir):
    from tests.runs.conftest import write_rows

    synthesis = module("synthesis")
    (written / "weather").mkdir()
    write_rows(written / "weather", {"train": 40, "validation": 16, "test": 24})
    files = {name: f"{name}.csv" for name in ("train", "validation", "test")}
    source = synthesis.Source(files, "text", {"warm": "warm", "cold": "cold"})
    small = f" model.path={tiny_model_dir} trainer=cpu optimizer.lr=1e-2 data.cache_dir={written}/cache"
    lines = {
        name: line.replace("max_new_tokens=64", "max_new_tokens=24") + small for name, line in synthesis.RUNS.items()
    }
    monkeypatch.setattr(synthesis, "SOURCES", {"weather": source})
    monkeypatch.setattr(synthesis, "RUNS", lines)
    monkeypatch.setattr(synthesis, "SEEDS", (3,))
    monkeypatch.setattr(synthesis, "WRITTEN", 5)
    synthesis.main()
    (seed,) = json.loads((written / "synthesis.json").read_text())["seeds"]["weather"]
    assert 0 < sum(seed["kept"].values()) <= 10
    assert seed["results"]["rows and texts"]["steps"] == seed["results"]["rows"]["steps"] == 200
    assert seed["results"]["writer"]["task"] == "generation"
    assert seed["told"].startswith("refused ")
    before = (written / "synthesis.md").read_text()
    monkeypatch.setattr(module("run").subprocess, "run", None)  # what is there is not run again
    synthesis.main()
    assert (written / "synthesis.md").read_text() == before


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
