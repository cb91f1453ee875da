"""A server under load, and what two runs over one frozen part cost: python benchmarks/serving.py load|branches

`load`: mini on pydocs behind `permafrost serve`; 64 clients ask 2,000 times, each as soon as it is answered, in three
rounds; errors of all, medians of the rounds' percentiles beside the least that 64 who queue can wait, and the memory of
its processes before the first round and, at most, after one.
`branches`: GPT-2 124M's shape, 10 of 12 blocks frozen, two runs of other heads and seeds; one server of both beside two
servers at once, by turns: memory, and milliseconds until both have answered a text. Runs and pairs are kept in
outputs/benchmarks/serving, and made again on other hardware or of other sources. Writes results/serving_STUDY.md and
.json, and prints, last, one line of JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import materials
from kept import cleared, days, read_kept, record
from pairs import order, values
from stated import RESULTS, ROOT, hardware

OUTPUTS = Path("outputs/benchmarks/serving")
CLIENTS, REQUESTS, WARM_UP, ROUNDS = 64, 2000, 400, 3
THREADS = 2  # of each server's models
PAIRS, TEXTS_A_PAIR, WARM_UP_TEXTS, WORDS = 5, 20, 3, 60
QUIET = "logger=none yardsticks=false callbacks.best=null callbacks.last=null"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["load", "branches"])
    study = parser.parse_args().study
    os.chdir(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    figures = load() if study == "load" else branches()
    measured_on = days(figures["pairs"]) if "pairs" in figures else date.today().isoformat()
    stated = {"study": study, "hardware": hardware(), "date": measured_on}
    title = f"# Serving: {study}\n\n`python benchmarks/serving.py {study}`; {stated['hardware']}; {stated['date']}.\n"
    text = "\n".join([title, *table(figures), ""])
    path = RESULTS / f"serving_{study}"
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(json.dumps(stated | figures, indent=1) + "\n")
    print(text)
    print(json.dumps(stated | {key: value for key, value in figures.items() if not isinstance(value, list)}))


def load() -> dict[str, Any]:
    run = trained("mini", "model=mini trainer.max_epochs=1 freezing.blocks=0")
    with served(run) as server, ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(server.ask, some_texts(WARM_UP)))
        before = server.memory_mb()
        rounds = [asked(server, clients, some_texts(REQUESTS, seed=number)) for number in range(ROUNDS)]
    return of_rounds(before, rounds)


def asked(server: "Server", clients: ThreadPoolExecutor, texts: Sequence[str]) -> dict[str, float]:
    """One round."""
    start = time.perf_counter()
    found = list(clients.map(server.ask, texts))
    seconds, waits = time.perf_counter() - start, sorted(wait for wait, _ in found)
    least = CLIENTS * seconds / len(texts)  # all others of the queue are answered first
    p95 = waits[int(0.95 * len(texts))]
    return {
        "errors": sum(status != 200 for _, status in found),
        "requests_per_second": len(texts) / seconds,
        "p50_ms": 1000 * statistics.median(waits),
        "p95_ms": 1000 * p95,
        "queueing_minimum_ms": 1000 * least,
        "p95_over_minimum": p95 / least,
        "memory_mb": server.memory_mb(),
    }


def of_rounds(before: float, rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians, and of the ratio the smallest and the largest; errors of all, and the most memory after any."""
    found: dict[str, Any] = {"clients": CLIENTS, "requests": REQUESTS, "rounds": len(rounds), "threads": THREADS}
    found["errors"] = sum(int(each["errors"]) for each in rounds)
    for key in ("requests_per_second", "p50_ms", "p95_ms", "queueing_minimum_ms", "p95_over_minimum"):
        found[key] = statistics.median(each[key] for each in rounds)
    ratios = [each["p95_over_minimum"] for each in rounds]
    found["p95_over_minimum_spread"] = f"{min(ratios):.2f} to {max(ratios):.2f}"
    after = max(each["memory_mb"] for each in rounds)
    return found | {"memory_before_mb": before, "memory_after_mb": after, "memory_growth": after / before - 1}


def branches() -> dict[str, Any]:
    common = f"model=gpt2 model.path={materials.gpt2_shape()} freezing.blocks=10 trainer.max_steps=1 {ag_news()}"
    runs = [trained(f"branch-{seed}", f"{common} seed={seed}") for seed in (1, 2)]
    return of_pairs([measured_pair(number, runs) for number in range(PAIRS)])


