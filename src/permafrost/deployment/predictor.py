"""Answers from an exported model: no trainer, no configuration, only its directory."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from torch import Tensor

from permafrost.data.batching import Batch, TokenBatching, ordered_batches, padded_batch
from permafrost.data.tokenization import TokenizedSplit
from permafrost.deployment.export import DESCRIPTION
from permafrost.errors import ResourceError
from permafrost.model.activation_store import ActivationStore, known_rows, row_digests, trunk_key
from permafrost.model.backbone import branch, load_backbone, load_config, quiet_transformers
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.tasks.base import LOSS, Encoding, Task
from permafrost.tasks.binding import bind_described
from permafrost.tasks.losses import CrossEntropy, MeanSquared
from permafrost.tasks.preparation import encode_table, load_tokenizer

EVALUATION_TOKENS = 4096  # per batch
NOTHING_FROZEN = Freezing(embeddings=False, blocks=0)


class Predictor:
    """A run directory, or the `model/` directory in it, ready to answer."""

    def __init__(self, run: str | Path):
        quiet_transformers()
        directory = model_directory(Path(run))
        description = json.loads((directory / DESCRIPTION).read_text("utf-8"))
        self.task: Task = bind_described(description)
        self.encoding = Encoding(tokenizer=load_tokenizer(str(directory)), max_length=description["max_length"])
        self.model = load_model(directory, self.task)
        self.trunk = description.get("trunk")
        self.store_dir = store_directory(Path(run))

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One answer a text: `{"label", "score"}` or `{"value"}`."""
        columns = {"text": list(texts)} | ({"text_pair": list(pairs)} if pairs is not None else {})
        split = encode_table(self.task, pa.table(columns), self.encoding)
        return self.task.answers(self.logits(split))

    @torch.inference_mode()
    def logits(self, split: TokenizedSplit) -> Tensor:
        """(rows, K), in the rows' order. Rows that the run's store knows begin above the frozen part."""
        known = self.known_rows(split)
        new = np.setdiff1d(np.arange(len(split)), np.concatenate([np.empty(0, int), *(rows for _, rows, _ in known)]))
        parts = [(batch.row_ids, self.model(batch.input_ids, batch.lengths).float()) for batch in batches(split, new)]
        for store, rows, positions in known:
            where = dict(zip(rows.tolist(), positions.tolist(), strict=True))
            for batch in batches(split, rows):
                states = store.padded(np.array([where[row] for row in batch.row_ids.tolist()]))
                parts.append((batch.row_ids, self.above_the_cut(batch, states).float()))
        return torch.cat([logits for _, logits in parts])[torch.cat([rows for rows, _ in parts]).argsort()]

    def known_rows(self, split: TokenizedSplit) -> list[tuple[ActivationStore, np.ndarray, np.ndarray]]:
        """Per entry of the store: which rows of the split it has, and where; none if the weights have changed since."""
        if not self.trunk or self.store_dir is None or not any(self.store_dir.glob(f"{self.trunk['key']}-*")):
            return []
        how = {name: value for name, value in self.trunk.items() if name != "key"}
        if trunk_key(self.model.transformer, **how) != self.trunk["key"]:
            return []
        return known_rows(self.store_dir, self.trunk["key"], row_digests(split.input_ids))

    def above_the_cut(self, batch: Batch, states: Tensor) -> Tensor:
        hidden = branch(
            self.model.transformer, states.float(), self.trunk["depth"], self.model.head.reads(batch.lengths)
        )
        return self.model.head(hidden, batch.lengths)

    @torch.inference_mode()
    def evaluate(self, table: pa.Table) -> dict[str, float]:
        """The task's metrics and its plain loss over labelled rows."""
        loss = MeanSquared() if self.task.name == "regression" else CrossEntropy().eval()
        metrics, total, count = self.task.build_metrics(), 0.0, 0
        for batch in batches(encode_table(self.task, table, self.encoding)):
            loss_sum, logits = self.task.loss_sum(self.model, batch, loss)
            self.task.update_metrics(metrics, logits, batch)
            total += float(loss_sum)
            count += len(batch.labels) if batch.labels.ndim == 1 else int((batch.labels[:, 1:] != -100).sum())
        mean = torch.tensor(total / count)
        values = {LOSS: mean, **self.task.metrics_of_loss(mean), **metrics.compute()}
        return {name: float(value) for name, value in values.items()}


def model_directory(run: Path) -> Path:
    for directory in (run / "model", run):
        if (directory / DESCRIPTION).is_file():
            return directory
    raise ResourceError(f"{run}: no finished run and no exported model (no model/{DESCRIPTION}); give a run directory")


def store_directory(run: Path) -> Path | None:
    """Where the run kept the frozen part's output, by its config.yaml; None for a model without its run."""
    path = run / "config.yaml"
    if not path.is_file():
        return None
    directory = Path(yaml.safe_load(path.read_text("utf-8"))["store"]["dir"])
    return directory if directory.is_dir() else None


def load_model(directory: Path, task: Task) -> GPT2WithHead:
    """The trained model, in eval mode."""
    from safetensors.torch import load_file

    backbone = load_backbone(str(directory), load_config(str(directory)), pretrained=True)
    head = task.build_head(backbone)
    if isinstance(head, PooledHead):
        weights = load_file(directory / "model.safetensors")
        head.score.load_state_dict({"weight": weights["score.weight"]})
        if head.pooling == "attention":
            head.attention.load_state_dict(load_file(directory / "attention_pooling.safetensors"))
    return GPT2WithHead(backbone, head, NOTHING_FROZEN).eval()


def batches(split: TokenizedSplit, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """All rows of the split, or those given."""
    rows = np.arange(len(split)) if rows is None else rows
    for chosen in ordered_batches(split.lengths[rows], TokenBatching(max_tokens=EVALUATION_TOKENS)):
        yield padded_batch(split.input_ids, split.labels, rows[chosen])
