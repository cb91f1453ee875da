"""What a task asks of its rows, without importing it: that imports torch, which takes longer than all that is asked."""

import ast
import re
from pathlib import Path

from permafrost.errors import ConfigError

KIND = re.compile(r"[a-z_]+\.[A-Z][A-Za-z]*")


def declared_roles(kind: str) -> tuple[str, ...]:
    """The `roles` that the class MODULE.Class of this directory has as a literal.

    Raises:
        ConfigError: there is no such class, or its roles are no literal.
    """
    module, _, name = kind.partition(".")
    path = Path(__file__).with_name(f"{module}.py")
    if KIND.fullmatch(kind) and path.is_file():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                for line in node.body:
                    if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "roles":
                        return tuple(ast.literal_eval(line.value))
    raise ConfigError(f"task.kind={kind}: no such task, or its roles are not written out; give MODULE.Class")
