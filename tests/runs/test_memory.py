"""Where memory runs out: told with the batch and what to set, or found out beforehand and batches cut."""

import re

import numpy as np
import pytest
import torch

from permafrost.data.tokens.batching import PlannedBatch, in_parts
from permafrost.errors import ConfigError, ResourceError
from permafrost.training.memory import is_out_of_memory, told_what_to_set
from permafrost.training.module import FineTuning

pytestmark = pytest.mark.usefixtures("no_report")

SHORT = ["trainer.max_epochs=2", "store=off", "model.dropout=0"]


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_parts_have_each_row_once_and_weigh_what_the_batch_weighs(parts):
    batches = [PlannedBatch(np.arange(5), 0.5, "a"), PlannedBatch(np.array([9]), 2.0, "b")]
    cut = in_parts(batches, parts)
    assert len(cut) == 2 * parts
    for number, batch in enumerate(batches):
        mine = cut[number * parts : (number + 1) * parts]
        counted = [part for part in mine if part.loss_scale]
        assert np.concatenate([part.rows for part in counted]).tolist() == batch.rows.tolist()
        assert {part.loss_scale for part in counted} == {parts * batch.loss_scale}
        assert all(len(part.rows) == 1 for part in mine if not part.loss_scale)
        assert {part.part for part in mine} == {batch.part}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.fixture
def room_for(monkeypatch):
    """Memory for batches of so many tokens, padding counted, and no more."""
    seen: list[tuple[int, int]] = []

    def arrange(tokens: int) -> list[tuple[int, int]]:
        loss_of = FineTuning.loss_of

        def limited(self, batch):
            loss = loss_of(self, batch)
            seen.append(tuple(batch.input_ids.shape))
            if batch.input_ids.numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss

        monkeypatch.setattr(FineTuning, "loss_of", limited)
        return seen

    return arrange


def test_23_running_out_names_the_batch_and_what_to_set(run_tiny, room_for):
    seen = room_for(150)
    with pytest.raises(ResourceError) as raised:
        run_tiny(*SHORT)
    rows, tokens = seen[-1]
    assert str(raised.value).startswith(
        f"memory ran out at a batch of {rows} rows x {tokens} tokens = {rows * tokens} tokens"
    )
    assert "data.auto_batch=true" in str(raised.value)
    assert "data.max_tokens_per_batch=100" in str(raised.value)
    assert raised.value.exit_code == 4


@pytest.mark.slow
def test_23_the_longest_batch_is_tried_first_and_cut(run_tiny, room_for, capsys):
    whole, _ = run_tiny(*SHORT, name="whole")
    seen = room_for(60)
    cut, _ = run_tiny(*SHORT, "data.auto_batch=true", name="cut")
    assert seen[0][0] * seen[0][1] == max(rows * tokens for rows, tokens in seen)
    parts = int(re.findall(r"memory holds a batch in (\d+) parts", capsys.readouterr().out)[0])
    assert parts in (4, 8)
    assert cut["steps"] == whole["steps"]
    assert cut["tokens"]["trained"] >= whole["tokens"]["trained"]  # a part without rows repeats one at no weight
    assert cut["test"] == pytest.approx(whole["test"], abs=1e-4)  # sums of other parts: float32 rounds otherwise


@pytest.mark.slow
def test_the_parts_of_a_stopped_run_stay(run_tiny, room_for, capsys):
    room_for(60)
    run_tiny(*SHORT, "data.auto_batch=true", "trainer.max_steps=3", name="a")
    capsys.readouterr()
    resumed, _ = run_tiny(*SHORT, "data.auto_batch=true", "resume=must", name="a")
    assert "memory holds" not in capsys.readouterr().out
    whole, _ = run_tiny(*SHORT, "data.auto_batch=true", name="b")
    assert resumed["steps"] == whole["steps"]


@pytest.mark.slow
def test_one_row_that_does_not_fit_is_told(run_tiny, room_for):
    room_for(5)
    with pytest.raises(
        ResourceError, match=r"one row of \d+ tokens is more than memory holds; set a smaller data\.max_len"
    ):
        run_tiny(*SHORT, "data.auto_batch=true")


def test_what_a_loaders_process_tells_is_told_without_its_traceback():
    told = "Caught ResourceError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
    with (
        pytest.raises(ResourceError, match=r"^row 7 of the store is damaged: clear it$"),
        told_what_to_set(None, 64, tries_first=False),
    ):
        raise ResourceError(f"{told}permafrost.errors.ResourceError: row 7 of the store is damaged: clear it\n")


def test_several_processes_do_not_each_cut_batches_by_their_own_memory(run_tiny):
    with pytest.raises(ConfigError, match=r"data\.auto_batch=true: each process would cut"):
        run_tiny("data.auto_batch=true", "trainer=cpu", "trainer.devices=2")
