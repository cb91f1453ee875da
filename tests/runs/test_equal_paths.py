"""With the store or without, a run is the same run: states that are read, and states that are computed each time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from permafrost.data.tokens.batching import Batch, PlannedBatch
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.tasks.base import tokenized_split
from permafrost.tasks.classification import Classification
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.losses import CrossEntropy
from permafrost.training.datamodule import Batches
from permafrost.training.trunk_pass import FrozenPart, StoreOptions, open_stores, what_to_store
from tests.runs.conftest import command, compose_config

pytestmark = pytest.mark.usefixtures("no_report")

# The same float32 products in batches of another shape; losses are about 1, weights 0.02 to 1, logits 0.1.
ROUNDING = 1e-5
LENGTHS = [9, 4, 1, 30, 12]
LABELS = torch.tensor([0, 1, 1, 0, 1])
DEPTHS = pytest.mark.parametrize("depth", [0, 1, 2])  # with 0, the embeddings alone are frozen
RECIPES = {
    "last": ["model.dropout=0.5"],
    "mean": ["head=mean"],
    "pair": ["head=pair", "data.columns.text=[text,other]"],
    "averaged": ["callbacks=averaged", "callbacks.average.decay=0.5"],
    "head only": ["freezing=head_only", "freezing.blocks=all"],
    "language modeling": ["task=language_modeling", "data.max_length=16"],
    "not pretrained": ["model.init=random", "model.dropout=0.5"],
    "adamw": ["optimizer=adamw", "optimizer.lr=1e-3", "trainer.max_epochs=1"],
}

# no way of their own through the code, but one that many take
SLOW = {"head only", "not pretrained", "averaged"}


@pytest.fixture(scope="module")
def run_recipe(tiny, tmp_path_factory):
    """A run in float32, made once for all tests; each recipe has a store of its own.

    By plain gradient descent: AdamW divides each gradient by its size, those that are nothing but rounding too.
    """
    from permafrost.experiment import run

    root, made = tmp_path_factory.mktemp("equal"), {}

    def go(recipe: str, *overrides: str) -> tuple[dict, Path]:
        if (recipe, overrides) not in made:
            own = [
                f"store.dir={root}/store of {recipe}",
                "trainer.precision=32-true",
                "optimizer=sgd",
                "optimizer.lr=0.1",
            ]
            run_dir = root / f"run-{len(made)}"
            made[recipe, overrides] = (run(compose_config(*tiny, *own, *RECIPES[recipe], *overrides), run_dir), run_dir)
        return made[recipe, overrides]

    return go


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def scores(result: dict) -> dict[str, float]:
    return {f"{stage} {name}": value for stage in ("validation", "test") for name, value in result[stage].items()}


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RECIPES]
)
def test_a_run_with_the_store_is_the_run_without_it(run_recipe, recipe):
    (cached, cached_dir), (plain, plain_dir) = run_recipe(recipe, "store=on"), run_recipe(recipe, "store=off")
    assert scores(cached) == pytest.approx(scores(plain), rel=ROUNDING, abs=ROUNDING)
    for key in ("epochs", "steps", "parameters", "frozen_blocks"):
        assert cached[key] == plain[key]
    assert cached["tokens"]["trained"] == plain["tokens"]["trained"]
    assert cached["tokens"]["trunk"] > 0 == plain["tokens"]["trunk"]
    ours, theirs = weights(cached_dir), weights(plain_dir)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=ROUNDING, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("recipe", ["last", "not pretrained"])
def test_dropout_is_at_work_in_what_is_trained(run_recipe, recipe):
    much, _ = run_recipe(recipe, "store=off")
    none, _ = run_recipe(recipe, "store=off", "model.dropout=0.0")
    assert much["test"]["loss"] != pytest.approx(none["test"]["loss"], abs=ROUNDING)


def test_the_stored_trunk_is_the_pretrained_one_after_training(run_recipe, tiny_model_dir):
    _, run_dir = run_recipe("last", "store=on")
    before, after = load_file(tiny_model_dir / "model.safetensors"), weights(run_dir)
    frozen = [name for name in after if name.startswith(("transformer.wte", "transformer.wpe", "transformer.h.0."))]
    assert len(frozen) == 14
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["transformer.ln_f.weight"], after["transformer.ln_f.weight"])


def test_what_is_computed_for_one_seed_serves_the_next(run_recipe):
    first, _ = run_recipe("last", "store=on")
    second, _ = run_recipe("last", "store=on", "seed=1")
    assert second["tokens"]["trunk"] == 0
    assert second["test"]["loss"] != first["test"]["loss"]


def test_workers_read_what_the_run_itself_reads(run_recipe):
    here, _ = run_recipe("last", "store=on")
    there, _ = run_recipe("last", "store=on", "data.num_workers=2")
    assert scores(there) == scores(here)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_store(run_tiny):
    options = ["store=on", "model.dropout=0", "trainer.val_check_interval=2", "callbacks.early_stopping=null"]
    options += ["scheduler=constant", "scheduler.warmup=0"]  # a schedule over fewer steps is another schedule
    run_tiny(*options, "trainer.max_steps=4", name="stopped")
    resumed, _ = run_tiny(*options, "resume=auto", name="stopped")
    whole, _ = run_tiny(*options, name="whole")
    assert scores(resumed) == scores(whole)
    assert resumed["tokens"]["trunk"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_computes_the_trunk_once(tiny, tmp_path, jobs):
    """Also where both trials begin at once."""
    store, sweep = tmp_path / "activations", tmp_path / "sweep"
    own = [*tiny, "store=on", f"store.dir={store}", "trainer.max_epochs=1", f"hydra.launcher.n_jobs={jobs}"]
    done = command("-m", *own, "optimizer=adamw,sgd", f"hydra.sweep.dir={sweep}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((sweep / trial / "result.json").read_text()) for trial in "01")
    stored = sum(json.loads(path.read_text())["tokens"] for path in store.glob("*/manifest.json"))
    assert first["tokens"]["trunk"] + second["tokens"]["trunk"] == stored > 0
    assert jobs == 2 or second["tokens"]["trunk"] == 0
    assert first["test"]["loss"] != second["test"]["loss"]


# One batch, against plain Transformers


def make_split() -> TokenizedSplit:
    rng = np.random.default_rng(1)
    ids = [rng.integers(2, 300, length).astype(np.int32) for length in LENGTHS]
    return tokenized_split(ids, np.ones(len(ids)), None)


def stored_batch(model: GPT2WithHead, root: Path, labels: torch.Tensor | None = None) -> Batch:
    """All rows, longest to shortest, with what the store has of them."""
    split = make_split()
    wanted = what_to_store(
        FrozenPart(model, name="tiny", precision="32-true", device=torch.device("cpu")),
        {"train": split},
        StoreOptions(mode="on", directory=root, dtype="float32", max_gb=1.0),
        tokenizer="abc",
    )
    stores = open_stores({"": wanted}, reads={}, say=print)[""]
    batch = Batches({"": split}, {"": stores.by_split["train"]})[PlannedBatch(np.array([3, 4, 0, 1, 2]), 1.0)]
    assert batch.trunk_states is not None
    return batch if labels is None else batch._replace(labels=labels[batch.row_ids])


def gradients_of(loss: torch.Tensor, model: GPT2WithHead) -> dict[str, torch.Tensor]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Gradients of up to 10."""
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=1e-5, atol=ROUNDING, msg=lambda text, name=name: name + text
        )