def measured_pair(number: int, runs: Sequence[Path]) -> dict[str, Any]:
    """Kept while it holds; who goes first alternates."""
    path = OUTPUTS / f"branches-pair-{number}.json"
    if kept := read_kept(path):
        return kept
    measured = record()
    servers: dict[str, list[Sequence[Path]]] = {"ours": [runs], "peer": [[run] for run in runs]}
    texts = some_texts(TEXTS_A_PAIR, seed=number)
    pair = {side: served_texts(servers[side], texts) for side in order(number)}
    path.write_text(json.dumps(measured | pair, indent=1) + "\n")
    print(f"pair {number}: {pair}", flush=True)
    return measured | pair


def of_pairs(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of both sides, and of the ratios within each pair: of one server to two."""
    found: dict[str, Any] = {"pairs": pairs, "times_by_turns": len(pairs), "threads_of_each_server": THREADS}
    for key in ("memory_mb", "request_ms"):
        found |= {f"{key}_together": statistics.median(values(pairs, "ours", key))}
        found |= {f"{key}_apart": statistics.median(values(pairs, "peer", key))}
        ratios = [pair["ours"][key] / pair["peer"][key] for pair in pairs]
        found |= {f"{key}_ratio": statistics.median(ratios)}
        found |= {f"{key}_ratio_spread": f"{min(ratios):.2f} to {max(ratios):.2f}"}
    return found | {"least_possible": (10 + 2 * 2) / (2 * 12)}


def served_texts(servers: Sequence[Sequence[Path]], texts: list[str]) -> dict[str, float]:
    """Memory of all servers, and the time until all have answered a text, one after the other."""
    with ExitStack() as stack:
        running = [stack.enter_context(served(*runs)) for runs in servers]
        waits = [sum(answered(server, text) for server in running) for text in texts[:WARM_UP_TEXTS] + texts]
        memory = sum(server.memory_mb() for server in running)
    return {"memory_mb": memory, "request_ms": 1000 * statistics.median(waits[WARM_UP_TEXTS:])}


def answered(server: "Server", text: str) -> float:
    """Seconds; a refusal is quick, and no answer."""
    seconds, status = server.ask(text)
    if status != 200:
        raise SystemExit(f"{server.url} answered {status}")
    return seconds


class Server:
    def __init__(self, process: "subprocess.Popen[bytes]", url: str):
        self.process, self.url = process, url

    def ask(self, text: str) -> tuple[float, int]:
        """Seconds until it is answered, and the status."""
        body = json.dumps({"text": text}).encode()
        request = urllib.request.Request(f"{self.url}/predict", body, {"Content-Type": "application/json"})
        start = time.perf_counter()
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                answer.read()
                status = answer.status
        except OSError as error:
            status = getattr(error, "code", 0)
        return time.perf_counter() - start, status

    def memory_mb(self) -> float:
        """Resident in all of its processes, 10^6 bytes; what they share counts once (`man 5 proc`: Pss)."""
        session = os.getsid(self.process.pid)
        members = [
            int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _session(path) == session
        ]
        return sum(_kilobytes(member) for member in members) * 1024 / 1e6


def _session(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return 0


def _kilobytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@contextmanager
def served(*runs: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).with_name("permafrost"))
    command = [program, "serve", *map(str, runs), f"--port={port}", f"--threads={THREADS}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    server = Server(process, f"http://127.0.0.1:{port}")
    try:
        wait_until_ready(server)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(server: Server, patience_s: float = 180) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def trained(name: str, overrides: str) -> Path:
    """A run, kept while it holds."""
    run = OUTPUTS / name
    cleared(run, command=overrides)
    if not (run / "result.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        command = [sys.executable, "train.py", *overrides.split(), *QUIET.split(), f"hydra.run.dir={run}"]
        subprocess.run(command, check=True)
    return run


def ag_news() -> str:
    files = materials.ag_news(400)
    return f"data=files {' '.join(f'data.{name}={path}' for name, path in files.items())}"


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Words of the project's own README, drawn: every text another one."""
    words, generator = (ROOT / "README.md").read_text("utf-8").split(), random.Random(seed)
    return [" ".join(generator.choices(words, k=WORDS)) for _ in range(count)]


def table(figures: Mapping[str, Any]) -> list[str]:
    shown = {key: value for key, value in figures.items() if not isinstance(value, list)}
    cells = {key: value if isinstance(value, str | int) else f"{value:,.3f}" for key, value in shown.items()}
    return ["| | |", "|---|---|", *(f"| {key.replace('_', ' ')} | {value} |" for key, value in cells.items())]


if __name__ == "__main__":
    main()
