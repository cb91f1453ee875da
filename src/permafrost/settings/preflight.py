"""What settings say together: facts of the run that several parts need, and what is wrong before any data is read."""

from pathlib import Path
from typing import Any

from permafrost.errors import ConfigError, ResourceError, nearest
from permafrost.safety.building import build
from permafrost.settings.schema import Settings

MULTI_TASK = "multi"  # in place of a task's kind
NO_PARTS = (
    "task=multi has no parts; give each task a name and what you would type for it alone: "
    """'task.parts={films: "experiment=sst5", names: "experiment=wnut17"}'"""
)


def preflight(settings: Settings, *, in_sweep: bool) -> None:
    """Everything that can be found wrong without loading data or weights."""
    from permafrost.training.hardware import resolve_device

    options = settings.trainer
    if in_sweep and asks_for_several_processes(settings):
        raise ConfigError(
            f"trainer.strategy={options.strategy} trainer.devices={options.devices} starts this command again for each "
            "process, which a sweep cannot; sweep with trainer.devices=1, or give each trial a command of its own"
        )
    check_hardware(settings)
    if options.precision == "16-mixed" and resolve_device(options.accelerator).type == "cpu":
        raise ConfigError("trainer.precision=16-mixed is for GPUs; a CPU has bf16-mixed and 32-true")
    if settings.compression.is_asked and asks_for_several_processes(settings):
        raise ConfigError(
            f"compression={settings.compression.name} is one process's work; leave it out here, and afterwards: "
            f"permafrost compress RUN compression={settings.compression.name}"
        )
    if options.requeue and settings.resume == "never":
        raise ConfigError(
            "trainer.requeue=true: the job that SLURM starts again runs the same command; give resume=auto"
        )
    if settings.task.kind == MULTI_TASK and not settings.parts:
        raise ConfigError(NO_PARTS)
    if settings.parts and settings.task.kind != MULTI_TASK:
        raise ConfigError(f"task.parts: only task=multi has parts; this is task={settings.task.name}")
    if settings.parts and settings.model.tokenizer == "train":
        raise ConfigError("model.tokenizer=train would give each part of task=multi a tokenizer of its own; give a DIR")
    if settings.data.auto_batch and any(part.head.pooling == "pair" for part in settings.by_part().values()):
        raise ConfigError(
            "data.auto_batch=true goes by the length of rows, of which head=pair makes two each; give a "
            "data.max_tokens_per_batch"
        )
    for part in settings.by_part().values():
        check_part(part)
        check_monitor(part)
    check_agreement(settings, architecture(settings).n_layer)
    check_buildable(settings)


def check_agreement(settings: Settings, num_blocks: int) -> None:
    """What no single key can tell: the depth fits the model, and what is monitored is logged."""
    if settings.freezing.blocks != "all" and settings.freezing.blocks > num_blocks:
        raise ConfigError(
            f"freezing.blocks={settings.freezing.blocks}, but {settings.model.name} has {num_blocks} blocks; "
            f"give 0 to {num_blocks}, or all"
        )
    check_monitor(settings)
    check_average(settings)
    logged, remedies = ["train/loss", *(f"validation/{name}" for name in metrics_of(settings))], unwritten(settings)
    for name, node in settings.callbacks.items():
        monitor = node.get("monitor") if node else None
        if monitor is None:
            continue
        if monitor not in logged:
            raise ConfigError(f"callbacks.{name}.monitor={monitor}: nothing logs it{nearest(monitor, logged)}")
        if remedy := remedies.get(monitor.removeprefix("validation/")):
            raise ConfigError(f"callbacks.{name}.monitor={monitor}: nothing logs it; give {remedy}")


def check_average(settings: Settings) -> None:
    """The best weights are the average where they are kept alone; else they are those that training goes on with."""
    for name, node in settings.callbacks.items():
        is_whole = node and node["_target_"].endswith("ModelCheckpoint") and not node.get("save_weights_only")
        if is_whole and settings.callbacks.get("average"):
            raise ConfigError(
                f"callbacks.{name} keeps what training goes on with, and not the average; give "
                f"callbacks.{name}.save_weights_only=true"
            )


def check_monitor(settings: Settings) -> None:
    monitor, metrics = settings.task.monitor, list(metrics_of(settings))
    if monitor not in metrics:
        raise ConfigError(
            f"task.monitor={monitor}: task={settings.task.name} logs no such metric{nearest(monitor, metrics)}"
        )
    if remedy := unwritten(settings).get(monitor):
        raise ConfigError(f"task.monitor={monitor}: nothing logs it on validation; give {remedy}")


def unwritten(settings: Settings) -> dict[str, str]:
    """Metric of written texts that these settings leave out on validation -> what brings it."""
    from permafrost.tasks.base import in_part
    from permafrost.tasks.binding import writes
    from permafrost.tasks.text_scores import SCORES

    found: dict[str, str] = {}
    for name, part in settings.by_part().items():
        if not writes(part.task.kind):
            continue
        remedies = {} if part.task.parses else {"parses": "task.parses=true"}
        if not part.task.validation_generations:
            remedies |= dict.fromkeys([*SCORES, "parses"], "task.validation_generations=100")
        where = f" in task.parts.{name}" if name else ""
        found |= {in_part(name, metric): remedy + where for metric, remedy in remedies.items()}
    return found