@DEPTHS
def test_classifying_from_the_store_is_transformers_classifying(tiny_config, tmp_path, depth):
    torch.manual_seed(0)
    reference = GPT2ForSequenceClassification(tiny_config)
    head = PooledHead(32, 2, pooling="last", init="normal")
    head.score.weight = reference.score.weight
    model = GPT2WithHead(reference.transformer, head, Freezing(embeddings=True, blocks=depth)).eval()
    batch = stored_batch(model, tmp_path, LABELS)
    task = Classification(["a", "b"], pooling="last", init="normal")

    cached, logits = task.loss_sum(model, batch, CrossEntropy())
    uncached, computed = task.loss_sum(model, batch._replace(trunk_states=None), CrossEntropy())
    reference.eval()
    rows = zip(batch.input_ids, batch.lengths, strict=True)
    expected = torch.cat([reference(input_ids=ids[None, :length]).logits for ids, length in rows])
    loss = functional.cross_entropy(expected, batch.labels, reduction="sum")

    torch.testing.assert_close(logits, expected, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(computed, expected, rtol=0, atol=ROUNDING)
    theirs = gradients_of(loss, model)
    assert_alike(gradients_of(cached, model), theirs)
    assert_alike(gradients_of(uncached, model), theirs)


@DEPTHS
@pytest.mark.parametrize("scored", ["all", "the last three"])
def test_language_modelling_from_the_store_is_transformers_language_modelling(tiny_config, tmp_path, depth, scored):
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(tiny_config)
    task = LanguageModeling()
    head = task.build_head(reference.transformer)
    model = GPT2WithHead(reference.transformer, head, Freezing(embeddings=True, blocks=depth)).eval()
    batch = stored_batch(model, tmp_path)
    if scored == "the last three":
        is_answer = torch.arange(batch.labels.shape[1]) >= batch.lengths[:, None] - 3
        batch = batch._replace(labels=batch.labels.where(is_answer, -100))

    cached, _ = task.loss_sum(model, batch, CrossEntropy())
    uncached, _ = task.loss_sum(model, batch._replace(trunk_states=None), CrossEntropy())
    reference.eval()
    logits = reference(input_ids=batch.input_ids).logits[:, :-1]
    loss = functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")

    torch.testing.assert_close(cached, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(uncached, loss, rtol=1e-5, atol=0)
    theirs = gradients_of(loss, model)
    assert_alike(gradients_of(cached, model), theirs)
    assert_alike(gradients_of(uncached, model), theirs)
