"""From settings to what a run begins with: data, models, stores. Heavy imports wait until they are needed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from permafrost.errors import ConfigError
from permafrost.settings.preflight import architecture, model_source, right_context, window_length
from permafrost.settings.schema import Settings

if TYPE_CHECKING:
    import numpy as np
    from transformers import GPT2Model, PreTrainedTokenizerBase

    from permafrost.data.quality.card import Card
    from permafrost.data.rows import StoredRows
    from permafrost.data.tokens.tokenization import TokenizedSplit
    from permafrost.model.freezing import Freezing
    from permafrost.model.gpt2 import GPT2WithHead
    from permafrost.tasks.base import Encoding, Task
    from permafrost.training.store_worth import Reads
    from permafrost.training.trunk_pass import Stores, Wanted


def is_first_process() -> bool:
    """Whether this process speaks and writes for all; before the trainer is there to ask."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


CARD_ROWS = 2_000  # of each split, whose tokens the data card counts
console = Console(highlight=False, soft_wrap=True, quiet=not is_first_process())


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data of a run, bound to its task and tokenised."""

    task: "Task"
    encoding: "Encoding"
    rows: dict[str, "StoredRows"]
    splits: dict[str, "TokenizedSplit"]
    card: "Card"
    quarantined: Sequence[Mapping[str, Any]] = ()
    row_weights: "np.ndarray | None" = None  # (training rows,), how often each stands in an epoch


def seed_everything(seed: int) -> None:
    import lightning.pytorch as lightning

    from permafrost.model.backbone import quiet_transformers
    from permafrost.training.hardware import keep_few_kernels, keep_freed_buffers, reset_peak_memory, use_all_cores
    from permafrost.training.trainer import quiet_lightning

    reset_peak_memory()
    use_all_cores()
    keep_freed_buffers()
    keep_few_kernels()
    lightning.seed_everything(seed, workers=True, verbose=False)
    quiet_transformers()
    quiet_lightning()


def prepare(settings: Settings) -> Prepared:
    """Read the rows, bind the task to them, tokenise; say what was found."""
    from permafrost.data.fields.by_role import Notes
    from permafrost.data.quality.card import brief_lines, token_lengths
    from permafrost.data.transforms.augmentation import augmented
    from permafrost.data.transforms.balance import row_weights
    from permafrost.runs.reading import card_of, read_splits
    from permafrost.runs.weighing import worth_of
    from permafrost.runs.writers import writer_of
    from permafrost.tasks.binding import kind_of
    from permafrost.tasks.preparation import encode_splits, first_row_shown

    console.print(f"[bold]{settings.task.name}[/] on {settings.data.name} with {settings.model.name}")
    notes, cache_dir = Notes(), Path(settings.data.cache_dir)
    kind = kind_of(settings.task.kind)
    rows = read_splits(settings, kind.roles, notes)
    options = settings.task.model_dump() | settings.head.model_dump()
    options |= {"right_context": right_context(settings), "window": window_length(settings)}
    task = kind.from_rows(rows, options)
    encoding = make_encoding(settings, rows["train"])
    tokenizer = encoding.tokenizer.backend_tokenizer
    lengths = {name: token_lengths(of_split, tokenizer, CARD_ROWS) for name, of_split in rows.items()}
    card = card_of(rows, notes, lengths, window_length(settings))
    say([*notes.lines, *brief_lines(card)])  # here, since copies may be written by a model, which takes its time
    said = len(notes.lines)
    how = settings.augmentation.model_dump(exclude={"there", "back"})
    rows["train"] = augmented(rows, **how, seed=settings.seed, notes=notes, rewrite=writer_of(settings))
    splits = encode_splits(task, rows, encoding, cache_dir)
    for name, split in splits.items():
        cut = f", {split.truncated_rows:,} of them cut: {split.share_read:.1%} read" if split.truncated_rows else ""
        notes.add(f"{name}: {len(split):,} rows, {int(split.lengths.sum()):,} tokens{cut}")
    say([*notes.lines[said:], *first_row_shown(splits["train"], encoding.tokenizer)])
    return Prepared(
        task=task,
        encoding=encoding,
        rows=rows,
        splits=splits,
        card=card | {"share_read": {name: round(split.share_read, 4) for name, split in splits.items()}},
        quarantined=notes.quarantined,
        row_weights=row_weights(splits["train"], settings.data.balance, worth_of(settings, rows["train"], notes)),
    )


def say(lines: Sequence[str]) -> None:
    for line in lines:
        console.print(f"  {line}", markup=False)


def make_encoding(settings: Settings, train: "StoredRows") -> "Encoding":
    """The tokenizer, the model's own or trained on the training texts, and the longest row in tokens."""
    from permafrost.tasks.base import Encoding
    from permafrost.tasks.preparation import load_tokenizer, trained_tokenizer

    config = architecture(settings)
    if settings.model.tokenizer == "train":
        cache_dir = Path(settings.data.cache_dir)
        tokenizer = trained_tokenizer(train, config.vocab_size, config.n_positions, cache_dir)
    else:
        tokenizer = load_tokenizer(settings.model.tokenizer or model_source(settings))
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"model.tokenizer={settings.model.tokenizer} has {len(tokenizer):,} tokens, and {settings.model.name} "
            f"knows {config.vocab_size:,}; leave it out, and the model's own is taken"
        )
    return Encoding(
        tokenizer=tokenizer,
        max_length=window_length(settings),
        max_windows=settings.data.max_windows,
        cleaning=settings.cleaning.steps(),
    )


