"""A trained model as a Hugging Face directory that plain Transformers loads."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from permafrost.data.problems import LEAKS_ALLOWED
from permafrost.data.tokens.tokenization import with_end_of_text, without_end_of_text
from permafrost.data.transforms.cleaning import Steps
from permafrost.errors import ConfigError
from permafrost.model.decoding import Decoding, options_of
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead, TokenHead
from permafrost.model.surgery import keep_heads_
from permafrost.storage.atomic import complete_or_absent
from permafrost.storage.checksums import check_files, write_checksums
from permafrost.tasks.base import Encoding, Task, Writes, classes_of
from permafrost.tasks.prompts import SOURCE, TARGET
from permafrost.tasks.turns import SPEAKER, TURN, marker_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, GPT2Config, PreTrainedModel, PreTrainedTokenizerBase

PROBLEM_TYPES = {  # Transformers' names, by which its pipeline chooses softmax, sigmoid or neither
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
OWN_WEIGHTS = "head.safetensors"  # of a head that Transformers does not have
DESCRIPTION = "permafrost.json"  # what Transformers' own files cannot say: task, scale, window, pooling


def export_model(
    model: GPT2WithHead,
    task: Task,
    encoding: Encoding,
    directory: Path,
    card: str,
    trunk: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
) -> None:
    """Write weights (safetensors) with their checksums, config, tokenizer, a card, and what binds the task again.

    `trunk` says under which key the frozen part's output was stored, `files` how the run was told to read its own.
    """
    pooled = isinstance(model.head, PooledHead)
    tokenizer = with_end_of_text(encoding.tokenizer) if pooled else without_end_of_text(encoding.tokenizer)
    tokenizer.model_max_length = encoding.max_length
    stock = to_transformers(model, task)
    stock.config.pad_token_id = tokenizer.pad_token_id
    if isinstance(task, Writes):
        stock.generation_config = generation_config(task.decoding, tokenizer)  # type: ignore[attr-defined]
    stock.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if isinstance(model.head, PooledHead) and (own := weights_of_its_own(model.head)):
        from safetensors.torch import save_file

        save_file(own, directory / OWN_WEIGHTS)
    attention = "bidirectional" if model.bidirectional else "causal"
    description = task.describe() | {"max_length": encoding.max_length, "max_windows": encoding.max_windows}
    description |= {"trunk": trunk, "attention": attention, "cleaning": dict(encoding.cleaning)}
    description |= {"columns": {}, "format": None} | dict(files or {})
    description["causal_blocks"] = model.freezing.blocks if model.bidirectional else None  # what is frozen looks back
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    (directory / "README.md").write_text(card, "utf-8")
    write_checksums(directory)


def weights_of_its_own(head: PooledHead) -> dict[str, torch.Tensor]:
    """Those that GPT2ForSequenceClassification has no place for."""
    return {name: weight for name, weight in head.state_dict().items() if name != "score.weight"}


def generation_config(decoding: Decoding, tokenizer: "PreTrainedTokenizerBase") -> "GenerationConfig":
    """By which `generate` and Transformers' pipelines write as the run does, unless they are told otherwise."""
    from transformers import GenerationConfig

    chosen = {name: value for name, value in options_of(decoding).items() if value is not None}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return GenerationConfig(**chosen, **ends)


def to_transformers(model: GPT2WithHead, task: Task) -> "PreTrainedModel":
    """The stock class over the same tensors, not copies: of those for sequences, for tokens and for language models."""
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    config = GPT2Config(**model.transformer.config.to_dict())
    if isinstance(model.head, TokenHead):
        return to_token_classification(model, task, config)
    if not isinstance(model.head, PooledHead):
        stock = _empty(GPT2LMHeadModel, config)
        _share(stock.transformer, model.transformer)
        stock.tie_weights()
        return stock.eval()
    labels = getattr(task, "labels", None)
    config.num_labels = model.head.score.out_features
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = PROBLEM_TYPES.get(task.name, "regression")  # type: ignore[assignment]
    stock = _empty(GPT2ForSequenceClassification, config)
    _share(stock.transformer, model.transformer)
    stock.score.load_state_dict({"weight": model.head.score.weight.detach()}, assign=True)
    return stock.eval()


def to_token_classification(model: GPT2WithHead, task: Task, config: "GPT2Config") -> "PreTrainedModel":
    from transformers import GPT2ForTokenClassification

    tags = classes_of(task)
    config.num_labels, config.id2label = len(tags), dict(enumerate(tags))
    config.label2id = {tag: index for index, tag in enumerate(tags)}
    stock = _empty(GPT2ForTokenClassification, config)
    _share(stock.transformer, model.transformer)
    _share(stock.classifier, model.head.classifier)
    return stock.eval()


def _empty(kind: type["PreTrainedModel"], config: "GPT2Config") -> Any:
    """Without memory for its weights, and without drawing them: at GPT-2's size that took seconds and 500 MB."""
    with torch.device("meta"):
        stock: Any = kind(config)
        if hasattr(config, "kept_heads"):
            keep_heads_(stock.transformer, [torch.arange(config.kept_heads)] * config.n_layer)
    return stock


def _share(stock: torch.nn.Module, trained: torch.nn.Module) -> None:
    stock.load_state_dict(trained.state_dict(), assign=True)


def copy_model(source: Path, directory: Path, dtype: str) -> None:
    """A copy of an exported model with its weights in another type; float16 and bfloat16 halve the file.

    Raises:
        ConfigError: the directory is not empty, `dtype` is no floating-point type, or the weights are quantized.
    """
    from safetensors.torch import load_file, save_file

    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"--dtype {dtype}: float32, float16 or bfloat16")
    check_new(directory)
    check_files(source)
    check_whole(source)
    copy_files(files_of(source), directory)
    for path in directory.glob("*.safetensors"):
        weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n", "utf-8")
    write_checksums(directory)


