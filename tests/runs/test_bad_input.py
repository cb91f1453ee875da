"""What is wrong ends in one clear sentence and its exit code, and leaves nothing half-written."""

import errno
import os
import re

import pytest

from permafrost.data.tokens.tokenization import train_tokenizer
from permafrost.errors import ConfigError, DataError, PermafrostError, ResourceError
from tests.conftest import TEXTS
from tests.runs.conftest import ROOT, command, compose_config

GOOD = "text,label\n" + "".join(f"row {i} of words,{'ab'[i % 2]}\n" for i in range(12))
DATA_FAULTS = [
    ("no file", None, "no such file"),
    ("empty", "", "empty"),
    ("header only", "text,label\n", "no rows"),
    ("missing column", GOOD.replace("text,label", "txt,label"), "data.columns.text"),
    ("one class only", GOOD.replace(",b", ",a"), "one label only"),
    ("ragged", GOOD + "one,two,three\n", ":14: 3 columns"),
    ("not utf-8", GOOD.replace("row 3", "caf\udce9"), "not UTF-8"),
    ("no label", GOOD + "words,\n", ":14: no label"),
]


@pytest.mark.parametrize(
    ("content", "message"), [case[1:] for case in DATA_FAULTS], ids=[case[0] for case in DATA_FAULTS]
)
def test_24_to_31_data_faults_name_file_and_line(content, message, run_tiny, tmp_path):
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    cut = ["data.validation=null", "data.validation_fraction=0.3", "data.test=null", "data.test_fraction=0.3"]
    with pytest.raises(DataError, match=message):
        run_tiny(f"data.train={path}", *cut)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "result.json").exists()


def test_28_a_label_that_only_validation_has(run_tiny, tmp_path):
    (tmp_path / "dev.csv").write_text(GOOD.replace(",b", ",c").replace(",a", ",warm"))
    with pytest.raises(DataError, match=r"dev.csv:3: validation has the label 'c'"):
        run_tiny(f"data.validation={tmp_path}/dev.csv")


CONFIG_FAULTS = [
    (["+data.max_train_row=3"], "unknown key data.max_train_row; did you mean 'max_train_rows'"),
    (["+optimizer.lrr=1"], "unknown key optimizer.lrr; did you mean 'lr'"),
    (["+sed=1"], "unknown key sed; did you mean 'seed'"),
    (["data=mixture", "data.mixture={a: {train: a.csv, wieght: 1}}"], "mixture.a.wieght; did you mean 'weight'"),
    (["data=hub"], "data.hub.name=NAME"),
    (["seed=1.5"], "seed=1.5"),
    (["trainer.max_epochs=0"], "greater than or equal to 1"),
    (["optimizer.lr=abc"], "optimizer.lr='abc': expected float"),
    (["optimizer.lr=-1"], "Invalid learning rate"),
    (["trainer.max_epochs=abc"], "trainer.max_epochs='abc': should be a valid integer"),
    (["model.dropout=2"], "model.dropout=2: should be less than 1"),
    (["data.batch_size=0"], "data.batch_size=0: should be greater than or equal to 1"),
    (["trainer.precision=16-mixed"], "16-mixed is for GPUs"),
    (["task=language_modeling", "model.attention=bidirectional"], "which task=language_modeling is to predict"),
    (["data.max_windows=2"], "needs a head that pools them: head=windows"),
    (["head=pair", "data.columns.text=text"], "head=pair compares the two texts of a row, and these rows have one"),
    (["head=pair", "data.auto_batch=true"], "of which head=pair makes two each"),
    (["callbacks=averaged", "callbacks.average.decay=1.0"], "decay=1.0: between 0 and 1"),
    (["callbacks=averaged", "callbacks.best.save_weights_only=false"], "callbacks.best.save_weights_only=true"),
    (["compression=quantization", "compression.quantize.method=nf4", "head=mean"], "what plain Transformers loads"),
    (["task=dialogue", "task.turn='{text}'"], r"it must hold {speaker} and end with {text}"),
    (["scheduler.warmup=-3"], "scheduler.warmup=-3"),
    (["freezing.blocks=9"], "has 2 blocks"),
    (["task.monitor=acuracy"], "did you mean 'accuracy'"),
    (["task=generation", "task.monitor=parses"], "nothing logs it on validation; give task.parses=true"),
    (["task=translation", "task.monitor=bleu", "task.validation_generations=0"], "task.validation_generations=100"),
    (["callbacks.early_stopping.patience=x"], "expected int"),
    (["+callbacks.early_stopping.monitor=validation/f1"], "did you mean 'validation/f1_macro'"),
    (
        ["task=generation", "+callbacks.early_stopping.monitor=validation/parses"],
        "nothing logs it; give task.parses=true",
    ),
    (["loss._target_=os.system"], "not on the list"),
    (["task.kind=tagging.Taging"], "task.kind=tagging.Taging: no such task"),
    (["task.kind=os.system"], "task.kind=os.system: no such task"),
    (["task.kind=base.Encoding"], "task.kind=base.Encoding: no such task"),
    (["model.path=./nowhere"], "no such directory"),
    (["save_every=10m"], "save_every='10m'"),
    (["save_every=0"], "save_every=0"),
    (["trainer.max_minutes=0"], "trainer.max_minutes=0"),
    (["trainer=slurm"], "give resume=auto"),
    (["trainer.strategy=fsdpp"], "trainer.strategy='fsdpp': should be 'auto', 'ddp' or 'fsdp'"),
    (["trainer.strategy=fsdp", "model.compile=true"], "leave one out"),
    (["trainer.strategy=fsdp", "optimizer=adafactor"], "with trainer.strategy=fsdp: optimizer=adamw"),
    (["trainer=ddp_cpu", "compression=quantization"], "permafrost compress RUN compression=quantization"),
]


