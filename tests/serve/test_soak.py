"""Mixed load with clients that leave, on the real verb in a process of its own: nothing grows (R46)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.serve.test_shutdown import resident, serving

SECONDS = float(os.environ.get("FORETHOUGHT_SOAK_SECONDS", "120"))
PAUSE = float(os.environ.get("FORETHOUGHT_SOAK_PAUSE", "0"))
HOUR = 3600.0
"""From this length on the growth is a figure of megabytes an hour; a shorter run only bounds it."""


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _one(client: httpx.Client, turn: int) -> None:
    prompt = "the cat and the dog " * (turn % 7)
    body = {
        "model": "target",
        "prompt": prompt + "x",
        "max_tokens": 5 + turn % 40,
        "ignore_eos": True,
        "n": 1 + turn % 3,
    }
    match turn % 10:
        case 0:
            # One in ten leaves in the middle.
            with client.stream("POST", "/v1/completions", json=body | {"stream": True, "max_tokens": 400}) as answer:
                next(answer.iter_raw())
        case 1 | 2 | 3:
            with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
                assert answer.read().endswith(b"data: [DONE]\n\n")
        case 4:
            assert client.post("/v1/completions", json=body | {"bogus": 1}).status_code == 400
        case 5:
            messages = [{"role": "user", "content": prompt + "x"}]
            chat = {"model": "target", "messages": messages, "max_tokens": 9, "logprobs": True, "top_logprobs": 3}
            assert client.post("/v1/chat/completions", json=chat).status_code == 200
        case 6:
            assert client.get("/metrics").status_code == 200
        case _:
            assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.nightly
@pytest.mark.timeout(SECONDS + 120.0)
def test_nothing_grows(tiny_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    target, draft = tiny_pair
    arguments = (target, "--draft", draft, "--method", "draft", "--num-speculative-tokens", 2, "--num-threads", 1)
    with serving(*arguments) as (process, client):
        began, turn, seen = time.monotonic(), 0, []
        while (passed := time.monotonic() - began) < SECONDS:
            _one(client, turn)
            turn += 1
            time.sleep(PAUSE)
            if turn % 50 == 0:
                seen.append((passed, resident(process.pid), _descriptors(process.pid)))
        settled = [each for each in seen if each[0] > SECONDS / 2]
        first, last = settled[0], settled[-1]
        grown = last[1] - first[1]
        slope = float(np.polyfit([each[0] for each in settled], [each[1] for each in settled], 1)[0]) * HOUR / 1e6
        with capsys.disabled():
            print(
                f"\n{turn} requests in {seen[-1][0]:.0f} s; after warm-up {grown / 1e6:+.2f} MB, "
                f"{slope:+.2f} MB an hour, descriptors {first[2]} -> {last[2]}"
            )
        assert abs(last[2] - first[2]) <= 1
        assert grown < 4 << 20
        assert SECONDS < HOUR or slope <= 1.0
