"""One run by one process, by two and by one again."""

from pathlib import Path

from faults.tiny_runs import tiny_overrides


def processes(root: Path) -> list[str]:
    """One process, then two, then one, in one run; and scores of one, two and four on rows that these do not divide."""
    from permafrost.training.sealed import peek
    from tests.runs.test_processes import notes, of_processes, result, run, steps_of, watched

    recipe = ["model.dropout=0", "store=on", "trainer.log_every_n_steps=1", "trainer.max_epochs=2"]
    recipe += ["scheduler=constant", "scheduler.warmup=0", "callbacks.early_stopping=null"]
    own = [*tiny_overrides(root, recipe, test_rows=15), f"store.dir={root}/store"]
    for limit, count in ((4, 1), (8, 2), (-1, 1)):
        part = [f"trainer.max_steps={limit}", *of_processes(count), f"hydra.run.dir={root}/changing", "resume=auto"]
        run([*own, *part], root, **watched("changing-run", root))
    for count in (1, 2, 4):
        part = [*of_processes(count), f"hydra.run.dir={root}/{count}"]
        run([*own, *part], root, **watched(f"of-{count}", root))
    changing, constant = steps_of(notes("changing-run", root)), steps_of(notes("of-1", root))
    alike = sum(changing[step][0] == rows for step, (rows, _) in constant.items())
    loss = max(abs(changing[step][1] - loss) for step, (_, loss) in constant.items())
    ours, theirs = (peek(root / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("changing", "1"))
    weight = max(float((ours[name] - value).abs().max()) for name, value in theirs.items())
    lines = [
        f"{len(constant)} steps: four by one process, four by two (`trainer=ddp_cpu`), four by one, beside one process "
        "throughout.",
        "",
        "| | |",
        "|---|---|",
        f"| steps of the same rows | {alike} of {len(constant)} |",
        f"| largest difference of a step's loss | {loss:.1e} |",
        f"| largest difference of a final weight | {weight:.1e} |",
        "",
        "Scores on 16 validation and 15 test rows, beside those of one process:",
        "",
        "| processes | answers to test rows | largest difference of a score |",
        "|---|---|---|",
    ]
    one = result(root / "1")
    for count in (2, 4):
        several, answers = result(root / str(count)), root / str(count) / "predictions.jsonl"
        apart = [abs(several[on][name] - value) for on in ("validation", "test") for name, value in one[on].items()]
        lines.append(f"| {count} | {len(answers.read_text().splitlines())} | {max(apart):.1e} |")
    return lines
