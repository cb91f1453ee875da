"""The offline W&B run, read back."""

import json
import struct
import time
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from permafrost.reporting.dashboard import log_run

BLOCK, HEADER = 32768, 7  # LevelDB's log format: blocks of fragments, each with checksum, length and kind


def records(path: Path) -> list[Record]:
    content, position, found, parts = path.read_bytes(), HEADER, [], b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK  # the rest of a block that holds no more fragment
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        if position + HEADER + length > len(content):
            break  # a fragment that is still being written
        parts += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last of several
            record = Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def written(path: Path, patience_s: float = 10) -> list[Record]:
    """W&B's own process writes the file, and may still do so when the run has ended here."""
    deadline = time.monotonic() + patience_s
    found = records(path)
    while not any(record.HasField("exit") for record in found):
        assert time.monotonic() < deadline, "the offline run was not written to its end"
        time.sleep(0.1)
        found = records(path)
    return found


class Received:
    """What stands where a W&B run does."""

    def __init__(self):
        self.summary, self.saved, self.logged = {}, [], {}

    def log(self, values):
        self.logged |= values

    def save(self, path, **how):
        self.saved.append(Path(path).name)


def test_what_was_made_smaller_is_in_the_summary(tmp_path):
    entry = {"method": "int8", "metric": 0.75, "size_mb": 5.5, "metric_name": "accuracy", "before": {"size_mb": 17.4}}
    (tmp_path / "result.json").write_text(json.dumps({"test": {"accuracy": 0.76}, "compression": [entry]}))
    run = Received()
    log_run(run, tmp_path)
    expected = {"final/accuracy": 0.76, "compression/int8/metric": 0.75, "compression/int8/size_mb": 5.5}
    expected |= {"compression/int8/before/size_mb": 17.4}
    assert run.summary == expected | {"run_directory": str(tmp_path)}
    assert run.saved == ["result.json"]


def test_each_of_several_tasks_has_its_own_tables(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"test": {}, "compression": []}))
    answer = {"label": "bad", "score": 0.9}
    label = {"part": "films", "where": "a:1", "text": "x", "label": "good", "prediction": answer}
    words = {"part": "names", "where": "b:1", "tokens": ["Oslo"], "tags": ["B-LOC"], "prediction": {"spans": []}}
    lines = "".join(json.dumps(row) + "\n" for row in (label, words))
    (tmp_path / "predictions.jsonl").write_text(lines)
    run = Received()
    log_run(run, tmp_path)
    assert list(run.logged) == ["test/films/confusion_matrix", "test/films/most_wrong", "test/names/most_wrong"]


def test_the_offline_run_holds_curves_config_and_tables(run_tiny):
    _, run_dir = run_tiny("logger=wandb", "trainer.log_every_n_steps=1")
    (path,) = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    found = written(path)
    history = {item.key or "/".join(item.nested_key) for record in found for item in record.history.item}
    assert {"train/loss", "train/gradient_norm", "validation/loss", "validation/accuracy"} <= history
    assert any(name.startswith("test/most_wrong") for name in history)
    assert any("confusion_matrix" in name for name in history)
    config = {item.key: item.value_json for record in found for item in record.run.config.update}
    config |= {item.key: item.value_json for record in found for item in record.config.update}
    assert json.loads(config["optimizer"])["_target_"] == "torch.optim.AdamW"
    summary = {item.key or "/".join(item.nested_key) for record in found for item in record.summary.update}
    assert {"final/accuracy", "run_directory"} <= summary
    assert (path.parent / "files" / "result.json").exists()


@pytest.mark.parametrize("where", ["log_hyperparams", "log_metrics", "save"])
def test_44_a_dashboard_that_fails_is_left_alone(run_tiny, monkeypatch, capsys, where):
    from lightning.pytorch.loggers import CSVLogger

    def fail(self, *arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(CSVLogger, where, fail)
    result, run_dir = run_tiny("logger=csv", "trainer.log_every_n_steps=1", "trainer.max_epochs=1")
    told = capsys.readouterr().err
    assert told.count("CSVLogger fails and is left alone: OSError: No space left on device; metrics.jsonl has") == 1
    assert result["status"] == "done"
    assert "train/loss" in (run_dir / "metrics.jsonl").read_text()
