"""The job of serving: the server on loopback over target and draft, one request by HTTP, and its orderly end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forethought.app.demo.settings import PROMPTS, DemoConfig
from forethought.core.errors import TaskError

_START_SECONDS, _END_SECONDS = 120.0, 60.0
NAME = "target"
_ADDRESS = re.compile(r"at (http://\S+) \(Ctrl-C")


def serve_text(settings: DemoConfig, out: Path, expected: str) -> dict[str, Any]:
    """Serve the target with its draft, ask for a greedy continuation, and compare it with the engine's own."""
    flags = [str(out / "target"), "--name", NAME, "--draft", str(out / "draft")]
    flags += ["--num-speculative-tokens", str(settings.num_speculative_tokens)]
    with server(flags) as address:
        answered = ask(address, PROMPTS[0], settings.max_tokens)
    return {**answered, "prompt": PROMPTS[0], "equal": answered["text"] == expected}


@contextmanager
def server(flags: list[str]) -> Iterator[str]:
    """Run `forethought serve` in a process of its own for a block, and yield its address.

    Raises:
        TaskError: it did not start, or did not end well.
    """
    command = [sys.executable, "-m", "forethought", "serve", *flags, "--port", "0", "--json"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, text=True)
        try:
            yield _address(process, said)
            process.send_signal(signal.SIGTERM)
            if process.wait(_END_SECONDS) != 0:
                raise TaskError(f"the server ended with status {process.returncode}: {_tail(said)}")
        except subprocess.TimeoutExpired:
            raise TaskError(f"the server did not end within {_END_SECONDS:.0f} s: {_tail(said)}") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def ask(address: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Ask a server on loopback for a greedy continuation, as any OpenAI client would.

    Raises:
        TaskError: the answer is none.
    """
    body = json.dumps({"model": NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}).encode()
    request = urllib.request.Request(
        f"{address}/v1/completions", body, {"Content-Type": "application/json"}, method="POST"
    )
    # No proxy stands between two processes of one machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began = time.perf_counter()
    try:
        with opener.open(request, timeout=_START_SECONDS) as answer:
            told = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise TaskError(f"the server at {address} refused: {error.read().decode(errors='replace')[:400]}") from error
    except OSError as error:
        raise TaskError(f"the server at {address} did not answer: {error}") from error
    choice = told["choices"][0]
    return {
        "text": choice["text"],
        "finish_reason": choice["finish_reason"],
        "usage": told["usage"],
        "seconds": time.perf_counter() - began,
    }


def _address(process: subprocess.Popen[str], said: Any) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        said.seek(0)
        found = _ADDRESS.search(said.read())
        if found:
            return found[1]
        time.sleep(0.05)
    raise TaskError(f"the server did not start: {_tail(said)}")


def _tail(said: Any) -> str:
    said.seek(0)
    return said.read().strip()[-400:]
