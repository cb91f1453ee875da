"""Config files, overrides and model directories of strangers: refused before anything that they name is imported."""

import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permafrost.errors import ConfigError, PermafrostError
from permafrost.safety.trust import check_file, check_model_directory, check_override, check_start
from tests.runs.conftest import CONF, command, command_here

FILES = {
    "a target": "_target_: os.system\ncommand: touch x",
    "nested": "optimizer: {groups: [{a: {_target_: shutil.copy}}]}",
    "for Hydra": "# @package _global_\nhydra: {callbacks: {x: {_target_: sentinel.Run}}}",
    "in a package": "# @package hydra.callbacks\nx: {_target_: sentinel.Run}",
    "a partial": "x: {_target_: torch.load, _partial_: true}",
    "with arguments": "x: {_target_: builtins.open, _args_: [x, w]}",
    "through an alias": "a: &a {_target_: pathlib.Path.write_text}\nb: *a",
    "by another name of an allowed one": "_target_: torch.optim.sgd.SGD",
    "an interpolation": "_target_: ${name}\nname: os.system",
    "with an escape": '"_tar\\u0067et_": os.system',
    "a target that is no name": "_target_: [torch.optim.SGD]",
    "in a text that is decoded": "x: \"${oc.decode:'{_target_: os.system}'}\"",
    "in a text": "x: '{_target_: os.system}'",
    "the environment": "x: ${oc.env:HOME}",
    "the environment, spaced": "x: ${ oc.env:HOME}",
    "a logging factory": "# @package hydra.job_logging\nhandlers: {x: {'()': os.system, command: touch x}}",
    "a logging class": "hydra: {job_logging: {handlers: {x: {class: sentinel.Run}}}}",
    "a logging object": "hydra: {job_logging: {handlers: {x: {stream: 'ext://sentinel.Run'}}}}",
    "environment variables": "hydra: {job: {env_set: {PYTHONPATH: /tmp}}}",
    "another place for files": "hydra: {searchpath: [file:///tmp]}",
    "a name put together": "x: ${${r}:HOME}\nr: oc.env",
    "a default outside": "defaults: [../../gift]",
    "a default outside, for a group": "defaults: [{override /model: sub/../../../gift}]",
    "a default that is known later": "defaults: [{/model: '${x}'}]\nx: ../../gift",
    "what may be YAML to another reader": "a: [1",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_38_a_file_that_names_code_is_refused(content, tmp_path):
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "stranger.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"stranger\.yaml"):
        check_start(tmp_path, [])


def refused_unrun(directory: Path, content: str | None, *typed: str) -> tuple[bool, bool]:
    """Whether the program refuses a stranger's config file, or what is typed, in one line; and whether code of it ran.

    Such code would write a file, or is the module `sentinel`, which does so as it is imported.
    """
    (directory / "experiment").mkdir(parents=True)
    (directory / "sentinel.py").write_text(f"import pathlib\npathlib.Path({str(directory / 'ran')!r}).touch()")
    if content is not None:
        (directory / "experiment" / "gift.yaml").write_text(content)
        typed = (*typed, "experiment=gift", "--config-dir", str(directory))
    before = set(directory.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        patch.chdir(directory)
        code, out, err = command_here(*typed, f"hydra.run.dir={directory}/run")
    ran = set(directory.rglob("*")) != before or "sentinel" in sys.modules
    return code == 2 and not out and err.count("\n") == 1, ran


@pytest.mark.slow
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_38_the_program_refuses_a_file_before_anything_of_it_runs(content, tmp_path):
    assert refused_unrun(tmp_path / "gift", content) == (True, False)


def test_what_would_run_is_seen_to(tmp_path):
    """Were it imported, the tests above would know: it writes where they look."""
    import importlib

    refused_unrun(tmp_path / "gift", None, OVERRIDES[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "gift"))
        importlib.import_module("sentinel")
        assert (tmp_path / "gift" / "ran").exists()
        del sys.modules["sentinel"]  # and not by the patch, which would put it back


SIGNS = st.text("ab01 \n\t:-,.#&*!|>'\"{}[]$@%?=~<_x", max_size=60).map(str.encode)
FUZZ = {"deadline": None, "derandomize": True, "database": None}


@settings(max_examples=300, **FUZZ)
@given(content=SIGNS | st.binary(max_size=60))
def test_54_random_bytes_for_a_config_file(content):
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "fuzz.yaml").write_bytes(content)
        with suppress(ConfigError):
            check_file(Path(directory) / "fuzz.yaml")


BROKEN = {
    "a date that is none": "a: 2001-13-45",
    "a number without digits": "a: 0x_",
    "a key twice": "seed: 1\nseed: 2",
    "a list": "- seed",
    "a word": "seed",
    "a header without a value": "# @package\nseed: 1",
    "a list for a key": "? [seed]\n: 1",
    "deeply nested": "[" * 3000,
    "a key that is none": "?",
    "a mark twice": "a: &a 1\nb: *c",
    "defaults of another kind": "defaults: 3",
    "a default that is not there": "defaults: [nothing]",
    "an interpolation without an end": "seed: ${a",
    "an interpolation of nothing": "seed: ${nothing}",
    "a resolver that is not there": "seed: ${nothing:1}",
}


@pytest.mark.slow
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_54_a_broken_experiment_is_told_of_in_one_line(content, tmp_path):
    (tmp_path / "experiment").mkdir()
    header = "" if content.startswith("#") else "# @package _global_\n"
    (tmp_path / "experiment" / "fuzz.yaml").write_text(header + content)
    code, _, err = command_here("experiment=fuzz", "--config-dir", str(tmp_path), "--cfg", "job", "--resolve")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.slow
@settings(max_examples=150, **FUZZ)
@given(content=SIGNS | st.binary(max_size=60))
def test_54_random_bytes_for_an_experiment_never_end_in_a_traceback(content):
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "experiment").mkdir()
        (Path(directory) / "experiment" / "fuzz.yaml").write_bytes(content)
        code, _, err = command_here("experiment=fuzz", "--config-dir", directory, "--cfg", "job")
    assert code in (0, 2)
    assert err.startswith("error: ") is (code == 2)


