"""A finished run made smaller, by the real command: each option gives a model that loads, answers and is measured."""

import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.compression.measure import size_mb
from permafrost.compression.signed_products import products_overflow, without_sign
from permafrost.compression.sparsity import matrices, sparsity_of
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.activation_store import read_manifest
from permafrost.model.store_directory import entries
from permafrost.reporting.outcome import measured_alike
from permafrost.runs import compress as compressing
from permafrost.storage.checksums import write_checksums
from tests.runs.conftest import compose_config

COST = {"size_mb": 1.0, "latency_ms": 2.0, "threads": 1}


@pytest.fixture(scope="module")
def trained(tiny, of_task, tmp_path_factory):
    """Task -> a copy of one finished run of it."""
    from permafrost.experiment import run

    made = {}

    def give(task: str = "classification"):
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task) / "run"
            of_own = ["data.columns.label=label"] if task == "classification" else of_task(task)
            run(compose_config(*tiny, *of_own, "freezing.blocks=0", "optimizer.lr=1e-2"), made[task])
        copied = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(made[task], copied)
        return copied

    return give


@pytest.fixture
def cheap(monkeypatch):
    """Costs are measured in a process of their own: once, by the slow test. Intervals are of few samples."""
    from permafrost.compression.measure import bootstrap
    from permafrost.deployment import cost, scoring

    monkeypatch.setattr(cost, "cost_of", lambda directory, threads: dict(COST))
    monkeypatch.setattr(scoring, "bootstrap", partial(bootstrap, resamples=5))


def compress(run_dir, *overrides, code=0):
    done = CliRunner().invoke(app, ["compress", str(run_dir), *overrides])
    if code == 0 and done.exception:
        raise done.exception
    return done


def entry_of(run_dir, name):
    entry = json.loads((run_dir / "compressed" / name / "compression.json").read_text())
    assert entry in json.loads((run_dir / "result.json").read_text())["compression"]
    return entry


def test_blocks_are_dropped_and_what_is_left_learns_from_the_whole(trained, cheap):
    from transformers import pipeline

    run_dir = trained()
    compress(run_dir, "compression=layer_drop", "compression.recover.epochs=1")
    entry = entry_of(run_dir, "layer_drop")
    assert len(entry["changes"]["blocks kept"]) == 1
    assert entry["metric_name"] == "accuracy"
    assert entry["interval"][0] <= entry["metric"] <= entry["interval"][1]
    assert 0 <= entry["control"] <= 1
    described = json.loads((run_dir / "compressed" / "layer_drop" / "permafrost.json").read_text())
    assert (described["columns"], described["format"]) == ({"label": "label"}, None)
    stock = pipeline("text-classification", model=str(run_dir / "compressed" / "layer_drop"))
    for text in ("sunny hot day", "snow"):
        (own,) = Predictor(run_dir / "compressed" / "layer_drop").predict([text])
        assert stock(text)[0]["label"] == own["label"]
        assert stock(text)[0]["score"] == pytest.approx(own["score"], abs=1e-5)
    assert "layer_drop" in (run_dir / "report.html").read_text()
    left = {path.name.partition("-")[0] for path in (run_dir / "compressed").iterdir()}
    assert left == {"layer_drop", "dense", "control"}  # the version, and what others of this run need not measure again
    assert all((run_dir / "compressed" / "layer_drop" / f"{what}.jsonl").is_file() for what in ("recovery", "control"))


