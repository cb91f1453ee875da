"""Regression: the scale of the target and its inverse, and metrics in the user's units against SciPy."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from permafrost.data.tokens.batching import Batch
from permafrost.errors import ConfigError, DataError
from permafrost.tasks.base import Encoding, encode_texts
from permafrost.tasks.binding import bind_described
from permafrost.tasks.preparation import encode_table
from permafrost.tasks.regression import Regression, Scale, fit_scale

TARGETS = np.array([2.0, 4.0, 4.0, 10.0])
# torchmetrics warns of the memory that ranks need, whenever Spearman's is made
pytestmark = pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save all targets")


def make_task(scale: Scale) -> Regression:
    return Regression(scale, pooling="last", init="normal")


def batch_of(labels: torch.Tensor) -> Batch:
    """Of which metrics read the labels alone."""
    return Batch(*[labels] * len(Batch._fields))


def scored(task: Regression, outputs: torch.Tensor, scaled_targets: torch.Tensor) -> dict[str, float]:
    metrics = task.build_metrics("test")
    for part, targets in zip(outputs.split(16), scaled_targets.split(16), strict=True):
        task.update_metrics(metrics, part[:, None], batch_of(targets))
    return {name: value.item() for name, value in metrics.compute().items()}


def outputs_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    outputs, noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(9))
    return outputs, outputs + noise


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        # mean 5, deviation sqrt((9 + 1 + 1 + 25) / 4) = 3
        ("standard", [-1.0, -1 / 3, -1 / 3, 5 / 3]),
        ("min_max", [0.0, 0.25, 0.25, 1.0]),
        ("none", [2.0, 4.0, 4.0, 10.0]),
    ],
)
def test_scaled_targets_by_hand(scaling, expected):
    assert fit_scale(TARGETS, scaling).to_scaled(TARGETS).tolist() == pytest.approx(expected, abs=1e-12)  # float64


@pytest.mark.parametrize("scaling", ["standard", "min_max", "none"])
def test_the_scale_has_an_inverse(scaling):
    scale = fit_scale(TARGETS, scaling)
    assert scale.to_target(scale.to_scaled(TARGETS)).tolist() == pytest.approx(TARGETS.tolist(), abs=1e-12)  # float64


@pytest.mark.parametrize("scaling", ["standard", "min_max"])
def test_a_constant_target_is_an_error(scaling):
    with pytest.raises(DataError, match=r"every training target is 3\.5"):
        fit_scale(np.full(4, 3.5), scaling)


def test_labels_are_scaled_targets(tiny_tokenizer):
    rows = pa.table({"text": ["a warm day", "the sea"], "target": [2.0, 10.0]})
    encoded = encode_table(
        make_task(Scale(shift=4.0, unit=2.0)), rows, Encoding(tokenizer=tiny_tokenizer, max_length=64)
    )
    assert encoded.labels.tolist() == [-1.0, 3.0]
    assert encoded.labels.dtype == np.float32


def test_the_scale_is_that_of_the_training_rows():
    splits = {"train": pa.table({"target": TARGETS}), "test": pa.table({"target": TARGETS * 100})}
    task = Regression.from_rows(splits, {"scaling": "standard", "pooling": "last", "init": "normal", "window": 64})
    assert task.scale == Scale(shift=5.0, unit=3.0)


def test_errors_are_in_the_users_units():
    task = make_task(Scale(shift=50.0, unit=10.0))
    found = scored(task, torch.tensor([0.0, 1.0]), torch.tensor([0.3, 0.6]))  # off by 3 and by 4
    assert found["mse"] == pytest.approx(12.5, rel=1e-4)  # float32 differences of numbers about 50
    assert found["rmse"] == pytest.approx(12.5**0.5, rel=1e-4)


def test_correlations_are_those_of_scipy():
    outputs, targets = outputs_and_targets()
    found = scored(make_task(Scale(shift=50.0, unit=10.0)), outputs, targets)
    # float32 differences of numbers about 50, against float64
    assert found["pearson"] == pytest.approx(pearsonr(outputs, targets).statistic, abs=1e-5)
    assert found["spearman"] == pytest.approx(spearmanr(outputs, targets).statistic, abs=1e-5)


def test_metrics_do_not_depend_on_where_zero_lies():
    outputs, targets = outputs_and_targets()
    near = scored(make_task(Scale(shift=0.0, unit=3600.0)), outputs, targets)
    far = scored(make_task(Scale(shift=1.7e9, unit=3600.0)), outputs, targets)  # times in seconds since 1970
    assert far == pytest.approx(near, rel=1e-5)  # float32


def test_the_metrics_that_are_announced_are_computed():
    assert (
        make_task(Scale(shift=0.0, unit=1.0)).build_metrics("test").keys() | {"loss"}
        == Regression.metrics_logged.keys()
    )


def test_an_answer_is_a_value_in_the_users_units():
    answers = make_task(Scale(shift=50.0, unit=10.0)).answers([[row] for row in torch.tensor([[0.0], [-1.5]])], [])
    assert answers == [{"value": 50.0}, {"value": 35.0}]


def test_a_task_comes_back_from_its_description():
    task = make_task(Scale(shift=50.0, unit=10.0))
    again = bind_described(task.describe() | {"max_length": 64})
    assert again.scale == task.scale
    assert again.describe() == task.describe()


def test_an_end_that_is_written_in_a_first_text_does_not_end_it(tiny_tokenizer):
    """Of a head that reads the two apart."""
    end, rows = tiny_tokenizer.eos_token, pa.table({"text": ["a warm"], "text_pair": ["day"]})
    odd = pa.table({"text": [f"a{end} warm"], "text_pair": ["day"]})
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=64)
    (plain, *_), (written, *_) = (encode_texts(table, encoding, pooling="pair") for table in (rows, odd))
    assert written[0].tolist() == plain[0].tolist()
    with pytest.raises(ConfigError, match="compares the two texts of a row"):
        encode_texts(rows.drop_columns("text_pair"), encoding, pooling="pair")
