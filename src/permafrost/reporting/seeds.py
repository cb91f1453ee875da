"""A sweep's settings over their seeds: mean, standard deviation, smallest and largest score of each, how many of its
runs failed, and what a choice changes.

Settings are compared seed by seed with the one that has the first value of the last key that was swept, and all else
alike: of `augmentation=none,eda` with none.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from permafrost.reporting.sweep import Trial

SEED = "seed"
Setting = tuple[str, ...]  # the value of each key that was swept, but the seed
BySeed = dict[str, "Trial"]


def varied_keys(trials: Sequence["Trial"]) -> list[str]:
    """Overrides that differ between trials."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.overrides))
    return [key for key in keys if len({trial.overrides.get(key) for trial in trials}) > 1]


def by_setting(trials: Sequence["Trial"]) -> dict[Setting, BySeed]:
    """Trials that ended with a score of the first one's metric, in the order in which they were swept."""
    setting_of, found = settings_of(trials), dict[Setting, BySeed]()
    for trial in sorted(trials, key=lambda trial: trial.number):
        of_setting = found.setdefault(setting_of[trial.number], {})
        if trial.score("test", trial.monitor) is not None and trial.monitor == trials[0].monitor:
            of_setting[trial.overrides[SEED]] = trial
    return found


def settings_of(trials: Sequence["Trial"]) -> dict[int, Setting]:
    """By the trial's number."""
    keys = [key for key in varied_keys(trials) if key != SEED]
    return {trial.number: tuple(trial.overrides.get(key, "") for key in keys) for trial in trials}


def differences(settings: dict[Setting, BySeed]) -> dict[Setting, list[float]]:
    """Test scores less those of the setting to compare with, of each seed that both have."""
    first = next(iter(settings))[-1:]
    found = {}
    for setting, of_seeds in settings.items():
        base = settings.get(setting[:-1] + first, {})
        if base is not of_seeds:
            shared = [seed for seed in of_seeds if seed in base]
            found[setting] = [_test(of_seeds[seed]) - _test(base[seed]) for seed in shared]
    return found


def over_seeds(trials: Sequence["Trial"]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each setting; no rows where the seed was not swept."""
    keys, monitor = varied_keys(trials), trials[0].monitor
    if SEED not in keys:
        return [], []
    keys.remove(SEED)
    settings = by_setting(trials)
    changes, setting_of = differences(settings), settings_of(trials)
    failed = Counter(setting_of[trial.number] for trial in trials if trial.failed)
    header = [*keys, "seeds", f"validation {monitor}", f"test {monitor}"]
    if keys:
        header.append(f"difference of test to {keys[-1]}={next(iter(settings))[-1]}")
    rows = []
    for setting, of_seeds in settings.items():
        scores = [[trial.result[stage][monitor] for trial in of_seeds.values()] for stage in ("validation", "test")]
        seeds = f"{len(of_seeds)}, {failed[setting]} failed" if failed[setting] else str(len(of_seeds))
        row = [*setting, seeds, *(spread(of_stage, ".4f") for of_stage in scores)]
        rows.append([*row, spread(changes.get(setting, []), "+.4f")][: len(header)])
    return header, rows


def spread(values: Sequence[float], form: str) -> str:
    """`mean ± standard deviation (smallest to largest)`; a single value alone."""
    if len(values) < 2:
        return "".join(f"{value:{form}}" for value in values)
    deviation = f"{statistics.stdev(values):{form.replace('+', '')}}"
    return f"{statistics.mean(values):{form}} ± {deviation} ({min(values):{form}} to {max(values):{form}})"


def _test(trial: "Trial") -> float:
    return trial.result["test"][trial.monitor]
