"""Each token from those before it: the loss that language modelling and all that writes text share."""

from torch import Tensor, nn
from torch.nn import functional

from permafrost.data.tokens.batching import Batch
from permafrost.tasks.base import LossFunction
from permafrost.tasks.chunked_loss import vocabulary_loss_sum
from permafrost.tasks.positions import NOT_SCORED, positions_scored


def next_token_loss_sum(model: nn.Module, batch: Batch, loss: LossFunction) -> Tensor:
    """(): position t is scored on label t + 1, and only positions that are scored are computed to the end."""
    hidden, labels = states_and_labels(model, batch)
    if isinstance(model.head, nn.Identity):  # of a graph, whose states are logits already
        return loss(hidden[labels != NOT_SCORED], labels[labels != NOT_SCORED]).sum()
    return vocabulary_loss_sum(hidden, model.head.tied[0].weight, labels, loss)  # type: ignore[union-attr, index]


def states_and_labels(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(N, C) final states and (N,) the token that follows each, -100 where it is not scored."""
    labels = functional.pad(batch.labels[:, 1:], (0, 1), value=NOT_SCORED)
    positions = positions_scored(labels)
    hidden = model.hidden_states(batch.input_ids, batch.lengths, positions, batch.trunk_states)  # type: ignore[operator]
    if positions is not None:
        labels = labels.gather(1, positions)
    return hidden.flatten(0, 1), labels.flatten()
