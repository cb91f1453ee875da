"""The mini model that comes with the project: small, whole, documented, and loaded by plain Transformers."""

import json
import math
import re
from pathlib import Path, PurePosixPath

import torch

import permafrost
from permafrost.model.backbone import SHIPPED

MINI = SHIPPED["mini"]


def test_it_is_at_most_12_megabytes():
    assert sum(path.stat().st_size for path in MINI.iterdir()) <= 12e6


def test_its_card_states_how_it_was_made():
    card = (MINI / "README.md").read_text("utf-8")
    for words in ("experiment=pretrain_mini", "tokens seen", "held-out loss", "Corpus", "standard library"):
        assert words in card


def test_plain_transformers_loads_it_and_it_has_learned():
    """A sentence of its field is likelier than the same words in no order, by far more than chance."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MINI)

    @torch.no_grad()
    def loss(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        return float(model(ids, labels=ids).loss)

    text = "Return the index of the first element that is equal to the given value, or raise a ValueError."
    shuffled = "the raise index ValueError. first value, of to Return element equal that given a is the or the"
    assert loss(text) < 4 < math.log(len(tokenizer)) < 9.1
    assert loss(shuffled) > loss(text) + 1


def test_everything_that_is_no_code_is_package_data():
    package, project = Path(permafrost.__file__).parent, Path(__file__).parents[1]
    declared = re.search(r"^permafrost = (\[.*\])$", (project / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    files = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
    no_code = [path for path in files if path.suffix not in (".py", ".pyc")]
    assert Path("model/mini/model.safetensors") in no_code
    patterns = json.loads(declared[1])
    assert [path for path in no_code if not any(PurePosixPath(path).match(pattern) for pattern in patterns)] == []
