"""The frozen part's one pass: what it stores is Transformers' own states, made once, and a run can do without it."""

import errno
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch

from permafrost.data.tokens.batching import TokenBatching
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.errors import ConfigError, ResourceError
from permafrost.model import activation_store
from permafrost.model.activation_store import (
    ActivationStore,
    entry_directory,
    open_entry,
    remove,
    row_digests,
    sole_builder,
)
from permafrost.model.backbone import trunk
from permafrost.model.store_directory import entries, last_used
from permafrost.runs import assembly
from permafrost.training import store_worth, trunk_pass
from permafrost.training.datamodule import DataModule
from permafrost.training.store_worth import SWEEP_TRIALS, Rates, Reads
from permafrost.training.trunk_pass import FrozenPart, StoreOptions, Stores, open_stores, what_to_store
from tests.frozen import CHANNELS, SPLITS, TOKENS, make_model, make_part, make_split
from tests.processes import begun, forked

CHEAP_READS = Rates(compute=0.1, write=0.05, read=0.01)  # seconds per token
READS = Reads(of_split={"train": 5, "validation": 6, "test": 1}, batching=TokenBatching(max_tokens=40))
HOW = {"depth": 1, "dtype": "float32", "precision": "32-true", "tokenizer": "abc", "window": None, "apart": False}


@pytest.fixture
def part(tiny_backbone) -> FrozenPart:
    return make_part(tiny_backbone)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def open_all(part, tmp_path, said) -> Callable[..., Stores]:
    """open_stores for all splits, in float32, in a directory of the test's own."""

    def go(part=part, *, mode="on", splits=SPLITS, directory=tmp_path / "store", dtype="float32", max_gb=1.0) -> Stores:
        options = StoreOptions(mode=mode, directory=directory, dtype=dtype, max_gb=max_gb)
        wanted = what_to_store(part, splits, options, tokenizer="abc")
        return open_stores({"": wanted}, reads={"": READS}, say=said.append)[""]

    return go


def gigabytes(tokens: int) -> float:
    return tokens * CHANNELS * 4 / 2**30


def ids_of(split: TokenizedSplit, row: int) -> torch.Tensor:
    return torch.from_numpy(split.input_ids[row].astype(np.int64))[None]


def forbid(monkeypatch) -> None:
    """Whoever computes from now on fails."""

    def compute(self, input_ids):
        raise AssertionError("the trunk is computed")

    monkeypatch.setattr(FrozenPart, "__call__", compute)


# What is stored


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_what_is_stored_are_the_hidden_states_of_transformers(tiny_backbone, open_all, blocks):
    stores = open_all(make_part(tiny_backbone, blocks=blocks))
    # Transformers gives its last states behind the final norm; a norm that does nothing leaves them as they are
    tiny_backbone.eval().ln_f = torch.nn.Identity()
    for name, split in SPLITS.items():
        for row, length in enumerate(split.lengths):
            with torch.no_grad():
                expected = tiny_backbone(input_ids=ids_of(split, row), output_hidden_states=True).hidden_states[blocks]
            states = stores.by_split[name].padded(np.array([row]))
            assert states.shape == (1, length, CHANNELS)
            # two ways to the same float32 sums
            torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pass_tokens", [1, 30, 10_000])
def test_a_rows_states_do_not_depend_on_its_batch(open_all, part, monkeypatch, pass_tokens):
    monkeypatch.setitem(trunk_pass.PASS_TOKENS, "cpu", pass_tokens)
    store = open_all().by_split["train"]
    for row in range(len(SPLITS["train"])):
        # the same products in batches of another shape
        torch.testing.assert_close(
            store.padded(np.array([row])), part(ids_of(SPLITS["train"], row)).clone(), rtol=0, atol=1e-5
        )


def test_dropout_has_no_part_in_what_is_stored(open_all, part, tmp_path):
    assert part.backbone.config.resid_pdrop == 0.1
    torch.manual_seed(1)
    first = open_all(directory=tmp_path / "a").by_split["train"].padded(np.arange(8))
    torch.manual_seed(2)
    second = open_all(directory=tmp_path / "b").by_split["train"].padded(np.arange(8))
    assert torch.equal(first, second)


