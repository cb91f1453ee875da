"""What a configuration may say: types and ranges of our own keys.

The YAML files under conf/ hold the defaults; this schema holds none, so that each has one place.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from permafrost.safety.building import Node


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


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
    turn: str
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
    pooling: Literal["last", "mean", "attention", "windows", "pair"]
    init: Literal["normal", "xavier", "he"]


class FreezingSection(Section):
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
