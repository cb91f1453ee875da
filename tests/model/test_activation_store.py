"""The activation store: found by what it holds, complete or absent, read as written, safe for several processes."""

import copy
import ctypes
import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2Model

from permafrost.errors import ConfigError, ResourceError
from permafrost.model import activation_store, store_directory
from permafrost.model.activation_store import (
    CHECKS,
    MANIFEST,
    OFFSETS,
    STATES,
    USED,
    ActivationStore,
    Manifest,
    being_built,
    check_entry,
    entry_directory,
    open_entry,
    row_digests,
    sole_builder,
    sound_entry,
    trunk_key,
    write_entry,
)
from permafrost.model.activation_store import ROWS as ROWS_FILE
from permafrost.model.store_directory import clear, entries, entry_bytes, known_rows, lookup, make_room
from permafrost.storage.ragged import RaggedArray
from tests.processes import forked

ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6]]
LENGTHS = [len(row) for row in ROWS]
TRUNK = "0123456789abcdef"
CHANNELS = 4
STATES_OF_ROWS = list(torch.randn(sum(LENGTHS), CHANNELS, generator=torch.Generator().manual_seed(1)).split(LENGTHS))
HOW = {"depth": 1, "dtype": "float32", "precision": "32-true", "tokenizer": "abc", "window": None, "apart": False}


def arrays(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(row) for row in rows]
    return np.concatenate(rows).astype(np.int32), np.array([0, *np.cumsum(lengths)])


def digests(rows: list[list[int]]) -> np.ndarray:
    return row_digests(RaggedArray(*arrays(rows)))


def directory_of(root: Path, rows: list[list[int]] = ROWS, trunk: str = TRUNK) -> Path:
    return entry_directory(root, trunk, digests(rows))


def parts(states: list[torch.Tensor] = STATES_OF_ROWS) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Two rows at a time, the last first, with rubbish in the padding."""
    for chosen in np.arange(len(states))[::-1].reshape(-1, 2):
        padded = torch.full((2, 9, CHANNELS), 77.0)
        for place, row in zip(padded, chosen, strict=True):
            place[: len(states[row])] = states[row]
        yield chosen, padded


def write(root: Path, *, rows: list[list[int]] = ROWS, trunk: str = TRUNK, dtype: str = "float32", states=None) -> Path:
    """An entry that holds the rows, states given by the parts; returns its directory."""
    directory, offsets = directory_of(root, rows, trunk), arrays(rows)[1]
    manifest = Manifest(
        model="tiny",
        depth=1,
        dtype=dtype,
        precision="32-true",
        channels=CHANNELS,
        rows=len(rows),
        tokens=int(offsets[-1]),
    )
    write_entry(directory, manifest, offsets, digests(rows), parts() if states is None else states)
    return directory


def opened(directory: Path) -> ActivationStore:
    store = open_entry(directory)
    assert store is not None
    return store


def padded(rows: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What the store is to give, by torch's own padding and rounding."""
    return torch.nn.utils.rnn.pad_sequence([STATES_OF_ROWS[row] for row in rows], batch_first=True).to(dtype)


def assert_holds_all(store: ActivationStore) -> None:
    assert torch.equal(store.padded(np.arange(4)), padded([0, 1, 2, 3]))


def deep_backbone() -> GPT2Model:
    """Twelve blocks of eight channels, with names such as h.1 and h.10."""
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(n_layer=12, n_embd=8, n_head=2, n_positions=4, vocab_size=5, bos_token_id=0))


def nudged(backbone: GPT2Model, name: str) -> GPT2Model:
    """A copy in which the last number of one weight is the next that float32 has."""
    changed = copy.deepcopy(backbone)
    with torch.no_grad():
        flat = changed.get_parameter(name).view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
    return changed


# What an entry is found by


@pytest.mark.parametrize(
    "name", ["wte.weight", "wpe.weight", "h.0.ln_1.bias", "h.0.attn.c_attn.weight", "h.1.mlp.c_proj.bias"]
)
def test_one_number_below_the_cut_gives_another_key(name):
    backbone, how = deep_backbone(), HOW | {"depth": 2}
    assert trunk_key(nudged(backbone, name), **how) != trunk_key(backbone, **how)


