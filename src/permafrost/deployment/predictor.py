"""Answers from an exported model: no trainer, no configuration, only its directory."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from torch import Tensor

from permafrost.data.tokens.batching import Batch, TokenBatching, ordered_batches, padded_batch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.data.transforms.cleaning import Cleaner, Steps
from permafrost.deployment.export import DESCRIPTION, OWN_WEIGHTS
from permafrost.deployment.sessions import graph_in
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.activation_store import ActivationStore, row_digests, trunk_key
from permafrost.model.backbone import load_backbone, load_config, quiet_transformers
from permafrost.model.decoding import drawing_from, streaming
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead, TokenHead
from permafrost.model.store_directory import known_rows
from permafrost.storage.checksums import check_files
from permafrost.tasks.base import (
    LOSS,
    Answers,
    Encoding,
    Outputs,
    Prompts,
    Task,
    Writes,
    WritesAnswers,
    asked_rows,
    by_source_row,
)
from permafrost.tasks.binding import bind_described
from permafrost.tasks.language_modeling import LanguageModeling, count_words
from permafrost.tasks.losses import BinaryCrossEntropy, CrossEntropy, MeanSquared
from permafrost.tasks.preparation import encode_table, load_tokenizer
from permafrost.tasks.writing import write, write_from

EVALUATION_TOKENS = 4096  # per batch
PLAIN_LOSSES = {"regression": MeanSquared, "multi_label": BinaryCrossEntropy}  # cross-entropy for all others


@dataclass(frozen=True, kw_only=True)
class OwnFiles:
    """How a run was told to read its files: what holds for those that it is given later, unless they say otherwise."""

    columns: Mapping[str, Any] = field(default_factory=dict)  # as data.columns
    format: str | None = None


class Predictor:
    """A run directory, or the `model/` directory in it, ready to answer."""

    def __init__(
        self,
        run: str | Path,
        *,
        threads: int = 0,
        reads_store: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ):
        """`threads` are ONNX Runtime's, where the model is a graph; 0 is one for each core. `reads_store`: rows are
        looked for among those whose frozen part the run has stored. `say` gets what a person has to know of them."""
        quiet_transformers()
        directory = model_directory(Path(run))
        check_files(directory)
        description = json.loads((directory / DESCRIPTION).read_text("utf-8"))
        self.task: Task = bind_described(description)
        self.encoding = Encoding(
            tokenizer=load_tokenizer(str(directory)),
            max_length=description["max_length"],
            max_windows=description["max_windows"],
            evaluates=True,
            cleaning=description.get("cleaning", {}),
        )
        self.files = OwnFiles(columns=description.get("columns", {}), format=description.get("format"))
        self.clean = Cleaner(Steps(**self.encoding.cleaning))
        self.loss = PLAIN_LOSSES.get(self.task.name, CrossEntropy)().eval()
        self.trunk = description.get("trunk")
        self.model: Any = load_described(directory, self.task, description, threads)
        self.store_dir = store_directory(Path(run)) if reads_store else None
        self.say = say

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One answer a text: `{"label", "score"}`, `{"labels", "scores"}`, `{"value"}`, `{"spans"}`, `{"acts"}` or
        `{"text"}`."""
        return self.answer(asked_rows(self.task, texts, pairs))

    def answer(self, rows: Sequence[Mapping[str, Any]], *, streamer: Any = None) -> list[dict[str, Any]]:
        """One answer for each row of the task's roles; of a single one that is written, `streamer` gets the pieces."""
        if isinstance(self.task, Writes):
            with streaming(streamer):
                return [{"text": text} for text in self.written(self.task, self.cleaned(rows))]
        return self.answering.answers(self.outputs_of(rows), rows)

    def outputs_of(self, rows: Sequence[Mapping[str, Any]]) -> Outputs:
        """What the task keeps of each row: a classifier its logits."""
        return self.outputs(self.encoded(pa.Table.from_pylist(self.cleaned(rows))))

    def written(self, task: Writes, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """To cleaned rows; what there is no room for is said."""
        prompts = task.prompts(rows, self.encoding)
        self._say_how_many_are_cut(prompts, len(rows))
        return write_from(task, prompts, self.model.transformer, self.encoding)

    def encoded(self, table: pa.Table) -> TokenizedSplit:
        """Cleaned rows as tokens; what there is no room for is said."""
        split = encode_table(self.task, table, self.encoding)
        self._say_how_many_are_cut(split, len(split))
        return split

    def _say_how_many_are_cut(self, read: Prompts | TokenizedSplit, rows: int) -> None:
        if read.truncated_rows:
            cut = f"{read.truncated_rows:,} of {rows:,} rows cut: {read.share_read:.1%} read"
            self.say(f"{cut}; the model reads {self.encoding.max_length:,} tokens at once")

    def cleaned(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As the training rows were; what nothing would be left of stays as it is."""
        return [(self.clean(row) if self.clean else None) or dict(row) for row in rows]

    @torch.inference_mode()
    def outputs(self, split: TokenizedSplit) -> Outputs:
        """Of each source row its windows'."""
        return self.gathered(self.read(split))

    def read(self, split: TokenizedSplit) -> Iterator[Batch]:
        """All rows; those that the run's store knows begin above the frozen part."""
        known = self.known_rows(split)
        new = np.setdiff1d(np.arange(len(split)), np.concatenate([np.empty(0, int), *(rows for _, rows, _ in known)]))
        yield from batches(split, new)
        yield from stored_batches(split, known)

    def gathered(self, given: Iterable[Batch]) -> Outputs:
        """Of the batches' rows, source row by source row."""
        return by_source_row(part for batch in given for part in self.by_row(batch))

    def by_row(self, batch: Batch) -> list[tuple[int, int, Tensor]]:
        """Source row, row of the split, and what the task keeps of it."""
        task = self.answering
        by_row = [output.float() for output in task.by_row(task.outputs(self.model, batch), batch)]
        return list(zip(batch.source_rows.tolist(), batch.row_ids.tolist(), by_row, strict=True))

    @property
    def answering(self) -> Answers:
        if not isinstance(self.task, Answers):
            raise ConfigError(f"a run of task={self.task.name} writes its answers: permafrost predict")
        return self.task

    def known_rows(self, split: TokenizedSplit) -> list[tuple[ActivationStore, np.ndarray, np.ndarray]]:
        """Per entry of the store: which rows of the split it has, and where; none if the weights have changed since."""
        if not isinstance(self.model, GPT2WithHead) or not self.trunk or self.store_dir is None:
            return []
        if not any(self.store_dir.glob(f"{self.trunk['key']}-*")):
            return []
        if not self.has_stored_trunk:
            return []
        return known_rows(self.store_dir, self.trunk["key"], row_digests(split.input_ids))

    @cached_property
    def has_stored_trunk(self) -> bool:
        """By a hash of all that is frozen: once, as it takes longer than a short text."""
        assert self.trunk is not None
        how = {name: value for name, value in self.trunk.items() if name != "key"}
        return trunk_key(self.model.transformer, **how) == self.trunk["key"]

    @torch.inference_mode()
    def evaluate(self, table: pa.Table) -> dict[str, float]:
        """The task's metrics and its plain loss over labelled rows."""
        metrics = self.task.build_metrics("test") if isinstance(self.task, Answers) else None
        table = pa.Table.from_pylist(self.cleaned(table.to_pylist()), table.schema) if self.clean else table
        if isinstance(self.task, LanguageModeling):
            self.task.words = {"test": count_words(table)}
        total, count = 0.0, 0
        for batch in self.read(self.encoded(table)):
            loss_sum, outputs = self.task.loss_sum(self.model, batch, self.loss)
            if isinstance(self.task, Answers) and outputs is not None:
                self.task.update_metrics(metrics, outputs, batch)
            total += float(loss_sum)
            count += int(batch.num_targets)
        mean = torch.tensor(total / count)
        of_loss = self.task.metrics_of_loss(mean, torch.tensor(count), "test")
        values = {LOSS: mean, **of_loss, **(metrics.compute() if metrics else {})}
        if isinstance(self.task, WritesAnswers):
            rows = table.to_pylist()
            with drawing_from(0):  # as the run itself does: one file has one figure
                written = write(self.task, self.model.transformer, rows, self.encoding)
            values |= self.task.score(written, rows)
        return {name: float(value) for name, value in values.items()}


def task_of_run(run: Path) -> Task:
    """The task of a run, without its model."""
    return bind_described(json.loads((model_directory(run) / DESCRIPTION).read_text("utf-8")))


def model_directory(run: Path) -> Path:
    for directory in (run / "model", run):
        if (directory / DESCRIPTION).is_file():
            return directory
    if parts := sorted(str(path.parent) for path in run.glob(f"model/*/{DESCRIPTION}")):
        raise ResourceError(f"{run} has a model for each of its tasks; give one: {', '.join(parts)}")
    raise ResourceError(f"{run}: no finished run and no exported model (no model/{DESCRIPTION}); give a run directory")


def store_directory(run: Path) -> Path | None:
    """Where the run kept the frozen part's output, by its config.yaml; None for a model without its run.

    `run` is its directory, or in it the model of one of several tasks, RUN/model/PART.
    """
    path = next((path for path in (run / "config.yaml", run.parent.parent / "config.yaml") if path.is_file()), None)
    if path is None:
        return None
    try:
        directory = Path(yaml.safe_load(path.read_text("utf-8"))["store"]["dir"])
    except (KeyError, TypeError):  # a config.yaml of something else
        return None
    return directory if directory.is_dir() else None


def load_described(directory: Path, task: Task, description: Mapping[str, Any], threads: int) -> Any:
    """A graph where there is one, else the model by its weights."""
    if graph := graph_in(directory):
        from permafrost.deployment.graph_model import load_graph

        return load_graph(graph, load_config(str(directory)), threads=threads)
    if hasattr(load_config(str(directory)), "quantization_config"):
        from permafrost.deployment.stock_model import load_stock_model

        return load_stock_model(directory)
    bidirectional = description["attention"] == "bidirectional"
    window, trunk = description["max_length"], description.get("trunk")
    if trunk is None and (causal := description.get("causal_blocks")):
        trunk = {"depth": causal}
    return load_model(directory, task, trunk, bidirectional=bidirectional, window=window)


def load_model(
    directory: Path, task: Task, trunk: Mapping[str, Any] | None, *, bidirectional: bool, window: int
) -> GPT2WithHead:
    """The trained model, in eval mode, cut where it was trained: what lies below may be stored."""
    from safetensors.torch import load_file

    backbone = load_backbone(str(directory), load_config(str(directory)), pretrained=True)
    head = task.build_head(backbone)
    weights = load_file(directory / "model.safetensors")
    if isinstance(head, PooledHead):
        own = load_file(directory / OWN_WEIGHTS) if (directory / OWN_WEIGHTS).exists() else {}
        head.load_state_dict({"score.weight": weights["score.weight"], **own})
    elif isinstance(head, TokenHead):
        head.classifier.load_state_dict({name: weights[f"classifier.{name}"] for name in ("weight", "bias")})
    cut = Freezing(embeddings=trunk is not None, blocks=trunk["depth"] if trunk else 0)
    return GPT2WithHead(backbone, head, cut, bidirectional=bidirectional, window=window).eval()


def batches(split: TokenizedSplit, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """All rows of the split, or those given."""
    rows = np.arange(len(split)) if rows is None else rows
    for chosen in ordered_batches(split.lengths[rows], TokenBatching(max_tokens=EVALUATION_TOKENS)):
        yield padded_batch(split, rows[chosen])


def stored_batches(
    split: TokenizedSplit, known: Sequence[tuple[ActivationStore, np.ndarray, np.ndarray]]
) -> Iterator[Batch]:
    """The rows of the split that are stored, with what is stored of them."""
    for store, rows, positions in known:
        where = dict(zip(rows.tolist(), positions.tolist(), strict=True))
        for batch in batches(split, rows):
            states = store.padded(np.array([where[row] for row in batch.row_ids.tolist()]))
            yield batch._replace(trunk_states=states)