def make_models(settings: Settings, prepared: Mapping[str, Prepared]) -> dict[str, "GPT2WithHead"]:
    """One for each part: heads of their own over one trunk, and over one branch unless those are separate."""
    from permafrost.model.backbone import load_backbone
    from permafrost.model.freezing import Freezing
    from permafrost.model.gpt2 import GPT2WithHead
    from permafrost.model.several import backbone_for_another

    config, tokenizer = architecture(settings), next(iter(prepared.values())).encoding.tokenizer
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    backbone = load_backbone(model_source(settings), config, pretrained=settings.model.init == "pretrained")
    if settings.model.tokenizer and settings.model.init == "pretrained":
        read_by_another_(backbone, settings, tokenizer)
    blocks = config.n_layer if settings.freezing.blocks == "all" else settings.freezing.blocks
    embeddings = blocks > 0 if settings.freezing.embeddings == "with_blocks" else settings.freezing.embeddings
    freezing = Freezing(embeddings=embeddings, blocks=blocks, final_norm=settings.freezing.final_norm)
    models: dict[str, GPT2WithHead] = {}
    for name, of_part in settings.by_part().items():
        own = backbone_for_another(backbone, blocks, settings.task.branches) if models else backbone
        models[name] = GPT2WithHead(
            own,
            prepared[name].task.build_head(own),
            freezing,
            bidirectional=settings.model.attention == "bidirectional",
            window=window_length(of_part),
        )
    return models


def read_by_another_(backbone: "GPT2Model", settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> None:
    from permafrost.model.vocabulary import pieces_of, read_by_
    from permafrost.tasks.preparation import load_tokenizer

    own, other = load_tokenizer(model_source(settings)).backend_tokenizer, tokenizer.backend_tokenizer
    pieces = pieces_of(own, other)
    read_by_(backbone, pieces)
    if split := sum(len(of_token) > 1 for of_token in pieces):
        new = f"{split:,} of {len(pieces):,} tokens are new to {settings.model.name}"
        console.print(f"  {new}, and begin as the mean of their pieces")


def open_stores(
    settings: Settings,
    modes: Mapping[str, Any],
    prepared: Mapping[str, Prepared],
    models: Mapping[str, "GPT2WithHead"],
    *,
    in_sweep: bool,
) -> dict[str, "Stores"]:
    """Of each part what is kept of the frozen part's output; nothing where nothing is frozen, or its mode is `off`."""
    from permafrost.training import trunk_pass

    freezing, precision = next(iter(models.values())).freezing, precision_of(settings)  # of all parts the same
    stores = {name: trunk_pass.Stores() for name in models}
    asked = {name: mode for name, mode in modes.items() if mode != "off"}
    nothing_frozen = not freezing.embeddings and not freezing.blocks
    if not asked or (nothing_frozen and "on" not in asked.values()):
        return stores
    if obstacle := no_fixed_trunk(freezing, precision):
        console.print(f"  store off: {obstacle}")
        return stores
    wanted = {name: what_to_store(settings, mode, prepared[name], models[name]) for name, mode in asked.items()}
    reads = reads_to_come(settings, prepared, in_sweep=in_sweep) if "auto" in asked.values() else {}
    return stores | trunk_pass.open_stores(wanted, reads=reads, say=lambda line: console.print(f"  {line}"))


def what_to_store(settings: Settings, mode: Any, prepared: Prepared, model: "GPT2WithHead") -> "Wanted":
    from permafrost.tasks.preparation import tokenizer_fingerprint
    from permafrost.training import trunk_pass
    from permafrost.training.hardware import resolve_device

    device, section = resolve_device(settings.trainer.accelerator), settings.store
    return trunk_pass.what_to_store(
        trunk_pass.FrozenPart(model, name=settings.model.name, precision=precision_of(settings), device=device),
        prepared.splits,
        trunk_pass.StoreOptions(mode=mode, directory=Path(section.dir), dtype=section.dtype, max_gb=section.max_gb),
        tokenizer=tokenizer_fingerprint(prepared.encoding.tokenizer),
    )


def reads_to_come(settings: Settings, prepared: Mapping[str, Prepared], *, in_sweep: bool) -> dict[str, "Reads"]:
    """Of each part; a sweep's trials read on."""
    from permafrost.runs.fitting import make_data_module
    from permafrost.training.store_worth import SWEEP_TRIALS, Reads

    data, options = make_data_module(settings, prepared, {}), settings.trainer
    reads = data.reads(options.max_epochs, options.max_steps, options.val_check_interval)
    runs = SWEEP_TRIALS if in_sweep else 1
    return {name: Reads(of_split=of_part, batching=data.batching, runs=runs) for name, of_part in reads.items()}


def no_fixed_trunk(freezing: "Freezing", precision: str) -> str | None:
    """Why the output of what is frozen would not be the same in each epoch, or not that of the stored weights."""
    if not freezing.embeddings and not freezing.blocks:
        return "nothing is frozen (freezing.blocks=N)"
    if not freezing.embeddings:
        return "the embeddings below the frozen blocks are trained; freezing.embeddings=true freezes them"
    if precision == "bf16-true":
        return "with trainer.precision=bf16-true the frozen weights are rounded first"
    return None


def precision_of(settings: Settings) -> str:
    """The one that the frozen part and the trainer share."""
    from permafrost.training.hardware import resolve_precision

    return resolve_precision(settings.trainer.precision, settings.trainer.accelerator)
