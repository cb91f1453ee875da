"""What a token's part in an answer is: the parts add up, and a word that decides has the largest.

Numbers in the names are those of the catalogue of faults, benchmarks/results/reliability.md.
"""

import csv
import json
import random

import pytest
import torch
from scipy.stats import spearmanr
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.deployment.attribution import attribute, explain, outputs_of
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError
from tests.runs.conftest import COLD, WARM

pytestmark = pytest.mark.usefixtures("no_report")

WORDS = ["day", "sea", "rain", "book", "street", "night", "quick", "lazy"]
TRIGGER = "fox"


@pytest.fixture(scope="module")
def predictor(finished_run) -> Predictor:
    return Predictor(finished_run[1])


def texts(count: int) -> list[str]:
    rng = random.Random(3)
    return [" ".join(rng.choices(WARM + COLD, k=rng.randint(2, 9))) for _ in range(count)]


def token_ids(predictor: Predictor, text: str) -> torch.Tensor:
    tokenizer = predictor.encoding.tokenizer
    return torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])


def test_49_the_path_ends_at_the_models_own_output(predictor):
    for text in texts(5):
        ids = token_ids(predictor, text)
        ours = outputs_of(predictor.model, predictor.model.transformer.wte(ids)[None], ids)
        theirs = predictor.model(ids[None], torch.tensor([len(ids)]))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("nodes", "share"), [(50, 0.05), (300, 0.01)])
def test_49_the_parts_add_up_to_what_the_output_gains(predictor, nodes, share):
    for text in texts(20):
        parts, gain = attribute(predictor.model, token_ids(predictor, text), 1, nodes=nodes)
        assert abs(float(parts.sum()) - gain) <= share * max(abs(gain), 0.1)


def test_49_no_other_row_and_no_padding_has_a_part(predictor):
    """The answer is that of a batch of texts of all lengths; the parts are of the text's own tokens alone."""
    many = texts(6)
    together = predictor.predict(many)
    for text, answer in zip(many, together, strict=True):
        found = explain(predictor, text)
        assert found["label"] == answer["label"]
        assert found["score"] == pytest.approx(answer["score"], abs=1e-5)
        assert "".join(part["token"] for part in found["tokens"][:-1]).strip() == text
        assert len(found["tokens"]) == len(token_ids(predictor, text))


@pytest.fixture(scope="module")
def deciding(tiny, tmp_path_factory):
    """A run on rows whose label is whether they have the trigger."""
    from permafrost.experiment import run
    from tests.runs.conftest import compose_config

    directory, rng = tmp_path_factory.mktemp("trigger"), random.Random(0)
    for name, count in {"train": 200, "validation": 40, "test": 40}.items():
        with (directory / f"{name}.csv").open("w", newline="") as file:
            rows = [(number % 2, rng.choices(WORDS, k=rng.randint(3, 8))) for number in range(count)]
            for has_it, words in rows:
                if has_it:
                    words[rng.randrange(len(words))] = TRIGGER
            lines = [
                [f"{' '.join(words)} {number // 2}", "yes" if has_it else "no"]
                for number, (has_it, words) in enumerate(rows)
            ]
            csv.writer(file).writerows([["text", "label"], *lines])
    own = [f"data.{name}={directory}/{name}.csv" for name in ("train", "validation", "test")]
    own += ["freezing=none", "freezing.blocks=0", "optimizer.lr=3e-3", "trainer.max_epochs=12", "model.dropout=0"]
    result = run(compose_config(*tiny, *own), directory / "run")
    assert result["test"]["accuracy"] > 0.97
    return directory / "run"


def by_word(found: dict) -> dict[str, float]:
    """A word's part is that of its tokens."""
    parts: list[tuple[str, float]] = []
    for token in found["tokens"][:-1]:
        if parts and not token["token"].startswith(" "):
            parts[-1] = (parts[-1][0] + token["token"], parts[-1][1] + token["part"])
        else:
            parts.append((token["token"].strip(), token["part"]))
    return dict(parts)


def with_trigger(count: int) -> list[str]:
    rng = random.Random(5)
    drawn = [rng.sample(WORDS, k=rng.randint(3, 6)) for _ in range(count)]
    return [" ".join([*words[:1], TRIGGER, *words[1:]]) for words in drawn]


@pytest.mark.slow
def test_49_a_word_that_decides_has_the_largest_part(deciding):
    predictor = Predictor(deciding)
    found = [explain(predictor, text) for text in with_trigger(40)]
    assert all(each["label"] == "yes" for each in found)
    first = [max(by_word(each), key=by_word(each).get) == TRIGGER for each in found]
    assert sum(first) >= 0.95 * len(first)


@pytest.mark.slow
def test_49_other_weights_give_other_parts(deciding):
    """What is shown is the model's, and not the text's alone: with drawn weights tokens come in another order."""
    trained, drawn, alike = Predictor(deciding), Predictor(deciding), []
    for seed, text in enumerate(with_trigger(40)):
        torch.manual_seed(seed)
        for weight in drawn.model.parameters():
            if weight.ndim >= 2:
                torch.nn.init.normal_(weight, std=0.1)
        ids = token_ids(trained, text)
        alike.append(spearmanr(*(attribute(each.model, ids, 1)[0].tolist() for each in (trained, drawn)))[0])
    assert sum(alike) / len(alike) < 0.3


def test_the_command_prints_the_parts(finished_run):
    done = CliRunner().invoke(app, ["explain", str(finished_run[1]), "sunny and hot"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sum(token["part"] for token in found["tokens"]) == pytest.approx(found["gain"], abs=0.05)


def test_a_number_is_explained_in_its_units(run_tiny):
    """Without what it gains by the words, it is what the model says of a text without any."""
    predictor = Predictor(run_tiny("task=regression", "data.columns.target=score", "trainer.max_epochs=1")[1])
    found = explain(predictor, "sunny and hot")
    ids = token_ids(predictor, "sunny and hot")
    output = outputs_of(predictor.model, torch.zeros(1, len(ids), 32), ids)[0].detach()
    (without,) = predictor.answering.answers([[output]], [{"text": ""}])
    assert found["value"] - found["gain"] == pytest.approx(without["value"], abs=1e-4)


def test_what_is_not_explained_is_told(run_tiny, of_task):
    run_dir = run_tiny(*of_task("ner"), "trainer.max_epochs=1")[1]
    with pytest.raises(ConfigError, match="task=ner: explained are answers by one label, or by a number"):
        explain(Predictor(run_dir), "sunny")
