"""Imports flow one way: data, model <- tasks <- training <- deployment, reporting <- the entry points."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import permafrost

ROOT = Path(permafrost.__file__).parent
# Each name may import from its own tier and from those before it.
TIERS = [
    {"errors"},
    {"storage"},
    {"safety"},
    {"data", "model"},
    {"tasks"},
    {"training"},
    {"compression"},
    {"deployment", "reporting"},
    {"settings"},
    {"runs"},
    {"experiment"},
    {"launch"},
    {"cli", "command_files"},
]
TIER = {name: number for number, names in enumerate(TIERS) for name in names}
STRANGERS = [{"data", "model"}]  # of one tier, and yet not to import each other
# Library -> the rooms and files that may import it.
DOORS = {
    "lightning": ("training/", "runs/assembly.py", "experiment.py"),
    "pytorch_lightning": (),
    "omegaconf": (
        *("experiment.py", "launch.py", "reporting/sweep.py"),
        *("runs/claims.py", "runs/kept_config.py", "runs/record.py", "runs/resuming.py", "runs/trials.py"),
        *("settings/composing.py", "settings/config.py", "settings/overrides.py"),
    ),
    "hydra": (
        "launch.py",
        "reporting/sweep.py",
        "runs/kept_config.py",
        "settings/composing.py",
        "settings/overrides.py",
    ),
}


def modules() -> list[Path]:
    found = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.stat().st_size)
    assert len(found) > 20, f"few modules under {ROOT}: {found}"
    return found


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from walk(child)


def imported(source: str) -> set[str]:
    """Dotted names that a module imports, within functions too."""
    names = set()
    for node in walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def breaches(path: Path) -> list[str]:
    """Imports of our own that go against the flow."""
    ours = [name.split(".")[1] for name in imported(path.read_text("utf-8")) if name.startswith("permafrost.")]
    here = room(path)
    return [
        f"{here} imports {other}"
        for other in ours
        if TIER[other] > TIER[here] or (other != here and {here, other} in STRANGERS)
    ]


def identifier(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules(), ids=identifier)
def test_imports_flow_one_way(path):
    assert room(path) in TIER, "a new room: say in TIERS where it stands"
    assert breaches(path) == []


@pytest.mark.parametrize("path", modules(), ids=identifier)
def test_libraries_come_in_by_their_doors(path):
    libraries = {name.split(".")[0] for name in imported(path.read_text("utf-8"))}
    shut = [
        library for library in libraries & DOORS.keys() if not identifier(path).startswith(DOORS[library] or ("-",))
    ]
    assert shut == []


@pytest.mark.parametrize(("library", "door"), [(library, door) for library, doors in DOORS.items() for door in doors])
def test_no_door_is_open_that_nobody_uses(library, door):
    users = [path for path in modules() if identifier(path).startswith(door)]
    assert library in {name.split(".")[0] for path in users for name in imported(path.read_text("utf-8"))}


def test_the_flow_is_there_to_be_checked():
    libraries = set().union(*(imported(path.read_text("utf-8")) for path in modules()))
    assert any(name.startswith("permafrost.model.") for name in libraries)
    assert {name.split(".")[0] for name in libraries} >= {"lightning", "omegaconf", "hydra"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from permafrost.data.tokens.batching import Batch", {"permafrost.data.tokens.batching.Batch"}),
        ("from permafrost import data", {"permafrost.data"}),
        ("import lightning.pytorch as lightning", {"lightning.pytorch"}),
        ("def late():\n    import torch", {"torch"}),
        ("if TYPE_CHECKING:\n    import torch", set()),
        ("if typing.TYPE_CHECKING:\n    import torch\nimport json", {"json"}),
    ],
)
def test_what_counts_as_an_import(source, expected):
    assert imported(source) == expected


def test_a_breach_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_imports.ROOT", tmp_path)
    (tmp_path / "model").mkdir()
    module = tmp_path / "model" / "backbone.py"
    module.write_text("def late():\n    from permafrost.data.tokens.batching import Batch\nimport permafrost.errors")
    assert breaches(module) == ["model imports data"]
    module.write_text("from permafrost.training.module import FineTuning")
    assert breaches(module) == ["model imports training"]
