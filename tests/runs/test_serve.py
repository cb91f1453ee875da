"""Runs behind an address: the same answers as by hand, one frozen part for all, and limits that are told by name."""

import asyncio
import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("litserve", reason="the extra [serve] is not installed")

from permafrost.deployment.branches import Branches, share_
from permafrost.deployment.gate import PREDICT, Figures, Gate, Limits
from permafrost.deployment.predictor import Predictor
from permafrost.deployment.server import Answering, Ask, named
from permafrost.model import backbone
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from tests.runs.conftest import compose_config

TEXTS = ["sunny hot day", "snow", "the cold of ice and frost and the warm sun"]


@pytest.fixture(scope="module")
def branches(tiny, of_task, tmp_path_factory):
    """Three runs over the tiny model, whose first block is frozen: labels, numbers and names."""
    from permafrost.experiment import run

    made = {}
    for name, overrides in {
        "labels": [],
        "numbers": ["task=regression", "data.columns.target=score"],
        "names": of_task("ner"),
    }.items():
        made[name] = tmp_path_factory.mktemp("serve") / name
        run(compose_config(*tiny, *overrides, "trainer.max_epochs=1"), made[name])
    return made


def nearly(answer):
    return {key: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for key, value in answer.items()}


def test_each_branch_answers_as_its_run_does(branches):
    together = Branches(branches).answers(TEXTS, None, list(branches))
    for name, run in branches.items():
        for ours, alone in zip(together, Predictor(run).predict(TEXTS), strict=True):
            assert ours[name] == nearly(alone)


def test_the_frozen_part_is_kept_and_run_once(branches, monkeypatch):
    both = {name: branches[name] for name in ("labels", "numbers")}
    served = Branches(both)
    assert served.depth == 1
    one, two = (predictor.model.transformer for predictor in served.predictors.values())
    assert one.wte is two.wte
    assert one.h[0] is two.h[0]
    assert one.h[1] is not two.h[1]
    passes = []
    whole = backbone.trunk
    monkeypatch.setattr("permafrost.model.gpt2.trunk", lambda *args: passes.append(1) or whole(*args))
    served.answers(TEXTS, None, list(both))
    assert len(passes) == 1


def test_what_is_not_shared_lets_go_of_its_file(branches, tmp_path):
    """Weights are parts of their file in memory: those that are shared of the first run's, and the second's is gone."""
    for name in ("labels", "numbers"):
        shutil.copytree(branches[name], tmp_path / name)
    served = Branches({name: tmp_path / name for name in ("labels", "numbers")})
    gc.collect()
    mapped = Path("/proc/self/maps").read_text()
    assert served.depth == 1
    assert f"{tmp_path}/labels/model/model.safetensors" in mapped
    assert f"{tmp_path}/numbers/model/model.safetensors" not in mapped


def test_runs_of_other_weights_share_nothing(branches, run_tiny):
    _, other = run_tiny("freezing.blocks=0", "optimizer.lr=1e-2", "trainer.max_epochs=1")
    served = Branches({"labels": branches["labels"], "other": other})
    assert served.depth == 0
    assert served.answers(["snow"], None, ["other"])[0]["other"] == nearly(Predictor(other).predict(["snow"])[0])


def test_blocks_that_look_back_below_others_that_look_ahead_are_not_shared(tiny_config):
    """Of one run two blocks are causal, of the other one is shared: the first one's second would look ahead."""
    import torch
    from transformers import GPT2Model

    def model(*, blocks: int, bidirectional: bool) -> GPT2WithHead:
        torch.manual_seed(0)
        head = PooledHead(tiny_config.n_embd, 2, pooling="last", init="normal")
        frozen = Freezing(embeddings=True, blocks=blocks)
        return GPT2WithHead(GPT2Model(tiny_config), head, frozen, bidirectional=bidirectional).eval()

    one, other = model(blocks=2, bidirectional=True), model(blocks=1, bidirectional=False)
    with torch.no_grad():
        other.transformer.h[1].ln_1.bias.add_(1)
    assert share_([one, other]) == 0
    assert one.freezing.blocks == 2
    assert share_([model(blocks=1, bidirectional=True), other]) == 1


def test_names_are_the_ends_of_paths_that_tell_apart(tmp_path):
    assert list(named([tmp_path / "a" / "one", tmp_path / "b" / "two"])) == ["one", "two"]
    assert list(named([tmp_path / "a" / "run", tmp_path / "b" / "run"])) == ["a/run", "b/run"]


def answering(branches) -> Answering:
    api = Answering(branches, threads=1, limits=Limits())
    api.setup("cpu")
    return api


