"""Files and overrides of strangers, and a secret."""

from pathlib import Path

from faults.tiny_runs import tiny_overrides


def strangers(root: Path) -> list[str]:
    """Files and overrides that name code, as the program answers them; a secret, looked for in what a run leaves."""
    from tests.runs.test_resume import secret_found
    from tests.safety.test_trust import FILES, OVERRIDES, refused_unrun

    files = [refused_unrun(root / f"file-{number}", content) for number, content in enumerate(FILES.values())]
    typed = [refused_unrun(root / f"override-{number}", None, line) for number, line in enumerate(OVERRIDES)]
    searched, found = secret_found(tiny_overrides(root, ["trainer.max_epochs=1"]), root)
    return [
        "Each as `python train.py` answers it: refused is exit code 2 with one line, before anything is imported or "
        "written.",
        "",
        "| | tried | refused | code that ran |",
        "|---|---|---|---|",
        f"| config files | {len(files)} | {sum(refused for refused, _ in files)} | {sum(ran for _, ran in files)} |",
        f"| overrides | {len(typed)} | {sum(refused for refused, _ in typed)} | {sum(ran for _, ran in typed)} |",
        "",
        f"A secret in WANDB_API_KEY and HF_TOKEN: of the {searched} files that a run leaves, and what it prints, "
        f"{found} have it.",
    ]
