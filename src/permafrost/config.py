"""What a configuration may say: types and ranges of our own keys, and what must agree before a model is loaded.

The YAML files under conf/ hold the defaults; this schema holds none, so that each has one place.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from permafrost.building import Node, check_node
from permafrost.errors import ConfigError, nearest


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Checked = TypeVar("Checked", bound=Section)
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class DecodingSection(Section):
    max_new_tokens: Count
    num_beams: Count
    length_penalty: float
    do_sample: bool
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(ge=0)]
    repetition_penalty: Annotated[float, Field(gt=0)]
    no_repeat_ngram_size: Annotated[int, Field(ge=0)]


class TaskSection(Section):
    name: str
    kind: str
    monitor: str
    scaling: Literal["standard", "min_max", "none"]
    labels: list[str] | None
    template: str
    replies: str
    parses: bool
    parts: dict[str, str] | None
    mixing_temperature: Annotated[float, Field(gt=0)]
    branches: Literal["shared", "separate"]
    validation_generations: Annotated[int, Field(ge=0)]
    decoding: DecodingSection


class ColumnsSection(Section):
    text: str | list[str] | None
    label: str | None
    target: str | None
    source: str | None
    turns: str | None
    act: str | None
    token: str | int | None
    tag: str | int | None


class HubSection(Section):
    name: str | None
    subset: str | None
    train: str
    validation: str | None
    test: str | None


class IngredientSection(Section):
    train: str | list[str]
    weight: Annotated[float, Field(gt=0)]


class DataSection(Section):
    name: str
    source: Literal["files", "hub", "mixture", "pydocs", "docstrings"]
    mixture: dict[str, IngredientSection] | None
    train: str | list[str] | None
    validation: str | list[str] | None
    test: str | list[str] | None
    format: Literal["csv", "tsv", "jsonl", "json", "parquet", "txt", "conll", "iob2"] | None
    hub: HubSection
    columns: ColumnsSection
    split_seed: int
    validation_fraction: Fraction
    test_fraction: Fraction
    max_train_rows: Count | None
    max_rows_per_label: Count | None
    on_bad_rows: Literal["error", "quarantine"]
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)]
    allow_leaks: bool
    leak_similarity: Annotated[float, Field(ge=0.6, le=1)]
    balance: Literal["none", "weights", "sampling"]
    max_length: Annotated[int, Field(ge=2)] | None
    max_windows: Count
    max_tokens_per_batch: Annotated[int, Field(ge=2)]
    batch_size: Count | None
    auto_batch: bool
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)]
    cache_dir: str


class MissingSection(Section):
    text: Literal["drop", "constant"]
    label: Literal["error", "drop", "most_frequent", "constant"]
    target: Literal["error", "drop", "median", "constant"]
    constant: str | int | float | None


class CleaningSection(Section):
    encoding: bool
    html: bool
    unicode: Literal["NFC", "NFKC"] | None
    control: bool
    boilerplate: list[str]
    whitespace: bool
    missing: MissingSection
    duplicates: Literal["keep", "exact", "near"]
    wrong_labels: Literal["none", "report", "drop", "weigh"]

    def steps(self) -> dict[str, Any]:
        """Those that change texts: what is done again to what a model is asked."""
        return self.model_dump(exclude={"missing", "duplicates", "wrong_labels"})


class AugmentationSection(Section):
    kind: Literal["none", "eda", "aeda", "typos", "mentions", "contextual", "back_translation"]
    copies: Count
    share: Annotated[float, Field(gt=0, le=1)]
    there: str | None
    back: str | None


class ArchitectureSection(Section):
    n_layer: Count
    n_embd: Count
    n_head: Count
    n_positions: Annotated[int, Field(ge=2)]
    vocab_size: Annotated[int, Field(ge=258)]  # 256 bytes and two special tokens
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu"]


class ModelSection(Section):
    name: str
    path: str | None
    init: Literal["pretrained", "random"]
    architecture: ArchitectureSection | None
    tokenizer: str | None
    dropout: Fraction
    attention: Literal["causal", "bidirectional"]
    compile: bool


class HeadSection(Section):
    pooling: Literal["last", "mean", "attention", "windows"]
    init: Literal["normal", "xavier", "he"]


class FreezingSection(Section):
    name: str
    embeddings: bool | Literal["with_blocks"]
    blocks: Annotated[int, Field(ge=0)] | Literal["all"]
    final_norm: bool
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)]


class StoreSection(Section):
    mode: Literal["auto", "on", "off"]
    dir: str
    dtype: Literal["float32", "float16", "bfloat16"]
    max_gb: Annotated[float, Field(gt=0)]


class TrainerSection(Section):
    accelerator: Literal["auto", "cpu", "gpu", "tpu"]
    devices: Literal["auto"] | Count
    num_nodes: Count
    strategy: Literal["auto", "ddp", "fsdp"]
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"]
    max_epochs: Count
    max_steps: Annotated[int, Field(ge=-1)]
    max_minutes: Annotated[float, Field(gt=0)] | None
    accumulate_grad_batches: Literal["epoch"] | Count
    gradient_clip_val: Annotated[float, Field(ge=0)] | None
    gradient_clip_algorithm: Literal["norm", "value"]
    val_check_interval: Annotated[float, Field(gt=0, le=1)] | Count
    log_every_n_steps: Count
    deterministic: bool
    requeue: bool


class PartSection(Section):
    task: TaskSection
    data: DataSection
    cleaning: CleaningSection
    augmentation: AugmentationSection
    head: HeadSection
    loss: Node


class DropSection(Section):
    share: Annotated[float, Field(gt=0, lt=1)]
    choose: Literal["influence", "evenly"]


class NarrowSection(Section):
    mlp: Fraction
    heads: Fraction
    choose: Literal["activation", "taylor"]


class SparsifySection(Section):
    method: Literal["magnitude", "wanda", "movement"]
    structure: Literal["unstructured", "2:4"]
    sparsity: Annotated[float, Field(gt=0, lt=1)]
    schedule: Literal["one_shot", "cubic"]


class QuantizeSection(Section):
    method: Literal["int8", "int4", "nf4"]
    aware: bool


class RecoverSection(Section):
    epochs: Annotated[int, Field(ge=0)]
    teacher: str | None
    alpha: Annotated[float, Field(ge=0, le=1)]
    temperature: Annotated[float, Field(gt=0)]
    hidden: Annotated[float, Field(ge=0)]
    answers: Literal["data", "teacher"]
    control: bool


class CompressionSection(Section):
    name: Annotated[str, Field(pattern=r"^\w[\w.,=+-]*$")]  # of a directory
    drop: DropSection | None
    narrow: NarrowSection | None
    sparsify: SparsifySection | None
    quantize: QuantizeSection | None
    recover: RecoverSection
    calibration_batches: Count
    threads: Count

    @property
    def takes_steps(self) -> bool:
        return any(part is not None for part in (self.drop, self.narrow, self.sparsify, self.quantize))

    @property
    def is_asked(self) -> bool:
        """By its name or by a step of its own."""
        return self.name != "none" or self.takes_steps or self.recover.epochs > 0

    @property
    def is_gradual(self) -> bool:
        """Whether what goes is chosen while it trains."""
        return self.sparsify is not None and self.sparsify.schedule == "cubic"


class Settings(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    resume: str
    resume_allow_changes: bool
    save_every: Count | Annotated[str, Field(pattern=r"^\d+(\.\d+)?(s|min|h)$")]
    init_from: str | None
    yardsticks: bool
    debug: bool
    task: TaskSection
    data: DataSection
    cleaning: CleaningSection
    augmentation: AugmentationSection
    model: ModelSection
    head: HeadSection
    freezing: FreezingSection
    store: StoreSection
    trainer: TrainerSection
    optimizer: Node
    scheduler: Node
    loss: Node
    parts: dict[Annotated[str, Field(pattern=r"^[a-z]\w*$")], PartSection]
    compression: CompressionSection
    callbacks: dict[str, Node | None]
    logger: dict[str, Node | None]

    def by_part(self) -> dict[str, "Settings"]:
        """Of several tasks each one's settings, as if it were trained alone; else these, under the name ""."""
        if not self.parts:
            return {"": self}
        own = {name: {key: getattr(part, key) for key in PartSection.model_fields} for name, part in self.parts.items()}
        return {name: self.model_copy(update=sections | {"parts": {}}) for name, sections in own.items()}


