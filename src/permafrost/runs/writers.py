"""What writes changed copies of training rows: the model that the run begins with, or two runs that translate."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from permafrost.errors import ConfigError
from permafrost.settings.preflight import architecture, model_source
from permafrost.settings.schema import AugmentationSection, Settings

if TYPE_CHECKING:
    from permafrost.data.transforms.augmentation import Rewrite
    from permafrost.data.transforms.rewriting import Continue, RoundTrip

TOP_K = 40  # as in GPT-2's own samples (Radford et al. 2019)
TOKENS_PER_WORD = 3


def writer_of(settings: Settings) -> "Rewrite | None":
    """None for copies that no model writes."""
    from permafrost.data.transforms.rewriting import filled, translated_back

    how = settings.augmentation
    if how.kind == "contextual":
        return partial(filled, share=how.share, seed=settings.seed, continued=continuing(settings))
    if how.kind == "back_translation":
        return partial(translated_back, round_trip=there_and_back(how, settings.seed))
    return None


def continuing(settings: Settings) -> "Continue":
    """The model as it is before this run trains it, nothing frozen, and without the head of the task."""
    from permafrost.model.backbone import load_backbone
    from permafrost.model.decoding import Decoding, generate
    from permafrost.tasks.preparation import load_tokenizer
    from permafrost.training.hardware import resolve_device

    source = model_source(settings)
    tokenizer = load_tokenizer(source)
    backbone = load_backbone(source, architecture(settings), pretrained=True)
    backbone = backbone.to(resolve_device(settings.trainer.accelerator))  # type: ignore[arg-type]
    end = tokenizer.eos_token_id

    def continued(texts: Sequence[str], num_words: int, rngs: Sequence[Random]) -> list[str]:
        decoding = Decoding(max_new_tokens=TOKENS_PER_WORD * (num_words + 1), do_sample=True, top_k=TOP_K)
        limit = backbone.config.n_positions - decoding.max_new_tokens
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        prompts = [[end, *of_text][-limit:] for of_text in ids]  # documents begin after an end of text
        numbers = [[rng.random() for _ in range(decoding.max_new_tokens)] for rng in rngs]
        written = generate(backbone, prompts, decoding, end_token_id=end, numbers=numbers)
        return [str(tokenizer.decode(tokens)) for tokens in written]

    return continued


def there_and_back(how: AugmentationSection, seed: int) -> "RoundTrip":
    """By the runs' own decoding; where that draws, by the seed and the number of the copy."""
    from permafrost.deployment.predictor import Predictor
    from permafrost.model.decoding import drawing_from

    there, back = Predictor(str(how.there)), Predictor(str(how.back))

    def round_trip(texts: Sequence[str], copy: int) -> list[str]:
        with drawing_from(seed + copy):
            between = [answer["text"] for answer in there.answer([{"source": text} for text in texts])]
            returned = back.answer([{"source": text} for text in between])
        return [answer["text"] if text else "" for text, answer in zip(between, returned, strict=True)]

    return round_trip


def check_writer(settings: Settings) -> None:
    """
    Raises:
        ConfigError: there is nothing that could write the copies.
        ResourceError: a run has not ended.
    """
    how = settings.augmentation
    if how.kind == "contextual" and settings.model.init != "pretrained":
        raise ConfigError(
            f"augmentation=contextual has the pretrained model write, and with model.init={settings.model.init} there "
            "is none; take another augmentation"
        )
    if how.kind == "back_translation":
        draws = [check_translates(key, getattr(how, key)) for key in ("there", "back")]
        if how.copies > 1 and not any(draws):
            raise ConfigError(
                f"augmentation.copies={how.copies}: these runs translate a text alike each time; give copies=1, or "
                "train one of them with task.decoding.do_sample=true"
            )


def check_translates(key: str, run: str | None) -> bool:
    """Whether it draws what it writes, so that it writes otherwise each time."""
    import yaml

    from permafrost.deployment.predictor import model_directory

    if run is None:
        raise ConfigError(
            f"augmentation.{key} is not set: back-translation needs two runs of task=translation, "
            "augmentation.there=RUN from the language of the texts, augmentation.back=RUN into it"
        )
    config = Path(run) / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"augmentation.{key}={run}: no run there (no config.yaml); give a run of task=translation")
    task = yaml.safe_load(config.read_text("utf-8"))["task"]
    if task["name"] != "translation":
        raise ConfigError(f"augmentation.{key}={run} is a run of task={task['name']}; give one of task=translation")
    model_directory(Path(run))
    return task["decoding"]["do_sample"]
