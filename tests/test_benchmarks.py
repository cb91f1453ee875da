"""The benchmarks' own parts: python -m pytest tests/test_benchmarks.py"""

import argparse
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
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


def test_rows_of_another_machine_are_named(module):
    rows = [{"row": "a", "hardware": "X"}, {"row": "b", "hardware": "Y"}, {"row": "c", "hardware": "X"}]
    assert module("run").machines(rows) == "b on Y; all others on X"
    assert module("run").machines(rows[:1]) == "X"


def test_what_a_yardstick_beats_is_told(module):
    run = {"test": {"accuracy": 0.7, "rmse": 1.5}, "yardsticks": {"accuracy of TF-IDF": 0.8, "rmse of the mean": 1.6}}
    worse = {"test": {"a/perplexity": 30.0}, "yardsticks": {"a/perplexity of token frequencies": 20.0}}
    said = module("run").behind([{"row": "one", "runs": [run]}, {"row": "other", "runs": [worse]}])
    assert said == (
        "Behind what needs no GPT-2: one (accuracy 0.700, TF-IDF 0.800), "
        "other (a/perplexity 30.000, token frequencies 20.000)."
    )
    assert module("run").behind([]) == "Behind what needs no GPT-2: none."


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


def test_epochs_of_trials_side_by_side_are_told_apart(module):
    lines = [
        (5.0, "0 | epoch 1/3  step 2"),
        (6.0, "1 | epoch 1/3  step 2"),
        (7.0, "0 | epoch 2/3  step 4"),
        (9.0, "1 | epoch 2/3  step 4"),
        (9.5, "1 |   test: loss 1.0"),
        (10.0, "0 | epoch 3/3  step 6"),
        (11.0, "2 | epoch 1/3  step 2"),  # the next trial of the same worker
        (15.0, "2 | epoch 2/3  step 4"),
    ]
    assert module("speed").later_epoch_seconds(lines) == [2.0, 3.0, 3.0, 4.0]


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
    told, *_, last = module("faults.catalogue").catalogue(tmp_path)
    assert told.endswith("No test has: none.")
    assert last.startswith("| 54 |")


@pytest.mark.parametrize(
    "name", ["frozen", "frozen_mini", "default", "unfrozen_gpt2", "unfrozen_mini", "unfrozen_language_modeling"]
)
def test_both_sides_are_told_the_same(module, name):
    from permafrost.settings.config import read_settings

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


def test_a_study_that_fails_is_named_after_the_others_have_run(module, monkeypatch):
    run, ended = module("run"), []

    def fails() -> None:
        raise SystemExit("a trial failed")

    studies = {"first": fails, "second": lambda: ended.append("second"), "third": lambda: 1 / 0}
    monkeypatch.setattr(run, "studies", lambda **_: studies)
    monkeypatch.setattr(run, "SCRIPTS", {})
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit, match="failed: first, third;"):
        run.main()
    assert ended == ["second"]


def test_what_is_published_ends_with_one_line_of_json(module, monkeypatch, tmp_path, capsys):
    stated = module("stated")
    monkeypatch.setattr(stated, "RESULTS", tmp_path)
    stated.publish("launch", ["# Title", "", "| a |"], {"a": 1.5}, kept={"runs": [1, 2]})
    *table, last = capsys.readouterr().out.splitlines()
    assert table == (tmp_path / "launch.md").read_text().splitlines() == ["# Title", "", "| a |"]
    assert (json.loads(last)["study"], json.loads(last)["figures"]) == ("launch", {"a": 1.5})
    assert json.loads((tmp_path / "launch.json").read_text())["runs"] == [1, 2]


MEASURED = [{"hardware": "X", "date": "2026-11-27"}, {"hardware": "X", "date": "2026-11-25"}]


def run_of(seed: int, accuracy: float) -> dict:
    scores = {"validation": {"accuracy": accuracy}, "test": {"accuracy": accuracy, "loss": 1.0}}
    return {"seed": seed, "frozen_blocks": 4, "seconds": {"fit": 10.0 + seed, "total": 20.0 + seed}, **scores}