class DataSettings(Section):
    """What there is to know of a run before torch is imported."""

    seed: int
    task: TaskSection
    data: DataSection
    cleaning: CleaningSection
    model: ModelSection


def read_data_settings(cfg: DictConfig) -> DataSettings:
    """Of a whole configuration the part that says what the data are.

    Raises:
        ConfigError: as `read_settings`, for these sections.
    """
    return _validated(
        {name: value for name, value in _plain(cfg).items() if name in DataSettings.model_fields}, DataSettings
    )


def read_settings(cfg: DictConfig) -> Settings:
    """The whole configuration, checked against the schema and the signatures of all that it names.

    Raises:
        ConfigError: an unknown key at any depth, a wrong type, a value out of range, a target not allowed.
    """
    settings = _validated(_plain(cfg), Settings)
    for name in ("optimizer", "scheduler", "loss"):
        check_node(getattr(settings, name), name)
    for name, part in settings.parts.items():
        check_node(part.loss, f"parts.{name}.loss")
    for group in ("callbacks", "logger"):
        for name, node in getattr(settings, group).items():
            if node is not None:
                check_node(node, f"{group}.{name}")
    return settings


def _plain(cfg: DictConfig) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {error}".split("\n")[0]) from error


def _validated(plain: Mapping[str, Any], schema: type[Checked]) -> Checked:
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, schema) for problem in error.errors())) from None