def test_one_request_that_fails_does_not_fail_the_others(branches, monkeypatch):
    api = answering({"labels": branches["labels"]})
    as_it_is = api.branches.answers

    def answers(texts, pairs, names):
        if any("bad" in text for text in texts):
            raise ValueError("no such thing")
        return as_it_is(texts, pairs, names)

    monkeypatch.setattr(api.branches, "answers", answers)
    good, bad = (api.encode_response(each) for each in api.predict([Ask(text="snow"), Ask(text="bad")]))
    assert good["label"] in ("warm", "cold")
    assert bad.status_code == 500
    assert "no such thing" in json.loads(bad.body)["error"]["message"]


def test_a_pair_that_a_run_cannot_read_is_the_requests_fault(branches):
    api = answering(branches)
    good, bad = api.predict([Ask(text="snow", pair="ice", runs=["labels"]), Ask(text="snow", pair="ice")])
    assert good["answers"]["labels"] == nearly(Predictor(branches["labels"]).predict(["snow"], ["ice"])[0])
    refused = api.encode_response(bad)
    assert refused.status_code == 422
    assert json.loads(refused.body)["error"]["message"].startswith("task=ner reads one text")


def test_48_a_batch_of_requests_for_several_runs(branches):
    api = answering(branches)
    first, second = api.predict([Ask(text="snow"), Ask(text="sunny", runs=["numbers"])])
    assert first["answers"].keys() == set(branches)
    assert second["answers"].keys() == {"numbers"}


def test_every_limit_of_the_command_is_the_gates(branches, monkeypatch):
    from typer.testing import CliRunner

    from permafrost.cli import app
    from permafrost.deployment import server

    asked = []

    def make(runs, threads, limits):
        asked.append((threads, limits))
        raise RuntimeError("enough")

    monkeypatch.setattr(server, "make_server", make)
    given = ["--threads=3", "--max-characters=7", "--max-waiting=5", "--max-seconds=2.5", "--batch=4"]
    CliRunner().invoke(app, ["serve", str(branches["labels"]), f"--port={free_port()}", *given])
    assert asked == [(3, Limits(max_characters=7, max_waiting=5, max_seconds=2.5, batch=4))]


# The gate


def gate(limits: Limits, answer_seconds: float = 0.0) -> Gate:
    async def app(scope, receive, send):
        await asyncio.sleep(answer_seconds)
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return Gate(app, limits=limits, names=["labels"], figures=Figures())


async def ask(through: Gate, content: bytes) -> tuple[int, bytes]:
    sent = []
    parts = [content[start : start + 1000] for start in range(0, len(content), 1000)] or [b""]

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    await through({"type": "http", "path": PREDICT, "method": "POST", "headers": []}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    ("asked", "status", "code", "limit", "value"),
    [
        ({"text": "x" * 51}, 413, "too_long", 50, 51),
        ({"text": "x" * 30, "pair": "y" * 21}, 413, "too_long", 50, 51),
        ({"text": "x" * 3000}, 413, "too_long", 2600, None),
        ({"text": "x", "runs": ["labls"]}, 404, "no_such_run", None, None),
    ],
)
def test_47_what_is_over_a_limit_is_refused_with_both_figures(asked, status, code, limit, value):
    found, body = asyncio.run(ask(gate(Limits(max_characters=50)), json.dumps(asked).encode()))
    error = json.loads(body)["error"]
    assert (found, error["code"]) == (status, code)
    if limit:
        assert error["limit"] == limit < error["value"]
    if value:
        assert error["value"] == value


@pytest.mark.parametrize("content", [b'{"text": "' + b"x" * 50 + b'"}', b"not json", b"[1, 2]", b""])
def test_what_is_within_the_limits_or_malformed_goes_on_as_it_came(content):
    assert asyncio.run(ask(gate(Limits(max_characters=50)), content)) == (200, content)


def test_bytes_that_are_no_text_are_malformed():
    status, body = asyncio.run(ask(gate(Limits()), b'{"text": "\xff"}'))
    error = {"code": "malformed", "message": "body: not UTF-8 at byte 10"}
    assert (status, json.loads(body)) == (422, {"error": error})


def test_objects_within_objects_without_end_are_malformed():
    status, body = asyncio.run(ask(gate(Limits()), b"[" * 200_000))
    assert (status, json.loads(body)["error"]["message"]) == (422, "body: nested too deeply")


def test_a_text_is_as_long_as_its_characters_however_json_writes_them():
    content = json.dumps({"text": "\U0001f600" * 50}).encode()
    assert len(content) > 600
    assert asyncio.run(ask(gate(Limits(max_characters=50)), content)) == (200, content)