@pytest.mark.parametrize("training", [True, False])
def test_the_pass_leaves_the_model_in_the_mode_that_it_was_in(tiny_backbone, open_all, training):
    """What is above the cut is to be trained with its dropout, whether the rest is stored or not."""
    part = make_part(tiny_backbone)
    model = make_model(tiny_backbone).train(training)
    before = {name: module.training for name, module in model.named_modules()}
    open_all(FrozenPart(model, name="tiny", precision="32-true", device=torch.device("cpu")))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert before["transformer.h.1.mlp"] is training
    assert not part.backbone.h[0].training


def test_in_mixed_precision_the_states_are_those_of_autocast(tiny_backbone, open_all):
    store = open_all(make_part(tiny_backbone, precision="bf16-mixed")).by_split["validation"]
    ids = ids_of(SPLITS["validation"], 1)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = trunk(tiny_backbone.eval(), ids, 1)
    states = store.padded(np.array([1]))
    torch.testing.assert_close(states, expected.float(), rtol=0, atol=2e-3)  # 8 bits of mantissa on states of 0.1
    assert not torch.allclose(states, make_part(tiny_backbone)(ids), rtol=0, atol=1e-5)


def test_the_stores_key_is_made_of_what_it_says(open_all, part):
    stores = open_all(dtype="bfloat16")
    how = {name: value for name, value in stores.trunk.items() if name != "key"}
    assert how == {
        "depth": 1,
        "dtype": "bfloat16",
        "precision": "32-true",
        "tokenizer": "abc",
        "window": None,
        "apart": False,
    }
    assert stores.trunk["key"] == trunk_pass.trunk_key(part.backbone, **how)
    assert stores.by_split["test"].directory.name.startswith(stores.trunk["key"])


# Computed once


def test_tokens_computed_are_counted_once(open_all):
    assert open_all().tokens_computed == 120
    assert open_all().tokens_computed == 0


def test_what_is_stored_is_not_computed_again(open_all, monkeypatch):
    first = open_all()
    forbid(monkeypatch)
    second = open_all()
    for name, split in SPLITS.items():
        rows = np.arange(len(split))
        assert torch.equal(first.by_split[name].padded(rows), second.by_split[name].padded(rows))


def test_only_a_split_that_changed_is_computed(open_all):
    open_all()
    stores = open_all(splits=SPLITS | {"test": make_split(4, [5, 5, 3])})
    assert stores.tokens_computed == 13


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"part": 2}, {"part": "bf16-mixed"}], ids=str)
def test_made_another_way_it_is_another_store(open_all, tiny_backbone, change):
    open_all()
    if "part" in change:
        how = {"blocks": 2} if change["part"] == 2 else {"precision": change["part"]}
        change = {"part": make_part(tiny_backbone, **how)}
    assert open_all(**change).tokens_computed == 120


def test_a_pass_that_failed_leaves_nothing_and_the_next_one_is_whole(open_all, monkeypatch, tmp_path):
    monkeypatch.setitem(trunk_pass.PASS_TOKENS, "cpu", 30)
    compute, calls = FrozenPart.__call__, []

    def compute_once(self, input_ids):
        calls.append(input_ids)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return compute(self, input_ids)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenPart, "__call__", compute_once)
        with pytest.raises(RuntimeError, match="out of memory"):
            open_all()
    assert entries(tmp_path / "store") == []
    assert open_all().tokens_computed == 120