@pytest.mark.parametrize(
    ("option", "more", "changed"),
    [
        ("mlp_width", [], "neurons kept"),
        ("pruning", ["compression.recover.epochs=0"], "heads kept"),
        (
            "distillation",
            ["compression.narrow={mlp: 0.5, heads: 0.0, choose: activation}", "compression.recover.epochs=0"],
            "neurons kept",
        ),
        pytest.param(
            "distillation",
            ["compression.recover.epochs=1", "compression.recover.control=false"],
            "blocks kept",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_parts_are_removed(trained, cheap, option, more, changed):
    run_dir = trained()
    compress(run_dir, f"compression={option}", *more)
    assert changed in entry_of(run_dir, option)["changes"]
    assert Predictor(run_dir / "compressed" / option).predict(["warm"])[0].keys() == {"label", "score"}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["compression.recover.epochs=0"], marks=pytest.mark.slow),
        ["compression.sparsify.method=wanda", "compression.sparsify.structure=2:4", "compression.recover.epochs=0"],
        pytest.param(
            ["compression.sparsify.schedule=cubic", "compression.sparsify.sparsity=0.7"], marks=pytest.mark.slow
        ),
        ["compression.sparsify.method=movement", "compression.sparsify.schedule=cubic"],
        pytest.param(["compression.recover.epochs=1"], marks=pytest.mark.slow),
    ],
    ids=["one shot", "wanda 2:4", "cubic", "movement", "recovered"],
)
def test_weights_become_zero_and_stay_so(trained, cheap, more):
    from permafrost.compression.sparsity import matrices, sparsity_of

    run_dir = trained()
    compress(run_dir, "compression=sparse", "compression.recover.control=false", *more)
    model = Predictor(run_dir / "compressed" / "sparse").model
    asked = 0.7 if any("0.7" in override for override in more) else 0.5
    assert sparsity_of(matrices(model.transformer)) == pytest.approx(asked, abs=0.01)


@pytest.mark.parametrize(
    "task", ["classification", *(pytest.param(t, marks=pytest.mark.slow) for t in ("ner", "translation"))]
)
def test_int8_answers_as_the_run_does(trained, cheap, task):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    run_dir = trained(task)
    compress(run_dir, "compression=quantization")
    artefact = run_dir / "compressed" / "quantization"
    assert {path.name for path in artefact.glob("model.*")} == {"model.onnx"}
    assert entry_of(run_dir, "quantization")["sqnr_db"] > 10
    texts = ["sunny snow the hot", "cold"]
    ours, before = Predictor(artefact).predict(texts), Predictor(run_dir).predict(texts)
    assert [answer.keys() for answer in ours] == [answer.keys() for answer in before]
    if task == "classification":
        assert [answer["label"] for answer in ours] == [answer["label"] for answer in before]
        assert [answer["score"] for answer in ours] == pytest.approx([answer["score"] for answer in before], abs=0.1)
        alone = [Predictor(artefact).predict([text])[0]["score"] for text in texts]  # integers go by the whole batch
        assert scores_of_onnx_runtime(artefact, texts) == pytest.approx(alone, abs=1e-5)


