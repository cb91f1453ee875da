"""Secrets stay in the environment: they are refused in overrides, and taken out of whatever is written or shown."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from permafrost.errors import ConfigError

# Names of variables and keys; not the likes of cls_token, max_tokens or num_memory_tokens.
SECRET_NAME = re.compile(
    r"(?:^|[_.\-])(?:api_?key|access_?key|private_?key|secret(?:_?key)?|passw(?:or)?d|credentials?|auth_?token|"
    r"access_?token|api_?token)$|^(?:hf|hugging_?face(?:_hub)?|hub|wandb|github|gh)_token$",
    re.IGNORECASE,
)
OF_ENVIRONMENT = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$")
# Values, by the forms that well-known services give them; and names with passwords within an address.
SECRET_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{16,}|"
    r"AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|wandb_v1_\w{20,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})|"
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
SHORTEST = 12  # characters: a shorter value may be a word of any text
WRITTEN_DOWN = "a secret would be written down with the run; set it in the environment, as WANDB_API_KEY or HF_TOKEN"


def secrets() -> dict[str, str]:
    """Value -> name, of the environment's variables that are secret by their name."""
    named = {name: value for name, value in os.environ.items() if OF_ENVIRONMENT.search(name.upper())}
    return {value: name for name, value in named.items() if len(value.strip()) >= SHORTEST}


def redacted_text(text: str) -> str:
    """With `[WANDB_API_KEY]` in place of that variable's value, and `[secret]` in place of what looks like one."""
    for value, name in secrets().items():
        text = text.replace(value, f"[{name}]")
    return SECRET_VALUE.sub("[secret]", text)


def redacted(node: Any) -> Any:
    """Likewise of every text in nested lists and mappings."""
    if isinstance(node, Mapping):
        return {key: "[secret]" if SECRET_NAME.search(str(key)) else redacted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [redacted(value) for value in node]
    return redacted_text(node) if isinstance(node, str) else node


def check_no_secret(override: str) -> None:
    """An override is kept in files and dashboards, and shown to whoever lists this machine's processes.

    Raises:
        ConfigError: it holds a secret, which the message does not repeat.
    """
    key, _, value = override.lstrip("+~").partition("=")
    if (value and SECRET_NAME.search(key)) or redacted_text(value) != value:
        raise ConfigError(f"{redacted_text(key)}=...: {WRITTEN_DOWN}")


def check_no_secret_in(path: Path, text: str, keys: Iterable[tuple[Any, Any]]) -> None:
    """Likewise of a config file, of which `keys` are all with their values.

    Raises:
        ConfigError
    """
    for key, value in keys:
        if value and SECRET_NAME.search(str(key)):
            raise ConfigError(f"{path}: {redacted_text(str(key))}: {WRITTEN_DOWN}")
    if redacted_text(text) != text:
        lines = enumerate(text.splitlines(), 1)
        where = next((f":{number}" for number, line in lines if redacted_text(line) != line), "")
        raise ConfigError(f"{path}{where}: {WRITTEN_DOWN}")
