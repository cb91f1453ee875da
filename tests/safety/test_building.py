"""What a config may build: the listed targets with the keys that they take, and nothing else."""

import inspect

import pytest
import torch

from permafrost.errors import ConfigError
from permafrost.safety.building import ALLOWED_TARGETS, build, check_node

SGD = "torch.optim.SGD"
REFUSED = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "logging.os.system",
    "torch.hub.load",
    "torch.load",
    "torch.optim.sgd.SGD",
    "torch.optim.SGD.__init__",
    "torch.optim.SGD ",
    "torch..optim.SGD",
    "permafrost.training.optimizers.torch.optim.SGD",
    "permafrost.training.loggers.os.system",
    "permafrost.safety.building.build",
    "SGD",
    "",
    "hydra.utils.instantiate",
]


@pytest.mark.parametrize("target", REFUSED)
def test_a_target_that_is_not_on_the_list_is_refused(target):
    with pytest.raises(ConfigError, match="not on the list"):
        check_node({"_target_": target}, "optimizer")
    with pytest.raises(ConfigError, match="not on the list"):
        build({"_target_": target})


def test_a_refused_target_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not on the list"):
        build({"_target_": "stranger.run"})


def test_a_mistyped_target_gets_the_nearest_one():
    with pytest.raises(ConfigError, match=r"did you mean 'torch\.optim\.AdamW'"):
        check_node({"_target_": "torch.optim.Adamw"}, "optimizer")


@pytest.mark.parametrize("target", [["torch.optim.SGD"], {"a": 1}, 3, None])
def test_a_target_that_is_no_name_is_refused(target):
    with pytest.raises(ConfigError):
        check_node({"_target_": target}, "optimizer")


def test_a_node_without_a_target_is_refused():
    with pytest.raises(ConfigError, match="optimizer has no _target_"):
        check_node({"lr": 0.1}, "optimizer")


@pytest.mark.parametrize("target", sorted(ALLOWED_TARGETS))
def test_every_allowed_target_is_there_and_can_be_called(target):
    module, _, name = target.rpartition(".")
    found = getattr(__import__(module, fromlist=[name]), name)
    assert callable(found)
    assert not inspect.ismodule(found)


@pytest.mark.parametrize("target", sorted(ALLOWED_TARGETS))
def test_plain_defaults_of_every_target_pass_its_own_check(target):
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters.values()
    plain = {p.name: p.default for p in parameters if isinstance(p.default, bool | int | float | str | None)}
    check_node({"_target_": target, **plain}, "node")


def test_an_unknown_key_gets_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown key optimizer\.momentun; did you mean 'momentum'"):
        check_node({"_target_": SGD, "lr": 0.1, "momentun": 0.9}, "optimizer")


@pytest.mark.parametrize(
    ("target", "key", "value"),
    [
        (SGD, "lr", "fast"),
        (SGD, "momentum", "0.9"),
        (SGD, "nesterov", 1),
        (SGD, "nesterov", "yes"),
        ("permafrost.training.schedulers.linear", "warmup", "long"),
        ("permafrost.training.schedulers.linear", "final", None),
        ("permafrost.training.schedulers.linear", "final", True),
        ("permafrost.training.schedulers.cosine_restarts", "cycles", 2.5),
        ("permafrost.training.schedulers.cosine_restarts", "cycles", True),
        ("permafrost.training.optimizers.muon", "betas", 0.9),
        ("permafrost.tasks.losses.CrossEntropy", "class_weights", "balanced"),
        ("permafrost.tasks.losses.CrossEntropy", "class_weights", ["heavy", "light"]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(target, key, value):
    with pytest.raises(ConfigError, match=rf"node\.{key}=.*expected"):
        check_node({"_target_": target, key: value}, "node")


@pytest.mark.parametrize(
    ("target", "key", "value"),
    [
        (SGD, "lr", 1),
        ("permafrost.training.schedulers.linear", "warmup", 10),
        ("permafrost.training.schedulers.linear", "warmup", 0.1),
        ("permafrost.training.optimizers.muon", "betas", [0.9, 0.95]),
        ("permafrost.tasks.losses.CrossEntropy", "class_weights", None),
        ("permafrost.tasks.losses.CrossEntropy", "class_weights", [1.0, 2]),
    ],
)
def test_a_value_of_the_right_type_passes(target, key, value):
    check_node({"_target_": target, key: value}, "node")


def test_build_calls_the_target_with_its_keys():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build({"_target_": SGD, "lr": 0.25, "momentum": 0.5}, [parameter])
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.25, 0.5)
    assert optimizer.param_groups[0]["params"] == [parameter]


def test_runtime_values_fill_what_is_open_and_no_more():
    runtime = {"delta": 3.0, "mode": "min"}  # Huber takes no mode
    assert build({"_target_": "permafrost.tasks.losses.Huber"}, **runtime).delta == 3.0
    assert build({"_target_": "permafrost.tasks.losses.Huber", "delta": 2.0}, **runtime).delta == 2.0