@pytest.mark.parametrize(("overrides", "message"), CONFIG_FAULTS, ids=[faults[0] for faults, _ in CONFIG_FAULTS])
def test_36_and_37_config_faults_are_found_before_a_model_loads(overrides, message, tiny, tmp_path, monkeypatch):
    from permafrost.experiment import run

    monkeypatch.setattr("permafrost.runs.assembly.make_models", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError) as raised:
        run(compose_config(*tiny, *overrides), tmp_path / "run")
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_not_of_written_texts_asks_for_none(tiny):
    from permafrost.settings.config import read_settings
    from permafrost.settings.preflight import preflight

    asked = ["task=multi_label", "task.monitor=exact_match", "task.validation_generations=0"]
    preflight(read_settings(compose_config(*tiny, *asked)), in_sweep=False)


@pytest.mark.parametrize("option", ["gpu", "ddp", "fsdp"])
def test_37_where_there_is_no_gpu_that_is_said_first(option, tiny, tmp_path):
    from permafrost.experiment import run

    with pytest.raises(ResourceError, match=r"torch finds no GPU here.*set trainer\.accelerator=cpu"):
        run(compose_config(*tiny, f"trainer={option}", "trainer.accelerator=gpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_37_processes_within_a_sweep_are_refused(tiny, tmp_path):
    from permafrost.experiment import run

    with pytest.raises(ConfigError, match=r"which a sweep cannot; sweep with trainer\.devices=1"):
        run(compose_config(*tiny, "trainer=ddp_cpu"), tmp_path / "run", sweep="sweeps/now")
    assert not (tmp_path / "run").exists()


def test_42_a_tokenizer_of_more_tokens_than_the_model_knows(run_tiny, tmp_path):
    train_tokenizer([*TEXTS, "a fortnight of thunder and of lightning"], 400, 64).save_pretrained(tmp_path / "larger")
    with pytest.raises(ConfigError, match=r"model\.tokenizer=.*/larger has 3\d\d tokens, and .* knows \d+; leave"):
        run_tiny(f"model.tokenizer={tmp_path}/larger")


def test_warmup_longer_than_the_run(run_tiny):
    with pytest.raises(ConfigError, match="but the run has"):
        run_tiny("scheduler.warmup=5000")


def test_41_an_unreachable_hub_is_one_sentence(run_tiny):
    with pytest.raises(PermafrostError, match="hub cannot be reached") as raised:
        run_tiny("data=ag_news", "data.train=null", "data.validation=null", "data.test=null")
    assert raised.value.exit_code == 4


COMMANDS = [
    (["optimizer.lrr=1"], 2, "did you mean 'lr'?"),
    (["optimizer=adamW"], 2, "did you mean 'adamw'?"),
    (["trainer.max_epoch=5"], 2, "did you mean 'max_epochs'?"),
    (["optimzer=adam"], 2, "did you mean 'optimizer'?"),
    (["--allow-leaks"], 2, "a run has data.allow_leaks=true"),
    (["experiment=pretrain_min"], 2, "did you mean 'pretrain_mini'?"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), COMMANDS, ids=[arguments[0] for arguments, *_ in COMMANDS])
def test_35_the_command_explains_a_mistyped_name(arguments, code, message, tmp_path):
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_exits_with_3_on_bad_data(tiny, tmp_path):
    done = command(*tiny, f"data.train={tmp_path}/trian.csv", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 3
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_50_no_run_is_called_private(tmp_path):
    """There is no private training: who asks for it is told, and SECURITY.md says what that means."""
    done = command("privacy=dp", "privacy.epsilon=8", cwd=tmp_path)
    assert done.returncode == 2
    assert "unknown key privacy" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "No training here is differentially private" in " ".join((ROOT / "SECURITY.md").read_text().split())


def test_6_a_disk_that_is_full_elsewhere_ends_with_4(run_tiny, monkeypatch, capsys):
    """Checkpoints say so themselves; here the log of the curves meets it."""
    from permafrost.launch import failure
    from permafrost.training.loggers import MetricsFile

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    monkeypatch.setattr(MetricsFile, "log_metrics", full)
    with pytest.raises(OSError, match="No space left") as raised:
        run_tiny()
    assert failure(raised.value, debug=False)["exit_code"] == 4
    assert re.search(r"error: cannot write .*metrics\.jsonl: No space left.*; free some", capsys.readouterr().err)


def test_a_diverged_run_fails_with_5(run_tiny):
    with pytest.raises(PermafrostError, match="the run diverged") as raised:
        run_tiny("optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "trainer.max_epochs=3")
    assert raised.value.exit_code == 5


DIVERGES = ["optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "trainer.max_epochs=3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "code", "told"),
    [(["resume=must"], 4, "resume=must: no checkpoint in"), (DIVERGES, 5, "the run diverged")],
    ids=["resources", "training"],
)
@pytest.mark.parametrize("debug", ["false", "true"])
def test_the_program_ends_with_its_failures_code(tiny, tmp_path, given, code, told, debug):
    done = command(*tiny, *given, f"debug={debug}", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert ("Traceback (most recent call last)" in done.stderr) is (debug == "true")
