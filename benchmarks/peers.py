"""What others run, each at its best: python benchmarks/peers.py trainer --model DIR --train CSV --validation CSV

Ends with one line of JSON: seconds by stage and epoch, peak memory, tokens and metrics. Starts from the same files and
weights as `python train.py`, and trains the same rows: each ends with the end-of-text token. `trainer` needs
`pip install -e '.[bench]'`.
"""

import argparse
import csv
import json
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
    set_seed,
)

from permafrost.training.hardware import keep_freed_buffers, use_all_cores

BYTE_0 = "Ā"  # stands for no printed character: a pad token for a tokenizer that has none of its own
Rows = Sequence[Mapping[str, str]]  # `text` and, for classification, `label`


def main() -> None:
    options = read_options()
    use_all_cores()  # both as train.py does
    keep_freed_buffers()
    set_seed(options.seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    measured = {"trainer": trainer, "tutorial": tutorial}[options.peer](options)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"peer": options.peer, **measured, "memory_mb": round(memory_mb, 1)}))


def trainer(options: argparse.Namespace) -> dict[str, Any]:
    """Transformers' Trainer: frozen by `requires_grad`, padded to the longest row, rows of like length together."""
    ends = {"start": time.perf_counter()}
    is_classifier = options.task == "classification"
    tokenizer = load_tokenizer(options.model, padding=True)
    encode = encode_classified if is_classifier else encode_windows
    splits = encode(read_splits(options), tokenizer, options.max_length)
    num_labels = 1 + max(max(rows["labels"]) for rows in splits.values()) if is_classifier else None
    model = load_model(options, tokenizer, num_labels)
    freeze_(model, options.frozen_blocks)
    epochs = EpochSeconds()
    by_task: dict[bool, dict[str, Any]] = {
        True: {"data_collator": DataCollatorWithPadding(tokenizer), "compute_metrics": accuracy},
        False: {"data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False)},
    }
    run = Trainer(
        model=model,
        args=training_arguments(options),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        callbacks=[epochs],
        **by_task[is_classifier],
    )
    ends["setup"] = time.perf_counter()
    run.train()
    ends["fit"] = time.perf_counter()
    test = run.evaluate(splits["test"], metric_key_prefix="test") if "test" in splits else {}
    ends["test"] = time.perf_counter()
    metric, better = ("accuracy", max) if is_classifier else ("loss", min)
    return {
        **stage_seconds(ends),
        "epoch_seconds": epochs.whole,
        "training_epoch_seconds": epochs.training,
        "tokens_trained": sum(splits["train"]["length"]) * options.epochs,
        "validation": {metric: better(scores[f"eval_{metric}"] for scores in epochs.scores)},
        "test": {metric: test.get(f"test_{metric}")},
    }


def training_arguments(options: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir="outputs/benchmarks/trainer",
        seed=options.seed,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_rows,
        per_device_eval_batch_size=options.batch_rows,
        train_sampling_strategy="group_by_length",  # of evaluation too
        optim="adamw_torch_fused",
        learning_rate=options.lr,
        weight_decay=options.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,  # a share
        label_smoothing_factor=options.label_smoothing,
        max_grad_norm=1.0,
        bf16=options.precision == "bf16",
        torch_compile=options.compile,
        eval_strategy="epoch",
        prediction_loss_only=options.task == "language_modeling",  # else it gathers the vocabulary's logits
        save_strategy="no",  # to its advantage: train.py writes two checkpoints an epoch
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )


class EpochSeconds(TrainerCallback):
    """Seconds of each epoch, `whole` with its evaluation and `training` without; and the scores."""

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.training: list[float] = []
        self.scores: list[Mapping[str, float]] = []

    def on_epoch_begin(self, *arguments: Any, **named: Any) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, *arguments: Any, **named: Any) -> None:
        self.training.append(time.perf_counter() - self.started)

    def on_evaluate(self, *arguments: Any, **named: Any) -> None:
        if len(self.whole) < len(self.training):  # the evaluation on test is no epoch's
            self.whole.append(time.perf_counter() - self.started)
            self.scores.append(named["metrics"])


