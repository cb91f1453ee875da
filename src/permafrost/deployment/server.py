"""Answers over HTTP: `permafrost serve RUN [RUN ...]`. One request too many, too long or malformed fails alone."""

import asyncio
import json
import multiprocessing
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import litserve
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_asgi_app
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from permafrost.checksums import check_files
from permafrost.deployment.branches import Branches
from permafrost.deployment.predictor import Predictor, described, model_directory
from permafrost.errors import ConfigError, ResourceError
from permafrost.tasks.base import Writes

PAGE = Path(__file__).with_name("page.html")
PREDICT = "/predict"
HOSTS = ("127.0.0.1", "0.0.0.0", "::")


class Ask(BaseModel):
    """A text to answer, by all runs or by those that are named."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1)
    pair: str | None = Field(None, description="the second text, of runs that compare two")
    runs: list[str] | None = Field(None, description="names of runs; all unless given")


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_characters: int = 20_000  # of a text and its pair
    max_waiting: int = 128  # requests that are in work or wait for it
    max_seconds: float = 30.0  # of a request, its waiting included
    batch: int = 16  # requests that are answered together
    batch_wait_ms: float = 5.0


class Answering(litserve.LitAPI):
    """Requests of the same moment as one batch."""

    def __init__(self, runs: Mapping[str, Path], threads: int, limits: Limits):
        super().__init__(max_batch_size=limits.batch, batch_timeout=limits.batch_wait_ms / 1000, api_path=PREDICT)
        self.runs, self.threads = dict(runs), threads

    def setup(self, device: str) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.branches = Branches(self.runs, self.threads)

    def decode_request(self, request: Ask) -> Ask:
        return request

    def predict(self, asked: Sequence[Ask]) -> list[Any]:
        """Of each request its answer, or what went wrong with it."""
        try:
            return self._together(asked)
        except Exception:  # one by one, so that only what cannot be answered fails
            return [self._alone(ask) for ask in asked]

    def encode_response(self, output: Any) -> Response:  # which LitServe takes for the route's; a dict is JSON
        if isinstance(output, Exception):
            return failed(500, "failed", f"{type(output).__name__}: {output}")
        return output

    def _together(self, asked: Sequence[Ask]) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for key in {self._kind(ask) for ask in asked}:
            numbers = [number for number, ask in enumerate(asked) if self._kind(ask) == key]
            texts, names, has_pair = [asked[number].text for number in numbers], *key
            pairs = [str(asked[number].pair) for number in numbers] if has_pair else None
            found |= dict(zip(numbers, self.branches.answers(texts, pairs, names), strict=True))
        return [self._shown(found[number]) for number in range(len(asked))]

    def _kind(self, ask: Ask) -> tuple[tuple[str, ...], bool]:
        return tuple(ask.runs or self.runs), ask.pair is not None

    def _alone(self, ask: Ask) -> Any:
        try:
            return self._together([ask])[0]
        except Exception as error:
            return error

    def _shown(self, by_run: dict[str, Any]) -> dict[str, Any]:
        return {"answers": by_run} if len(self.runs) > 1 else next(iter(by_run.values()))


class Writing(litserve.LitAPI):
    """One text at a time, sent as it is written: a line of JSON for each piece, the last one with all of it, or with
    what went wrong."""

    def __init__(self, run: Path, threads: int):
        super().__init__(stream=True, api_path=PREDICT)
        self.run, self.threads = run, threads

    def setup(self, device: str) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.predictor = Predictor(self.run, threads=self.threads, reads_store=False)

    def decode_request(self, request: Ask) -> Ask:
        return request

    def predict(self, ask: Ask) -> Iterator[dict[str, Any]]:
        from transformers import TextIteratorStreamer

        task: Any = self.predictor.task
        streamer = TextIteratorStreamer(self.predictor.encoding.tokenizer, skip_prompt=True, skip_special_tokens=True)
        rows = task.rows_of([ask.text], None)
        answers: list[dict[str, Any]] = []

        def write() -> None:
            try:
                answers.extend(self.predictor.answer(rows, streamer=streamer))
            except Exception as error:
                answers.append({"error": {"code": "failed", "message": f"{type(error).__name__}: {error}"}})
            finally:
                streamer.end()  # else who reads it would wait for ever

        writer = Thread(target=write, daemon=True)
        writer.start()
        for piece in streamer:
            if piece:
                yield {"piece": piece}
        writer.join()
        yield answers[0]

    def encode_response(self, output: Iterator[dict[str, Any]]) -> Response:  # type: ignore[misc]
        yield from output


class Gate:
    """Refuses what is over a limit before it waits with others, and counts everything."""

    def __init__(self, app: ASGIApp, *, limits: Limits, names: Sequence[str], figures: "Figures"):
        self.app, self.limits, self.names, self.figures = app, limits, names, figures
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PREDICT:
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.waiting += 1
        self.figures.waiting.set(self.waiting)
        try:
            await self._answered(scope, receive, counted)
        finally:
            self.waiting -= 1
            self.figures.waiting.set(self.waiting)
            self.figures.requests.labels(status=status).inc()
            self.figures.seconds.observe(time.perf_counter() - start)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self.limits
        if self.waiting > limits.max_waiting:
            await over(429, "too_many_waiting", "requests that wait", limits.max_waiting, self.waiting)(
                scope, receive, send
            )
            return
        most = 4 * limits.max_characters + 2000  # bytes: JSON around texts in UTF-8
        body = await read_body(receive, most)
        refusal = self.refusal(body, most)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await asyncio.wait_for(self.app(scope, replayed(body), noted), limits.max_seconds)
        except asyncio.TimeoutError:
            late = over(408, "too_slow", "seconds", limits.max_seconds, limits.max_seconds)
            if begun:  # a text that is being written: its status is sent, and what is left to say is its last line
                await send({"type": "http.response.body", "body": b"\n" + bytes(late.body) + b"\n", "more_body": False})
            else:
                await late(scope, receive, send)

    def refusal(self, body: bytes, most: int) -> JSONResponse | None:
        """What is wrong with a request that would be well-formed; malformed ones are for the schema."""
        if len(body) > most:
            return over(413, "too_long", "bytes", most, len(body))
        try:
            asked = json.loads(body)
        except UnicodeDecodeError as error:
            return failed(422, "malformed", f"body: not UTF-8 at byte {error.start}")
        except ValueError:
            return None
        texts = [asked.get(key) for key in ("text", "pair")] if isinstance(asked, dict) else []
        characters = sum(len(text) for text in texts if isinstance(text, str))
        if characters > self.limits.max_characters:
            return over(413, "too_long", "characters", self.limits.max_characters, characters)
        named = asked.get("runs") if isinstance(asked, dict) else None
        unknown = [name for name in named if name not in self.names] if isinstance(named, list) else []
        if unknown:
            return failed(404, "no_such_run", f"no run {unknown[0]!r}; there are {', '.join(self.names)}")
        return None


class Figures:
    """What /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("permafrost_requests", "answered requests", ["status"], registry=self.registry)
        self.seconds = Histogram("permafrost_request_seconds", "from request to answer", registry=self.registry)
        self.waiting = Gauge("permafrost_waiting", "requests in work or waiting", registry=self.registry)