@pytest.mark.parametrize("name", ["h.2.ln_1.weight", "h.10.attn.c_attn.weight", "h.11.mlp.c_fc.bias", "ln_f.weight"])
def test_what_lies_above_the_cut_has_no_part_in_the_key(name):
    backbone, how = deep_backbone(), HOW | {"depth": 2}
    assert trunk_key(nudged(backbone, name), **how) == trunk_key(backbone, **how)


@pytest.mark.parametrize(
    "change", [{"depth": 2}, {"dtype": "float16"}, {"precision": "bf16-mixed"}, {"tokenizer": "x"}]
)
def test_how_states_are_made_is_part_of_the_key(tiny_backbone, change):
    assert trunk_key(tiny_backbone, **(HOW | change)) != trunk_key(tiny_backbone, **HOW)


@pytest.mark.parametrize(
    ("owner", "name", "value"), [(activation_store, "STORE_VERSION", 0), (torch, "__version__", "2.12")]
)
def test_the_code_that_computes_them_is_part_of_the_key(tiny_backbone, monkeypatch, owner, name, value):
    before = trunk_key(tiny_backbone, **HOW)
    monkeypatch.setattr(owner, name, value)
    assert trunk_key(tiny_backbone, **HOW) != before


def test_torch_for_another_device_has_the_same_key(tiny_backbone, monkeypatch):
    before, release = trunk_key(tiny_backbone, **HOW), torch.__version__.partition("+")[0]
    monkeypatch.setattr(torch, "__version__", f"{release}+cu126")
    assert trunk_key(tiny_backbone, **HOW) == before


@pytest.mark.parametrize(
    "change",
    [
        {"n_head": 4},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 1e-6},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=str,
)
def test_the_same_weights_in_another_architecture_have_another_key(tiny_backbone, change):
    other = GPT2Model(GPT2Config(**{**tiny_backbone.config.to_dict(), **change}))
    other.load_state_dict(tiny_backbone.state_dict())
    assert trunk_key(other, **HOW) != trunk_key(tiny_backbone, **HOW)


def test_the_same_model_loaded_again_has_the_same_key(tiny_backbone, tmp_path):
    tiny_backbone.save_pretrained(tmp_path)
    again = GPT2Model.from_pretrained(tmp_path, resid_pdrop=0.3)
    assert trunk_key(again, **HOW) == trunk_key(tiny_backbone, **HOW)


@pytest.mark.parametrize(
    "other",
    [
        [[5, 6, 7], [8], [9, 10, 11, 12, 14], [5, 6]],
        [[8], [5, 6, 7], [9, 10, 11, 12, 13], [5, 6]],
        [[5, 6, 7, 8], [9, 10, 11, 12, 13], [5, 6]],
        [[5, 6], [7, 8], [9, 10, 11, 12, 13], [5, 6]],
    ],
    ids=["a token", "the order of rows", "one row less", "where a row ends"],
)
def test_other_rows_have_another_entry(tmp_path, other):
    assert directory_of(tmp_path, other) != directory_of(tmp_path)


# What is read is what was written


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_read_as_they_were_written_but_for_the_types_rounding(tmp_path, dtype):
    states = opened(write(tmp_path, dtype=dtype)).padded(np.arange(4))
    assert states.dtype == getattr(torch, dtype)
    assert torch.equal(states, padded([0, 1, 2, 3], getattr(torch, dtype)))


@pytest.mark.parametrize("rows", [[2], [1], [3, 0], [1, 2, 0, 3], [0, 0, 1]], ids=str)
def test_rows_are_read_in_any_order_with_zeros_to_their_right(tmp_path, rows):
    assert torch.equal(opened(write(tmp_path)).padded(np.array(rows)), padded(rows))


def test_a_batch_is_its_own_and_can_be_written_to(tmp_path):
    store = opened(write(tmp_path))
    store.padded(np.array([0])).fill_(9.0)
    assert_holds_all(store)


