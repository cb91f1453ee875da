"""Nothing, one token, more than the window, and signs of many bytes: every task that answers texts answers each."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from permafrost.deployment.predictor import batches
from permafrost.errors import ConfigError
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.acts import Acts
from permafrost.tasks.base import Encoding, asked_rows
from permafrost.tasks.classification import Classification
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.losses import CrossEntropy
from permafrost.tasks.multi_label import MultiLabel
from permafrost.tasks.preparation import encode_table
from permafrost.tasks.regression import Regression, Scale
from permafrost.tasks.tagging import Tagging

WINDOW = 16
TEXTS = ["", " ", "x", "🎉", "日本語のテキスト 🦊", "word " * 500, "a\x00b\nc\td"]
HOW = {"init": "normal", "pooling": "last"}
TASKS = {
    "classification": Classification(["a", "b", "c"], **HOW),
    "mean": Classification(["a", "b"], init="normal", pooling="mean"),
    "legal": Classification(["a", "b"], init="normal", pooling="windows", window=WINDOW),
    "multi_label": MultiLabel(["a", "b"], thresholds=[0.0, 0.0], **HOW),
    "regression": Regression(Scale(shift=3.0, unit=2.0), **HOW),
    "ner": Tagging(["O", "B-x", "I-x"], init="normal"),
    "acts": Acts(["ask", "tell"], init="normal"),
}


@pytest.fixture
def answered(tiny_backbone, tiny_tokenizer):
    """Texts, and the second ones of pairs -> the answers of a task whose weights are drawn."""

    def answer(name: str, texts: list[str], pairs: list[str] | None = None) -> list[dict]:
        torch.manual_seed(0)
        task = TASKS[name]
        head = task.build_head(tiny_backbone)
        model = GPT2WithHead(tiny_backbone, head, Freezing(embeddings=False, blocks=0), window=WINDOW).eval()
        rows = asked_rows(task, texts, pairs)
        encoding = Encoding(tokenizer=tiny_tokenizer, max_length=WINDOW, max_windows=4 if name == "legal" else 1)
        found: dict[int, list] = {row: [] for row in range(len(rows))}
        split = encode_table(task, pa.Table.from_pylist(rows), encoding)
        with torch.no_grad():
            for batch in batches(split):
                parts = zip(batch.source_rows.tolist(), batch.row_ids.tolist(), strict=True)
                for (source, row), output in zip(parts, task.by_row(task.outputs(model, batch), batch), strict=True):
                    found[source].append((row, output))
        outputs = [[output for _, output in sorted(parts, key=lambda part: part[0])] for parts in found.values()]
        return task.answers(outputs, rows)

    return answer


def figures(answer: dict) -> list[float]:
    return [value for value in [*answer.values(), *answer.get("scores", [])] if isinstance(value, float)]


@pytest.mark.parametrize("name", TASKS)
def test_every_text_has_an_answer_that_no_other_text_changes(answered, name):
    together = answered(name, TEXTS)
    assert len(together) == len(TEXTS)
    for text, answer in zip(TEXTS, together, strict=True):
        (alone,) = answered(name, [text])
        assert all(math.isfinite(value) for value in figures(answer))
        assert figures(answer) == pytest.approx(figures(alone), abs=1e-5)  # float32 sums of other batches
        assert {key: value for key, value in answer.items() if key not in ("score", "value", "scores")} == {
            key: value for key, value in alone.items() if key not in ("score", "value", "scores")
        }


@pytest.mark.parametrize("name", ["classification", "regression", "multi_label"])
def test_a_pair_may_lack_either_text(answered, name):
    firsts, seconds = ["", "x", "", "日本語", "word " * 500], ["y", "", "", "🎉", "z"]
    for pair, answer in zip(zip(firsts, seconds, strict=True), answered(name, firsts, seconds), strict=True):
        (alone,) = answered(name, [pair[0]], [pair[1]])
        assert figures(answer) == pytest.approx(figures(alone), abs=1e-5)


@pytest.mark.parametrize("name", ["ner", "acts"])
def test_what_reads_single_texts_refuses_a_pair(answered, name):
    with pytest.raises(ConfigError, match=f"task={name} reads one text, not a pair"):
        answered(name, ["x"], ["y"])


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_has_a_perplexity(tiny_backbone, tiny_tokenizer, text, evaluates):
    task = LanguageModeling()
    model = GPT2WithHead(tiny_backbone, task.build_head(tiny_backbone), Freezing(embeddings=False, blocks=0)).eval()
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=WINDOW, evaluates=evaluates)
    split = encode_table(task, pa.table({"text": [text, "x"]}), encoding)
    tokens = len(tiny_tokenizer(text)["input_ids"]) + 3  # its end, x and the end of that
    targets = tokens - 1 if evaluates else tokens - -(-tokens // WINDOW)
    assert split.num_targets.sum() == targets
    with torch.no_grad():
        losses = [
            float(task.loss_sum(model, batch, CrossEntropy())[0]) for batch in batches(split, np.arange(len(split)))
        ]
    assert 0 < sum(losses) / targets < 20
