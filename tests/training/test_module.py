"""The LightningModule: a step's gradient is the plain mean over its targets, and so is the loss that is logged."""

import numpy as np
import pytest
import torch

from permafrost.data.tokens.batching import Batch, loss_scales, pad_right
from permafrost.errors import ResourceError
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.classification import Classification
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.losses import CrossEntropy
from permafrost.training import checkpoints
from permafrost.training.module import FineTuning, Part
from permafrost.training.schedulers import constant, plateau

LENGTHS = np.array([9, 7, 5, 4, 3, 2])
UNEQUAL = [np.array([0]), np.array([1, 2, 3]), np.array([4, 5])]
TASKS = [Classification(["a", "b", "c"], pooling="last", init="normal"), LanguageModeling({"validation": 9, "test": 9})]


def one_step_schedule(optimizer):
    return [constant(optimizer, 10, warmup=0)]


def make_module(backbone, task, make_schedulers=one_step_schedule) -> tuple[FineTuning, dict]:
    """The module, and what it logs. Without dropout, so that two passes can be compared."""
    torch.manual_seed(6)
    model = GPT2WithHead(backbone, task.build_head(backbone), Freezing(embeddings=False, blocks=0))
    module = FineTuning(
        model,
        {"": Part(model, task, CrossEntropy())},
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        make_schedulers=make_schedulers,
        monitor="validation/loss",
        compile=False,
    ).eval()
    logged: dict = {}
    module.log = lambda name, value, **_: logged.setdefault(name, []).append(value.item())
    module.log_dict = lambda values: logged.update({name: value.item() for name, value in values.items()})
    return module, logged


def make_batch(task, rows: np.ndarray, loss_scale: float = 1.0) -> Batch:
    ids = [np.random.default_rng(row).integers(2, 300, LENGTHS[row]) for row in rows]
    is_lm = isinstance(task, LanguageModeling)
    return Batch(
        input_ids=pad_right(ids),
        lengths=torch.tensor(LENGTHS[rows]),
        labels=pad_right(ids, fill=-100) if is_lm else torch.tensor(rows % 3),
        num_targets=torch.tensor(int(targets_by_row(task)[rows].sum())),
        row_ids=torch.tensor(rows),
        source_rows=torch.tensor(rows),
        loss_scale=torch.tensor(loss_scale),
    )


def targets_by_row(task) -> np.ndarray:
    return LENGTHS - 1 if isinstance(task, LanguageModeling) else np.ones(6)


