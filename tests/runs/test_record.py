"""What a run directory says of its run is compared with what is asked now."""

import pytest
from omegaconf import OmegaConf

from permafrost.runs.record import changes_of, finished_result, to_write


@pytest.mark.parametrize(
    ("there", "here", "changes"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, {}),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, {"a.b": (1, 2)}),
        ({"a": 1, "c": None}, {"a": 1}, {"c": (None, "unset")}),
        ({}, {"a": 1}, {}),  # an empty file, of a machine that went down
    ],
)
def test_what_differs_has_its_dotted_name(there, here, changes, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_write(OmegaConf.create(there)) if there else "")
    assert changes_of(path, OmegaConf.create(here)) == changes


def test_a_secret_is_no_difference(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    cfg = OmegaConf.create({"note": "0123456789abcdef"})
    (tmp_path / "config.yaml").write_text(to_write(cfg))
    assert "0123456789abcdef" not in (tmp_path / "config.yaml").read_text()
    assert changes_of(tmp_path / "config.yaml", cfg) == {}


@pytest.mark.parametrize("content", [None, '{"status": "failed"}', '{"status": "do'])
def test_what_is_not_done_has_no_result(content, tmp_path):
    if content:
        (tmp_path / "result.json").write_text(content)
    assert finished_result(tmp_path) is None
