"""Secrets are refused in overrides, and taken out of texts; what only looks like their names stays."""

import pytest

from permafrost.errors import ConfigError
from permafrost.safety.redaction import check_no_secret, redacted, redacted_text
from tests.runs.conftest import command

CANARY = "canary-5d2f9c1b77e04a"
FORMS = [
    "hf_" + "a1B2" * 8,
    "sk-proj-" + "a1B2" * 8,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 10,
    "AKIA" + "ABCD" * 4,
    "xoxb-123456789012-abc",
    "glpat-" + "a1B2" * 5,
]


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "DB_PASSWORD", "aws_secret_access_key", "A_CREDENTIAL"])
def test_a_secret_variables_value_is_named_and_not_shown(name, monkeypatch):
    monkeypatch.setenv(name, CANARY)
    assert redacted_text(f"login with {CANARY}!") == f"login with [{name}]!"


@pytest.mark.parametrize("name", ["HOME", "KEYBOARD", "TOKENIZERS_PARALLELISM"])
def test_other_variables_are_no_secrets(name, monkeypatch):
    monkeypatch.setenv(name, CANARY)
    assert redacted_text(CANARY) == CANARY


def test_a_short_value_would_be_found_anywhere(monkeypatch):
    monkeypatch.setenv("API_KEY", "cold")
    assert redacted_text("a cold day") == "a cold day"


@pytest.mark.parametrize("secret", FORMS, ids=lambda secret: secret[:6])
def test_secrets_are_known_by_their_form(secret):
    assert redacted_text(f"token={secret},") == "token=[secret],"


def test_a_password_within_an_address():
    assert redacted_text("https://me:pass@host/data.csv") == "https://[secret]@host/data.csv"
    assert redacted_text("https://host:80/a@b") == "https://host:80/a@b"


def test_nested_values(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    node = {"a": [f"x{CANARY}", 3, None], "api_key": "anything", "cls_token": "<s>", "max_tokens": 5, "token": "word"}
    assert redacted(node) == {
        **{"a": ["x[HF_TOKEN]", 3, None], "api_key": "[secret]"},
        **{"cls_token": "<s>", "max_tokens": 5, "token": "word"},
    }


@pytest.mark.parametrize(
    "override", ["+wandb.api_key=abc", "+hf_token=x", "data.train=https://me:pw@host/a.csv", f"+a=[{FORMS[0]}]"]
)
def test_40_a_secret_in_an_override_is_refused_and_not_repeated(override):
    with pytest.raises(ConfigError) as raised:
        check_no_secret(override)
    assert override.partition("=")[2] not in str(raised.value)


@pytest.mark.parametrize("override", ["data.columns.token=0", "data.max_tokens_per_batch=99", "seed=1", "-m"])
def test_what_people_type_is_no_secret(override):
    check_no_secret(override)


def test_40_the_command_neither_shows_nor_writes_a_secret(monkeypatch, tmp_path):
    """Of the environment, in an override, and in the error about an override."""
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    for override in (f"+logger.wandb.api_key={FORMS[0]}", f"seed={CANARY}", f"model={CANARY}"):
        done = command(override, "debug=true", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
        assert done.returncode == 2
        assert CANARY not in done.stdout + done.stderr
        assert FORMS[0] not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
