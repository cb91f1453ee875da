"""Every option of every group composes, binds, and takes two optimizer steps where this machine can run it."""

from pathlib import Path

import pytest
import torch
import yaml

from permafrost.settings.composing import with_parts
from permafrost.settings.config import read_settings
from tests.runs.conftest import CONF, compose_config

OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name != "experiment" and path.stem != "defaults"
)
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NOT_HERE = {"gpu", "ddp", "fsdp", "tpu", "ddp_cpu"}  # hardware, or several processes: ddp_cpu has a test of its own
WITH_MORE = {"multi", "back_translation"}  # tests/runs/test_multi.py, tests/runs/test_rewriting.py
OF_TASK = {"binary_cross_entropy": "multi_label", "mentions": "ner"}  # options that are for one task
HUB = {"hub", "ag_news", "sst2", "imdb", "stsb", "wikitext2"}
REGRESSION = ["data.columns.target=score"]
NEEDS = {
    ("loss", "binary_cross_entropy"): ["task=multi_label"],
    ("augmentation", "mentions"): ["task=ner"],
    ("task", "regression"): REGRESSION,
    ("task", "language_modeling"): ["freezing=none", "data.max_length=16"],
    ("task", "generation"): ["trainer.max_epochs=1"],
    ("task", "translation"): ["trainer.max_epochs=1"],
    ("head", "pair"): ["data.columns.text=[text,other]"],
    ("loss", "mse"): ["task=regression", *REGRESSION],
    ("loss", "huber"): ["task=regression", *REGRESSION],
    ("trainer", "slurm"): ["resume=auto"],
    ("freezing", "none"): [],
    ("freezing", "embeddings"): [],
    ("freezing", "head_only"): [],
    ("model", "scratch"): ["model.architecture.n_layer=2", "model.architecture.vocab_size=300", "model.path=null"],
    ("optimizer", "gd"): ["trainer.max_epochs=2"],
}


