"""A student learns from the data and from a teacher: its answers are softer than labels, and say more.

N targets, K classes or values, C channels of the teacher. The loss of a target is
`(1 - alpha) * loss + alpha * T^2 * KL(teacher || student)` at temperature T (Hinton et al. 2015, arXiv:1503.02531,
section 2), over the targets that have a label and no others.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from permafrost.data.tokens.batching import Batch
from permafrost.errors import ConfigError
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.packing import real_tokens
from permafrost.tasks.base import Answers, LossFunction, LossSum, Task
from permafrost.tasks.chunked_loss import vocabulary_loss_sum
from permafrost.tasks.next_token import states_and_labels
from permafrost.tasks.positions import NOT_SCORED

Divergence = Callable[[Tensor, Tensor, float], Tensor]  # student's and teacher's outputs, temperature -> (N,)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How much a target's loss is the teacher's, and at which temperature. `hidden` is the weight of 1 - cosine between
    the two last hidden states (Sanh et al. 2019, arXiv:1910.01108, section 3)."""

    alpha: float = 0.5
    temperature: float = 2.0
    hidden: float = 0.0

    def mixed(self, hard: Tensor, soft: Tensor) -> Tensor:
        return (1 - self.alpha) * hard + self.alpha * soft

    def of_states(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(N, C) twice -> (): summed over all."""
        if student.shape[-1] != teacher.shape[-1]:
            raise ConfigError(
                f"compression.recover.hidden: the student's states have {student.shape[-1]} channels and the teacher's "
                f"{teacher.shape[-1]}; give compression.recover.hidden=0"
            )
        return self.hidden * (1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()


def taught(task: Task, teacher: GPT2WithHead, lesson: Lesson) -> LossSum:
    """The task's own loss, and what the teacher would have said; in training alone."""
    teacher.eval().requires_grad_(False)
    of_kind = _taught_answers if isinstance(task, Answers) else _taught_tokens

    def loss_sum(student: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, None]:
        teacher.to(batch.input_ids.device)
        return of_kind(task, teacher, lesson, student, batch, loss), None

    return loss_sum


def _taught_answers(
    task: Any, teacher: GPT2WithHead, lesson: Lesson, student: nn.Module, batch: Batch, loss: LossFunction
) -> Tensor:
    with given_to(student.head) as states:
        hard, outputs = task.loss_sum(student, batch, loss)
    with torch.no_grad(), given_to(teacher.head) as of_teacher:
        answers = task.outputs(teacher, as_teacher_reads(batch))
    divergence = DIVERGENCES.get(task.name, of_classes)
    mixed = lesson.mixed(hard, divergence(outputs.float(), answers.float(), lesson.temperature).sum())
    return mixed + lesson.of_states(real_states(states), real_states(of_teacher)) if lesson.hidden else mixed


def _taught_tokens(
    task: Task, teacher: GPT2WithHead, lesson: Lesson, student: nn.Module, batch: Batch, loss: LossFunction
) -> Tensor:
    hidden, labels = states_and_labels(student, batch)
    with torch.no_grad():
        states, _ = states_and_labels(teacher, as_teacher_reads(batch))
    of_tokens = TaughtToken(loss, teacher.head.tied[0].weight, lesson)
    mixed = vocabulary_loss_sum(hidden, student.head.tied[0].weight, labels, of_tokens, states)  # type: ignore[union-attr, index]
    scored = labels != NOT_SCORED
    return mixed + lesson.of_states(hidden[scored], states[scored]) if lesson.hidden else mixed


@contextmanager
def given_to(head: Any) -> Iterator[list[tuple[Tensor, ...]]]:
    """The states that a head is given while the context lasts, and the lengths of their rows where it pools them."""
    seen: list[tuple[Tensor, ...]] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    try:
        yield seen
    finally:
        hook.remove()


def real_states(given: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """[((B, Q, C), (B,))], or [((N, C),)] of a head over single tokens -> (N, C): no padding, where all were read"""
    ((states, *lengths),) = given
    if states.dim() == 2:
        return states
    if states.shape[1] < int(lengths[0].max()):
        return states.flatten(0, 1)
    return states[real_tokens(lengths[0], states.shape[1])]


class TaughtToken(nn.Module):
    """The loss over a vocabulary, of which the teacher's logits are made chunk by chunk, as the student's are."""

    def __init__(self, loss: LossFunction, weight: Tensor, lesson: Lesson):
        super().__init__()
        self.loss, self.weight, self.lesson = loss, weight, lesson

    def forward(self, logits: Tensor, labels: Tensor, states: Tensor) -> Tensor:
        """(N, V), (N,), (N, C) -> (N,)"""
        answers = functional.linear(states.to(self.weight.dtype), self.weight)
        return self.lesson.mixed(
            self.loss(logits, labels), of_classes(logits.float(), answers.float(), self.lesson.temperature)
        )


def as_teacher_reads(batch: Batch) -> Batch:
    """What is stored of the teacher in place of what is stored of the student's frozen part."""
    return batch._replace(trunk_states=batch.teacher_states)


def of_classes(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N, K) logits twice -> (N,): T^2 times the divergence, so that gradients do not shrink with T."""
    ours, theirs = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    return temperature**2 * functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def of_label_lists(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N, K) logits twice -> (N,): each label is a question of two answers; the mean over labels, as the loss is."""
    ours, theirs = (torch.stack([torch.zeros_like(logits), logits], dim=-1) for logits in (student, teacher))
    return of_classes(ours, theirs, temperature).mean(-1)


def of_numbers(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N, 1) twice -> (N,): numbers have no temperature."""
    return (student - teacher).square().squeeze(-1)


DIVERGENCES: dict[str, Divergence] = {"multi_label": of_label_lists, "regression": of_numbers}


def check_same_tokens(student: Any, teacher: Any) -> None:
    """Raises ConfigError where the two write a text in other tokens: the same id would be another word."""
    if tokens_of(student) != tokens_of(teacher):
        raise ConfigError(
            f"the teacher has another tokenizer ({len(teacher):,} tokens) than the student ({len(student):,}): "
            "give a teacher that was fine-tuned from the same model"
        )


def tokens_of(tokenizer: Any) -> list[Any]:
    """What decides on them: not what stands around a text or pads it, which an exported tokenizer brings along."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    return [len(tokenizer), *(described[part] for part in ("normalizer", "pre_tokenizer", "model"))]


def check_same_answers(student: Task, teacher: Task) -> None:
    """Raises ConfigError where the outputs of the two stand for other things: another label in its place, or unit."""
    ours, theirs = student.describe(), teacher.describe()
    of_tokens = all("perplexity" in task.metrics_logged for task in (student, teacher))
    # of two that write an output is a token; what stands around their texts is to be the same
    for key in ("turn", "template") if of_tokens else ("kind", "labels", "tags", "scale", "turn"):
        if ours.get(key) != theirs.get(key):
            raise ConfigError(
                f"compression.recover.teacher: its {key} is {theirs.get(key)}, and the run's {ours.get(key)}; "
                "give a run of the same task on the same labels"
            )


def evenly_spaced(blocks: int, kept: int) -> list[int]:
    """Which of a teacher's blocks a student of `kept` begins with: the first and the last, and others between them."""
    if kept == 1:
        return [0]
    return [round(index * (blocks - 1) / (kept - 1)) for index in range(kept)]
