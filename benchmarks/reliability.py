"""Runs that are killed, files that are damaged, and what saving costs: python benchmarks/reliability.py

Writes results/reliability.md, a section for each study; with names of studies, those alone. All but `overhead` are made
on a GPT-2 of two blocks, whose runs take seconds: what is tested is when, not how much.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from stated import RESULTS, ROOT, hardware

KILLS, FLIPS, SOAK_STEPS, FAULTS = 200, 200, 500, 54
STAGES = ("none of these", "a save", "the store's build", "validation", "export")
OF_TIME = ("train/tokens_per_second", "train/epoch_seconds")
STEPS, SAVE_EVERY = 12, 2
# Six batches an epoch, so that validation, every fifth step, and saves come within epochs and at their ends.
RECIPE = ["model.dropout=0.3", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=10", "store=on"]
RECIPE += ["trainer.log_every_n_steps=1", f"trainer.max_steps={STEPS}", "trainer.max_epochs=9"]
RECIPE += [f"save_every={SAVE_EVERY}", "callbacks.early_stopping=null"]
# For the process that kills a run, by the run: what it is at, its step from 1, how often it came to each stage, and how
# long it was there. Without locks, which a killed process would keep.
stage, step_at = (multiprocessing.Value("i", 0, lock=False) for _ in range(2))
begun, spent_s = (multiprocessing.Array(kind, len(STAGES), lock=False) for kind in "id")


def main(names: Sequence[str]) -> None:
    studies: dict[str, Callable[[Path], list[str]]] = {
        "kills": kills,
        "damage": damage,
        "processes": processes,
        "overhead": overhead,
        "strangers": strangers,
        "typos": typos,
        "soak": soak,
        "catalogue": catalogue,
    }
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    sys.path.append(str(ROOT))  # for the rows of the tests
    torch.set_num_threads(1)
    for name in names or list(studies):
        with TemporaryDirectory(prefix="reliability-") as directory:
            write(name, studies[name](Path(directory)))


def write(name: str, lines: Sequence[str]) -> None:
    """Put the study's section in place of the one before, or behind the others."""
    path = RESULTS / "reliability.md"
    head = "# Reliability\n\n`python benchmarks/reliability.py`; tests hold the catalogue of faults by its numbers.\n"
    text = path.read_text() if path.exists() else head
    stated = f"{hardware()}; {date.today()}; `python benchmarks/reliability.py {name}`."
    section = "\n".join([f"## {name[0].upper()}{name[1:]}", "", stated, "", *lines, ""])
    kept = [part for part in re.split(r"(?m)^(?=## )", text) if not part.lower().startswith(f"## {name}\n")]
    path.write_text("\n".join([part.rstrip() + "\n" for part in kept] + [section]))
    print(section)