def make_server(runs: Mapping[str, Path], threads: int, limits: Limits) -> litserve.LitServer:
    """One worker process holds the models; limits are checked before it."""
    figures = Figures()
    gate = (Gate, {"limits": limits, "names": list(runs), "figures": figures})
    server = litserve.LitServer(
        api_of(runs, threads, limits), accelerator="cpu", timeout=limits.max_seconds, middlewares=[gate]
    )
    app = server.app
    app.title = "permafrost"
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != "/"]
    app.add_api_route("/", lambda: HTMLResponse(PAGE.read_text("utf-8")), include_in_schema=False)
    app.mount("/metrics", make_asgi_app(figures.registry))
    app.add_exception_handler(RequestValidationError, malformed)
    return server


def run_until_stopped(server: litserve.LitServer, host: str, port: int) -> int:
    """The exit code: 143 after SIGTERM, 130 after Ctrl-C. LitServe ends its workers at the second alone, and its thread
    that listens at neither: who calls this ends the process.

    Raises:
        ResourceError: a worker could not load the models, or has died.
    """
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        options = {"log_level": "warning", "generate_client_file": False, "num_api_servers": 1}
        server.run(host=host, port=port, api_server_worker_type="thread", **options)
    except KeyboardInterrupt:  # before it listens
        pass
    except RuntimeError as error:
        raise ResourceError(f"the models were not loaded ({error}); what is wrong stands above") from None
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
    return 128 + signals[0] if signals else ResourceError.exit_code


def check_free(host: str, port: int) -> None:
    """Before the models are loaded, which takes longer.

    Raises:
        ConfigError: LitServe does not listen there.
        ResourceError: another program does.
    """
    if host not in HOSTS:
        raise ConfigError(f"--host {host}: {', '.join(HOSTS[:-1])} or {HOSTS[-1]}")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a server that has just ended is in the way
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(f"--port {port}: {error.strerror}; give another") from None


def api_of(runs: Mapping[str, Path], threads: int, limits: Limits) -> litserve.LitAPI:
    """Raises ConfigError where several runs are given and one of them writes."""
    for run in runs.values():  # else a process is started for what is refused then
        check_files(model_directory(run))
    writers = [name for name, run in runs.items() if isinstance(described(run), Writes)]
    if not writers:
        return Answering(runs, threads, limits)
    if len(runs) > 1:
        raise ConfigError(f"{writers[0]} writes texts, which are sent as they are written; serve it by itself")
    return Writing(next(iter(runs.values())), threads)


def named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the last part of their paths that tells them apart."""
    resolved = [run.resolve() for run in runs]
    for parts in range(1, max(len(run.parts) for run in resolved) + 1):
        names = ["/".join(run.parts[-parts:]) for run in resolved]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, resolved, strict=True))


async def malformed(request: Any, error: Exception) -> JSONResponse:
    """What the schema has to say, each with its place."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    said = "; ".join(f"{'.'.join(str(part) for part in each['loc'][1:]) or 'body'}: {each['msg']}" for each in found)
    return failed(422, "malformed", said)


def over(status: int, code: str, what: str, limit: float, value: float) -> JSONResponse:
    return failed(status, code, f"{value:g} {what}; at most {limit:g}", limit=limit, value=value)


def failed(status: int, code: str, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, **more}}, status_code=status)


async def read_body(receive: Receive, most: int) -> bytes:
    """All of it, or a little more than `most` bytes."""
    body = b""
    while len(body) <= most:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def replayed(body: bytes) -> Receive:
    """The body as it came, for whoever reads it next."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the client stays: nothing more comes
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
