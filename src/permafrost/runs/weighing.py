"""How much a training row, and a class, weighs: by its file, by how sure its label is, by how few rows it has."""

from typing import TYPE_CHECKING

import numpy as np

from permafrost.data.transforms.balance import class_weights, weights_by_origin
from permafrost.errors import ConfigError
from permafrost.safety.building import Node
from permafrost.settings.schema import Settings
from permafrost.tasks.base import classes_of

if TYPE_CHECKING:
    from permafrost.data.fields.by_role import Notes
    from permafrost.data.rows import StoredRows
    from permafrost.runs.assembly import Prepared


def worth_of(settings: Settings, train: "StoredRows", notes: "Notes") -> np.ndarray | None:
    """(rows,) of each training row: how sure its label is, times the weight of the file that it is from."""
    if not settings.data.mixture:
        return notes.row_quality
    by_origin = weights_by_origin(train, {name: part.weight for name, part in settings.data.mixture.items()})
    return by_origin if notes.row_quality is None else by_origin * notes.row_quality


def weighted_loss(settings: Settings, prepared: "Prepared") -> Node:
    """The loss as it is, or with the weights that even out the classes of the training rows.

    Raises:
        ConfigError: the loss takes none, or the user gave some.
    """
    if settings.data.balance != "weights":
        return settings.loss
    key = next((key for key in ("class_weights", "label_weights") if key in settings.loss), None)
    if key is None:
        raise ConfigError(
            "data.balance=weights sets weights, which this loss does not have; take loss=cross_entropy or focal"
        )
    if settings.loss[key] is not None:
        raise ConfigError(f"data.balance=weights sets {key} of the loss, which is set already; set one")
    classes = len(classes_of(prepared.task))
    return settings.loss | {key: class_weights(prepared.splits["train"], classes).tolist()}