def test_states_are_stored_without_padding(tmp_path):
    assert (write(tmp_path, dtype="float16") / STATES).stat().st_size == sum(LENGTHS) * CHANNELS * 2


@pytest.mark.parametrize("value", [7e4, -7e4])
def test_a_state_beyond_float16_is_an_error_that_names_the_key(tmp_path, value):
    states = [torch.full((length, CHANNELS), value) for length in LENGTHS]
    with pytest.raises(ConfigError, match=r"store\.dtype=bfloat16"):
        write(tmp_path, dtype="float16", states=parts(states))
    assert open_entry(directory_of(tmp_path)) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_types_hold_what_float16_cannot(tmp_path, dtype):
    states = [torch.full((length, CHANNELS), 65536.0 * 2) for length in LENGTHS]  # a power of two, in all types
    store = opened(write(tmp_path, dtype=dtype, states=parts(states)))
    assert (store.padded(np.array([0])) == 65536.0 * 2).all()


# An entry is complete or absent


def kill_after_one_part() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    yield next(parts())
    os._exit(9)


def test_what_a_killed_build_left_is_not_read_and_is_replaced(tmp_path):
    def build():
        with sole_builder(directory_of(tmp_path)):
            write(tmp_path, states=kill_after_one_part())

    assert forked(build) == [9]
    assert (directory_of(tmp_path) / STATES).exists()
    assert open_entry(directory_of(tmp_path)) is None
    assert entries(tmp_path) == []
    with sole_builder(directory_of(tmp_path)):  # the dead process's lock is free
        write(tmp_path)
    assert_holds_all(opened(directory_of(tmp_path)))


@pytest.mark.parametrize("size", [0, sum(LENGTHS) * CHANNELS * 4 - 1, sum(LENGTHS) * CHANNELS * 4 + 1])
def test_states_of_another_size_are_not_read(tmp_path, size):
    directory = write(tmp_path)
    os.truncate(directory / STATES, size)
    assert open_entry(directory) is None


# Damage


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def is_found(directory: Path) -> bool:
    """Whether a run would use the entry as it is."""
    if not check_entry(directory):
        return True
    store = open_entry(directory)
    try:
        return store is None or store.padded(np.arange(4)) is None
    except ResourceError:
        return True


@pytest.mark.parametrize("name", [STATES, OFFSETS, ROWS_FILE, CHECKS, MANIFEST])
def test_every_bit_flip_in_an_entry_is_found(tmp_path, name):
    size = (write(tmp_path) / name).stat().st_size
    for bit in random.Random(0).sample(range(8 * size), min(12, 8 * size)):
        directory = write(tmp_path)
        flip(directory / name, bit)
        assert is_found(directory), bit


