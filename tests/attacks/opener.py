"""Opens directories one after another and says of each what came of it, and what it did that it must not.

Run as a program: python opener.py LIST, where LIST is a JSON file {"warm": [good directories], "open": [directories]}.
Prints one JSON list of {"directory", "error", "message", "seconds", "megabytes", "events"}. An audit hook of the
interpreter sees every opened file, import, process, socket and compilation, whoever asks for it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import forethought
from forethought.core.errors import ForethoughtError

WATCHED = ("exec", "compile", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
           "socket.bind", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir",
           "shutil.rmtree", "os.symlink", "os.chmod", "os.truncate", "os.rmdir", "os.link")  # fmt: skip


class Watch:
    """Collects what happens while a directory is opened."""

    def __init__(self) -> None:
        self.place: str | None = None
        self.events: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.place is None:
            return
        if event in WATCHED:
            self.events.append(f"{event} {str(arguments)[:100]}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode = os.path.realpath(os.fsdecode(arguments[0])), str(arguments[1])
            inside = path.startswith(self.place + os.sep) or path == self.place
            if not inside or any(letter in mode for letter in "wax+"):
                self.events.append(f"open {path} {mode}")


def tried(watch: Watch, directory: Path) -> dict[str, Any]:
    """Open one directory under watch."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    watch.events, watch.place = [], os.path.realpath(directory)
    error, message = "", ""
    try:
        forethought.load(directory)
    except ForethoughtError as refusal:
        error, message = type(refusal).__name__, str(refusal)
    except Exception as other:  # noqa: BLE001 - whatever else comes out is what the test is about
        error, message = f"unnamed {type(other).__name__}", str(other)
    finally:
        watch.place = None
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "directory": str(directory),
        "error": error,
        "message": message[:2000],
        "seconds": time.perf_counter() - began,
        "megabytes": grown,
        "events": watch.events,
    }


def main() -> None:
    """Open the good ones first, so that no import counts, then the others."""
    wanted = json.loads(Path(sys.argv[1]).read_text())
    for directory in wanted["warm"]:
        forethought.load(directory)
    watch = Watch()
    print(json.dumps([tried(watch, Path(directory)) for directory in wanted["open"]]))


if __name__ == "__main__":
    main()
