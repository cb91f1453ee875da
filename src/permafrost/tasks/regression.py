"""One number for each row, learned on a scaled target and answered in the user's units."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from permafrost.data.tokens.batching import Batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.errors import DataError
from permafrost.model.heads import Initialization, PooledHead, Pooling
from permafrost.tasks.base import (
    LOSS,
    Encoding,
    LossFunction,
    Mode,
    Outputs,
    Stage,
    Table,
    check_pairs,
    encode_texts,
    stacked,
    text_rows,
    tokenized_split,
)

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

Scaling = Literal["standard", "min_max", "none"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """scaled = (target - shift) / unit"""

    shift: float
    unit: float

    def to_scaled(self, target: Any) -> Any:
        return (target - self.shift) / self.unit

    def to_target(self, scaled: Any) -> Any:
        return scaled * self.unit + self.shift


def fit_scale(targets: np.ndarray, scaling: Scaling) -> Scale:
    """standard: mean 0 and deviation 1 over the training rows; min_max: 0 to 1; none: as it is."""
    if scaling == "none":
        return Scale(shift=0.0, unit=1.0)
    low, high = float(targets.min()), float(targets.max())
    if low == high:
        raise DataError(f"every training target is {low:g}; there is nothing to learn")
    if scaling == "min_max":
        return Scale(shift=low, unit=high - low)
    return Scale(shift=float(targets.mean()), unit=float(targets.std()))


class Regression:
    name = "regression"
    roles = ("text", "number")
    metrics_logged: Mapping[str, Mode] = {
        LOSS: "min",
        "mse": "min",
        "rmse": "min",
        "pearson": "max",
        "spearman": "max",
    }

    def __init__(self, scale: Scale, *, pooling: Pooling, init: Initialization, window: int | None = None):
        self.scale, self.pooling, self.init, self.window = scale, pooling, init, window

    @classmethod
    def from_rows(cls, splits: Mapping[str, Table], options: Mapping[str, Any]) -> "Regression":
        check_pairs(splits["train"], options["pooling"])
        scale = fit_scale(splits["train"]["target"].to_numpy(), options["scaling"])
        return cls(scale, pooling=options["pooling"], init=options["init"], window=options["window"])

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Regression":
        scale, pooling, window = Scale(**description["scale"]), description["pooling"], description["max_length"]
        return cls(scale, pooling=pooling, init="normal", window=window)

    def encode(self, slices: Iterable[pa.Table], encoding: Encoding) -> Iterator[TokenizedSplit]:
        for rows in slices:
            ids, unread, repeated = encode_texts(rows, encoding, pooling=self.pooling)
            labels = None
            if "target" in rows.column_names:
                labels = self.scale.to_scaled(rows["target"].to_numpy()).astype(np.float32)
            yield tokenized_split(ids, np.ones(len(ids)), labels, unread=unread, repeated=repeated)

    def build_head(self, backbone: nn.Module) -> nn.Module:
        channels: Any = backbone.config.n_embd  # type: ignore[union-attr]
        return PooledHead(channels, 1, pooling=self.pooling, init=self.init, window=self.window)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, 1), scaled"""
        return model(batch.input_ids, batch.lengths, batch.trunk_states)

    def loss_sum(self, model: nn.Module, batch: Batch, loss: LossFunction) -> tuple[Tensor, Tensor]:
        logits = self.outputs(model, batch)
        return loss(logits, batch.labels).sum(), logits

    def build_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanSquaredError, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef

        return MetricCollection(
            {
                "mse": MeanSquaredError(),
                "rmse": MeanSquaredError(squared=False),
                "pearson": PearsonCorrCoef(),
                "spearman": SpearmanCorrCoef(),
            },
            compute_groups=False,
        )

    def update_metrics(self, metrics: Any, outputs: Tensor, batch: Batch) -> None:
        """In the user's units; the shift is left out, as it changes no metric and costs digits where it is large."""
        metrics.update(self.scale.unit * outputs.float().squeeze(-1), self.scale.unit * batch.labels)

    def metrics_of_loss(self, loss: Tensor, num_targets: Tensor, stage: Stage) -> dict[str, Tensor]:
        return {}

    def by_row(self, outputs: Tensor, batch: Batch) -> list[Tensor]:
        return list(outputs)

    def answers(self, outputs: Outputs, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`{"value"}` in the user's units."""
        return [{"value": value} for value in self.scale.to_target(stacked(outputs).squeeze(-1)).tolist()]

    def rows_of(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return text_rows(texts)

    def describe(self) -> dict[str, Any]:
        kind = "regression.Regression"
        return {"task": self.name, "kind": kind, "scale": asdict(self.scale), "pooling": self.pooling}