@pytest.mark.parametrize("name", [STATES, OFFSETS, ROWS_FILE, CHECKS, MANIFEST])
def test_a_file_that_is_cut_off_is_found(tmp_path, name):
    whole = (write(tmp_path) / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        directory = write(tmp_path)
        (directory / name).write_bytes(whole[:length])
        assert is_found(directory), length


def test_a_damaged_row_is_told_and_its_entry_removed(tmp_path):
    directory = write(tmp_path)
    flip(directory / STATES, 8 * CHANNELS * 4 * (LENGTHS[0] + LENGTHS[1]))
    store = opened(directory)
    store.padded(np.array([0, 1, 3]))
    with pytest.raises(ResourceError, match=r"row 2 in .* is not what was written.*resume=auto"):
        store.padded(np.array([2]))
    assert open_entry(directory) is None


@pytest.mark.parametrize("name", [STATES, OFFSETS])
def test_a_damaged_entry_that_another_process_builds_anew_is_left_to_it(tmp_path, name):
    directory = write(tmp_path)
    store = opened(directory)
    flip(directory / name, 8 * (directory / name).stat().st_size - 1)
    with sole_builder(directory):
        assert check_entry(directory) is (name == STATES)
        with pytest.raises(ResourceError) if name == STATES else nullcontext():
            store.padded(np.arange(4))
        assert (directory / MANIFEST).exists()


def test_rows_are_not_known_by_an_entry_whose_offsets_are_damaged(tmp_path):
    flip(write(tmp_path) / OFFSETS, 8 * 150)
    assert known_rows(tmp_path, TRUNK, digests(ROWS)) == []


def test_a_row_is_checked_when_it_is_first_read(tmp_path):
    """Later reads come from memory, or would be found by the next run."""
    directory = write(tmp_path)
    store = opened(directory)
    assert_holds_all(store)
    flip(directory / STATES, 3)
    store.padded(np.arange(4))


@pytest.mark.parametrize(
    "change", [lambda fields: fields.pop("precision"), lambda fields: fields.update(window=64)], ids=["less", "more"]
)
def test_an_entry_of_another_versions_shape_is_none(tmp_path, change):
    directory = write(tmp_path)
    fields = json.loads((directory / MANIFEST).read_text())
    change(fields)
    (directory / MANIFEST).write_text(json.dumps(fields))
    assert open_entry(directory) is None


def test_an_entry_that_goes_as_it_is_opened_is_none(tmp_path, monkeypatch):
    directory, read_text = write(tmp_path), Path.read_text

    def removed_before(path: Path, *arguments) -> str:
        path.unlink()
        return read_text(path, *arguments)

    monkeypatch.setattr(Path, "read_text", removed_before)
    assert open_entry(directory) is None


def test_where_nothing_is_stored_nothing_is_opened(tmp_path):
    assert open_entry(tmp_path / "none") is None
    assert entries(tmp_path / "none") == []
    assert make_room(tmp_path / "none", 10, 5) == []
    assert clear(tmp_path / "none") == 0


@pytest.mark.parametrize("files", [0, 1, 2, 3, 4])
def test_what_a_killed_removal_left_is_not_read(tmp_path, monkeypatch, files):
    """Killed when so many of an entry's five files were gone."""
    directory, unlink, unlinked = write(tmp_path), os.unlink, []

    def unlink_or_die(*arguments, **options):
        if len(unlinked) == files:
            os._exit(9)
        unlink(*arguments, **options)
        unlinked.append(arguments)

    def remove():
        monkeypatch.setattr(os, "unlink", unlink_or_die)
        make_room(tmp_path, 1, 0)

    assert forked(remove) == [9]
    store = open_entry(directory)
    if store is not None:
        assert_holds_all(store)
    assert entries(tmp_path) == ([] if store is None else [directory])
    assert known_rows(tmp_path, TRUNK, digests(ROWS)) == [] or store is not None
    write(tmp_path)
    assert_holds_all(opened(directory))


def test_a_store_that_can_only_be_read_is_read(tmp_path, monkeypatch):
    directory = write(tmp_path)

    def refuse(*_) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    assert_holds_all(opened(directory))


def test_what_cannot_be_read_is_none(tmp_path, monkeypatch):
    directory = write(tmp_path)

    def refuse(*_, **__) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for name in ("read_bytes", "read_text", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refuse)
            assert sound_entry(directory) is None


def test_where_it_cannot_be_written_the_error_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResourceError, match=r"cannot write to the activation store .*file"),
        sole_builder(tmp_path / "file" / "entry"),
    ):
        pass


# Several processes


def test_of_two_processes_one_builds_and_the_other_waits_and_reads(tmp_path):
    forking = multiprocessing.get_context("fork")
    both_there, other_waits = forking.Barrier(2), forking.Event()

    def until_waited_for() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for part in parts():
            assert other_waits.wait(20)
            yield part

    def open_or_build() -> None:
        both_there.wait()
        directory, waited = directory_of(tmp_path), []
        with sole_builder(directory, lambda: waited.append(True) or other_waits.set()):
            store, built = open_entry(directory), False
            if store is None:
                write(tmp_path, states=until_waited_for())
                store, built = opened(directory), True
        report = {"built": built, "waited": bool(waited), "states": store.padded(np.arange(4)).tolist()}
        (tmp_path / f"{os.getpid()}.json").write_text(json.dumps(report))

    assert forked(open_or_build, open_or_build) == [0, 0]
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(report["built"] for report in reports) == [False, True]
    assert all(report["waited"] is not report["built"] for report in reports)
    assert [torch.tensor(report["states"]).equal(padded([0, 1, 2, 3])) for report in reports] == [True, True]