def copy_onnx(source: Path, directory: Path) -> None:
    """An exported model with an ONNX graph in place of its weights, checked against them.

    Raises:
        ConfigError: the directory is not empty, the head is none that a graph can have, or the weights are quantized.
    """
    from permafrost.deployment.onnx_graph import export_onnx
    from permafrost.deployment.predictor import Predictor
    from permafrost.deployment.sessions import ONNX

    check_new(directory)
    check_whole(source)
    model = Predictor(source).model
    with complete_or_absent(directory / ONNX) as partial:
        export_onnx(model, partial)
    copy_files([path for path in files_of(source) if path.suffix != ".safetensors"], directory)
    description = json.loads((directory / DESCRIPTION).read_text("utf-8"))
    (directory / DESCRIPTION).write_text(json.dumps(description | {"trunk": None}, indent=2) + "\n", "utf-8")
    write_checksums(directory)


def files_of(source: Path) -> list[Path]:
    """Without directories: what is exported may lie in one of them."""
    return [path for path in source.iterdir() if path.is_file()]


def copy_files(paths: Iterable[Path], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copy2(path, directory)


def check_whole(source: Path) -> None:
    """Raises ConfigError where the model is a graph already, or its weights are of fewer bits."""
    from permafrost.deployment.sessions import graph_in

    graph, config = graph_in(source), json.loads((source / "config.json").read_text("utf-8"))
    if graph or "quantization_config" in config:
        what = f"its model is {graph.name}" if graph else "its weights are quantized"
        raise ConfigError(f"{source}: {what}, and can be copied as it is; to export, give the run that it was made of")


def check_new(directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; give a new directory")


def model_card(settings: Mapping[str, Any], scores: Mapping[str, float], description: Mapping[str, Any]) -> str:
    """The README of an exported model: what it was trained on, what it reached, how to load it."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    ours = own_part(settings["model"]["attention"], description)
    loading = (
        f"{ours}, which stock Transformers classes do not: load it with\n"
        '`from permafrost.deployment.predictor import Predictor; Predictor("THIS_DIRECTORY")`.'
        if ours
        else _loading(description)
    )
    leaks = f" {LEAKS_ALLOWED}." if settings["data"]["allow_leaks"] else ""
    return (
        f"# {settings['task']['name']} on {settings['data']['name']}, fine-tuned from {settings['model']['name']}\n\n"
        f"Test: {metrics}.{leaks}\n\n{loading}\n{_cleaning(settings['cleaning'])}"
    )


def own_part(attention: str, description: Mapping[str, Any]) -> str | None:
    """What the model does and Transformers' classes do not; None where they load it as it is."""
    if attention == "bidirectional":
        return "Its trained blocks see the whole row"
    pooling = description.get("pooling", "last")
    if pooling == "pair":
        return "It reads the two texts of a pair apart"
    return None if pooling == "last" else f"The head pools by `{pooling}`"


def _cleaning(settings: Mapping[str, Any]) -> str:
    steps = [step.name for step in fields(Steps) if settings[step.name]]
    if not steps:
        return ""
    return (
        f"\nIts training texts were cleaned ({', '.join(steps)}), and `permafrost predict` and `serve` clean what they "
        "are asked.\nPlain Transformers does not: give it clean texts.\n"
    )


def _loading(description: Mapping[str, Any]) -> str:
    pipeline, said = PIPELINES.get(description["kind"], TEXT_CLASSIFICATION)
    loading = f"```python\ntransformers.pipeline({pipeline!r}, model='THIS_DIRECTORY')\n```\n"
    return loading + said(description) if said else loading.rstrip()


def _of_target_units(description: Mapping[str, Any]) -> str:
    scale = description["scale"]
    return f"Its score is scaled; in the target's units it is `score * {scale['unit']:g} + {scale['shift']:g}`."


def _prompt_of_template(description: Mapping[str, Any]) -> str:
    before, _, rest = description["template"].partition(SOURCE)
    return f"Ask it by `{before + ' TEXT' + rest.removesuffix(TARGET)!r}`; it decodes as the run did."


def _prompt_of_dialogue(description: Mapping[str, Any]) -> str:
    asks, answers = (
        marker_of(description.get("turn", TURN), speaker)
        for speaker in (*description["speakers"], *description["speakers"])[:2]
    )
    return (
        f"Ask it by `{asks + ' TEXT<end of text>' + answers!r}`, where `<end of text>`, which stands after each turn,\n"
        "is the tokenizer's `eos_token`; it decodes as the run did."
    )


def _turn_of_acts(description: Mapping[str, Any]) -> str:
    marker = marker_of(description.get("turn", TURN), SPEAKER)
    return f"Write each turn as `{marker + ' TEXT<end of text>'!r}`; its label is the one at the end of text after it."


TEXT_CLASSIFICATION: tuple[str, Callable[[Mapping[str, Any]], str] | None] = ("text-classification", None)
PIPELINES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str] | None]] = {  # by the task's kind
    "language_modeling.LanguageModeling": ("text-generation", None),
    "generation.Generation": ("text-generation", _prompt_of_template),
    "dialogue.Dialogue": ("text-generation", _prompt_of_dialogue),
    "tagging.Tagging": ("token-classification", lambda _: "A word's tag is the one at its last sub-token."),
    "acts.Acts": ("token-classification", _turn_of_acts),
    "regression.Regression": ("text-classification", _of_target_units),
}
