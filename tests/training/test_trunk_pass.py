"""The frozen part's one pass: what it stores is Transformers' own states, when it pays, and that it is made once."""

import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from permafrost import assembly
from permafrost.data.tokenization import TokenizedSplit
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.activation_store import entry_directory, row_digests, sole_builder
from permafrost.model.backbone import trunk
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.model.store_directory import entries
from permafrost.tasks.base import tokenized_split
from permafrost.training import trunk_pass
from permafrost.training.trunk_pass import FrozenPart, Rates, StoreOptions, Stores, measure, open_stores, weigh
from tests.processes import begun, forked

CPU = torch.device("cpu")
CHANNELS = 32
READS = {"train": 5, "validation": 6, "test": 1}
TOKENS = {"train": 100, "validation": 10, "test": 10}
CHEAP_READS = Rates(compute=0.1, write=0.05, read=0.01)  # seconds per token
HOW = {"depth": 1, "dtype": "float32", "precision": "32-true", "tokenizer": "abc", "window": None}
DEAR_READS = Rates(compute=0.1, write=0.05, read=0.2)


def make_split(seed: int, lengths: list[int]) -> TokenizedSplit:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(2, 300, length).astype(np.int32) for length in lengths]
    return tokenized_split(ids, np.ones(len(ids)), None)


SPLITS = {
    "train": make_split(1, [9, 3, 20, 1, 40, 7, 12, 8]),  # 100 tokens
    "validation": make_split(2, [4, 6]),
    "test": make_split(3, [2, 8]),
}


def make_part(backbone, *, blocks: int = 1, precision: str = "32-true") -> FrozenPart:
    model = GPT2WithHead(
        backbone,
        PooledHead(CHANNELS, 2, pooling="last", init="normal"),
        Freezing(embeddings=True, blocks=blocks),
    )
    return FrozenPart(model, name="tiny", precision=precision, device=CPU)


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
        return open_stores(part, splits, options, tokenizer="abc", reads=READS, say=said.append)

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
    model = GPT2WithHead(
        tiny_backbone, PooledHead(CHANNELS, 2, pooling="last", init="normal"), Freezing(embeddings=True, blocks=1)
    ).train(training)
    before = {name: module.training for name, module in model.named_modules()}
    open_all(FrozenPart(model, name="tiny", precision="32-true", device=CPU))
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
    assert how == {"depth": 1, "dtype": "bfloat16", "precision": "32-true", "tokenizer": "abc", "window": None}
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
    is_held = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        with sole_builder(directory):
            is_held.set()
            time.sleep(0.5)

    holder = begun(hold)
    assert is_held.wait(30)
    assert open_all().tokens_computed == 120
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


def lengths_only() -> dict[str, SimpleNamespace]:
    return {name: SimpleNamespace(lengths=np.array([tokens - 1, 1])) for name, tokens in TOKENS.items()}


# 100 x 5 + 10 x 6 + 10 x 1 = 570 tokens are read, 120 are built at 0.1 + 0.05 s each.
@pytest.mark.parametrize(
    ("rates", "missing", "reads", "pays", "totals"),
    [
        (CHEAP_READS, list(TOKENS), READS, True, (18 + 5.7, 57)),
        (DEAR_READS, list(TOKENS), READS, False, (18 + 114, 57)),
        # read once, 120 tokens in all: built and never read again
        (CHEAP_READS, list(TOKENS), dict.fromkeys(TOKENS, 1), False, (18 + 1.2, 12)),
        (CHEAP_READS, [], dict.fromkeys(TOKENS, 1), True, (1.2, 12)),
        (CHEAP_READS, ["test"], dict.fromkeys(TOKENS, 1), True, (1.5 + 1.2, 12)),
        # a model that computes as fast as the disk reads has nothing to gain, whatever is there already
        (Rates(compute=0.1, write=0.0, read=0.1), [], READS, False, (57, 57)),
    ],
)
def test_it_pays_where_building_and_reading_take_less_than_computing(rates, missing, reads, pays, totals):
    decided, why = weigh(rates, lengths_only(), reads, missing)
    assert decided is pays
    assert f"about {totals[0]:.0f} s with it and {totals[1]:.0f} s without" in why
    assert f"{rates.compute * 1e6:.1f} us to compute, {rates.read * 1e6:.1f} us to read" in why


def test_what_takes_less_than_a_second_is_not_stored():
    """Chance would decide, and two runs of one command would differ in their last bits."""
    rates = Rates(compute=0.99 / 570, write=0.0, read=0.0)
    assert weigh(rates, lengths_only(), READS, [])[0] is False
    assert weigh(replace(rates, compute=1.01 / 570), lengths_only(), READS, [])[0] is True