def test_a_store_is_read_in_a_process_that_shares_nothing_with_this_one(tmp_path):
    store = opened(write(tmp_path))
    assert_holds_all(store)  # and so has mapped its file
    (tmp_path / "store").write_bytes(pickle.dumps(store))
    program = "import numpy, pickle; print(pickle.load(open('store', 'rb')).padded(numpy.array([2, 0])).tolist())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.tensor(json.loads(done.stdout)), padded([2, 0]))


def test_a_pickled_store_carries_no_states(tmp_path):
    rows, length = [[1] * 500, [2] * 500], 500
    states = torch.zeros(2, length, CHANNELS)
    store = opened(write(tmp_path, rows=rows, states=[(np.arange(2), states)]))
    store.padded(np.arange(2))
    pickled = pickle.dumps(store)
    assert len(pickled) < 2000 < states.nbytes
    assert torch.equal(pickle.loads(pickled).padded(np.arange(2)), states)


@pytest.mark.parametrize("read_before", [False, True])
def test_a_loaders_workers_read_the_same(tmp_path, read_before):
    store = opened(write(tmp_path))
    if read_before:
        store.padded(np.arange(4))
    batches = [np.array(rows) for rows in ([0, 1], [2], [3, 0], [1])]
    loader = DataLoader(batches, batch_size=None, collate_fn=store.padded, num_workers=2)
    assert all(torch.equal(read, padded(rows.tolist())) for read, rows in zip(loader, batches, strict=True))


# Room


def three_entries(root: Path) -> list[Path]:
    """Of one size, the longest unused first."""
    directories = [write(root, rows=[*ROWS[:3], [5, number]]) for number in (14, 15, 16)]
    for age, directory in zip((300, 200, 100), directories, strict=True):
        os.utime(directory / USED, (time.time() - age,) * 2)
    return directories


def test_entries_stand_the_longest_unused_first(tmp_path):
    first, second, third = three_entries(tmp_path)
    assert entries(tmp_path) == [first, second, third]
    opened(first)
    assert entries(tmp_path) == [second, third, first]


# In sizes of one entry: what is asked for, the bound, and how many of the three go
@pytest.mark.parametrize(
    ("asked", "bound", "gone"), [(0, 3, 0), (1, 4, 0), (1, 3, 1), (0.5, 3, 1), (2, 3, 2), (9, 3, 3)]
)
def test_room_is_made_by_the_longest_unused(tmp_path, asked, bound, gone):
    directories = three_entries(tmp_path)
    size = entry_bytes(directories[0])
    assert make_room(tmp_path, int(asked * size), bound * size) == directories[:gone]
    assert entries(tmp_path) == directories[gone:]


def test_room_is_never_made_by_what_is_to_be_kept(tmp_path):
    first, second, third = three_entries(tmp_path)
    assert make_room(tmp_path, 1, 0, keep=[first, third]) == [second]
    assert entries(tmp_path) == [first, third]


def test_what_another_process_is_building_takes_room_too(tmp_path):
    """By the size that it will have."""
    first, second, third = three_entries(tmp_path)
    size, building = entry_bytes(first), directory_of(tmp_path)
    with sole_builder(building):
        building.mkdir()
        (building / STATES).write_bytes(b"")
        os.truncate(building / STATES, size)
        assert make_room(tmp_path, size, 4 * size) == [first]
        assert building.is_dir()
    assert entries(tmp_path) == [second, third]


def test_room_is_taken_before_anything_is_computed(tmp_path):
    def from_disk() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        taken = (directory_of(tmp_path) / STATES).stat()
        assert taken.st_size == sum(LENGTHS) * CHANNELS * 4
        assert taken.st_blocks > 0 or not hasattr(os, "posix_fallocate")
        yield from parts()

    write(tmp_path, states=from_disk())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this platform takes room as it is written to")