def asks_for_several_processes(settings: Settings) -> bool:
    options = settings.trainer
    return options.strategy != "auto" or options.num_nodes > 1 or options.devices not in ("auto", 1)


def has_several_processes(settings: Settings) -> bool:
    """Whether it was asked for, or is what Lightning makes of several GPUs."""
    import torch

    options = settings.trainer
    takes_all = options.devices == "auto" and options.accelerator in ("auto", "gpu")
    return asks_for_several_processes(settings) or (takes_all and torch.cuda.device_count() > 1)


def check_hardware(settings: Settings) -> None:
    import torch

    options, num_gpus = settings.trainer, torch.cuda.device_count()
    if options.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        needed = "" if options.strategy == "auto" else f", and trainer.strategy={options.strategy} one for each process"
        raise ResourceError(
            f"trainer.accelerator=gpu: torch finds no GPU here{needed}; set trainer.accelerator=cpu, with "
            "trainer.devices=2 for two processes"
        )
    if options.accelerator == "gpu" and isinstance(options.devices, int) and 0 < num_gpus < options.devices:
        raise ResourceError(f"trainer.devices={options.devices}: torch finds {num_gpus} GPUs here; give at most that")
    if settings.data.auto_batch and has_several_processes(settings):
        raise ConfigError(
            "data.auto_batch=true: each process would cut batches by its own memory; give trainer.devices=1, or "
            "without it a smaller data.max_tokens_per_batch"
        )
    if options.strategy == "fsdp":
        check_sharing(settings)


def check_sharing(settings: Settings) -> None:
    """What needs whole weights or gradients, where each process has a share."""
    if settings.trainer.precision == "16-mixed":
        raise ConfigError("trainer.precision=16-mixed scales whole gradients; with trainer.strategy=fsdp: bf16-mixed")
    if settings.callbacks.get("average"):
        raise ConfigError("callbacks=averaged needs whole weights; with trainer.strategy=fsdp: callbacks=default")
    if settings.model.compile:
        raise ConfigError("model.compile=true keeps the weights that trainer.strategy=fsdp exchanges; leave one out")
    if settings.optimizer["_target_"] == "torch.optim.Adafactor":
        raise ConfigError(
            "optimizer=adafactor needs whole rows and columns; with trainer.strategy=fsdp: optimizer=adamw"
        )


def check_part(settings: Settings) -> None:
    from permafrost.tasks.base import NO_PAIR
    from permafrost.tasks.binding import predicts_tokens
    from permafrost.tasks.turns import check_turn

    check_turn(settings.task.turn)
    if settings.model.attention == "bidirectional" and predicts_tokens(settings.task.kind):
        raise ConfigError(
            f"model.attention=bidirectional lets a token see the ones after it, which task={settings.task.name} is to "
            "predict; it is for tasks that classify, such as task=ner"
        )
    if settings.head.pooling == "pair" and isinstance(settings.data.columns.text, str):
        raise ConfigError(NO_PAIR)
    if settings.data.max_windows > 1 and settings.head.pooling != "windows":
        raise ConfigError(f"data.max_windows={settings.data.max_windows} needs a head that pools them: head=windows")


def check_buildable(settings: Settings) -> None:
    """Build optimizer, scheduler and loss for a lone parameter, and the average, so that bad values show before data is
    read."""
    import torch

    try:
        groups = [{"params": [torch.nn.Parameter(torch.zeros(2, 2))], "muon": True}]
        build(settings.scheduler, build(settings.optimizer, groups), 1_000_000, mode="min")
        for part in settings.by_part().values():
            build(part.loss)
        if average := settings.callbacks.get("average"):
            build(average)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def architecture(settings: Settings) -> Any:
    """The GPT2Config of the run's model, with its dropout."""
    from transformers import GPT2Config

    from permafrost.model.backbone import load_config

    section = settings.model
    if section.architecture:  # a new tokenizer numbers its end of text 0
        config = GPT2Config(**section.architecture.model_dump(), bos_token_id=0, eos_token_id=0)
    else:
        config = load_config(model_source(settings))
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = section.dropout
    return config


def model_source(settings: Settings) -> str:
    """Where weights and tokenizer come from: another run, a directory, or a name."""
    from permafrost.model.backbone import locate

    if settings.init_from is None:
        return locate(settings.model.path or settings.model.name)
    for directory in (Path(settings.init_from) / "model", Path(settings.init_from)):
        if (directory / "config.json").is_file():
            return str(directory)
    raise ConfigError(f"init_from={settings.init_from}: no finished run there (no model/config.json)")


def window_length(settings: Settings) -> int:
    """Tokens that the model sees at once."""
    positions = architecture(settings).n_positions
    return min(settings.data.max_length or positions, positions)


def right_context(settings: Settings) -> int:
    """Tokens that a window keeps to the right of what it scores, where the model looks there."""
    if settings.model.attention == "causal":
        return 0
    return window_length(settings) // 4


def monitored(settings: Settings) -> str:
    return f"validation/{settings.task.monitor}"


def monitor_mode(settings: Settings) -> str:
    return metrics_of(settings)[settings.task.monitor]


def metrics_of(settings: Settings) -> dict[str, Any]:
    """Metric -> min or max, of all that the run logs."""
    from permafrost.tasks.binding import metrics_logged

    return metrics_logged({name: part.task.kind for name, part in settings.by_part().items()})
