"""Which positions of a batch carry a loss, for tasks that score tokens."""

from torch import Tensor, nn

from permafrost.data.tokens.batching import Batch

NOT_SCORED = -100
WORTH_CHOOSING = 0.75  # of the positions; where more are scored than this, all are computed


def positions_scored(labels: Tensor) -> Tensor | None:
    """(B, T) labels, -100 where there is none -> (B, Q) positions that hold all the others; None where most do.

    Q is the largest count of a row; rows with fewer are filled up with positions that have no label. Positions rise.
    """
    scored = labels != NOT_SCORED
    most = int(scored.sum(1).max())
    if most > WORTH_CHOOSING * labels.shape[1]:
        return None
    return (~scored).int().argsort(dim=1, stable=True)[:, : max(1, most)]


def logits_of_scored(model: nn.Module, batch: Batch) -> Tensor:
    """(scored, K) from a head over single tokens: of every token of the batch that has a label, row by row."""
    positions = positions_scored(batch.labels)
    hidden = model.hidden_states(batch.input_ids, batch.lengths, positions, batch.trunk_states)  # type: ignore[operator]
    labels = batch.labels if positions is None else batch.labels.gather(1, positions)
    return model.head(hidden[labels != NOT_SCORED])  # type: ignore[operator]


def loss_sum_of_scored(model: nn.Module, batch: Batch, loss: nn.Module) -> tuple[Tensor, Tensor]:
    """(): the losses of all labelled tokens, summed; and their logits."""
    logits = logits_of_scored(model, batch)
    return loss(logits, batch.labels[batch.labels != NOT_SCORED]).sum(), logits


def split_by_row(outputs: Tensor, batch: Batch) -> list[Tensor]:
    """(scored, K) -> of each row the (scored in it, K)"""
    return list(outputs.split((batch.labels != NOT_SCORED).sum(1).tolist()))