def test_our_own_files_pass():
    check_start(CONF, [])


def test_aliases_in_a_circle_end(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a\n  b: [*a]\n")
    check_file(tmp_path / "a.yaml")


@pytest.mark.parametrize("flag", ["--config-dir", "-cd", "--config-path", "-cp", "--config-di", "--config-p"])
@pytest.mark.parametrize("is_one_word", [False, True])
def test_another_directory_of_files_is_looked_at_too(flag, is_one_word, tmp_path):
    (tmp_path / "a.yaml").write_text("_target_: os.system")
    with pytest.raises(ConfigError, match=r"_target_: os\.system is not on the list"):
        check_start(CONF, [f"{flag}={tmp_path}"] if is_one_word else [flag, str(tmp_path)])


OVERRIDES = [
    "loss._target_=os.system",
    "+hydra.callbacks.x._target_=os.system",
    "+hydra.callbacks.x={_target_: os.system}",
    "+hydra.callbacks.x={'_target_': 'os.system'}",
    "+x={a: {_target_: torch.optim.SGD}, b: {_target_: os.system}}",
    "+hydra.job.env_set.PYTHONPATH=/tmp",
    "hydra.searchpath=[file:///tmp]",
    "+hydra.job_logging.handlers.x={class: sentinel.Run}",
    "+hydra.job_logging.handlers.x={'()': os.system}",
    "data.train=${oc.env:HOME}",
    "data.train=${${task.name}:HOME}",
    "experiment=../../gift",
    "+experiment@x=[../gift]",
    "logger=[wandb,../../gift]",
    "experiment='${task.name}'",
    "hydra/launcher=..\\gift",
]


@pytest.mark.parametrize("override", OVERRIDES)
def test_38_an_override_that_names_code_is_refused(override):
    with pytest.raises(ConfigError):
        check_override(override)


@pytest.mark.slow
@pytest.mark.parametrize("override", OVERRIDES)
def test_38_the_program_refuses_an_override_before_anything_of_it_runs(override, tmp_path):
    assert refused_unrun(tmp_path / "gift", None, override) == (True, False)


@pytest.mark.parametrize(
    "content", ["x: canary-5d2f9c1b77e04a", "a:\n  wandb_token: anything", "x: https://me:pass@host/a.csv"]
)
def test_40_a_secret_in_a_config_file_is_refused_and_not_repeated(content, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "canary-5d2f9c1b77e04a")
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.yaml.*set it in the environment") as raised:
        check_start(CONF, [f"--config-dir={tmp_path}"])
    assert content.rpartition(" ")[2] not in str(raised.value)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer=adamw",
        "loss._target_=permafrost.tasks.losses.Focal",
        "task.template='f() of {text}'",
        "hydra.run.dir=outputs/classes",
        "data.columns.label=class",
        "data.train=../rows/train.csv",
        "resume=../outputs/kept",
        "init_from=../../a/run",
        "task.template={source}..{target}",
        "logger=[wandb,csv]",
        "--config-dir=../given",
        "-m",
    ],
)
def test_what_people_type_passes(override):
    check_override(override)


