"""Failures a user can cause, each with the exit code that programs read (2 config, 3 data, 4 resources, 5 training)."""

import difflib
from collections.abc import Iterable


class PermafrostError(Exception):
    """What is wrong, where, and what to type. Shown without a traceback unless `debug=true`."""

    exit_code = 1


class ConfigError(PermafrostError):
    exit_code = 2


class DataError(PermafrostError):
    """Of one problem or several, each of which is told on a line of its own."""

    exit_code = 3

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ResourceError(PermafrostError):
    exit_code = 4


class TrainingError(PermafrostError):
    exit_code = 5


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: `; did you mean 'blocks'?`, or the known names when none is near."""
    names = {str(name).lower(): str(name) for name in sorted({str(name) for name in known})}
    begun = [name for name in names if name.startswith(str(word).lower())]
    close = begun or difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {names[close[0]]!r}?"
    return f"; known here: {', '.join(names.values())}" if names else ""