def test_47_a_body_that_does_not_come_takes_no_ones_place():
    async def app(scope, receive, send):
        raise AssertionError("nothing was asked")

    async def nothing():
        await asyncio.sleep(5)

    async def silent():
        sent = []

        async def send(message):
            sent.append(message)

        through = Gate(app, limits=Limits(max_seconds=0.1), names=["labels"], figures=Figures())
        await through({"type": "http", "path": PREDICT, "method": "POST", "headers": []}, nothing, send)
        return through.waiting, sent[0]["status"]

    assert asyncio.run(silent()) == (0, 408)


def test_47_requests_too_many_and_too_slow_are_refused():
    async def several():
        through = gate(Limits(max_waiting=2, max_seconds=0.2), answer_seconds=5)
        found = await asyncio.gather(*(ask(through, b'{"text": "x"}') for _ in range(3)))
        assert through.waiting == 0
        return found, through.figures

    found, figures = asyncio.run(several())
    assert [status for status, _ in found] == [408, 408, 429]
    assert json.loads(found[2][1])["error"] | {"limit": 2, "value": 3} == json.loads(found[2][1])["error"]
    assert figures.registry.get_sample_value("permafrost_requests_total", {"status": "408"}) == 2
    assert figures.registry.get_sample_value("permafrost_request_seconds_count") == 3


def test_a_text_that_takes_too_long_ends_with_a_line_that_says_so():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"piece": "sun"}', "more_body": True})
        await asyncio.sleep(5)

    through = Gate(app, limits=Limits(max_seconds=0.1), names=["labels"], figures=Figures())
    status, body = asyncio.run(ask(through, b'{"text": "x"}'))
    first, last = [json.loads(line) for line in body.splitlines()]
    assert (status, first) == (200, {"piece": "sun"})
    assert last["error"]["code"] == "too_slow"
    assert through.waiting == 0


@pytest.fixture(scope="module")
def writing(tiny, of_task, tmp_path_factory):
    """Beams -> what serves a run that writes with so many."""
    from permafrost.deployment.server import Writing
    from permafrost.experiment import run

    made = {}

    def give(beams: int):
        if beams not in made:
            directory = tmp_path_factory.mktemp("writing") / "run"
            options = [*of_task("translation"), "trainer.max_steps=1", f"task.decoding.num_beams={beams}"]
            run(compose_config(*tiny, *options), directory)
            made[beams] = Writing(directory, threads=1)
            made[beams].setup("cpu")
        return made[beams]

    return give


@pytest.mark.parametrize("beams", [1, 4])
def test_a_text_is_written_piece_by_piece_unless_it_is_of_beams(writing, beams):
    api = writing(beams)
    *pieces, last = api.predict(Ask(text="sunny snow"))
    assert last == api.predictor.predict(["sunny snow"])[0]
    assert "".join(piece["piece"] for piece in pieces).strip() == (last["text"] if beams == 1 else "")


def test_a_text_that_cannot_be_written_is_told_and_the_next_one_is_written(writing, monkeypatch):
    api = writing(1)
    with monkeypatch.context() as patch:
        patch.setattr(api.predictor.task, "prompts", lambda *_: {}["no such thing"], raising=False)
        assert list(api.predict(Ask(text="sunny"))) == [
            {"error": {"code": "failed", "message": "KeyError: 'no such thing'"}}
        ]
    assert list(api.predict(Ask(text="sunny")))[-1].keys() == {"text"}


def test_what_writes_refuses_a_pair(writing):
    (last,) = writing(1).predict(Ask(text="sunny", pair="snow"))
    assert last["error"]["code"] == "malformed"
    assert "reads one text, not a pair" in last["error"]["message"]


# The real server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url: str, body: object = None, raw: bytes | None = None) -> tuple[int, str]:
    content = raw if raw is not None else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Served:
    def __init__(self, *arguments: str):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        program = str(Path(sys.executable).with_name("permafrost"))
        command = [program, "serve", *arguments, f"--port={port}", "--threads=1"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def __enter__(self):
        for _ in range(240):
            assert self.process.poll() is None, self.process.stderr.read()
            try:
                if get(f"{self.url}/health")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.5)
        self.__exit__()  # which nothing calls for what was not entered
        raise TimeoutError("the server did not start")

    def __exit__(self, *error):
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stderr.close()


def listening(port: int) -> set[str]:
    """Addresses at which a port is listened to, as Linux writes them: hexadecimal, in the machine's byte order."""
    lines = [
        line.split() for path in ("tcp", "tcp6") for line in Path(f"/proc/net/{path}").read_text().splitlines()[1:]
    ]
    places = [of[1].split(":") for of in lines if of[3] == "0A"]
    return {address for address, of_port in places if int(of_port, 16) == port}


