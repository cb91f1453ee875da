"""The page at /, in a browser that shows nothing: a text is sent, and the run's answer stands there."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("litserve", reason="the extra [serve] is not installed")

from permafrost.deployment.predictor import Predictor
from tests.runs.test_serve import Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]


def browse(url: str, directory: Path, *options: str) -> str:
    """What chromium prints; its files lie in the directory. No request is left unanswered when it ends."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={directory}/profile"]
    command += ["--virtual-time-budget=20000", "--window-size=900,700", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=directory)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def shown_in(page: str) -> str:
    found = re.search(r'<pre id="answer"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert found, page[:2000]
    return html.unescape(found[1])


def answered(url: str, directory: Path) -> str:
    """On a busy machine a window is closed before the server has answered: then it is asked again."""
    for _ in range(3):
        shown = shown_in(browse(url, directory, "--dump-dom"))
        if shown.startswith("{"):
            break
    return shown


def test_the_page_shows_the_runs_answer(run_tiny, tmp_path):
    _, run_dir = run_tiny("freezing.blocks=0", "optimizer.lr=1e-2")
    text = "sunny & <hot> day"
    with Served(str(run_dir)) as server:
        answer = json.loads(answered(f"{server.url}/?text={quote(text)}", tmp_path))
        (expected,) = Predictor(run_dir).predict([text])
        assert answer == {"label": expected["label"], "score": pytest.approx(expected["score"], abs=1e-5)}
        browse(f"{server.url}/?text={quote(text)}", tmp_path, "--screenshot=page.png")
        empty = shown_in(browse(server.url, tmp_path, "--dump-dom"))
    assert empty == ""
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "page.png").stat().st_size > 5_000  # an empty window is smaller