def catalogue(root: Path) -> list[str]:
    """Which tests hold which fault, by the numbers in their names: test_8_to_10_..., test_1_and_4_..."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for first, link, second, name in re.findall(r"def test_(\d+)(?:_(to|and)_(\d+))?_(\w+)", path.read_text()):
            last = int(second or first)
            for number in range(int(first), last + 1) if link != "and" else (int(first), last):
                told = f"{name.replace('_', ' ')} (`{path.relative_to(ROOT)}`)"
                found.setdefault(number, []).append(told)
    without = ", ".join(str(number) for number in range(1, FAULTS + 1) if number not in found)
    lines = [f"Faults 2 and 3 are also the kills above, 53 is the soak. No test has: {without or 'none'}."]
    lines += ["", "| # | what is tested |", "|---|---|"]
    return [*lines, *(f"| {number} | {'; '.join(found[number])} |" for number in sorted(found))]


# Kills


def kills(root: Path) -> list[str]:
    """At each step, at random moments over the whole of a run, and at random ones within each stage."""
    overrides = tiny_overrides(root)
    whole = root / "whole"
    seconds = run_whole(overrides, whole)
    rng, outcomes = random.Random(0), Counter[str]()
    times = list(begun)
    mean_s = [spent / max(1, count) for spent, count in zip(spent_s, times, strict=True)]
    places, lost = Counter[str](), list[int]()
    number = 0
    while places.total() < STEPS + KILLS:
        aim = Aim(step=number + 1)
        if number >= STEPS and (place := number % len(STAGES)):
            aim = Aim(stage=place, entry=rng.randint(1, times[place]), after_s=rng.uniform(0, mean_s[place]))
        elif number >= STEPS:
            aim = Aim(after_s=rng.uniform(0, seconds))
        outcome = killed_and_resumed(root, overrides, whole, number, aim)
        outcomes["identical" if outcome["identical"] else "different"] += outcome["killed"]
        outcomes["with something left behind"] += bool(outcome["left"])
        places[outcome["stage"]] += outcome["killed"]  # and not where the run had ended before
        lost.append(outcome["lost"])
        print(number, outcome, flush=True)
        number += 1
    return [
        f"A run of {STEPS} steps (dropout and shuffling on, two batches a step, `save_every={SAVE_EVERY}`, "
        f"{seconds:.1f} s) is killed by SIGKILL at each step, and {KILLS} runs at random moments, a fifth of them over "
        "the whole run and a fifth within each of the stages below; each then goes on with `resume=auto`.",
        "",
        "| | |",
        "|---|---|",
        f"| runs killed | {places.total()} |",
        f"| other runs, that had ended as the kill came | {number - places.total()} |",
        *(f"| killed within {place} | {places[place]} |" for place in STAGES),
        f"| resumed, with losses and final weights identical to the last bit | {outcomes['identical']} |",
        f"| resumed, and different or failed | {outcomes['different']} |",
        f"| steps begun and done again, at most | {max(lost)} |",
        f"| runs with a temporary file left | {outcomes['with something left behind']} |",
    ]


@dataclass(frozen=True, kw_only=True)
class Aim:
    """When a run is killed: as it comes to `step`, or for the `entry`-th time to `stage`, or at its start; and so many
    seconds later."""

    step: int = 0
    stage: int = 0
    entry: int = 0
    after_s: float = 0.0

    def is_near(self) -> bool:
        return step_at.value >= self.step and begun[self.stage] >= self.entry


def tiny_overrides(root: Path, recipe: Sequence[str] = RECIPE, test_rows: int = 16) -> list[str]:
    """The model and the rows of the tests."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from permafrost.data.tokenization import train_tokenizer
    from tests.conftest import TEXTS
    from tests.runs.conftest import SPLITS, write_rows

    tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=64)
    end = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**shape, **end)).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    write_rows(root, {"train": 40, "validation": 16, "test": test_rows})
    files = ["data=files", *(f"data.{name}={root}/{name}.csv" for name in SPLITS)]
    own = [f"data.cache_dir={root}/cache", f"model.path={root}/model", "data.max_tokens_per_batch=200"]
    quiet = ["logger=none", "yardsticks=false", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    return [*files, *own, *quiet, "freezing.blocks=1", *recipe]


def begin(overrides: Sequence[str], run_dir: Path) -> multiprocessing.Process:
    """A run in a process of its own, which has all modules already."""
    from tests.runs.conftest import compose_config

    arguments = (compose_config(*overrides), run_dir)
    process = multiprocessing.get_context("fork").Process(target=run_in_process, args=arguments)
    stage.value = step_at.value = 0
    begun[:], spent_s[:] = [0] * len(STAGES), [0.0] * len(STAGES)
    process.start()
    return process


def run_in_process(cfg: Any, run_dir: Path) -> None:
    from permafrost.experiment import run
    from permafrost.reporting import html

    with Path(f"{run_dir}.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        mark_stages()
        html.write_report = lambda run_dir: run_dir  # plots take longer than the training
        run(cfg, run_dir)


def mark_stages() -> None:
    """Tell the process outside what this one is at."""
    from permafrost import experiment
    from permafrost.training import checkpoints, trunk_pass
    from permafrost.training.callbacks import resume_point
    from permafrost.training.callbacks.gradient_norm import GradientNorm
    from permafrost.training.module import FineTuning

    for owner, name, number in (
        (checkpoints, "write_sealed", 1),
        (resume_point, "shift", 1),
        (trunk_pass, "write_entry", 2),
        (FineTuning, "validation_step", 3),
        (experiment, "write_run", 4),
    ):
        setattr(owner, name, marked(getattr(owner, name), number))
    GradientNorm.on_before_optimizer_step = counted(GradientNorm.on_before_optimizer_step)  # type: ignore[method-assign]


def marked(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        stage.value = number
        begun[number] += 1
        try:
            return function(*arguments, **options)
        finally:
            stage.value = 0
            spent_s[number] += time.perf_counter() - start

    return call


def counted(hook: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, trainer: Any, *arguments: Any) -> Any:
        step_at.value = trainer.global_step + 1
        return hook(self, trainer, *arguments)

    return call


def run_whole(overrides: Sequence[str], run_dir: Path) -> float:
    """Seconds of a run that nothing stops, the second of two: the first has rows to tokenise."""
    for directory in (run_dir.with_name("first"), run_dir):
        start = time.perf_counter()
        process = begin([*overrides, f"store.dir={directory}.store"], directory)
        process.join()
        if process.exitcode:
            raise SystemExit(Path(f"{directory}.log").read_text())
    return time.perf_counter() - start


def killed_and_resumed(root: Path, overrides: Sequence[str], whole: Path, number: int, aim: Aim) -> dict[str, Any]:
    run_dir = root / f"run-{number}"
    own = [*overrides, f"store.dir={run_dir}.store", "resume=auto"]
    process = begin(own, run_dir)
    while process.is_alive() and not aim.is_near():
        time.sleep(0.0002)
    process.join(aim.after_s)
    process.kill()
    process.join()
    at, begun_step = STAGES[stage.value], step_at.value
    saved = saved_step(run_dir)
    again = begin(own, run_dir)
    again.join()
    outcome = {
        "killed": process.exitcode == -signal.SIGKILL,
        "stage": at,
        "step": begun_step,
        "lost": max(0, begun_step - saved),
        "identical": again.exitcode == 0 and same(run_dir, whole),
        "left": left_behind(root, run_dir),
    }
    for path in (run_dir, Path(f"{run_dir}.store")):
        shutil.rmtree(path, ignore_errors=True)
    return outcome


def saved_step(run_dir: Path) -> int:
    from permafrost.training.checkpoints import newest_good
    from permafrost.training.sealed import peek

    found, _ = newest_good(run_dir)
    return peek(found)["global_step"] if found else 0


def left_behind(root: Path, run_dir: Path) -> list[str]:
    """What a run that has ended well should not have in its directory, its store and the cache."""
    places = (run_dir, Path(f"{run_dir}.store"), root / "cache")
    found = [path for place in places for path in place.rglob("*.partial")]
    found += [run_dir / "checkpoints" / "next.ckpt", run_dir / ".lock", run_dir / ".running.json"]
    return [str(path) for path in found if path.exists()]


def same(run_dir: Path, whole: Path) -> bool:
    ours, theirs = weights(run_dir), weights(whole)
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return equal and logged(run_dir) == logged(whole)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Of the model that is exported, which is the best, and those that training ended with."""
    from safetensors.torch import load_file

    from permafrost.training.sealed import read_sealed

    exported = load_file(run_dir / "model" / "model.safetensors")
    return exported | read_sealed(run_dir / "checkpoints" / "last.ckpt")["state_dict"]


def logged(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_TIME} for line in lines]


# Typos


def typos(root: Path) -> list[str]:
    """Slips of one letter in every key of every option, as the program answers them."""
    from tests.test_suggestions import slipped_commands

    typed = list(slipped_commands(random.Random(0)))
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        right = pool.map(is_suggested, typed, chunksize=20)
    wrong = [arguments[-1] for (arguments, _), is_right in zip(typed, right, strict=True) if not is_right]
    return [
        f"A letter of a key left out, doubled, put in, exchanged, or changed places with the next: {len(typed):,} "
        f"commands for all keys of all options, each as `python train.py` answers it. {sum(right) / len(typed):.1%} "
        "get the right key suggested, in one line and with exit code 2.",
        *(["", f"Not: {', '.join(f'`{argument}`' for argument in wrong)}."] if wrong else []),
    ]


def is_suggested(typed: tuple[list[str], str]) -> bool:
    from tests.runs.conftest import command_here

    arguments, expected = typed
    return command_here(*arguments) == (2, "", expected)


# Several processes


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


# Strangers


def strangers(root: Path) -> list[str]:
    """Files and overrides that name code, as the program answers them; a secret, looked for in what a run leaves."""
    from tests.runs.test_resume import secret_found
    from tests.test_trust import FILES, OVERRIDES, refused_unrun

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


# Damage


def damage(root: Path) -> list[str]:
    """Of a checkpoint and of each file of an entry of the activation store."""
    from permafrost.training.sealed import fault_of

    run_whole(tiny_overrides(root), root / "whole")
    checkpoint = root / "whole" / "checkpoints" / "last.ckpt"
    entry = next((root / "whole.store").glob("*/manifest.json")).parent
    lines = ["| file | bytes | truncations, every 4 KiB and one byte | found | single bits flipped | found |"]
    lines.append("|---" * 6 + "|")
    lines.append(damaged(checkpoint, lambda: fault_of(checkpoint) is not None, "checkpoints/last.ckpt"))
    kept = root / "kept"
    shutil.copytree(entry, kept)
    for path in sorted(kept.iterdir()):
        if path.stat().st_size:
            lines.append(damaged(path, lambda: entry_is_found(kept, entry), f"the store's {path.name}"))
    return lines


def damaged(path: Path, is_found: Callable[[], bool], name: str) -> str:
    whole = bytearray(path.read_bytes())
    lengths = [0, 1, len(whole) - 1, *range(4096, len(whole), 4096)]
    cut = flipped = 0
    for length in lengths:
        path.write_bytes(whole[:length])
        cut += is_found()
    for bit in random.Random(0).choices(range(8 * len(whole)), k=FLIPS):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        flipped += is_found()
    path.write_bytes(whole)
    return f"| {name} | {len(whole):,} | {len(lengths)} | {cut} | {FLIPS} | {flipped} |"


def entry_is_found(damaged_entry: Path, entry: Path) -> bool:
    """Whether a run that opens a copy of it, and reads every row, would say so."""
    import numpy as np

    from permafrost.errors import ResourceError
    from permafrost.model.activation_store import check_entry, open_entry

    shutil.rmtree(entry, ignore_errors=True)
    shutil.copytree(damaged_entry, entry)
    store = open_entry(entry) if check_entry(entry) else None
    if store is None:
        return True
    try:
        store.padded(np.arange(store.manifest.rows))
    except ResourceError:
        return True
    return False


# Soak


def soak(root: Path) -> list[str]:
    """Handles, threads and memory over many saves."""
    from permafrost.experiment import run
    from permafrost.training.callbacks.resume_point import ResumePoint
    from tests.runs.conftest import compose_config

    seen: list[tuple[int, int, int, int]] = []
    save = ResumePoint._save

    def watched(self: Any, trainer: Any) -> None:
        save(self, trainer)
        status = Path("/proc/self/status").read_text()
        threads, resident = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("Threads", "VmRSS"))
        seen.append((trainer.global_step, len(list(Path("/proc/self/fd").iterdir())), threads, resident // 1024))

    ResumePoint._save = watched  # type: ignore[method-assign]
    own = [f"trainer.max_steps={SOAK_STEPS}", "trainer.max_epochs=1000", "save_every=5", f"store.dir={root}/store"]
    run(compose_config(*tiny_overrides(root), *own, "trainer.val_check_interval=1.0"), root / "run")
    ResumePoint._save = save  # type: ignore[method-assign]
    lines = [
        f"{SOAK_STEPS} steps, {len(seen)} saves.",
        "",
        "| step | open files | threads | resident, MB |",
        "|---" * 4 + "|",
    ]
    shown = [seen[round(share * (len(seen) - 1))] for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    kept = sorted(path.name for path in (root / "run" / "checkpoints").iterdir())
    return [
        *lines,
        *(f"| {' | '.join(map(str, row))} |" for row in shown),
        "",
        f"Left in `checkpoints/`: {', '.join(kept)}.",
    ]


# Overhead


def overhead(root: Path) -> list[str]:
    """What a save costs beside a step: GPT-2 124M's shape, nothing frozen and ten of twelve blocks frozen."""
    head = (
        "frozen blocks",
        "checkpoint, MB",
        "a save, s",
        "of it the checksum, s",
        "a step, s",
        "at `save_every=10min`",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for blocks in (0, 10):
        megabytes, save_s, hash_s, step_s = save_and_step(root, blocks)
        share = f"{100 * save_s / 600:.2f} % of the time"
        cells = [str(blocks), f"{megabytes:,.0f}", f"{save_s:.2f}", f"{hash_s:.2f}", f"{step_s:.2f}", share]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "A step is one batch of 2,048 tokens in float32, forward, backward and AdamW; medians of 3, beside other work.",
    ]


def save_and_step(root: Path, blocks: int) -> tuple[float, float, float, float]:
    import hashlib

    from transformers import GPT2Config, GPT2Model

    from permafrost.model.freezing import Freezing
    from permafrost.model.gpt2 import GPT2WithHead
    from permafrost.model.heads import PooledHead
    from permafrost.training.sealed import write_sealed

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = GPT2WithHead(
        GPT2Model(GPT2Config()),
        PooledHead(768, 4, pooling="last", init="normal"),
        Freezing(embeddings=blocks > 0, blocks=blocks),
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ids, lengths = torch.randint(0, 50_000, (16, 128)), torch.full((16,), 128)
    steps, saves = [], []
    for _ in range(3):
        steps.append(timed(lambda: one_step(model, optimizer, ids, lengths)))
    content = {"state_dict": dict(enumerate(trained)), "optimizer": optimizer.state_dict()}
    path = root / "a.ckpt"
    for _ in range(3):
        saves.append(timed(lambda: write_sealed(content, path)))
    size = path.stat().st_size
    hashed = timed(lambda: hashlib.sha256(path.read_bytes()))
    return size / 2**20, statistics.median(saves), hashed, statistics.median(steps)


def one_step(model: Any, optimizer: Any, ids: torch.Tensor, lengths: torch.Tensor) -> None:
    model(ids, lengths).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:])