@pytest.mark.parametrize(("code", "computes"), [(errno.ENOSPC, False), (errno.EOPNOTSUPP, True)])
def test_a_full_disk_is_found_first_and_one_that_cannot_reserve_is_written_to(tmp_path, monkeypatch, code, computes):
    def refuse(*_) -> None:
        raise OSError(code, os.strerror(code))

    begun, outcome = [], pytest.raises(OSError, match="No space left") if not computes else nullcontext()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with outcome:
        write(tmp_path, states=(begun.append(True) or part for part in parts()))
    assert bool(begun) is computes


def test_an_entry_that_goes_as_it_is_counted_counts_nothing(tmp_path):
    """Two runs that make room at once take the same entries away."""
    directory = write(tmp_path)
    (directory / "gone").symlink_to("nowhere")  # as a file that was there when the directory was read
    assert entry_bytes(directory) == 0
    assert entry_bytes(tmp_path / "none") == 0


@pytest.mark.parametrize("read_before", [False, True])
def test_who_has_an_entry_open_can_read_it_after_its_removal(tmp_path, read_before):
    """As the test split of a run is, hours after it was opened."""
    store = opened(write(tmp_path))
    if read_before:
        store.padded(np.arange(2))
    assert make_room(tmp_path, 1, 0) == [store.directory]
    assert_holds_all(store)


def test_clear_removes_all_and_counts_it(tmp_path):
    directories = three_entries(tmp_path)
    with sole_builder(directories[0]):
        pass
    (directory_of(tmp_path) / "unfinished").mkdir(parents=True)
    (directory_of(tmp_path) / STATES).write_bytes(b"0" * 1000)
    size = sum(entry_bytes(directory) for directory in directories)
    assert size + 1000 <= clear(tmp_path) < size + 10_000  # and what the system takes for a directory
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_built_is_neither_cleared_nor_counted_as_abandoned(tmp_path):
    """Its lock least of all: with it gone, a second builder would write beside the first."""
    directory = directory_of(tmp_path)
    with sole_builder(directory):
        directory.mkdir()
        clear(tmp_path)
        make_room(tmp_path, 1, 0)
        assert directory.is_dir()
        assert directory.with_suffix(".lock").exists()
    make_room(tmp_path, 0, 10**9)
    assert not directory.exists()  # now it is what a killed build left


def read_damaged(root: Path) -> None:
    flip(directory_of(root) / STATES, 3)
    with pytest.raises(ResourceError):
        opened(directory_of(root)).padded(np.arange(4))


def make_room_beside_abandoned(root: Path) -> None:
    (directory_of(root) / MANIFEST).unlink()
    make_room(root, 0, 10**9)


@pytest.mark.parametrize(
    "remove",
    [lambda root: make_room(root, 1, 0), clear, make_room_beside_abandoned, read_damaged],
    ids=["evicted", "cleared", "abandoned", "damaged"],
)
def test_an_entry_is_removed_under_its_lock(tmp_path, monkeypatch, remove):
    """Else another process could begin to build it meanwhile."""
    directory, rmtree, was_held = write(tmp_path), shutil.rmtree, []

    def watched(path: Path, **options) -> None:
        was_held.append(being_built(directory))
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", watched)
        remove(tmp_path)
    assert was_held == [True]
    assert not directory.exists()


def test_what_another_process_has_done_just_now_is_not_abandoned(tmp_path, monkeypatch):
    directory = write(tmp_path)
    monkeypatch.setattr(store_directory, "incomplete", lambda root: [directory])  # as it was a moment ago
    make_room(tmp_path, 0, 10**9)
    assert_holds_all(opened(directory))


def test_clear_leaves_what_is_not_the_stores(tmp_path):
    """A directory given by mistake loses nothing."""
    (tmp_path / "my-notes").mkdir()
    (tmp_path / "my-notes" / MANIFEST).write_text("{}")
    (tmp_path / "2026-01-31").mkdir()
    (tmp_path / "my-thesis.tex").write_text("all of it")
    write(tmp_path)
    clear(tmp_path)
    assert {"my-notes", "2026-01-31", "my-thesis.tex"} == {path.name for path in tmp_path.iterdir()}


