"""Answers over HTTP: `permafrost serve RUN [RUN ...]`. What is asked has come through gate.py."""

import multiprocessing
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import litserve
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from prometheus_client import make_asgi_app
from pydantic import BaseModel, ConfigDict, Field

from permafrost.deployment.branches import Branches
from permafrost.deployment.gate import PREDICT, Figures, Gate, Limits, failed, malformed
from permafrost.deployment.predictor import Predictor, model_directory, task_of_run
from permafrost.errors import ConfigError, PermafrostError, ResourceError
from permafrost.storage.checksums import check_files
from permafrost.tasks.base import Writes, asked_rows

PAGE = Path(__file__).with_name("page.html")
HOSTS = ("127.0.0.1", "0.0.0.0", "::")


class Ask(BaseModel):
    """A text to answer, by all runs or by those that are named."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1)
    pair: str | None = Field(None, description="the second text, of runs that compare two")
    runs: list[str] | None = Field(None, description="names of runs; all unless given")


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
        if isinstance(output, PermafrostError):
            return failed(422, "malformed", str(output))
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

        streamer = TextIteratorStreamer(self.predictor.encoding.tokenizer, skip_prompt=True, skip_special_tokens=True)
        answers: list[dict[str, Any]] = []

        def write() -> None:
            try:
                rows = asked_rows(self.predictor.task, [ask.text], None if ask.pair is None else [ask.pair])
                answers.extend(self.predictor.answer(rows, streamer=streamer))
            except PermafrostError as error:
                answers.append({"error": {"code": "malformed", "message": str(error)}})
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
    writers = [name for name, run in runs.items() if isinstance(task_of_run(run), Writes)]
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