def test_the_pass_is_silent_where_no_one_looks(open_all, said, capsys):
    open_all()
    assert said == []
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_a_bar_counts_the_tokens_of_each_split(open_all, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes a terminal for granted
    monkeypatch.setenv("TERM", "xterm")
    open_all()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    for name, tokens in TOKENS.items():
        assert re.search(rf"trunk: {name}, tokens .* {tokens}/{tokens}", shown)


def test_of_two_runs_at_once_one_computes_and_both_read(open_all, part, monkeypatch, tmp_path):
    both_there, compute = multiprocessing.get_context("fork").Barrier(2), FrozenPart.__call__

    def slowly(self, rows):
        time.sleep(0.02)
        return compute(self, rows)

    def open_at_once() -> None:
        both_there.wait()
        stores = open_all()
        read = {name: store.padded(np.arange(len(SPLITS[name]))).tolist() for name, store in stores.by_split.items()}
        report = {"computed": stores.tokens_computed, "read": read}
        (tmp_path / f"{os.getpid()}.json").write_text(json.dumps(report))

    monkeypatch.setitem(trunk_pass.PASS_TOKENS, "cpu", 10)
    monkeypatch.setattr(FrozenPart, "__call__", slowly)
    assert forked(open_at_once, open_at_once) == [0, 0]
    first, second = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert first["computed"] + second["computed"] == 120
    assert first["read"] == second["read"]
    row = torch.tensor(first["read"]["test"])[1]
    torch.testing.assert_close(row, part(ids_of(SPLITS["test"], 1))[0], rtol=0, atol=1e-5)  # in another batch


def test_who_waits_for_another_run_says_so(open_all, part, said, tmp_path):
    key = trunk_pass.trunk_key(part.backbone, **HOW)
    directory = entry_directory(tmp_path / "store", key, row_digests(SPLITS["train"].input_ids))
    is_held, is_told = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def hold() -> None:
        with sole_builder(directory):
            is_held.set()
            is_told.wait(30)

    holder = begun(hold)
    assert is_held.wait(30)
    options = StoreOptions(mode="on", directory=tmp_path / "store", dtype="float32", max_gb=1.0)
    wanted = what_to_store(part, SPLITS, options, tokenizer="abc")
    stores = trunk_pass.open_stores({"": wanted}, reads={}, say=lambda line: said.append(line) or is_told.set())
    assert stores[""].tokens_computed == 120
    assert said == ["store: another run computes train; waiting for it"]
    holder.join(30)


def test_what_another_run_builds_comes_last(tmp_path):
    directories = {name: tmp_path / name for name in SPLITS}
    is_held, is_seen = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def hold() -> None:
        with sole_builder(directories["train"]):
            is_held.set()
            is_seen.wait(30)

    holder = begun(hold)
    assert is_held.wait(30)
    assert list(trunk_pass.unclaimed_first(directories)) == ["validation", "test", "train"]
    is_seen.set()
    holder.join(30)
    assert list(trunk_pass.unclaimed_first(directories)) == ["train", "validation", "test"]


# Whether it pays


def give_rates(monkeypatch, rates: Rates) -> None:
    monkeypatch.setattr(store_worth, "measure_computing", lambda *_: (rates.compute, []))
    monkeypatch.setattr(store_worth, "measure_store", lambda *_: (rates.write, rates.read))


@pytest.mark.parametrize(("read", "word", "splits"), [(0.01, "on", 3), (0.2, "off", 0)])
def test_auto_says_what_it_measured_and_goes_by_it(open_all, said, monkeypatch, tmp_path, read, word, splits):
    give_rates(monkeypatch, Rates(compute=0.1, write=0.05, read=read))
    stores = open_all(mode="auto")
    assert len(stores.by_split) == splits
    assert len(entries(tmp_path / "store")) == splits
    assert [line.split(":")[0] for line in said] == [f"store {word}"]
    assert stores.tokens_computed == (120 if splits else 0)


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("rows", ["sampled", "none that is sampled"])
def test_states_beyond_float16_are_done_without_or_an_error(tiny_backbone, open_all, said, monkeypatch, mode, rows):
    torch.nn.init.constant_(tiny_backbone.wte.weight, 7e4)
    monkeypatch.setattr(store_worth, "WORTH_SECONDS", 0)
    if rows == "none that is sampled":
        give_rates(monkeypatch, CHEAP_READS)
    with pytest.raises(ConfigError, match="beyond float16") if mode == "on" else nullcontext():
        stores = open_all(make_part(tiny_backbone, blocks=0), mode=mode, dtype="float16")
        assert stores.by_split == {}
        assert said[-1] == "store off: the trunk's output is beyond float16; set store.dtype=bfloat16 or float32"


def test_on_asks_for_no_measurement(open_all, monkeypatch):
    monkeypatch.setattr(trunk_pass, "is_worth_it", lambda *_: pytest.fail("it measured"))
    assert len(open_all(mode="on").by_split) == 3


@pytest.fixture
def prepared(tiny_tokenizer) -> dict[str, SimpleNamespace]:
    of_part = SimpleNamespace(splits=SPLITS, encoding=SimpleNamespace(tokenizer=tiny_tokenizer), row_weights=None)
    return {"": of_part}


def settings_with(directory: Path, **trainer) -> SimpleNamespace:
    """Four epochs, each of the batches [40], [20], [9, 12] and [1, 3, 7, 8]."""
    options = {"precision": "32-true", "accelerator": "cpu", "max_epochs": 4, "max_steps": -1}
    options |= {"accumulate_grad_batches": 1, "val_check_interval": 1.0}
    return SimpleNamespace(
        seed=0,
        store=SimpleNamespace(dir=str(directory), dtype="float32", max_gb=1.0),
        trainer=SimpleNamespace(**(options | trainer)),
        model=SimpleNamespace(name="tiny"),
        task=SimpleNamespace(mixing_temperature=1.0),
        data=SimpleNamespace(max_tokens_per_batch=40, batch_size=None, num_workers=0),
    )


@pytest.mark.parametrize(
    ("mode", "embeddings", "splits"), [("off", True, 0), ("on", False, 0), ("auto", False, 0), ("on", True, 3)]
)
def test_a_run_has_a_store_where_something_is_frozen_and_it_is_wanted(
    tiny_backbone, prepared, tmp_path, mode, embeddings, splits
):
    models = {"": make_model(tiny_backbone, embeddings=embeddings, blocks=int(embeddings))}
    settings = settings_with(tmp_path / "store")
    stores = assembly.open_stores(settings, {"": mode}, prepared, models, in_sweep=False)
    assert len(stores[""].by_split) == splits
    assert (tmp_path / "store").exists() is (splits > 0)


@pytest.mark.parametrize(
    ("freezing", "precision", "line"),
    [
        ({"embeddings": False, "blocks": 0}, "32-true", "nothing is frozen (freezing.blocks=N)"),
        (
            {"embeddings": False, "blocks": 1},
            "32-true",
            "the embeddings below the frozen blocks are trained; freezing.embeddings=true freezes them",
        ),
        (
            {"embeddings": True, "blocks": 1},
            "bf16-true",
            "with trainer.precision=bf16-true the frozen weights are rounded first",
        ),
    ],
)
def test_what_makes_the_trunks_output_another_one_turns_the_store_off_with_one_line(
    tiny_backbone, prepared, tmp_path, capsys, freezing, precision, line
):
    settings, models = settings_with(tmp_path, precision=precision), {"": make_model(tiny_backbone, **freezing)}
    stores = assembly.open_stores(settings, {"": "on"}, prepared, models, in_sweep=False)
    assert stores[""].by_split == {}
    assert capsys.readouterr().out == f"  store off: {line}\n"


def test_auto_says_nothing_where_nothing_is_frozen(tiny_backbone, prepared, tmp_path, capsys):
    for blocks in (0, 1):
        models = {"": make_model(tiny_backbone, embeddings=False, blocks=blocks)}
        assembly.open_stores(settings_with(tmp_path), {"": "auto"}, prepared, models, in_sweep=False)
        assert ("store off" in capsys.readouterr().out) is (blocks > 0)


# An epoch has four batches.
@pytest.mark.parametrize(
    ("trainer", "train", "validation"),
    [
        ({}, 4, 4 + 1),
        ({"val_check_interval": 0.5}, 4, 8 + 1),
        ({"val_check_interval": 3}, 4, 5 + 1),
        ({"max_steps": 2}, 0.5, 0 + 1),
        ({"max_steps": 2, "val_check_interval": 1}, 0.5, 2 + 1),
        ({"max_steps": 2, "accumulate_grad_batches": 2}, 1, 1 + 1),
        ({"max_steps": 1, "accumulate_grad_batches": 3}, 0.5, 0 + 1),  # 3 batches, and at the epoch's end 1
        ({"max_steps": 2, "accumulate_grad_batches": "epoch"}, 2, 2 + 1),
        ({"max_steps": 99}, 4, 4 + 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("in_sweep", [False, True])
def test_a_run_reads_its_epochs_or_what_of_them_its_steps_come_to(
    prepared, tmp_path, in_sweep, trainer, train, validation
):
    reads = assembly.reads_to_come(settings_with(tmp_path, **trainer), prepared, in_sweep=in_sweep)[""]
    assert reads.of_split == {"train": train, "validation": validation, "test": 1}
    assert reads.runs == (SWEEP_TRIALS if in_sweep else 1)
    assert reads.batching == TokenBatching(max_tokens=40)


def test_a_part_that_stands_in_an_epoch_more_often_than_once_is_read_as_often(prepared, tmp_path):
    twice = SimpleNamespace(**vars(prepared[""]) | {"row_weights": np.full(8, 2.0)})
    assert assembly.reads_to_come(settings_with(tmp_path), {"": twice}, in_sweep=False)[""].of_split["train"] == 8


# What cannot be written


def refusing(code: int) -> Callable[..., None]:
    def refuse(*_, **__) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("when", ["before it is computed", "after it was computed"])
def test_a_build_that_fails_leaves_nothing_and_auto_does_without(open_all, said, monkeypatch, tmp_path, mode, when):
    give_rates(monkeypatch, CHEAP_READS)
    refused = (os, "posix_fallocate") if when.startswith("before") else (activation_store, "flush_to_disk")
    monkeypatch.setattr(*refused, refusing(errno.ENOSPC), raising=False)
    with pytest.raises(ResourceError, match="No space left") if mode == "on" else nullcontext():
        assert open_all(mode=mode).by_split == {}
        store = tmp_path / "store"
        assert said[-1] == f"store off: cannot write to the activation store {store}: No space left on device"
    assert not [path for path in (tmp_path / "store").iterdir() if path.is_dir()]


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_where_there_is_no_place_for_a_store_auto_does_without(open_all, said, tmp_path, mode):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write to the act") if mode == "on" else nullcontext():
        assert open_all(mode=mode, directory=tmp_path / "file" / "store").by_split == {}
        assert said[-1].startswith("store off: cannot write to the activation store ")


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_what_is_stored_where_nothing_can_be_written_is_read(open_all, monkeypatch, mode):
    open_all()
    monkeypatch.setattr(store_worth, "measure_computing", lambda *_: (0.1, []))
    for owner, name in ((filelock.FileLock, "acquire"), (os, "utime"), (os, "mkdir"), (Path, "touch")):
        monkeypatch.setattr(owner, name, refusing(errno.EROFS))
    stores = open_all(mode=mode)
    assert len(stores.by_split) == 3
    assert stores.tokens_computed == 0


def test_an_entry_that_another_run_removes_before_it_is_opened_is_built_again(open_all, monkeypatch, tmp_path):
    opened = []

    def open_late(directory: Path) -> ActivationStore | None:
        opened.append(directory)
        if len(opened) == 1:
            remove(directory)
        return open_entry(directory)

    monkeypatch.setattr(trunk_pass, "open_entry", open_late)
    stores = open_all()
    assert len(stores.by_split) == len(entries(tmp_path / "store")) == 3
    assert stores.tokens_computed == 120 + TOKENS["train"]


# Room


def test_what_is_larger_than_max_gb_is_done_without(open_all, said, tmp_path):
    stores = open_all(mode="auto", max_gb=gigabytes(119))
    assert stores.by_split == {}
    assert stores.tokens_computed == 0
    assert len(said) == 1
    assert said[0].startswith("store off: ")
    assert "more than store.max_gb=" in said[0]
    assert entries(tmp_path) == []


def test_what_is_larger_than_max_gb_is_an_error_where_it_is_asked_for(open_all):
    with pytest.raises(ResourceError, match=r"more than store\.max_gb="):
        open_all(mode="on", max_gb=gigabytes(119))


def test_max_gb_is_for_all_splits_together_also_where_some_are_there(open_all, said):
    open_all(splits={"train": SPLITS["train"]})
    assert open_all(mode="auto", max_gb=gigabytes(119)).by_split == {}
    assert "more than store.max_gb=" in said[0]


def disk_with(monkeypatch, free: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))


def test_a_full_disk_is_done_without_or_an_error(open_all, said, monkeypatch):
    disk_with(monkeypatch, free=120 * CHANNELS * 4 - 1)
    assert open_all(mode="auto").by_split == {}
    assert "the disk has" in said[0]
    with pytest.raises(ResourceError, match="the disk has"):
        open_all(mode="on")


def test_a_full_disk_is_no_obstacle_to_what_is_there_already(open_all, monkeypatch):
    open_all()
    disk_with(monkeypatch, free=0)
    assert len(open_all().by_split) == 3


def test_older_stores_make_room_and_a_runs_own_splits_never_do(open_all, tmp_path):
    older = open_all(splits=SPLITS | {"train": make_split(9, [60, 40])})
    newer = open_all(max_gb=gigabytes(120))  # and so without a byte for the small files beside the states
    assert newer.tokens_computed == 100
    left = entries(tmp_path / "store")
    assert sorted(left) == sorted(store.directory for store in newer.by_split.values())
    assert older.by_split["train"].directory not in left


def open_parts(part, root: Path, say, *, mode: str, tokens: int) -> dict[str, Stores]:
    """Of a run of two parts, 120 tokens and 70, where the store has room for so many."""
    options = StoreOptions(mode=mode, directory=root, dtype="float32", max_gb=gigabytes(tokens))
    other = {"train": make_split(11, [30, 30]), "validation": make_split(12, [5]), "test": make_split(13, [5])}
    wanted = {
        name: what_to_store(part, splits, options, tokenizer="abc")
        for name, splits in {"first": SPLITS, "second": other}.items()
    }
    return open_stores(wanted, reads=dict.fromkeys(wanted, READS), say=say)


def test_no_part_of_a_run_makes_room_for_another(part, said, tmp_path):
    """There is room for the states of both alone, without a byte for the small files beside them."""
    stores = open_parts(part, tmp_path, said.append, mode="on", tokens=190)
    directories = [store.directory for of_part in stores.values() for store in of_part.by_split.values()]
    assert len(directories) == 6
    assert sorted(entries(tmp_path)) == sorted(directories)


def test_room_is_for_all_parts_of_a_run_together(part, said, tmp_path):
    stores = open_parts(part, tmp_path, said.append, mode="auto", tokens=189)
    assert [of_part.by_split for of_part in stores.values()] == [{}, {}]
    assert len(said) == 1
    assert "more than store.max_gb=" in said[0]
    with pytest.raises(ResourceError, match=r"more than store\.max_gb="):
        open_parts(part, tmp_path, said.append, mode="on", tokens=189)


def test_each_epoch_marks_what_it_reads_as_used(open_all):
    """Else what is read for hours would make room before what was opened a minute ago."""
    stores = open_all().by_split
    options = {"batching": READS.batching, "evaluation_batching": READS.batching, "accumulate": 1}
    data = DataModule({"": SPLITS}, {"": stores}, **options, num_workers=0, seed=0)
    for store in stores.values():
        os.utime(store.directory / "last_used", (1, 1))
    data.evaluation_loader("validation")
    assert {name for name, store in stores.items() if last_used(store.directory) > 1} == {"validation"}


def test_no_more_epochs_are_drawn_up_than_there_are_steps_for(monkeypatch):
    options = {"batching": READS.batching, "evaluation_batching": READS.batching}
    data = DataModule({"": SPLITS}, {}, **options, accumulate=1, num_workers=0, seed=0)
    drawn, planned = [], data._planned
    monkeypatch.setattr(data, "_planned", lambda epoch: drawn.append(epoch) or planned(epoch))
    in_two = data.total_steps(2)
    assert data.total_steps(10**9, max_steps=in_two) == in_two
    assert data.total_steps(10**9, max_steps=in_two - 1) == in_two - 1
    assert data.total_steps(2, max_steps=10**9) == in_two
    assert max(drawn) <= 2
    by_epoch = DataModule({"": SPLITS}, {}, **options, accumulate="epoch", num_workers=0, seed=0)
    monkeypatch.setattr(by_epoch, "_planned", lambda epoch: drawn.append(epoch) or planned(epoch))
    drawn.clear()
    assert [by_epoch.accumulate(3) for _ in range(5)] == [by_epoch.accumulate(3)] * 5
    assert drawn == [0, 1, 2]