# Rows found again


def test_lookup_gives_positions_and_minus_one_for_strangers():
    stored = np.array([[7, 1], [2, 9], [7, 0], [2**64 - 1, 5]], np.uint64)
    wanted = np.array([[2, 9], [7, 0], [9, 2], [2**64 - 1, 5], [7, 1], [0, 0], [2**64 - 1, 2**64 - 1]], np.uint64)
    assert lookup(stored, wanted).tolist() == [1, 2, -1, 3, 0, -1, -1]


def test_lookup_finds_as_a_dictionary_does():
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 40, (2000, 2)).astype(np.uint64)  # many that share a half
    stored, wanted = np.unique(pool[:1000], axis=0), pool[1000:]
    rng.shuffle(stored)
    positions = {tuple(digest): position for position, digest in enumerate(stored.tolist())}
    assert lookup(stored, wanted).tolist() == [positions.get(tuple(digest), -1) for digest in wanted.tolist()]


def test_known_rows_are_found_in_whatever_entry_they_are(tmp_path):
    write(tmp_path)
    other = [[40], [41, 42], [43], [44]]
    states = torch.arange(4.0)[:, None, None].expand(4, 2, CHANNELS)
    write(tmp_path, rows=other, states=[(np.arange(4), states)])
    wanted = [[43], [9, 10, 11, 12, 13], [99], [8], [8], [41, 42]]
    found = {}
    for store, rows, positions in known_rows(tmp_path, TRUNK, digests(wanted)):
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            found[row] = store.padded(np.array([position]))[0]
    assert sorted(found) == [0, 1, 3, 4, 5]
    for row, expected in {1: STATES_OF_ROWS[2], 3: STATES_OF_ROWS[1], 4: STATES_OF_ROWS[1]}.items():
        assert torch.equal(found[row], expected)
    assert torch.equal(found[0], states[2, :1])
    assert torch.equal(found[5], states[1])


def test_a_row_that_two_entries_hold_is_found_once(tmp_path):
    write(tmp_path)
    write(tmp_path, rows=[*ROWS[:3], [5, 4]])
    found = known_rows(tmp_path, TRUNK, digests([*ROWS, [5, 4]]))
    assert sorted(np.concatenate([rows for _, rows, _ in found]).tolist()) == [0, 1, 2, 3, 4]


def test_rows_of_another_trunk_are_not_known(tmp_path):
    write(tmp_path)
    assert known_rows(tmp_path, "fedcba9876543210", digests(ROWS)) == []


def test_rows_that_begin_alike_are_not_the_same(tmp_path):
    write(tmp_path)
    assert known_rows(tmp_path, TRUNK, digests([[9, 10, 11, 12], [8, 8], [5]])) == []


# Memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read as Linux shows it")
def test_resident_memory_stays_flat_over_a_store_of_300_megabytes(tmp_path):
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what runs before this one have made it keep would be used first
    channels, length, count = 768, 200, 500
    manifest = Manifest(
        model="tiny",
        depth=1,
        dtype="float32",
        precision="32-true",
        channels=channels,
        rows=count,
        tokens=count * length,
    )
    offsets = np.arange(count + 1) * length
    some = torch.ones(10, length, channels)
    batches = np.arange(count).reshape(-1, 10)
    write_entry(tmp_path / "entry", manifest, offsets, np.zeros((count, 2), np.uint64), ((b, some) for b in batches))
    store = opened(tmp_path / "entry")
    before, most = resident_mb(), 0.0
    for rows in [*batches, *batches]:
        assert store.padded(rows)[-1, -1, -1] == 1
        most = max(most, resident_mb() - before)
    assert most < 40  # a batch of 6, as it is read and as it is padded, and what the allocator keeps
    held = [store.padded(rows) for rows in batches]
    assert resident_mb() - before > 250, "what is held would be seen"
    del held


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