def gradient_after(module: FineTuning, batches: list[Batch]) -> torch.Tensor:
    """As Lightning accumulates: each loss divided by the number of batches."""
    module.zero_grad()
    for index, batch in enumerate(batches):
        (module.training_step(batch, index) / len(batches)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_unequal_batches_of_a_step_give_the_gradient_of_the_joined_one(tiny_backbone, task):
    module, _ = make_module(tiny_backbone, task)
    targets = np.array([targets_by_row(task)[rows].sum() for rows in UNEQUAL])
    scales = loss_scales(targets, accumulate=3, world_size=1)
    parts = [make_batch(task, rows, scale) for rows, scale in zip(UNEQUAL, scales, strict=True)]
    everything = make_batch(task, np.arange(6))
    accumulated = gradient_after(module, parts)
    module.zero_grad()
    total, _ = task.loss_sum(module.model, everything, CrossEntropy())
    (total / targets_by_row(task).sum()).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    # float32 sums in another order; the largest gradients are about 1
    torch.testing.assert_close(accumulated, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_training_loss_is_logged_as_a_mean_whatever_its_scale(tiny_backbone, task):
    module, logged = make_module(tiny_backbone, task)
    for scale in (1.0, 7.0):
        module.training_step(make_batch(task, np.arange(6), scale), 0)
    total, _ = task.loss_sum(module.model, make_batch(task, np.arange(6)), CrossEntropy())
    mean = total.item() / targets_by_row(task).sum()
    assert logged["train/loss"] == pytest.approx([mean, mean], rel=1e-6)  # float32


@pytest.mark.parametrize("stage", ["validation", "test"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_loss_of_an_evaluation_is_the_mean_over_all_targets(tiny_backbone, task, stage):
    module, logged = make_module(tiny_backbone, task)
    with torch.no_grad():
        for index, rows in enumerate(UNEQUAL):
            getattr(module, f"{stage}_step")(make_batch(task, rows), index)
        getattr(module, f"on_{stage}_epoch_end")()
        total, _ = task.loss_sum(module.model, make_batch(task, np.arange(6)), CrossEntropy())
    mean = total.item() / targets_by_row(task).sum()
    assert logged[f"{stage}/loss"] == pytest.approx(mean, rel=1e-5)  # float32 sums in another order
    overall = {name for name in logged if "/f1/" not in name}  # and those of each label
    assert overall == {f"{stage}/{name}" for name in task.metrics_logged}


def test_perplexity_is_exp_of_the_mean_loss(tiny_backbone):
    module, logged = make_module(tiny_backbone, TASKS[1])
    with torch.no_grad():
        for index, rows in enumerate(UNEQUAL):
            module.validation_step(make_batch(TASKS[1], rows), index)
    module.on_validation_epoch_end()
    assert logged["validation/perplexity"] == pytest.approx(np.exp(logged["validation/loss"]), rel=1e-6)  # float32


def test_each_evaluation_starts_afresh(tiny_backbone):
    module, logged = make_module(tiny_backbone, TASKS[0])
    found = []
    for rows in (np.arange(6), np.array([0, 1]), np.arange(6)):
        with torch.no_grad():
            module.validation_step(make_batch(TASKS[0], rows), 0)
        module.on_validation_epoch_end()
        found.append(dict(logged))
    assert found[0] == found[2] != found[1]


def test_the_test_step_gives_rows_and_logits(tiny_backbone):
    module, _ = make_module(tiny_backbone, TASKS[0])
    batch = make_batch(TASKS[0], np.array([3, 1]))
    rows = module.test_step(batch, 0)
    assert [row[:2] for row in rows] == [(3, 3), (1, 1)]
    assert torch.equal(torch.stack([logits for *_, logits in rows]), module.model(batch.input_ids, batch.lengths))


def test_the_test_step_of_a_language_model_keeps_no_logits(tiny_backbone):
    module, _ = make_module(tiny_backbone, TASKS[1])
    assert module.test_step(make_batch(TASKS[1], np.array([3, 1])), 0) is None


def test_schedules_go_by_steps_and_plateaus_by_validations(tiny_backbone):
    def with_plateau(optimizer):
        return plateau(optimizer, 10, warmup=2, reduce_by=0.5, patience=1, mode="min")

    module, _ = make_module(tiny_backbone, TASKS[0], with_plateau)
    _, (rise, cut) = module.configure_optimizers()
    assert rise["interval"] == "step"
    assert (cut["interval"], cut["monitor"], cut["reduce_on_plateau"]) == ("epoch", "validation/loss", True)


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("limit", [0.01, 1e6, None])
def test_gradients_are_clipped_as_torch_clips_them(tiny_backbone, is_known, limit):
    module, _ = make_module(tiny_backbone, TASKS[0])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.training_step(make_batch(TASKS[0], np.arange(6)), 0).backward()
    clone = [parameter.grad.clone() for parameter in module.parameters()]
    copies = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in clone]
    for copy, gradient in zip(copies, clone, strict=True):
        copy.grad = gradient
    if limit:
        torch.nn.utils.clip_grad_norm_(copies, limit)
    module.clip_gradients = lambda of, value, algorithm: (
        value and torch.nn.utils.clip_grad_norm_(of.param_groups[0]["params"], value)
    )
    if is_known:
        module.gradient_norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in module.parameters()])
    module.configure_gradient_clipping(optimizer, limit, "norm")
    for copy, parameter in zip(copies, module.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, copy.grad)
    assert module.gradient_norm is None  # of the next step nothing is known


def test_what_is_frozen_is_left_out_by_ddp(tiny_backbone):
    model = GPT2WithHead(tiny_backbone, TASKS[0].build_head(tiny_backbone), Freezing(embeddings=True, blocks=1))
    module = FineTuning(
        model,
        {"": Part(model, TASKS[0], CrossEntropy())},
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        make_schedulers=one_step_schedule,
        monitor="validation/loss",
        compile=False,
    )
    left_out = set(module._ddp_params_and_buffers_to_ignore)
    assert left_out == {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert len(left_out) == 2 + 12  # the embeddings, and what a block has


def test_processes_that_have_read_other_frozen_weights_are_told(monkeypatch):
    monkeypatch.setattr(checkpoints, "gathered", lambda value, world_size: [value, "another"])
    with pytest.raises(ResourceError, match=r"different frozen weights; give all of them the same model\.path"):
        checkpoints.check_read_by_all("one", 2)
