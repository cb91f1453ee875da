"""What is wrong with a compression: found before anything is read where it can be, else before anything is trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from permafrost.errors import ConfigError
from permafrost.settings.preflight import check_buildable
from permafrost.settings.schema import CompressionSection, QuantizeSection, RecoverSection, Settings, SparsifySection

if TYPE_CHECKING:
    from permafrost.model.gpt2 import GPT2WithHead

# What recovery sets for itself (runs/finished.py).
OWN_WAY = {f"trainer.{key}" for key in ("max_epochs", "max_steps", "devices", "num_nodes", "strategy")}


def check(plan: CompressionSection, settings: Settings) -> None:
    """What can be found wrong before anything is read."""
    if not plan.takes_steps:
        raise ConfigError(f"compression={plan.name} changes nothing; give one of the options of conf/compression")
    if plan.name == "none":
        raise ConfigError("compression=none has steps of its own here; give them a name, as compression.name=mine")
    if settings.parts:
        raise ConfigError("a run of task=multi is compressed part by part: give each task a run of its own")
    if settings.model.attention == "bidirectional" and settings.freezing.blocks:
        raise ConfigError(
            "model.attention=bidirectional: the run's frozen blocks see what is to the left, and the others all; "
            "compressed is a run whose blocks are alike: train one with freezing.blocks=0"
        )
    if plan.sparsify:
        check_masks(plan, plan.sparsify)
    if plan.quantize:
        check_quantization(plan, plan.quantize, settings)
    check_lesson(plan.recover)
    check_buildable(settings)


def check_overrides(overrides: Sequence[str]) -> None:
    """Of a finished run: raises ConfigError for what its compression does in its own way, however it is set."""
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if key in OWN_WAY or key.split(".")[0] == "freezing":
            raise ConfigError(
                f"{override}: what is cut learns again as a whole, in this process, for compression.recover.epochs; "
                "set that, and leave this one out"
            )


def check_masks(plan: CompressionSection, asked: SparsifySection) -> None:
    if asked.method == "movement" and not plan.is_gradual:
        raise ConfigError(
            "compression.sparsify.method=movement goes by how weights move; give compression.sparsify.schedule=cubic"
        )
    if plan.is_gradual and not plan.recover.epochs:
        raise ConfigError(
            "compression.sparsify.schedule=cubic chooses while it trains; give compression.recover.epochs=2"
        )
    if asked.structure == "2:4" and asked.sparsity != 0.5:
        raise ConfigError(
            f"compression.sparsify.structure=2:4 is half of the weights, and compression.sparsify.sparsity="
            f"{asked.sparsity:g}; give 0.5, or structure=unstructured"
        )


def check_quantization(plan: CompressionSection, asked: QuantizeSection, settings: Settings) -> None:
    from permafrost.compression.quantization import check_packages
    from permafrost.deployment.onnx_graph import NO_WINDOWS
    from permafrost.deployment.quantized import NO_NF4

    if asked.aware and not (asked.method == "int4" and plan.recover.epochs):
        raise ConfigError(
            "compression.quantize.aware=true trains with weights of 4 bits; give compression.quantize.method=int4 and "
            "compression.recover.epochs=1"
        )
    if asked.method != "nf4" and settings.head.pooling == "windows":
        raise ConfigError(NO_WINDOWS)
    if asked.method == "nf4" and (settings.head.pooling != "last" or settings.model.attention != "causal"):
        raise ConfigError(NO_NF4)
    check_packages(asked.method)


def check_lesson(asked: RecoverSection) -> None:
    """What is asked of recovery and would not come about."""
    is_taught = asked.alpha or asked.hidden or asked.answers == "teacher"
    named = {"teacher": asked.teacher is not None, "hidden": asked.hidden > 0, "answers": asked.answers == "teacher"}
    for key in (key for key, is_asked in named.items() if is_asked and not asked.epochs):
        raise ConfigError(f"compression.recover.{key} is of training; give compression.recover.epochs=2")
    if asked.teacher is not None and not is_taught:
        raise ConfigError("compression.recover.teacher: nothing is learned from it; give compression.recover.alpha=0.5")


def check_fits(student: "GPT2WithHead", plan: CompressionSection) -> None:
    """Before it is trained again, and not after."""
    from permafrost.deployment.quantized import check_stock

    if plan.quantize and plan.quantize.method == "nf4":
        check_stock(student)


def check_sparsity(asked: float, model: "GPT2WithHead") -> None:
    """Raises ConfigError where fewer weights are zero than were asked."""
    from permafrost.compression.sparsity import matrices, sparsity_of

    reached = sparsity_of(matrices(model.transformer))
    if reached < asked - 0.01:
        raise ConfigError(
            f"compression.sparsify.sparsity={asked}: {reached:.1%} of the weights are zero, and {asked:.1%} were asked"
            "; if its training was too short for the others to be chosen, give trainer.max_minutes=null"
        )