@pytest.mark.slow
def test_47_and_48_a_server_answers_and_refuses(branches):
    run = branches["labels"]
    with Served(str(run), "--max-characters=100") as server:
        assert listening(int(server.url.rpartition(":")[2])) == {"0100007F"}  # this machine's own alone
        expected = Predictor(run).predict(TEXTS)
        with ThreadPoolExecutor(12) as clients:
            found = list(clients.map(lambda n: get(f"{server.url}{PREDICT}", {"text": TEXTS[n % 3]}), range(48)))
        for number, (status, body) in enumerate(found):
            assert status == 200
            assert json.loads(body) == nearly(expected[number % 3])
        assert get(f"{server.url}{PREDICT}", {"text": "x" * 101})[0] == 413
        for malformed in (b"{", b"[]", b'{"text": 3}', b'{"text": ""}', b'{"text": "a", "label": "b"}'):
            status, body = get(f"{server.url}{PREDICT}", raw=malformed)
            assert status == 422
            assert json.loads(body)["error"]["code"] == "malformed"
        assert "Try the model" in get(server.url)[1]
        assert 'permafrost_requests_total{status="200"} 48.0' in get(f"{server.url}/metrics")[1]
        assert PREDICT in json.loads(get(f"{server.url}/openapi.json")[1])["paths"]
        assert get(f"{server.url}/docs")[0] == 200
        os.kill(server.process.pid, signal.SIGTERM)  # as a service manager does: to the first process alone
        assert server.process.wait(60) == 143
        left_by = time.monotonic() + 30  # the others of its group see that it has gone, and go
        while resident_kb(server.process.pid) and time.monotonic() < left_by:
            time.sleep(0.1)
        assert resident_kb(server.process.pid) == 0


def resident_kb(group: int) -> int:
    """Of all processes of a group."""
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ProcessLookupError):
            if os.getpgid(int(path.name)) == group:
                found += sum(map(int, re.findall(r"VmRSS:\s+(\d+)", (path / "status").read_text())))
    return found


@pytest.mark.slow
def test_47_two_thousand_requests_leave_no_memory(branches):
    with Served(str(branches["labels"])) as server, ThreadPoolExecutor(8) as clients:

        def ask_for(numbers: range) -> set[int]:
            texts = (f"{TEXTS[number % 3]} {number}" for number in numbers)
            return {status for status, _ in clients.map(lambda t: get(f"{server.url}{PREDICT}", {"text": t}), texts)}

        assert ask_for(range(400)) == {200}
        before = resident_kb(server.process.pid)
        assert ask_for(range(400, 2400)) == {200}
        assert resident_kb(server.process.pid) < 1.05 * before


@pytest.mark.slow
def test_text_is_sent_as_it_is_written(tiny, of_task, tmp_path):
    from permafrost.experiment import run

    run(
        compose_config(*tiny, *of_task("translation"), "trainer.max_epochs=1", "task.decoding.num_beams=1"),
        tmp_path / "run",
    )
    with Served(str(tmp_path / "run")) as server:
        status, body = get(f"{server.url}{PREDICT}", {"text": "sunny snow"})
    *pieces, last = [json.loads(line) for line in body.splitlines()]
    assert status == 200
    assert last == {"text": Predictor(tmp_path / "run").predict(["sunny snow"])[0]["text"]}
    assert "".join(piece["piece"] for piece in pieces).strip() == last["text"]


def serve(*arguments: str):
    from typer.testing import CliRunner

    from permafrost.cli import app

    return CliRunner().invoke(app, ["serve", *arguments]).exception


def test_where_nothing_can_listen_is_told_before_models_are_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = serve(str(tmp_path), f"--port={port}")
    assert (error.exit_code, str(error)) == (4, f"--port {port}: Address already in use; give another")
    error = serve(str(tmp_path), f"--port={port}", "--host=localhost")
    assert (error.exit_code, str(error)) == (2, "--host localhost: 127.0.0.1, 0.0.0.0 or ::")


def test_a_damaged_run_is_refused_before_a_process_is_started_for_it(branches, tmp_path):
    shutil.copytree(branches["labels"], tmp_path / "run")
    path = tmp_path / "run" / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    error = serve(str(tmp_path / "run"), f"--port={free_port()}")
    assert error.exit_code == 4
    assert f"{path} is damaged" in str(error)


def test_a_writer_is_served_by_itself(branches, tiny, of_task, tmp_path):
    from permafrost.deployment.server import api_of
    from permafrost.errors import ConfigError
    from permafrost.experiment import run

    run(compose_config(*tiny, *of_task("translation"), "trainer.max_steps=1"), tmp_path / "run")
    with pytest.raises(ConfigError, match="serve it by itself"):
        api_of({"labels": branches["labels"], "writer": tmp_path / "run"}, 1, Limits())
