"""A dashboard is online for who is logged in alone."""

import pytest

from permafrost.training.loggers import wandb_login

KEY = {"WANDB_API_KEY": "k" * 40}
NETRC = "machine {} login user password k\n"


@pytest.mark.parametrize(
    ("environment", "netrc", "online"),
    [
        ({}, None, False),
        (KEY, None, True),
        ({"WANDB_MODE": "online"}, None, True),
        (KEY | {"WANDB_MODE": "offline"}, None, False),
        ({}, NETRC.format("api.wandb.ai"), True),
        ({}, NETRC.format("other.org"), False),
        ({}, "no such word\n", False),
    ],
)
def test_online_is_who_is_logged_in(monkeypatch, tmp_path, environment, netrc, online):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if netrc:
        (tmp_path / ".netrc").write_text(netrc)
        (tmp_path / ".netrc").chmod(0o600)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_login() is online