def scores_of_onnx_runtime(artefact, texts):
    """By the two libraries that a user has, and by this one only the weights without sign on a CPU that needs them: of
    each text, the probability of the likeliest label."""
    import onnxruntime
    from transformers import AutoTokenizer

    path = artefact / "model.onnx"
    session = onnxruntime.InferenceSession(without_sign(path) if products_overflow() else str(path))
    tokenizer, found = AutoTokenizer.from_pretrained(artefact), []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        (logits,) = session.run(None, {"input_ids": np.array([ids]), "lengths": np.array([len(ids)])})
        found.append(float((np.exp(logits) / np.exp(logits).sum()).max()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("option", ["mlp_width", "quantization"])
def test_a_smaller_run_is_evaluated_and_served_as_a_run_is(trained, cheap, data_dir, option):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    from permafrost.deployment.branches import Branches

    run_dir = trained()
    compress(run_dir, f"compression={option}", "compression.recover.epochs=0")
    artefact = run_dir / "compressed" / option
    done = CliRunner().invoke(app, ["evaluate", str(artefact), "--data", str(data_dir / "test.csv")])
    a_row = 1 / 16 if option == "quantization" else 0  # integers go by the whole batch, and batches are others here
    assert json.loads(done.stdout)["accuracy"] == pytest.approx(entry_of(run_dir, option)["metric"], abs=a_row + 1e-6)
    texts = ["sunny snow the hot", "cold"]
    served = Branches({"whole": run_dir, "small": artefact}).answers(texts, None, ["whole", "small"])
    for name, directory in (("whole", run_dir), ("small", artefact)):
        for answer, own in zip(served, Predictor(directory).predict(texts), strict=True):
            assert answer[name] == {"label": own["label"], "score": pytest.approx(own["score"], abs=1e-5)}


@pytest.mark.slow
def test_a_student_learns_from_what_its_teacher_writes(trained, cheap, tmp_path):
    run_dir = trained("translation")
    options = ["compression=distillation", "compression.recover.epochs=1", "compression.recover.control=false"]
    cache = f"data.cache_dir={tmp_path}"
    compress(run_dir, *options, cache, "compression.recover.answers=teacher", "compression.recover.alpha=0")
    (path,) = (tmp_path / "written").iterdir()
    written = json.loads(path.read_text())
    assert len(written) == 60
    assert all(isinstance(text, str) for text in written)
    assert entry_of(run_dir, "distillation")["changes"]["blocks kept"] == [0]


def test_the_teachers_output_is_computed_once_and_kept(trained, cheap, tmp_path):
    run_dir = trained()
    options = ["compression=distillation", "compression.recover.epochs=2", "compression.recover.control=false"]
    store = tmp_path / "activations"
    compress(run_dir, *options, "store=on", f"store.dir={store}")
    (manifest,) = (read_manifest(entry) for entry in entries(store))
    assert (manifest.depth, manifest.rows) == (2, 40)  # all blocks of the teacher, for the training rows alone


def test_another_run_teaches_and_its_output_is_kept_too(trained, cheap, tmp_path):
    run_dir, teacher = trained(), trained()
    options = ["compression=distillation", "compression.recover.epochs=1", "compression.recover.control=false"]
    stored = ["store.mode=on", f"store.dir={tmp_path}"]
    compress(run_dir, *options, *stored, f"compression.recover.teacher={teacher}")
    assert entry_of(run_dir, "distillation")["changes"]["blocks kept"] == [0]
    (manifest,) = (read_manifest(entry) for entry in entries(tmp_path))
    assert (manifest.depth, manifest.rows) == (2, 40)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("ner", "its kind is tagging.Tagging, and the run's classification.Classification"),
        pytest.param("int8", "quantized", marks=pytest.mark.slow),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(trained, cheap, teacher, message):
    run_dir = trained()
    if teacher == "int8":
        pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
        compress(run_dir, "compression=quantization")
        directory = run_dir / "compressed" / "quantization"
    else:
        directory = trained(teacher)
    given = f"compression.recover.teacher={directory}"
    done = compress(run_dir, "compression=distillation", given, code=2)
    assert message in str(done.exception)
    assert done.exception.exit_code == 2


def test_nothing_taken_out_is_an_error_before_anything_is_trained(trained, cheap, monkeypatch):
    run_dir = trained()
    monkeypatch.setattr(compressing, "recover_", lambda *_: pytest.fail("it was trained"))
    done = compress(run_dir, "compression=mlp_width", "compression.narrow.mlp=0", code=2)
    assert "compression=mlp_width took nothing out" in str(done.exception)
    assert not (run_dir / "compressed" / "mlp_width").exists()


def test_masks_that_reach_no_weight_are_an_error(trained, cheap, monkeypatch):
    from permafrost.compression import sparsity

    run_dir = trained()
    monkeypatch.setattr(sparsity, "apply_masks_", lambda *_: None)
    done = compress(run_dir, "compression=sparse", "compression.recover.epochs=0", code=2)
    assert "0.0% of the weights are zero, and 50.0% were asked" in str(done.exception)


def test_zeros_make_no_file_smaller_and_that_is_said(trained, cheap):
    run_dir = trained()
    done = compress(run_dir, "compression=sparse", "compression.recover.epochs=0")
    assert "no smaller, and no faster" in done.stdout
    assert size_mb(run_dir / "compressed" / "sparse") == size_mb(run_dir / "model")


@pytest.mark.slow
def test_weights_are_trained_in_four_bits(trained, cheap):
    pytest.importorskip("nncf", reason="the extra [int4] is not installed")
    run_dir = trained()
    compress(run_dir, "compression=qat", "compression.recover.control=false")
    assert entry_of(run_dir, "qat")["sqnr_db"] > 5
    assert Predictor(run_dir / "compressed" / "qat").predict(["warm"])[0].keys() == {"label", "score"}


@pytest.mark.slow
def test_a_run_that_writes_writes_with_weights_of_four_bits(trained, cheap):
    pytest.importorskip("nncf", reason="the extra [int4] is not installed")
    run_dir = trained("translation")
    compress(run_dir, "compression=quantization", "compression.quantize.method=int4")
    assert entry_of(run_dir, "quantization")["sqnr_db"] > 5
    answers = Predictor(run_dir / "compressed" / "quantization").predict(["sunny snow the hot", "cold"])
    assert [answer.keys() for answer in answers] == [{"text"}] * 2
    assert any(answer["text"] for answer in answers)


def test_a_damaged_artefact_is_refused(trained, cheap):
    run_dir = trained()
    compress(run_dir, "compression=mlp_width", "compression.recover.epochs=0")
    path = run_dir / "compressed" / "mlp_width" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ResourceError, match=r"model\.safetensors is damaged"):
        Predictor(path.parent)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compression=none"], "changes nothing"),
        (["compression.quantize={method: int8, aware: false}"], "give them a name, as compression.name=mine"),
        (["compression=pruning", "compression.narrow.heads=0.1"], "of 2 all would be left"),
        (["compression=sparse", "compression.sparsify.structure=2:4", "compression.sparsify.sparsity=0.7"], "give 0.5"),
        (["compression=pipeline", "head.pooling=windows"], "which an ONNX graph cannot"),
        (["compression=pipeline", "compression.quantize.method=nf4"], "nf4 takes 64 inputs together"),
        (["compression=quantization", "compression.recover.hidden=1.0"], "recover.hidden is of training"),
        (
            ["compression=layer_drop", "compression.recover.alpha=0", "compression.recover.teacher=x"],
            "nothing is learned",
        ),
        (["compression=mlp_width", "compression.narrow.mlp=0.2,0.5"], "which --sweep tries one by one"),
        (["compression=sparse", "compression.sparsify.method=movement"], "give compression.sparsify.schedule=cubic"),
        (["compression=layer_drop", "compression.drop.share=0.1"], "of 2 blocks 2 would be left"),
        (["compression=nothing"], "compression"),
        (["compression=quantization", "compression.quantize.aware=true"], "give compression.quantize.method=int4"),
        (["compression=layer_drop", "compression.recover.answers=teacher"], "classification writes no texts"),
        (["compression=layer_drop", "compression.drop.shar=0.1"], "shar"),
        (["compression=layer_drop", "compression.name=../model"], "compression.name='../model'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(trained, cheap, overrides, message):
    run_dir = trained()
    done = compress(run_dir, *overrides, code=2)
    assert message in str(done.exception)
    assert done.exception.exit_code == 2
    assert not (run_dir / "compressed").exists()


@pytest.mark.slow
def test_the_dense_control_is_trained_once_for_all_that_recover_as_long(trained, cheap, monkeypatch):
    run_dir, trained_for, train_control = trained(), [], compressing.train_control
    monkeypatch.setattr(
        compressing,
        "train_control",
        lambda run: trained_for.append(run.plan.recover.epochs) or train_control(run),
    )
    options = ["compression=mlp_width", "compression.recover.alpha=0"]
    for name, epochs in (("a", 1), ("b", 1), ("c", 2)):
        compress(run_dir, *options, f"compression.name={name}", f"compression.recover.epochs={epochs}")
    assert trained_for == [1, 2]
    assert entry_of(run_dir, "a")["control"] == entry_of(run_dir, "b")["control"]
    curves = [(run_dir / "compressed" / name / "control.jsonl").read_text() for name in "abc"]
    assert curves[0] == curves[1] != curves[2]


def test_what_broke_off_is_made_anew(trained, cheap):
    run_dir = trained()
    for name in ("mlp_width", "mlp_width-recovery"):
        (run_dir / "compressed" / name).mkdir(parents=True)
        (run_dir / "compressed" / name / "metrics.jsonl").write_text("half a line")
    compress(run_dir, "compression=mlp_width", "compression.recover.epochs=1", "compression.recover.control=false")
    assert not (run_dir / "compressed" / "mlp_width" / "metrics.jsonl").exists()
    assert "half" not in (run_dir / "compressed" / "mlp_width" / "recovery.jsonl").read_text()
    assert not (run_dir / "compressed" / "mlp_width-recovery").exists()


@pytest.mark.slow
def test_a_name_is_not_used_twice(trained, cheap):
    run_dir = trained()
    options = ["compression=mlp_width", "compression.recover.epochs=0"]
    compress(run_dir, *options)
    assert "is there already" in str(compress(run_dir, *options, code=2).exception)
    compress(run_dir, *options, "compression.name=narrower", "compression.narrow.mlp=0.75")
    entries = json.loads((run_dir / "result.json").read_text())["compression"]
    assert [entry["method"] for entry in entries] == ["mlp_width", "narrower"]


@pytest.mark.slow
def test_a_run_ends_smaller_and_is_measured(run_tiny):
    result, run_dir = run_tiny("compression=pipeline", "compression.recover.epochs=1", "freezing.blocks=0")
    (entry,) = result["compression"]
    assert entry == entry_of(run_dir, "pipeline")
    assert entry["size_mb"] < entry["before"]["size_mb"]
    for cost in (entry, entry["before"]):
        assert 0 < cost["latency_ms"] <= cost["latency_p95_ms"]
        assert cost["rows_per_second"] > 0
        assert cost["block_parameters"] < cost["parameters"]
        assert cost["resident_mb"] > 0
    assert entry["block_parameters"] == entry["before"]["block_parameters"] / 2


@pytest.mark.slow
def test_a_grid_makes_each_combination_and_goes_on_where_it_broke_off(trained, cheap):
    run_dir = trained()

    def sweep(shares, *more):
        options = ["compression=mlp_width", f"compression.narrow.mlp={shares}", "compression.recover.epochs=0"]
        return compress(run_dir, "--sweep", *options, *more, code=2 if more else 0)

    sweep("0.25,0.5")
    names = ["mlp_width-mlp0.25", "mlp_width-mlp0.5"]
    assert [entry["method"] for entry in json.loads((run_dir / "result.json").read_text())["compression"]] == names
    assert all((run_dir / "compressed" / name / "model.safetensors").is_file() for name in names)
    made = (run_dir / "compressed" / names[0] / "model.safetensors").stat().st_mtime_ns
    done = sweep("0.25,0.5,0.75")
    assert done.stdout.count("was made before") == 2
    assert (run_dir / "compressed" / names[0] / "model.safetensors").stat().st_mtime_ns == made
    assert entry_of(run_dir, "mlp_width-mlp0.75")["plan"]["narrow"]["mlp"] == 0.75
    assert "is there already" in str(sweep("0.25,0.5", "compression.narrow.choose=taylor").exception)


def test_an_option_without_its_group_compresses_a_run_or_ends_it(run_tiny):
    with pytest.raises(ConfigError, match=r"give them a name, as compression\.name=mine"):
        run_tiny("compression.quantize={method: int8, aware: false}")


@pytest.mark.parametrize(("option", "package"), [("quantization", "onnxruntime"), ("qat", "nncf")])
def test_a_package_that_is_missing_is_told_before_a_run_is_trained(run_tiny, monkeypatch, option, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"needs {package}; pip install"):
        run_tiny(f"compression={option}")


@pytest.mark.slow
def test_labels_keep_the_thresholds_that_were_chosen(trained, cheap):
    run_dir = trained("multi_label")
    path = run_dir / "model" / "permafrost.json"
    described = json.loads(path.read_text())
    described["thresholds"] = [0.25] * len(described["labels"])
    path.write_text(json.dumps(described))
    write_checksums(run_dir / "model")
    compress(run_dir, "compression=mlp_width", "compression.recover.epochs=0")
    made = json.loads((run_dir / "compressed" / "mlp_width" / "permafrost.json").read_text())
    assert made["thresholds"] == described["thresholds"]


def test_what_looks_back_and_ahead_is_refused(trained):
    from permafrost.runs.compressible import check
    from permafrost.runs.kept_config import config_of_run
    from permafrost.settings.config import read_settings

    asked = ["compression=layer_drop", "model.attention=bidirectional", "freezing.blocks=1"]
    settings = read_settings(config_of_run(trained(), asked))
    with pytest.raises(ConfigError, match="whose blocks are alike"):
        check(settings.compression, settings)


@pytest.mark.parametrize("override", ["trainer.max_epochs=1", "++trainer.devices=2", "freezing=none"])
def test_what_recovery_sets_for_itself_is_not_ignored(trained, override):
    done = compress(trained(), "compression=layer_drop", override, code=2)
    assert "learns again as a whole, in this process, for compression.recover.epochs" in str(done.exception)


def test_what_was_made_by_another_recipe_is_not_taken_for_this(trained):
    from permafrost.runs.kept_config import config_of_run
    from permafrost.settings.config import read_settings

    def made(*overrides):
        return compressing.made_by(read_settings(config_of_run(trained(), ["compression=layer_drop", *overrides])))

    assert made() == made() != made("optimizer.lr=3e-3")


def test_the_lesson_is_the_plans(trained):
    from permafrost.compression.distillation import Lesson
    from permafrost.runs.kept_config import config_of_run
    from permafrost.runs.recover import lesson_of
    from permafrost.settings.config import read_settings

    how = {"alpha": 0.25, "temperature": 3.0, "hidden": 0.5}
    given = [f"compression.recover.{name}={value}" for name, value in how.items()]
    plan = read_settings(config_of_run(trained(), ["compression=layer_drop", *given])).compression
    assert lesson_of(plan) == Lesson(**how)


def test_only_what_was_measured_alike_is_compared():
    def entry(name, threads):
        return {"metric_name": name, "threads": threads}

    one, other, more = entry("accuracy", 1), entry("accuracy", 2), entry("f1_macro", 1)
    assert measured_alike([one, other, one, more]) == [[one, one], [other], [more]]


def test_versions_that_are_beaten_in_nothing():
    def version(metric, size, latency):
        return {"metric": metric, "size_mb": size, "latency_ms": latency, "mode": "max"}

    small_and_slow, large_and_fast, beaten = version(0.8, 1, 9), version(0.8, 5, 2), version(0.7, 5, 9)
    assert compressing.not_beaten([small_and_slow, large_and_fast, beaten]) == [["size"], ["time"], []]


def test_combinations_are_named_by_what_varies():
    from permafrost.runs.kept_config import combinations

    assert combinations(["compression=a,b"]) == [["compression=a"], ["compression=b"]]
    one_value = ["compression=a", "compression.narrow={mlp: 0.5, heads: 0.0}", "data.train=[a,b]"]
    assert combinations(one_value) == [one_value]
    assert combinations(["compression=a", "compression.drop.share=0.2,0.5", "seed=1"]) == [
        ["compression=a", "compression.drop.share=0.2", "seed=1", "compression.name=a-share0.2"],
        ["compression=a", "compression.drop.share=0.5", "seed=1", "compression.name=a-share0.5"],
    ]


def test_what_is_given_means_what_it_means_to_a_run(trained):
    from permafrost.runs.kept_config import config_of_run
    from permafrost.settings.config import read_settings

    run_dir = trained()

    def settings(*overrides):
        return read_settings(config_of_run(run_dir, ["compression=quantization", *overrides]))

    before = settings()
    assert settings("store=on").store.mode == settings("store.mode=on").store.mode == "on"
    assert settings("store=off").store.mode == "off"
    assert settings("store.mode=on").store.dir == before.store.dir
    adam = settings("optimizer=adam", "optimizer.lr=2e-3").optimizer
    assert (adam["_target_"], adam["lr"]) == ("torch.optim.Adam", 0.002)
    assert settings("callbacks.early_stopping=null").callbacks["early_stopping"] is None
    assert settings("seed=3").model_copy(update={"seed": before.seed}) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer=gd", "an option of more than one group"),
        ("task=legal", "an option of more than one group"),
        ("optimizer=adm", "did you mean 'adam'"),
        ("stor.mode=on", "did you mean 'store'"),
        ("~callbacks.early_stopping", "give KEY=VALUE"),
        ("quantization", "give KEY=VALUE"),
    ],
)
def test_what_cannot_be_given_is_told(trained, override, message):
    done = compress(trained(), "compression=quantization", override, code=2)
    assert message in str(done.exception)


@pytest.mark.slow
def test_weights_that_are_zero_stay_zero_where_the_run_averaged_its_weights(run_tiny):
    _, run_dir = run_tiny("callbacks=averaged", "compression=sparse", "compression.recover.epochs=1")
    weights = matrices(Predictor(run_dir / "compressed" / "sparse").model.transformer)
    assert sparsity_of(weights) >= 0.49