def test_a_study_shows_mean_and_range_of_each_row_and_what_changed(module, monkeypatch, tmp_path, capsys):
    run = module("run")
    monkeypatch.setattr(module("stated"), "RESULTS", tmp_path)
    scores = {"computed": [0.5, 0.7], "stored": [0.5, 0.6]}
    rows = [
        {"row": name, "command": "python train.py", "runs": [run_of(*pair) for pair in enumerate(of_row)], **measured}
        for (name, of_row), measured in zip(scores.items(), MEASURED, strict=True)
    ]
    run.write("store", "Title", rows, run.changes)
    lines = capsys.readouterr().out.splitlines()
    assert "X; 2026-11-25 to 2026-11-27; mean over the seeds" in "\n".join(lines)
    assert "The largest change of a seed's test accuracy beside computed: stored 0.1000." in lines
    scores = ["0.5500 ± 0.0707 (0.5000 to 0.6000)"] * 2
    cells = ["stored", "accuracy", *scores, "0, 1", "4", "10 ± 1 (10 to 11)", "20 ± 1 (20 to 21)", "`python train.py`"]
    assert f"| {' | '.join(cells)} |" in lines
    assert json.loads(lines[-1])["figures"] == {"computed": {"accuracy": 0.6}, "stored": {"accuracy": 0.55}}


def test_padding_of_what_is_filled_up_by_hand(module):
    batches, lengths = [np.array([0, 1]), np.array([2])], np.array([30, 34, 65])
    share = module("padding").filled_share(batches, lengths)  # 2 x 34 and 1 x 65 tokens, each computed as 128
    assert share == pytest.approx(1 - 129 / 256)


def test_a_step_that_is_profiled_is_the_programs_own(module, monkeypatch, tiny_model_dir, tmp_path):
    materials, profile = module("materials"), module("profile_step")
    materials.write_rows(
        tmp_path / "train.csv", [{"text": f"the quick brown fox {n}", "label": n % 2} for n in range(8)]
    )
    monkeypatch.setattr(materials, "ag_news", lambda count: {"train": tmp_path / "train.csv"})
    monkeypatch.setattr(materials, "gpt2_shape", lambda: tiny_model_dir)
    model, source = profile.build_model("gpt2-shape", 1)
    batch = profile.one_batch(source)
    assert sorted(batch.row_ids.tolist()) == list(range(8))
    below = profile.trunk(model.transformer, batch.input_ids, 1).detach().half()
    optimizer = torch.optim.SGD([parameter for _, parameter in profile.trainable(model)], lr=0.1)
    assert len(profile.one_step(model, batch, below, optimizer, "32-true")) == 3


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


@pytest.mark.slow
def test_every_row_of_every_study_is_a_command_that_is_understood(module):
    from permafrost.settings.config import read_settings

    recipes, synthesis = module("recipes"), module("synthesis")
    studies = (recipes.PYDOCS, recipes.TASKS, recipes.ADAPTATION, recipes.STORE)
    named = module("run").as_directory
    lines = [f"{line} hydra.run.dir=/x/{named(label)}" for rows in studies for label, line, _ in rows]
    lines += [line.format("/some/where") for line in synthesis.RUNS.values()]
    lines += ["experiment=augmentation_study"]
    assert len(lines) > 30
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for line in lines:
            read_settings(compose("train", shlex.split(line)))


@pytest.fixture
def written(module, monkeypatch, tmp_path) -> Path:
    """Where the studies of run.py and synthesis.py read and write in place of this clone."""
    for name in ("run", "synthesis", "augmentation", "stated"):
        for path in {"ROOT", "RESULTS", "SHARED"} & vars(module(name)).keys():
            monkeypatch.setattr(module(name), path, tmp_path)
    monkeypatch.setattr(module("kept"), "commit", lambda: "abc1234")  # or git would be started, as runs are
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

    monkeypatch.setattr(module("augmentation").subprocess, "run", sweep)
    module("augmentation").augmentation()
    lines = (written / "augmentation.md").read_text().splitlines()
    both = "0.6050 ± 0.0071 (0.6000 to 0.6100)"
    assert f"| 20 | eda | 2 | {both} | {both} | +0.0550 ± 0.0636 (+0.0100 to +0.1000) |" in lines
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
        accuracy = 0.5 + seed / 10 + (0.02 * (seed + 1) if "adapted" in label else 0)
        return result(accuracy, seed, measured=MEASURED[0])

    monkeypatch.setattr(module("run"), "train", train)
    module("run").studies(missing=False, jobs=1)["adaptation"]()
    assert (written / "adaptation.md").read_text().splitlines()[2:4] == [
        f"{count} rows: test accuracy changes by +0.0400 ± 0.0200 (+0.0200 to +0.0600); a seed, other rows."
        for count in (200, 1000)
    ]


