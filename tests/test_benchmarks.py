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


def version(metric: float, **more: float) -> dict:
    """An entry of compression.json."""
    dense = {"metric": 0.8, "interval": [0.78, 0.82], "size_mb": 10.0, "rows_per_second": 5.0, "block_parameters": 100}
    own = {"metric": metric, "interval": [metric - 0.02, metric + 0.02], "size_mb": 4.0, "rows_per_second": 10.0}
    return own | {"metric_name": "accuracy", "block_parameters": 55, "before": dense} | more


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_compression_costs_is_told_seed_by_seed(module, monkeypatch, tmp_path, jobs):
    compression = module("compression")

    def made(name, run, way, line, environment):
        seed = int(name[-1])
        gain = 0.01 * (seed + 1) if way == compression.TAUGHT else 0.0
        return version(0.76 + gain, **({"control": 0.81} if "quantization" not in line else {}))

    monkeypatch.setattr(compression, "RESULTS", tmp_path)
    monkeypatch.setattr(compression, "made", made)
    compression.quality(seeds=3, jobs=jobs)
    lines = (tmp_path / "compression_quality.md").read_text().splitlines()
    assert "| as trained | 1 | 0.8000 | | 0.7800 to 0.8200 | | 10.0 |" in lines
    assert "| int8 | 1 | 0.7600 | 95.0% | 0.7400 to 0.7800 |  | 4.0 (0.40x) |" in lines
    assert f"| {compression.TAUGHT} | 3 | 0.7800 | 97.5% | 0.7700 to 0.7900 | 0.8100 | 4.0 (0.40x) |" in lines
    # changes of 0.01, 0.02 and 0.03: a deviation of 0.01, and Student's t of 2 degrees of freedom is 4.3027
    assert lines.count(
        "With a teacher less without one, seed by seed: +0.0200 over 3 seeds (95 % interval by Student's t -0.0048 to "
        "+0.0448)."
    ) == len(compression.QUALITY_RUNS)
    found = json.loads((tmp_path / "compression_quality.json").read_text())
    assert found["taught_less_alone"]["sst2"]["changes"] == pytest.approx([0.01, 0.02, 0.03])
    assert len(found["runs"]["ag_news"]["int8"]) == 1


def test_a_version_that_fails_leaves_the_others_in_the_table(module, monkeypatch, tmp_path, capsys):
    compression = module("compression")

    def made(name, run, way, line, environment):
        if name == "ag_news-0":
            raise subprocess.CalledProcessError(2, "permafrost compress")
        return version(0.76)

    monkeypatch.setattr(compression, "RESULTS", tmp_path)
    monkeypatch.setattr(compression, "made", made)
    with pytest.raises(SystemExit, match="not all of it is done"):
        compression.quality(seeds=1, jobs=1)
    assert "ag_news, seed 0: Command 'permafrost compress' returned" in capsys.readouterr().out
    assert "## sst2" in (tmp_path / "compression_quality.md").read_text()


def test_versions_are_compared_within_a_round(module, monkeypatch, tmp_path):
    from permafrost.deployment import cost

    compression, asked = module("compression"), []

    def cost_of(directory, threads, rows):
        """The machine is half as fast in every second round."""
        asked.append(directory.name)
        slow = 1 + (len(asked) > 8)
        own = {"model": 40.0, "onnx": 20.0}.get(directory.name, 10.0)
        return {"size_mb": 10.0, "resident_mb": 99.0, "latency_ms": slow * own, "token_ms": slow * own / 10}

    for name, value in {
        "RESULTS": tmp_path,
        "OUTPUTS": tmp_path,
        "speed_runs": lambda: {"writer": "task=generation"},
        "made": lambda *_: version(0.5),
        "export": lambda name: None,
    }.items():
        monkeypatch.setattr(compression, name, value)
    monkeypatch.setattr(cost, "cost_of", cost_of)
    compression.speed(rounds=2)
    compression.speed(rounds=2)  # what is measured is kept
    assert len(asked) == 16
    assert asked[:8] == asked[8:][::-1]
    text = (tmp_path / "compression_speed.md").read_text()
    assert "| as trained | 10.0 | 60.00 (40.00 to 80.00) |  | 6.00 (4.00 to 8.00) |  | 99 | 5 | 100 |" in text
    assert "| int8 | 10.0 (1.00x) | 15.00 (10.00 to 20.00) | 4.00 |" in text
    assert "| 10 (2.00x) | 55 (0.55x) |" in text
    ratios = json.loads((tmp_path / "compression_speed.json").read_text())["ratios"]["writer"]
    assert ratios["as trained, in ONNX Runtime"]["latency_ms"] == [2.0, 2.0]


def test_one_server_is_compared_with_two_within_a_pair(module, monkeypatch, tmp_path):
    serving = module("serving")
    pairs = [
        {"ours": {"memory_mb": 6.0, "request_ms": 60.0}, "peer": {"memory_mb": 10.0, "request_ms": 100.0}},
        {"ours": {"memory_mb": 6.0, "request_ms": 70.0}, "peer": {"memory_mb": 12.0, "request_ms": 100.0}},
    ]
    found = serving.of_pairs(pairs)
    assert (found["memory_mb_ratio"], found["request_ms_ratio"]) == (0.55, pytest.approx(0.65))
    assert found["request_ms_ratio_spread"] == "0.60 to 0.70"
    assert "| least possible | 0.583 |" in serving.table(found)
    assert not any("pairs" in line for line in serving.table(found))
    monkeypatch.setattr(serving, "OUTPUTS", tmp_path)
    order = []
    monkeypatch.setattr(serving, "served_texts", lambda servers, texts: order.append(len(servers)) or pairs[0]["ours"])
    for number in (0, 1, 1):  # what is measured is kept
        serving.measured_pair(number, [Path("a"), Path("b")])
    assert order == [1, 2, 2, 1]


def test_a_passage_is_hit_where_it_shares_half_of_itself_or_of_a_mark(module):
    from permafrost.deployment.review import Passage

    review = module("contract_review")
    document = "The term is two\n  years. It may be ended."
    parts = [Passage(start, end, document[start:end]) for start, end in ((0, 24), (25, 41))]
    assert review.passages_marked(document, parts, ["two years"]).tolist() == [True, False]
    assert review.passages_marked(document, parts, ["years. It may be ended."]).tolist() == [False, True]
    assert review.passages_marked(document, parts, ["two (2) years"]).tolist() == [False, False]


def test_the_rank_of_a_hit_is_the_worst_of_those_with_its_score(module):
    import numpy as np

    first_rank, hits = module("contract_review").first_rank, np.array([False, True, True, False])
    assert first_rank(np.array([0.1, 0.9, 0.2, 0.3]), hits) == 1
    assert first_rank(np.array([0.5, 0.5, 0.2, 0.9]), hits) == 3


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
