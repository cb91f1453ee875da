"""The offline W&B run, read back."""

import json

from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore


def records(path) -> list[Record]:
    store, found = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        found.append(record)
    return found


def test_the_offline_run_holds_curves_config_and_tables(run_tiny):
    _, run_dir = run_tiny("logger=wandb", "trainer.log_every_n_steps=1")
    (path,) = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    found = records(path)
    history = {item.key or "/".join(item.nested_key) for record in found for item in record.history.item}
    assert {"train/loss", "train/gradient_norm", "validation/loss", "validation/accuracy"} <= history
    assert {"test/most_wrong"} <= history
    assert any("confusion_matrix" in name for name in history)
    config = {item.key: item.value_json for record in found for item in record.run.config.update}
    config |= {item.key: item.value_json for record in found for item in record.config.update}
    assert json.loads(config["optimizer"])["_target_"] == "torch.optim.AdamW"
    summary = {item.key or "/".join(item.nested_key) for record in found for item in record.summary.update}
    assert {"final/accuracy", "run_directory"} <= summary
    assert (path.parent / "files" / "result.json").exists()