def test_the_table_of_written_texts(module, written):
    synthesis = module("synthesis")
    seeds = {
        name: [
            {
                "seed": seed,
                "date": "2026-11-27",
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
    same = ["0.5000 ± 0.0000 (0.5000 to 0.5000)", "0.6000 ± 0.0000 (0.6000 to 0.6000)"]
    same += ["+0.1000 ± 0.0000 (+0.1000 to +0.1000)", "3 ± 0 (3 to 3)", "0 ± 0 (0 to 0)"]
    cells = ["sst2", "2", *same]
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


def test_a_bag_of_units_by_hand(module):
    words = module("words")
    halves = lambda text: [half for word in text.split() for half in (word[:2], word[2:])]  # noqa: E731
    assert words.per_word(["aabb aacc", "bbaa"], halves) == 2
    train, asked = (["aabb", "ccdd"] * 4, ["x", "y"] * 4), (["bbaa", "ddcc"], ["x", "y"])
    assert words.accuracy(train, asked, halves) == 1
    assert words.accuracy(train, asked, None) == 0.5  # no word that was seen


def version(metric: float, **more: float) -> dict:
    """An entry of compression.json."""
    dense = {"metric": 0.8, "interval": [0.78, 0.82], "size_mb": 10.0, "rows_per_second": 5.0, "block_parameters": 100}
    own = {"metric": metric, "interval": [metric - 0.02, metric + 0.02], "size_mb": 4.0, "rows_per_second": 10.0}
    entry = {"metric_name": "accuracy", "block_parameters": 55, "before": dense, "date": "2026-11-27"}
    return own | entry | more


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
        "With a teacher less without one, seed by seed: +0.0200 over 3 pairs of runs (95 % interval by Student's t "
        "-0.0048 to +0.0448)."
    ) == len(compression.QUALITY_RUNS)
    # each of them twice: a deviation of sqrt(4e-4 / 5), and Student's t of 5 degrees of freedom is 2.5706
    assert "over 6 pairs of runs (95 % interval by Student's t +0.0106 to +0.0294)." in lines[-1]
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
        return {
            "size_mb": 10.0,
            "resident_mb": 99.0,
            "tokens": 128,
            "latency_ms": slow * own,
            "token_ms": slow * own / 10,
        }

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


def test_a_server_under_load_is_told_by_the_middle_of_its_rounds(module):
    serving = module("serving")

    class Pretended:
        def ask(self, text):
            return (0.2, 503) if text == "bad" else (0.1, 200)

        def memory_mb(self):
            return 104.0

    with serving.ThreadPoolExecutor(2) as clients:
        one = serving.asked(Pretended(), clients, ["good"] * 9 + ["bad"])
    assert (one["errors"], one["p50_ms"], one["p95_ms"]) == (1, pytest.approx(100), pytest.approx(200))
    rounds = [one | {"p95_over_minimum": ratio, "memory_mb": 100.0 + ratio} for ratio in (1.0, 3.0, 2.0)]
    found = serving.of_rounds(100.0, rounds)
    assert (found["errors"], found["p95_over_minimum"], found["p95_over_minimum_spread"]) == (3, 2.0, "1.00 to 3.00")
    assert found["memory_growth"] == pytest.approx(0.03)
    assert "| threads | 2 |" in serving.table(found)


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


@pytest.fixture
def here(module, monkeypatch) -> dict[str, str]:
    """On what hardware, and of what sources, is measured: to be changed."""
    place = {"hardware": "X", "source": "0a"}
    for name in place:
        monkeypatch.setattr(module("kept"), name, lambda name=name: place[name])
    monkeypatch.setattr(module("kept"), "commit", lambda: "abc1234")
    return place


@pytest.mark.parametrize("change", [{}, {"hardware": "Y"}, {"source": "0b"}, {"command": "b"}])
def test_what_a_directory_holds_is_kept_while_nothing_has_changed(module, here, tmp_path, change):
    kept, run_dir = module("kept"), tmp_path / "runs" / "run-0"
    first = kept.cleared(run_dir, command="a")
    assert (first["hardware"], first["source"], first["commit"]) == ("X", "0a", "abc1234")
    run_dir.mkdir()
    (run_dir / "result.json").touch()
    here |= change
    again = kept.cleared(run_dir, command=here.get("command", "a"))
    assert (run_dir / "result.json").exists() == (again == first) == (not change)


def test_sources_are_others_when_a_file_is(module, monkeypatch, tmp_path):
    kept, found = module("kept"), []
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    (tmp_path / "conf").mkdir()
    for name, text in (("train.py", "a"), ("conf/a.yaml", "a"), ("conf/a.yaml", "b"), ("conf/b.yaml", "")):
        (tmp_path / name).write_text(text)
        found.append(kept.source())
    (tmp_path / "conf" / "__pycache__").mkdir()
    (tmp_path / "conf" / "__pycache__" / "a.pyc").touch()
    assert len(set(found)) == 4
    assert kept.source() == found[-1]


def test_days_are_the_first_and_the_last(module):
    assert module("kept").days([{"date": "2026-11-26"}]) == "2026-11-26"
    spans = [{"date": "2026-11-26"}, {"date": "2026-11-25 to 2026-11-28"}]
    assert module("kept").days(spans) == "2026-11-25 to 2026-11-28"


MATERIAL = {name: Path(name) for name in ("model", "train", "validation", "test")} | {"batch_rows": 38}


@pytest.mark.parametrize("change", [{"hardware": "Y"}, {"source": "0b"}])
def test_a_pair_is_measured_again_elsewhere_or_of_other_sources(module, monkeypatch, here, tmp_path, change):
    speed, measured = module("speed"), []
    for side in ("our", "peer"):
        monkeypatch.setattr(
            speed, f"{side}_figures", lambda *_, side=side: measured.append(side) or {"fit_seconds": 1.0}
        )
    pair = lambda: speed.measured_pair(module("contests").FROZEN, MATERIAL, "", tmp_path, 0, "")  # noqa: E731
    first = pair()
    assert {name: first[name] for name in ("hardware", "source", "commit")} == {**here, "commit": "abc1234"}
    assert json.loads(json.dumps(first)) == pair()
    assert measured == ["our", "peer"]
    here |= change
    assert pair() != first
    assert measured == ["our", "peer"] * 2


def test_a_run_of_a_study_is_made_again_of_other_sources(module, monkeypatch, here, written):
    run, started = module("run"), []

    def train(command, **_):
        (run_dir,) = [Path(word.partition("=")[2]) for word in command if word.startswith("hydra.run.dir=")]
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "result.json").write_text(json.dumps(result(0.5)))
        started.append(run_dir)

    monkeypatch.setattr(run.subprocess, "run", train)
    found = [run.train("pydocs-default", "", 0) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["measured"]["hardware"] == "X"
    assert len(started) == 1
    here["source"] = "0b"
    assert run.train("pydocs-default", "", 0)["measured"]["source"] == "0b"
    assert len(started) == 2


def test_a_table_of_speed_says_where_and_when_its_pairs_were_measured(module, monkeypatch, tmp_path):
    speed = module("speed")
    monkeypatch.setattr(speed, "machine", lambda: "x")
    pairs = [
        {side: {"fit_seconds": seconds} for side, seconds in (("ours", 1.0), ("peer", 3.0))}
        | {"commands": {"ours": "a", "peer": ["b"]}, **measured}
        for measured in MEASURED
    ]
    options = argparse.Namespace(study="frozen", pairs=2, variant="", results=tmp_path)
    speed.write(options, speed.WHOLE, {"frozen": pairs})
    assert "; X; 2026-11-25 to 2026-11-27; pairs: 2;" in (tmp_path / "speed_frozen_x.md").read_text()
    stated = json.loads((tmp_path / "speed_frozen_x.json").read_text())
    assert (stated["hardware"], stated["date"]) == ("X", "2026-11-25 to 2026-11-27")


def test_trainers_settings_are_chosen_by_medians_as_many_at_a_time_as_in_the_contest(
    module, monkeypatch, here, tmp_path
):
    speed, started = module("speed"), []

    def run_side_by_side(commands, log):
        """Eager attention is faster, but for one run; the type of numbers makes no difference, but for one."""
        assert len(commands) == 2
        started.append(commands[0])
        seconds = 8.0 if "eager" in commands[0] else 10.0
        chance = {2: 0.5, 8: 2.0}.get(len(started), 1.0)
        return [(60.0, [(60.0, json.dumps({"epoch_seconds": [99.0, seconds * chance, seconds * chance]}))])] * 2

    (tmp_path / "speed").mkdir()
    monkeypatch.setattr(module("materials"), "OUTPUTS", tmp_path)
    monkeypatch.setattr(speed, "run_side_by_side", run_side_by_side)
    monkeypatch.setattr(speed, "is_emulated", lambda *_: False)
    contest = module("contests").CONTESTS["sweep"]
    for _ in range(2):  # what is measured is kept
        assert speed.best_settings(contest, MATERIAL) == "--attention eager"
    assert len(started) == 3 * 2 * speed.PROBES
    assert [("bf16" in command) for command in started[:6]] == [False, True, True, False, False, True]  # by turns
    here["hardware"] = "Y"
    speed.best_settings(contest, MATERIAL)
    assert len(started) == 2 * 3 * 2 * speed.PROBES