def _explain(problem: Mapping[str, Any], schema: type[BaseModel]) -> str:
    path = [part for part in problem["loc"] if _is_key(part)]
    where = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{nearest(str(path[-1]), _known_keys(schema, path[:-1]))}"
    if problem["type"] == "missing":
        return f"missing key {where}"
    message = problem["msg"].replace("Input should be", "should be")
    return f"{where}={problem['input']!r}: {message}"


def _is_key(part: Any) -> bool:
    """Pydantic puts the branch of a union into the path, too: `literal['all']`, `constrained-int`."""
    return isinstance(part, int) or (
        isinstance(part, str) and part.isidentifier() and part not in {"int", "str", "float", "bool"}
    )


def _known_keys(schema: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        if part in schema.model_fields:  # else it is a name that the user gave: of a part, or of a mixture's rows
            schema = _section_in(schema.model_fields[part].annotation) or schema
    return list(schema.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds: itself, or in a mapping, or unless it is None."""
    if inner := get_args(annotation):
        return next(filter(None, map(_section_in, inner)), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def check_agreement(settings: Settings, num_blocks: int, metrics: Sequence[str]) -> None:
    """What no single key can tell: the depth fits the model, and what is monitored is logged."""
    if settings.freezing.blocks != "all" and settings.freezing.blocks > num_blocks:
        raise ConfigError(
            f"freezing.blocks={settings.freezing.blocks}, but {settings.model.name} has {num_blocks} blocks; "
            f"give 0 to {num_blocks}, or all"
        )
    check_monitor(settings.task, metrics)
    logged = ["train/loss", *(f"validation/{metric}" for metric in metrics)]
    for name, node in settings.callbacks.items():
        if node and node.get("monitor") is not None and node["monitor"] not in logged:
            raise ConfigError(
                f"callbacks.{name}.monitor={node['monitor']}: nothing logs it{nearest(node['monitor'], logged)}"
            )


def check_monitor(task: TaskSection, metrics: Sequence[str]) -> None:
    if task.monitor not in metrics:
        raise ConfigError(
            f"task.monitor={task.monitor}: task={task.name} logs no such metric{nearest(task.monitor, metrics)}"
        )