def test_a_directory_behind_a_link_is_looked_at_too(tmp_path):
    """Hydra goes there; round and round it does not go."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "a.yaml").write_text("_target_: os.system")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "experiment").symlink_to(tmp_path / "hidden")
    (tmp_path / "given" / "again").symlink_to(tmp_path / "given")
    with pytest.raises(ConfigError, match=r"experiment/a\.yaml: _target_: os\.system is not on the list"):
        check_start(CONF, ["--config-dir", str(tmp_path / "given")])


def test_a_path_is_relative_to_the_program_as_well(tmp_path, monkeypatch):
    (tmp_path / "program" / "given").mkdir(parents=True)
    (tmp_path / "program" / "given" / "a.yaml").write_text("_target_: os.system")
    with pytest.raises(ConfigError, match=r"os\.system is not on the list"):
        check_start(tmp_path / "program" / "conf", ["--config-path=given"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--experimental-rerun", "config.pickle"],
        ["--experimental-rerun=config.pickle"],
        ["seed=1", "--exp", "config.pickle"],
        ["--config-name=/tmp/gift"],
        ["--config-name", "../gift"],
        ["-cn", "gift.yaml"],
        ["--config-path=pkg://stranger"],
    ],
    ids=" ".join,
)
def test_38_a_flag_that_names_other_files_is_refused(arguments):
    with pytest.raises(ConfigError, match=r"--experimental-rerun reads a pickle|config files lie in directories"):
        check_start(CONF, arguments)


def test_38_a_pickle_to_run_again_is_not_read(tmp_path):
    """Hydra would have unpickled it."""
    import pickle

    gift = tmp_path / "config.pickle"
    gift.write_bytes(pickle.dumps(Gift(tmp_path / "ran")))
    done = command("--experimental-rerun", str(gift), cwd=tmp_path)
    assert done.returncode == 2
    assert "reads a pickle" in done.stderr
    assert not (tmp_path / "ran").exists()


class Gift:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


def test_39_a_models_pickled_weights_run_nothing(tiny_model_dir, tmp_path):
    import shutil

    import torch

    from permafrost.model.backbone import load_backbone, load_config

    shutil.copytree(tiny_model_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"wte.weight": Gift(tmp_path / "ran")}, tmp_path / "model" / "pytorch_model.bin")
    config = load_config(str(tmp_path / "model"))
    with pytest.raises(PermafrostError, match="hold more than tensors, so they are not read"):
        load_backbone(str(tmp_path / "model"), config, pretrained=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", ["seed: ${oc.env:HOME}", "loss: {_target_: os.system}"])
def test_39_a_strangers_run_is_not_gone_on_with_by_its_configuration(line, tmp_path):
    from permafrost.runs.kept_config import config_of_run

    (tmp_path / "config.yaml").write_text(line)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        config_of_run(tmp_path, [])


def test_a_part_is_held_to_the_same(monkeypatch):
    from permafrost.settings.composing import composed_part

    with pytest.raises(ConfigError, match=r"task\.parts\.a: .*name of an option"):
        composed_part("a", ["experiment=../../gift"], CONF)


def test_a_weakened_hydra_does_not_start(monkeypatch):
    monkeypatch.setitem(os.environ, "HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE", "os.system")
    with pytest.raises(ConfigError, match="unset it"):
        check_start(CONF, [])


def test_38_the_command_runs_nothing_of_a_strangers_directory(tmp_path):
    """Hydra would have built this callback before our own program began."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "sentinel.py").write_text("open('ran', 'w')")
    callback = "# @package _global_\nhydra: {callbacks: {x: {_target_: sentinel.Run}}}\n"
    (tmp_path / "experiment" / "gift.yaml").write_text(callback)
    done = command("experiment=gift", "--config-dir", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "sentinel.Run is not on the list of what a config may build" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"model_type": "gpt2", "auto_map": {"AutoModel": "stranger.Model"}}),
        ("config.json", {"model_type": "gpt2", "_attn_implementation_internal": "stranger/kernel"}),
        ("config.json", {"nested": [{"auto_map": {}}]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["stranger.Tokenizer", None]}}),
    ],
)
def test_39_a_model_with_code_of_its_own_is_refused(name, content, tmp_path):
    from permafrost.model.backbone import load_config
    from permafrost.tasks.preparation import load_tokenizer

    (tmp_path / name).write_text(json.dumps(content))
    for load in (check_model_directory, lambda path: load_config(str(path)), lambda path: load_tokenizer(str(path))):
        with pytest.raises(ConfigError, match=f"{name}: .* names code to be run with the model"):
            load(tmp_path)


# The first release without the faults that are known of the ones before: CVE-2026-58659 and malware, CVE-2026-24747,
# CVE-2026-5241, CVE-2026-68508 with its bypass, and a licence.
SOUND_FROM = {
    "lightning": "2.6.6",
    "pytorch-lightning": "2.6.6",
    "torch": "2.10",
    "transformers": "5.5.0",
    "hydra-core": "1.3.8",
    "cleanlab": "2.8.0",
}


def test_pins_are_above_what_is_known_to_be_bad():
    """`make audit` asks the index of all of them."""
    from packaging.version import Version

    lines = (CONF.parent / "constraints.txt").read_text().splitlines()
    pins = dict(line.split(" ;")[0].split("==") for line in lines if "==" in line)
    for name, first in SOUND_FROM.items():
        assert Version(pins[name].strip()) >= Version(first), name
