"""The test's side of the fork server: ask for a life, learn how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Lives:
    """Starts the server on first use; `run` gives one life to a program of programs.py."""

    def __init__(self, log: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._log = log.open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def run(
        self, program: str, *, kill_at: int | None = None, kill_after: float | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Return {"status", "signal", "result"} of one life; kill_at counts announced points, kill_after seconds."""
        request = {"program": program, "kill_at": kill_at, "kill_after": kill_after, "arguments": arguments}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the server died: {self.log()}"
        return json.loads(line)

    def log(self) -> str:
        """Return what the lives wrote to standard error, where a traceback is."""
        self._log.flush()
        return Path(self._log.name).read_text()[-4000:]

    def close(self) -> None:
        self._process.communicate(timeout=30)
        self._log.close()
