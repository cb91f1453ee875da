"""What a student is told: by hand, masked where nothing is scored, and nothing new where it is the teacher itself."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from permafrost.compression.distillation import (
    Lesson,
    check_same_tokens,
    evenly_spaced,
    of_classes,
    of_label_lists,
    of_numbers,
    taught,
)
from permafrost.data.tokens.batching import padded_batch
from permafrost.errors import ConfigError
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.base import tokenized_split
from permafrost.tasks.classification import Classification
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.losses import CrossEntropy
from permafrost.tasks.multi_label import MultiLabel
from permafrost.tasks.regression import Regression, Scale
from permafrost.tasks.tagging import Tagging

ROWS = [[5, 9, 2, 7, 11], [3, 4, 8]]
TASKS = {
    "classification": Classification(["a", "b", "c"], pooling="last", init="normal"),
    "ner": Tagging(["O", "B-x", "I-x"], init="normal", right_context=0),
    "language_modeling": LanguageModeling(),
}


def model_for(task, backbone, blocks=0, seed=1):
    torch.manual_seed(seed)
    freezing = Freezing(embeddings=blocks > 0, blocks=blocks)
    return GPT2WithHead(backbone, task.build_head(backbone), freezing).eval()


def batch_for(name):
    ids = [np.array(row, np.int32) for row in ROWS]
    if name == "classification":
        labels = np.array([2, 0])
    elif name == "ner":
        labels = [np.array([-100, 0, -100, 2, 1], np.int32), np.array([1, -100, 0], np.int32)]
    else:
        labels = [np.array([-100, -100, 2, 7, 11], np.int32), np.array([-100, 4, 8], np.int32)]
    return padded_batch(tokenized_split(ids, np.ones(2), labels), np.arange(2))


@pytest.mark.parametrize("name", TASKS)
def test_the_teacher_itself_learns_nothing_from_the_teacher(tiny_backbone, name):
    task = TASKS[name]
    student = model_for(task, tiny_backbone)
    teacher = model_for(task, copy.deepcopy(tiny_backbone))
    loss, _ = taught(task, teacher, Lesson(alpha=1.0))(student, batch_for(name), CrossEntropy())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    for parameter in student.parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter.grad), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_last_states_that_point_elsewhere_cost_their_angle(tiny_backbone, tiny_config, name):
    from transformers import GPT2Model

    task, batch = TASKS[name], batch_for(name)
    student = model_for(task, tiny_backbone)
    torch.manual_seed(5)
    teacher = model_for(task, GPT2Model(tiny_config))
    plain, _ = taught(task, teacher, Lesson())(student, batch, CrossEntropy())
    more, _ = taught(task, teacher, Lesson(hidden=0.5))(student, batch, CrossEntropy())
    ours, theirs = (model.hidden_states(batch.input_ids, batch.lengths) for model in (student, teacher))
    if name == "language_modeling":
        read = torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=-100) != -100
    elif name == "classification":
        read = torch.arange(5) == batch.lengths[:, None] - 1
    else:
        read = batch.labels != -100
    angles = 1 - torch.cosine_similarity(ours[read], theirs[read], dim=-1)
    torch.testing.assert_close(more - plain, 0.5 * angles.sum(), rtol=1e-4, atol=1e-5)


def test_states_of_another_width_are_refused():
    with pytest.raises(ConfigError, match=r"have 3 channels and the teacher's 4; give compression\.recover\.hidden=0"):
        Lesson(hidden=1.0).of_states(torch.ones(2, 3), torch.ones(2, 4))


@pytest.mark.parametrize("name", TASKS)
def test_without_a_share_for_the_teacher_it_is_the_tasks_own_loss(tiny_backbone, name):
    task, batch = TASKS[name], batch_for(name)
    student, teacher = model_for(task, tiny_backbone), model_for(task, copy.deepcopy(tiny_backbone), seed=2)
    own, _ = task.loss_sum(student, batch, CrossEntropy())
    alone, _ = taught(task, teacher, Lesson(alpha=0.0))(student, batch, CrossEntropy())
    torch.testing.assert_close(alone, own)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_stored_of_the_teacher_is_what_it_says(tiny_backbone, tiny_config, name):
    from transformers import GPT2Model

    task, batch = TASKS[name], batch_for(name)
    student = model_for(task, tiny_backbone)
    torch.manual_seed(5)
    teacher = model_for(task, GPT2Model(tiny_config), blocks=2)
    lesson = taught(task, teacher, Lesson())
    computed, _ = lesson(student, batch, CrossEntropy())
    with torch.no_grad():
        states = teacher.below_the_cut(batch.input_ids, batch.lengths)
    stored, _ = lesson(student, batch._replace(teacher_states=states), CrossEntropy())
    torch.testing.assert_close(stored, computed)
    other, _ = lesson(student, batch._replace(teacher_states=states.roll(1, dims=-1)), CrossEntropy())
    assert not torch.allclose(other, computed)


def test_tokens_are_taught_as_by_all_logits_at_once(tiny_backbone, tiny_config):
    from transformers import GPT2Model

    task, batch = TASKS["language_modeling"], batch_for("language_modeling")
    student = model_for(task, tiny_backbone)
    teacher = model_for(task, GPT2Model(tiny_config))
    loss, _ = taught(task, teacher, Lesson(alpha=0.3, temperature=3.0))(student, batch, CrossEntropy())
    logits, answers = (model(batch.input_ids, batch.lengths)[:, :-1] for model in (student, teacher))
    labels = batch.labels[:, 1:]
    kept = labels != -100
    hard = functional.cross_entropy(logits[kept], labels[kept], reduction="sum")
    soft = functional.kl_div(
        (logits[kept] / 3).log_softmax(-1), (answers[kept] / 3).softmax(-1), reduction="batchmean"
    ) * int(kept.sum())
    torch.testing.assert_close(loss, 0.7 * hard + 0.3 * 9 * soft)


def test_divergences_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * np.log(3.0), 0.0]])
    # at temperature 2 the teacher says 3/4 and 1/4, the student a half each
    expected = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert float(of_classes(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    of_both = of_label_lists(torch.tensor([[0.0, 5.0]]), torch.tensor([[2 * np.log(3.0), 5.0]]), 2.0)
    assert float(of_both) == pytest.approx(expected / 2, rel=1e-5)
    assert of_numbers(torch.tensor([[3.0]]), torch.tensor([[1.0]]), 2.0).tolist() == [4.0]


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (MultiLabel(["a", "b"], pooling="last", init="normal"), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)),
        (Regression(Scale(shift=0.0, unit=1.0), pooling="last", init="normal"), np.array([0.5, 1.5], np.float32)),
    ],
    ids=["multi_label", "regression"],
)
def test_labels_by_themselves_and_numbers_are_taught_too(tiny_backbone, task, labels):
    from permafrost.tasks.losses import BinaryCrossEntropy, MeanSquared

    loss = BinaryCrossEntropy() if task.name == "multi_label" else MeanSquared()
    batch = padded_batch(tokenized_split([np.array(row, np.int32) for row in ROWS], np.ones(2), labels), np.arange(2))
    student, teacher = model_for(task, tiny_backbone), model_for(task, copy.deepcopy(tiny_backbone), seed=2)
    taught_loss, _ = taught(task, teacher, Lesson(alpha=1.0))(student, batch, loss)
    assert taught_loss.item() > 0


@pytest.mark.parametrize(
    ("blocks", "kept", "expected"), [(12, 6, [0, 2, 4, 7, 9, 11]), (6, 3, [0, 2, 5]), (4, 1, [0]), (3, 3, [0, 1, 2])]
)
def test_a_student_begins_with_blocks_from_first_to_last(blocks, kept, expected):
    assert evenly_spaced(blocks, kept) == expected


def test_another_tokenizer_is_refused(tiny_tokenizer):
    from permafrost.data.tokens.tokenization import train_tokenizer, with_end_of_text

    check_same_tokens(tiny_tokenizer, with_end_of_text(tiny_tokenizer))  # as a run exports it
    with pytest.raises(ConfigError, match="another tokenizer"):
        check_same_tokens(tiny_tokenizer, train_tokenizer(["other words"], 280, 64))