def tutorial(options: argparse.Namespace) -> dict[str, Any]:
    """The script of the common tutorials: all rows padded to 512 by eos, all parameters trained, a plain loop."""
    ends = {"start": time.perf_counter()}
    tokenizer = load_tokenizer(options.model, padding=False)
    tokenizer.pad_token = tokenizer.eos_token
    splits = {name: padded(rows, tokenizer, options.max_length) for name, rows in read_splits(options).items()}
    model = load_model(options, tokenizer, int(splits["train"].tensors[2].max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    ends["setup"] = time.perf_counter()
    steps: dict[str, list[float]] = {"train": [], "validation": []}
    for _ in range(options.epochs):
        train = DataLoader(splits["train"], options.batch_rows, shuffle=True)
        steps["train"] += train_epoch(model, optimizer, train)
        score, seconds = evaluate(model, DataLoader(splits["validation"], options.batch_rows))
        steps["validation"] += seconds
    ends["fit"] = time.perf_counter()
    return {
        **stage_seconds(ends),
        # every step computes the same shapes, so that a row's seconds hold for any number of rows
        **{f"{split}_row_seconds": statistics.median(times) / options.batch_rows for split, times in steps.items()},
        "tokens_trained": int(splits["train"].tensors[1].sum()) * options.epochs,
        "validation": {"accuracy": score},
        "test": {"accuracy": None},
    }


def train_epoch(model: Any, optimizer: torch.optim.Optimizer, loader: DataLoader) -> list[float]:
    """Seconds of each step."""
    model.train()
    seconds = []
    for input_ids, attention_mask, labels in loader:
        start = time.perf_counter()
        model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds


@torch.no_grad()
def evaluate(model: Any, loader: DataLoader) -> tuple[float, list[float]]:
    """Accuracy, and the seconds of each step."""
    model.eval()
    right, seconds = 0, []
    for input_ids, attention_mask, labels in loader:
        start = time.perf_counter()
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
        right += int((logits.argmax(-1) == labels).sum())
        seconds.append(time.perf_counter() - start)
    return right / len(loader.dataset), seconds  # type: ignore[arg-type]


def padded(rows: Rows, tokenizer: Any, length: int) -> TensorDataset:
    texts = [row["text"] for row in rows]
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    names = sorted({row["label"] for row in rows})
    labels = torch.tensor([names.index(row["label"]) for row in rows])
    return TensorDataset(encoded["input_ids"], encoded["attention_mask"], labels)


def load_tokenizer(source: str, *, padding: bool) -> Any:
    """With `padding`, its own pad token, or else byte 0: were it eos, a row's last token would pass for padding."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    if padding and tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = BYTE_0
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(options: argparse.Namespace, tokenizer: Any, num_labels: int | None) -> Any:
    settings = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), options.dropout)
    settings |= {"pad_token_id": tokenizer.pad_token_id, "use_cache": False, "dtype": torch.float32}
    settings["attn_implementation"] = options.attention
    if options.fused_gelu:  # GPT-2's activation by one kernel in place of seven
        settings["activation_function"] = "gelu_pytorch_tanh"
    if num_labels is None:
        return AutoModelForCausalLM.from_pretrained(options.model, **settings)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=num_labels, **settings)
    if options.head_init == "xavier":
        torch.nn.init.xavier_uniform_(model.score.weight)
    return model


def freeze_(model: Any, blocks: int) -> None:
    """Embeddings and the first blocks; autograd then stops above them."""
    body = model.transformer
    for module in [body.wte, body.wpe, *body.h[:blocks]] if blocks else []:
        module.requires_grad_(False)


def read_splits(options: argparse.Namespace) -> dict[str, Rows]:
    limits = {"train": options.max_train_rows, "validation": options.max_validation_rows, "test": options.max_test_rows}
    splits: dict[str, Rows] = {}
    for split, limit in limits.items():
        if path := getattr(options, split):
            with open(path, encoding="utf-8", newline="") as file:
                splits[split] = list(csv.DictReader(file))[: limit or None]
    return splits


def encode_classified(splits: Mapping[str, Rows], tokenizer: Any, limit: int) -> dict[str, Dataset]:
    names = label_names(splits)
    encoded = {}
    for split, rows in splits.items():
        texts, labels = [row["text"] for row in rows], [names.index(row["label"]) for row in rows]
        ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=limit - 1)["input_ids"]
        encoded[split] = as_dataset([[*row, tokenizer.eos_token_id] for row in ids], labels=labels)
    return encoded


def label_names(splits: Mapping[str, Rows]) -> list[str]:
    """Of all splits: the first rows of the training split may lack some."""
    return sorted({row["label"] for rows in splits.values() for row in rows})


def encode_windows(splits: Mapping[str, Rows], tokenizer: Any, limit: int) -> dict[str, Dataset]:
    """Texts end to end, each followed by end of text, cut into windows: the very rows of task=language_modeling."""
    encoded = {}
    for split, rows in splits.items():
        ids = tokenizer([row["text"] for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
        stream = [token for row in ids for token in (*row, tokenizer.eos_token_id)]
        windows = [stream[start : start + limit] for start in range(0, len(stream), limit)]
        encoded[split] = as_dataset([window for window in windows if len(window) > 1])
    return encoded


def as_dataset(ids: list[list[int]], **columns: list[int]) -> Dataset:
    return Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids], **columns})


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def stage_seconds(ends: Mapping[str, float]) -> dict[str, float]:
    """From the second at which each stage ended, the first being the start."""
    seconds = {f"{stage}_seconds": ends[stage] - ends[before] for before, stage in pairwise(ends)}
    return seconds | {"total_seconds": sum(seconds.values())}


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["trainer", "tutorial"])
    for name in ("model", "train", "validation"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--test")
    numbers: dict[str, float] = {"epochs": 3, "batch-rows": 8, "max-length": 512, "frozen-blocks": 0, "seed": 0}
    numbers |= {"lr": 1e-3, "weight-decay": 0.01, "warmup": 0.1, "dropout": 0.1, "label-smoothing": 0.0}
    numbers |= {"max-train-rows": 0, "max-validation-rows": 0, "max-test-rows": 0}  # the first so many; 0 is all
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    choices = {"task": ("classification", "language_modeling"), "head-init": ("normal", "xavier")}
    choices |= {"precision": ("fp32", "bf16"), "attention": ("sdpa", "eager")}
    for name, names in choices.items():
        parser.add_argument(f"--{name}", choices=names, default=names[0])
    for name in ("compile", "fused-gelu"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
