"""Every command in the README is executed, made small where it would train for minutes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from permafrost.data.fields.roles import ROLES
from tests.runs.test_serve import Served, get

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands() -> list[str]:
    """Lines of the README's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


SMALL = ["trainer.max_steps=2", "data.max_train_rows=60", "data.max_length=32", "yardsticks=false", "logger=none"]
SMALL += ["task.decoding.max_new_tokens=8", "task.validation_generations=4"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_model_dir) -> Path:
    """A directory with the files that the README's examples name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.conftest import SHARED
    from tests.runs.conftest import write_rows, write_sentences

    directory = tmp_path_factory.mktemp("readme")
    write_rows(directory, {"train": 40, "dev": 16, "test": 16, "new": 4})
    write_sentences(directory, {"train": 40, "dev": 16, "val": 16, "test": 16})
    for path in [*directory.glob("*.src"), *directory.glob("*.tgt")]:
        path.rename(path.with_suffix({".src": ".en", ".tgt": ".de"}[path.suffix]))
    (directory / "train.jsonl").rename(directory / "dialogues.jsonl")
    (directory / "contract.txt").write_text("This Agreement ends after two (2) years.\nThe laws of Delaware apply.\n")
    (directory.parent / "shared").symlink_to(SHARED)
    (directory / "gpt2").mkdir()
    for path in tiny_model_dir.iterdir():
        (directory / "gpt2" / path.name).write_bytes(path.read_bytes())
    config = GPT2Config.from_pretrained(tiny_model_dir, n_layer=12)
    GPT2LMHeadModel(config).save_pretrained(directory / "gpt2")
    return directory


def test_there_are_commands():
    lines = commands()
    assert len(lines) >= 10
    assert any(line.startswith("make train") for line in lines)


def test_the_table_of_groups_is_complete():
    groups = {path.parent.name for path in (ROOT / "conf").glob("*/*.yaml")}
    for group in groups:
        options = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml") if path.stem != "defaults")
        assert f"| `{group}=` | {', '.join(options)} |" in README
    assert groups


def test_the_table_of_columns_is_complete():
    """What is asked for later, of words alone or of turns without a reply, has the names of the others."""
    for role in (ROLES[name] for name in ROLES.keys() - {"history", "words"}):
        pairs = [names for names in role.common if len(names) > 1]
        for written in filter(None, (pairs, [names for names in role.common if len(names) == 1])):
            assert f"{', '.join(' + '.join(names) for names in written)} | " in README
        assert all(f"data.columns.{key}" in README for key in role.column)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_make_command_names_a_real_target(line):
    done = subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_and_run_commands(workplace):
    """In the README's order, since later commands name the runs of earlier ones."""
    executed = 0
    for line in commands():
        words = shlex.split(line)
        if "experiment=" in line and not (workplace.parent / "shared").exists():
            continue  # the real data sets are not beside this clone
        if words[0] == "python":
            run(training_arguments(words, workplace), workplace)
        elif words[:2] == ["permafrost", "serve"]:
            with Served(str(workplace / words[2])) as server:
                assert get(server.url)[0] == 200
        elif words[0] == "permafrost":
            run([str(Path(sys.executable).with_name("permafrost")), *words[1:]], workplace)
        else:
            assert words[0] in ("make", "git", "cd", "wandb"), f"no test executes: {line}"
            continue
        executed += 1
    assert executed >= 8


def training_arguments(words: list[str], workplace: Path) -> list[str]:
    arguments = [sys.executable, str(ROOT / "train.py"), *words[2:]]
    if "--cfg" in words or "--help" in words:
        return arguments
    if "data=" not in " ".join(words) and "experiment=pretrain_mini" not in words:
        arguments.append("data.max_train_rows=60")
    if "-m" in words:
        return [*arguments, *SMALL, f"hydra.sweep.dir={workplace}/sweep-{len(list(workplace.iterdir()))}"]
    run_dir = (
        []
        if any(word.startswith("hydra.run.dir") for word in words)
        else [f"hydra.run.dir={workplace}/{len(list(workplace.iterdir()))}"]
    )
    return [*arguments, *SMALL, *run_dir]


def run(arguments: list[str], workplace: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        arguments, cwd=workplace, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
