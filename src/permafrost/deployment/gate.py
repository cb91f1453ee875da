"""Before the server: one request too many, too long or malformed fails alone, by the name and value of its limit."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREDICT = "/predict"
BYTES_A_CHARACTER = 12  # at most: JSON may write an emoji as two escapes of six


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_characters: int = 20_000  # of a text and its pair
    max_waiting: int = 128  # requests that are in work or wait for it
    max_seconds: float = 30.0  # of a request, its waiting included
    batch: int = 16  # requests that are answered together
    batch_wait_ms: float = 5.0


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
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await asyncio.wait_for(self._read_and_answered(scope, receive, noted), limits.max_seconds)
        except asyncio.TimeoutError:
            late = over(408, "too_slow", "seconds", limits.max_seconds, limits.max_seconds)
            if begun:  # a text that is being written: its status is sent, and what is left to say is its last line
                await send({"type": "http.response.body", "body": b"\n" + bytes(late.body) + b"\n", "more_body": False})
            else:
                await late(scope, receive, send)

    async def _read_and_answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = BYTES_A_CHARACTER * self.limits.max_characters + 2000
        body = await read_body(receive, most)
        answering = self.refusal(body, most) or self.app
        await answering(scope, replayed(body), send)

    def refusal(self, body: bytes, most: int) -> JSONResponse | None:
        """What is wrong with a request that would be well-formed; malformed ones are for the schema."""
        if len(body) > most:
            return over(413, "too_long", "bytes", most, len(body))
        try:
            asked = json.loads(body)
        except UnicodeDecodeError as error:
            return failed(422, "malformed", f"body: not UTF-8 at byte {error.start}")
        except RecursionError:
            return failed(422, "malformed", "body: nested too deeply")
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
