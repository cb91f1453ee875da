"""Which weights stay: masks over a matrix that keeps its shape. By themselves they make nothing smaller or faster.

Scores and masks have the shape of a Conv1D's weight, (in, out). What is chosen among, is an output's inputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from permafrost.compression.calibration import CONV1DS, Seen, seen_by_blocks
from permafrost.data.tokens.batching import Batch
from permafrost.errors import ConfigError
from permafrost.model.gpt2 import GPT2WithHead

Structure = Literal["unstructured", "2:4"]


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """What is asked: which weights go, how many, and whether at once or more and more while the model learns."""

    method: Literal["magnitude", "wanda", "movement"]
    structure: Structure
    sparsity: float
    schedule: Literal["one_shot", "cubic"]

    def masks(self, scores: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, Tensor]:
        """For every matrix of `scores`, at a progress from 0 to 1."""
        share = cubic(progress, self.sparsity) if self.schedule == "cubic" else self.sparsity
        by_output = self.method == "wanda"
        return {name: mask_of(of, share, self.structure, by_output=by_output) for name, of in scores.items()}


def sparsify_(model: GPT2WithHead, batches: Iterable[Batch], asked: Sparsity) -> None:
    """In one shot, by what the weights are now and, for wanda, what they see."""
    apply_masks_(matrices(model.transformer), asked.masks(scores_of(model, batches, asked)))


def scores_of(model: GPT2WithHead, batches: Iterable[Batch], asked: Sparsity) -> dict[str, Tensor]:
    if asked.method == "wanda":
        return wanda_scores(model.transformer, seen_by_blocks(model, batches))
    return {name: magnitudes(weight) for name, weight in matrices(model.transformer).items()}


def matrices(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """Every block's four products, by their names; embeddings and norms are not among them."""
    blocks: Any = backbone.h
    return {
        f"h.{n}.{name}.weight": block.get_submodule(name).weight for n, block in enumerate(blocks) for name in CONV1DS
    }


def magnitudes(weight: Tensor) -> Tensor:
    return weight.detach().abs()


def wanda(weight: Tensor, squares: Tensor) -> Tensor:
    """A weight's size times the length of its input (Sun et al. 2023, arXiv:2306.11695, eq. 1); `squares` (in,)."""
    return weight.detach().abs() * squares.sqrt()[:, None]


def wanda_scores(backbone: nn.Module, seen: list[Seen]) -> dict[str, Tensor]:
    by_name = {f"h.{n}.{name}.weight": squares for n, of in enumerate(seen) for name, squares in of.squares.items()}
    return {name: wanda(weight, by_name[name]) for name, weight in matrices(backbone).items()}


def mask_of(scores: Tensor, sparsity: float, structure: Structure, *, by_output: bool) -> Tensor:
    """True for what stays: all but the `sparsity` share with the smallest scores, of each output or of the matrix;
    or in 2:4 the two largest of each four inputs that follow one another."""
    if structure == "2:4":
        return two_of_four(scores, sparsity)
    if by_output:
        return _largest(scores, sparsity, dim=0)
    return _largest(scores.flatten(), sparsity, dim=0).view_as(scores)


def two_of_four(scores: Tensor, sparsity: float = 0.5) -> Tensor:
    """At a sparsity of a half in each four; below it in those fours that lose least by it, and the others are whole.

    Raises:
        ConfigError: the inputs are no multiple of four.
    """
    if scores.shape[0] % 4:
        raise ConfigError(
            f"compression.sparsify.structure=2:4 needs a multiple of four inputs, and a matrix has {scores.shape[0]}; "
            "give compression.sparsify.structure=unstructured"
        )
    fours = scores.unflatten(0, (-1, 4))  # (in / 4, 4, out)
    stays = _largest(fours, 0.5, dim=1)
    lost = (fours * ~stays).sum(1, keepdim=True)
    is_whole = _largest(lost.flatten(), min(1.0, 2 * sparsity), dim=0).view_as(lost)
    return (stays | is_whole).flatten(0, 1)


def _largest(scores: Tensor, sparsity: float, dim: int) -> Tensor:
    """Exactly so many, whichever of equal scores come first."""
    dropped = round(sparsity * scores.shape[dim])
    order = scores.argsort(dim=dim, stable=True)
    mask = torch.ones_like(scores, dtype=torch.bool)
    return mask.scatter_(dim, order.narrow(dim, 0, dropped), False)


@torch.no_grad()
def apply_masks_(parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        parameters[name].mul_(mask)


def sparsity_of(parameters: Mapping[str, nn.Parameter]) -> float:
    """The share of weights that are zero."""
    zeros = sum(int((weight == 0).sum()) for weight in parameters.values())
    return zeros / sum(weight.numel() for weight in parameters.values())


def cubic(progress: float, sparsity: float) -> float:
    """Much early, little late (Zhu and Gupta 2017, arXiv:1710.01878, eq. 1); `progress` 0 to 1."""
    return sparsity * (1 - (1 - progress) ** 3)


class Movement:
    """Which weights move away from zero while they are trained: the sums of -weight * gradient (Sanh et al. 2020,
    arXiv:2005.07683, eq. 5, without its straight-through estimate)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.scores = {name: torch.zeros_like(weight) for name, weight in parameters.items()}

    @torch.no_grad()
    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, weight in parameters.items():
            if weight.grad is not None:
                self.scores[name] -= weight * weight.grad
