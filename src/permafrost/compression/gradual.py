"""Masks that grow while a model learns, or that stay as one shot left them."""

from collections.abc import Callable, Iterable

from permafrost.compression.sparsity import Movement, Sparsity, matrices, scores_of
from permafrost.data.tokens.batching import Batch
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.training.callbacks.keep_sparse import KeepSparse


def keep_sparse(
    model: GPT2WithHead, batches: Callable[[], Iterable[Batch]], asked: Sparsity, *, total_steps: int
) -> KeepSparse:
    """Chosen by how weights move, or by what they have become (`batches` are then seen anew each time)."""
    parameters = matrices(model.transformer)
    if asked.method == "movement":
        moved = Movement(parameters)
        return KeepSparse(
            parameters,
            lambda progress: asked.masks(moved.scores, progress),
            total_steps=total_steps,
            observe=moved.observe,
        )
    if asked.schedule == "one_shot":
        left = {name: weight != 0 for name, weight in parameters.items()}
        return KeepSparse(parameters, lambda progress: left, total_steps=total_steps)
    return KeepSparse(
        parameters, lambda progress: asked.masks(scores_of(model, batches(), asked), progress), total_steps=total_steps
    )