def test_there_are_options_to_test():
    assert {
        "optimizer",
        "scheduler",
        "loss",
        "freezing",
        "callbacks",
        "trainer",
        "logger",
        "task",
        "data",
        "model",
    } <= {group for group, _ in OPTIONS}
    assert len(OPTIONS) > 50


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes_and_binds(group, option):
    read_settings(compose_config(f"{group}={option}"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_and_binds(experiment):
    read_settings(with_parts(compose_config(f"experiment={experiment}"), CONF))


@pytest.mark.parametrize(
    ("group", "option"),
    # what compresses is tried by tests/runs/test_compress.py
    [
        (g, o)
        for g, o in OPTIONS
        if g not in ("data", "compression") and not (g == "trainer" and o in NOT_HERE) and o not in WITH_MORE
    ],
)
@pytest.mark.usefixtures("no_report")
def test_option_takes_two_steps(group, option, run_tiny, of_task):
    overrides = [f"{group}={option}", *NEEDS.get((group, option), [])]
    overrides += of_task(option if group == "task" else OF_TASK.get(option, ""))[1:]
    if group == "freezing":
        overrides = [*overrides, f"freezing.blocks={'all' if option == 'head_only' else int(option == 'first_blocks')}"]
    if group == "trainer":
        overrides = [*overrides, "trainer.accelerator=cpu"]
    if option != "gd":
        overrides.append("trainer.max_steps=2")
    result, _ = run_tiny(*overrides)
    assert result["steps"] == 2
    assert result["status"] == "done"


def local_hub(directory: Path, columns: list[str]) -> Path:
    """A data set directory as 🤗 Datasets reads it, with the preset's columns."""
    values = {"label": ["0", "1"], "score": ["0.5", "4.5"]}
    for split in ("train", "validation", "test"):
        lines, named = [",".join(columns)], "" if split == "train" else f"{split} "
        lines += [
            ",".join(values[c][i % 2] if c in values else f"{named}words {i} of {c}" for c in columns)
            for i in range(12)
        ]
        (directory / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return directory


@pytest.mark.parametrize("option", sorted(HUB))
def test_hub_preset_takes_two_steps_on_a_local_copy(option, run_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    settings = compose_config(f"data={option}")
    text = settings.data.columns.text or "text"
    columns = [
        *([text] if isinstance(text, str) else text),
        *filter(None, [settings.data.columns.label, settings.data.columns.target]),
    ]
    if option == "hub":
        columns.append("label")
    task = {"stsb": "regression", "wikitext2": "language_modeling"}.get(option, "classification")
    extra = ["freezing=none", "freezing.blocks=0"] if option == "wikitext2" else []
    source = tmp_path / "copy"
    source.mkdir()
    overrides = [
        f"data={option}",
        f"data.hub.name={local_hub(source, columns)}",
        "data.hub.subset=null",
        f"task={task}",
    ]
    result, _ = run_tiny(
        *overrides, *extra, "trainer.max_steps=2", "data.train=null", "data.validation=null", "data.test=null"
    )
    assert result["steps"] == 2


@pytest.mark.parametrize("source", ["pydocs", "docstrings"])
def test_docstring_source_takes_two_steps(source, run_tiny, monkeypatch):
    rows = [
        {"text": f"Return the {i}th number of the series, or raise.", "label": "AB"[i % 2], "source": "a.py"}
        for i in range(60)
    ]
    monkeypatch.setattr("permafrost.data.files.sources.library_rows", lambda: rows)
    monkeypatch.setattr("permafrost.data.files.sources.package_rows", lambda: rows)
    extra = ["task=language_modeling", "freezing=none", "freezing.blocks=0"] if source == "docstrings" else []
    overrides = [
        f"data={source}",
        *extra,
        "trainer.max_steps=2",
        "data.train=null",
        "data.validation=null",
        "data.test=null",
    ]
    result, _ = run_tiny(*overrides, "data.validation_fraction=0.2", "data.test_fraction=0.2", "data.max_length=16")
    assert result["steps"] == 2


def test_every_yaml_opens_with_its_command():
    files = list(CONF.glob("**/*.yaml"))
    for path in files:
        first = next(line for line in path.read_text().splitlines() if not line.startswith("# @package"))
        assert first.startswith(("# python train.py", "# permafrost compress", "# wandb", "# Not an option")), path
    assert files


def test_each_element_of_a_gradient_is_clipped_by_itself(run_tiny, monkeypatch):
    from permafrost.training.module import FineTuning

    seen, clip = [], FineTuning.configure_gradient_clipping

    def largest(optimizer):
        return max(float(p.grad.abs().max()) for group in optimizer.param_groups for p in group["params"])

    def watched(self, optimizer, *arguments, **named):
        before = largest(optimizer)
        clip(self, optimizer, *arguments, **named)
        seen.append((before, largest(optimizer)))

    monkeypatch.setattr(FineTuning, "configure_gradient_clipping", watched)
    run_tiny("callbacks=clip_by_value", "trainer.gradient_clip_val=1e-3", "trainer.max_steps=2", "store=off")
    assert max(before for before, _ in seen) > 1.001e-3
    assert max(after for _, after in seen) <= 1.001e-3


@pytest.mark.parametrize("asked", [True, False])
def test_only_where_it_is_asked_for_may_sums_go_in_any_order(run_tiny, monkeypatch, capsys, asked):
    from permafrost.training.module import FineTuning

    seen, step = set(), FineTuning.training_step

    def watched(self, *given):
        seen.add(torch.are_deterministic_algorithms_enabled())
        return step(self, *given)

    monkeypatch.setattr(FineTuning, "training_step", watched)
    run_tiny(f"trainer.deterministic={str(asked).lower()}", "trainer.max_steps=1")
    assert seen == {asked}
    assert ("trainer.deterministic=false: kernels may add" in capsys.readouterr().out) is not asked


def test_wandbs_sweep_gives_keys_and_values_that_there_are():
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    for key, of_key in sweep["parameters"].items():
        for value in of_key.get("values", [of_key.get("min"), of_key.get("max")]):
            settings = read_settings(compose_config(f"{key}={value}"))
    assert sweep["metric"]["name"] == f"validation/{settings.task.monitor}"
    assert (CONF.parent / sweep["program"]).is_file()