@pytest.mark.parametrize(("rates", "word", "splits"), [(CHEAP_READS, "on", 3), (DEAR_READS, "off", 0)])
def test_auto_says_what_it_measured_and_goes_by_it(open_all, said, monkeypatch, tmp_path, rates, word, splits):
    monkeypatch.setattr(trunk_pass, "measure", lambda *_: rates)
    stores = open_all(mode="auto")
    assert len(stores.by_split) == splits
    assert len(entries(tmp_path / "store")) == splits
    assert [line.split(":")[0] for line in said] == [f"store {word}"]
    assert stores.tokens_computed == (120 if splits else 0)


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("rows", ["sampled", "none that is sampled"])
def test_states_beyond_float16_are_done_without_or_an_error(tiny_backbone, open_all, said, monkeypatch, mode, rows):
    torch.nn.init.constant_(tiny_backbone.wte.weight, 7e4)
    if rows == "none that is sampled":
        monkeypatch.setattr(trunk_pass, "measure", lambda *_: CHEAP_READS)
    with pytest.raises(ConfigError, match="beyond float16") if mode == "on" else nullcontext():
        stores = open_all(make_part(tiny_backbone, blocks=0), mode=mode, dtype="float16")
        assert stores.by_split == {}
        assert said[-1] == "store off: the trunk's output is beyond float16; set store.dtype=bfloat16 or float32"


def test_on_asks_for_no_measurement(open_all, monkeypatch):
    monkeypatch.setattr(trunk_pass, "measure", lambda *_: pytest.fail("it measured"))
    assert len(open_all(mode="on").by_split) == 3


def test_a_measurement_gives_seconds_and_leaves_nothing_behind(part, tmp_path):
    options = StoreOptions(mode="auto", directory=tmp_path, dtype="float16", max_gb=1.0)
    rates = measure(part, SPLITS["train"], options)
    assert 0 < rates.read < 1
    assert 0 < rates.write < 1
    assert 0 < rates.compute < 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def prepared(tiny_tokenizer) -> SimpleNamespace:
    return SimpleNamespace(splits=SPLITS, encoding=SimpleNamespace(tokenizer=tiny_tokenizer))


def settings_with(directory: Path, mode: str) -> SimpleNamespace:
    return SimpleNamespace(
        store=SimpleNamespace(mode=mode, dir=str(directory), dtype="float32", max_gb=1.0),
        trainer=SimpleNamespace(precision="32-true", accelerator="cpu", max_epochs=4),
        model=SimpleNamespace(name="tiny"),
    )


@pytest.mark.parametrize(
    ("mode", "embeddings", "splits"), [("off", True, 0), ("on", False, 0), ("auto", False, 0), ("on", True, 3)]
)
def test_a_run_has_a_store_where_something_is_frozen_and_it_is_wanted(
    tiny_backbone, prepared, tmp_path, mode, embeddings, splits
):
    head = PooledHead(CHANNELS, 2, pooling="last", init="normal")
    model = GPT2WithHead(tiny_backbone, head, Freezing(embeddings=embeddings, blocks=int(embeddings)))
    stores = assembly.open_stores(settings_with(tmp_path / "store", mode), prepared, model, in_sweep=False)
    assert len(stores.by_split) == splits
    assert (tmp_path / "store").exists() is (splits > 0)


@pytest.mark.parametrize(
    ("freezing", "precision", "line"),
    [
        (Freezing(embeddings=False, blocks=0), "32-true", "nothing is frozen (freezing.blocks=N)"),
        (
            Freezing(embeddings=False, blocks=1),
            "32-true",
            "the embeddings below the frozen blocks are trained; freezing.embeddings=true freezes them",
        ),
        (
            Freezing(embeddings=True, blocks=1),
            "bf16-true",
            "with trainer.precision=bf16-true the frozen weights are rounded first",
        ),
    ],
)
def test_what_makes_the_trunks_output_another_one_turns_the_store_off_with_one_line(
    tiny_backbone, prepared, tmp_path, capsys, freezing, precision, line
):
    head = PooledHead(CHANNELS, 2, pooling="last", init="normal")
    settings = settings_with(tmp_path / "store", "on")
    settings.trainer.precision = precision
    stores = assembly.open_stores(settings, prepared, GPT2WithHead(tiny_backbone, head, freezing), in_sweep=False)
    assert stores.by_split == {}
    assert capsys.readouterr().out == f"  store off: {line}\n"


def test_auto_says_nothing_where_nothing_is_frozen(tiny_backbone, prepared, tmp_path, capsys):
    head = PooledHead(CHANNELS, 2, pooling="last", init="normal")
    for blocks in (0, 1):
        model = GPT2WithHead(tiny_backbone, head, Freezing(embeddings=False, blocks=blocks))
        assembly.open_stores(settings_with(tmp_path, "auto"), prepared, model, in_sweep=False)
        assert ("store off" in capsys.readouterr().out) is (blocks > 0)


@pytest.mark.parametrize(
    ("in_sweep", "reads"),
    [(False, {"train": 4, "validation": 5, "test": 1}), (True, {"train": 1e6, "validation": 1e6 + 1, "test": 1})],
)
def test_a_run_reads_each_epoch_and_evaluates_once_more_and_a_sweep_goes_on(
    part, tiny_backbone, prepared, tmp_path, monkeypatch, in_sweep, reads
):
    asked = {}
    monkeypatch.setattr(trunk_pass, "open_stores", lambda *_, **options: asked.update(options))
    head = PooledHead(CHANNELS, 2, pooling="last", init="normal")
    model = GPT2WithHead(tiny_backbone, head, Freezing(embeddings=True, blocks=1))
    assembly.open_stores(settings_with(tmp_path, "auto"), prepared, model, in_sweep=in_sweep)
    assert asked["reads"] == reads


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
