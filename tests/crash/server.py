"""A warmed process that forks one child a request, so that a life that ends in SIGKILL costs milliseconds.

One JSON request a line on standard input, one JSON answer a line on standard output. The server itself runs one thread.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

import programs


def _live(request: dict[str, Any], answer: int) -> None:
    """Run the program of a request in this (forked) process and never return."""
    status = 70
    try:
        os.write(answer, b"\n")  # it lives: a time to kill it after counts from here
        result = getattr(programs, request["program"])(request["kill_at"], **request["arguments"])
        os.write(answer, json.dumps(result).encode())
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _live(request, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        stream.read(1)
        if request["kill_after"] is not None:
            time.sleep(request["kill_after"])
            os.kill(child, signal.SIGKILL)
        text = stream.read()
    _, status = os.waitpid(child, 0)
    return {
        "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "result": json.loads(text) if text else None,
    }


def main() -> None:
    programs.warm()
    gc.freeze()  # the children then copy fewer pages
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(_serve(json.loads(line))) + "\n")
        replies.flush()
    os._exit(0)  # without the seconds that a whole interpreter takes to come down


if __name__ == "__main__":
    main()
