"""Which positions of a batch carry a loss, for tasks that score tokens."""

from torch import Tensor

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
