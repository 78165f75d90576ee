"""The draft in a process of its own, on a core of its own, over shared memory.

The process is started clean: an interpreter, the descriptors of the shared memory, and one line of JSON. Its standard
input stays open for as long as this process lives, so that it cannot outlive it, however this one ends. What it writes
to its standard error is kept for the errors that speak of its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from forethought.core.errors import ConfigError
from forethought.decode.transports.serving import await_speculator
from forethought.decode.transports.shared_memory import CAPACITY, SPIN_SECONDS, SharedMemoryTransport
from forethought.decode.transports.transport import SEND_SECONDS, Capabilities, Frame, PeerClosedError, TransportError

SPECULATOR = "forethought.decode.drafter.speculator:open_speculator"
"""What the process builds by default."""

START_SECONDS = 120.0
"""How long the process may take by default to come up and open its model."""

# With a core of its own the draft may ask for verdicts as long as a round of any model that fits a CPU takes.
_OWN_CORE_SPIN_SECONDS = 0.05
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CLOSE_SECONDS, _TERMINATE_SECONDS, _REASON_SECONDS = 1.0, 2.0, 0.5
_MAX_LOG_BYTES = 4096


class DraftProcess:
    """A transport to a draft in a process that it starts and ends; use it in a `with` statement, or close it.

    `settings`, plain JSON values, are the keyword arguments of `build` ("module:function"), which makes the handler in
    the new process. `core` pins the process, `num_threads` bounds its native threads, `capacity` is the size of each
    ring in bytes. The process starts at once and beside whatever this one does; `wait_until_ready`, or else the first
    frame, waits for the end of the start.

    Raises:
        ConfigError: the process may not run on the core, or the system has no shared memory.
        TransportError: the system refused a process, memory or descriptors.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        build: str = SPECULATOR,
        core: int | None = None,
        num_threads: int = 1,
        capacity: int = CAPACITY,
        spin: float = SPIN_SECONDS,
    ) -> None:
        order = {
            "build": build,
            "settings": dict(settings),
            "core": core,
            "num_threads": num_threads,
            "spin": spin if core is None else max(spin, _OWN_CORE_SPIN_SECONDS),
            # The kernel's own signal comes at the end of the thread that started the process, whatever the others do.
            "dies_with_thread": threading.current_thread() is threading.main_thread(),
        }
        self._transport = SharedMemoryTransport.create(capacity, spin=spin)
        self._is_ready = False
        self._log = os.memfd_create("forethought-draft-log", os.MFD_CLOEXEC)
        try:
            self._process = _spawn(order, self._transport.peer_descriptors, self._log)
        except OSError as error:
            self._transport.close()
            os.close(self._log)
            raise TransportError(f"the system refused a draft process: {error}") from error
        self._transport.release_peer()
        self._stop = weakref.finalize(self, _stop, self._process, self._transport, self._log)
        if core is not None:
            self._pin(core)

    @property
    def capabilities(self) -> Capabilities:
        """What the transport is; the round trip is known once the process is ready."""
        return self._transport.capabilities

    @property
    def process_id(self) -> int:
        """The process's id."""
        return self._process.pid

    def wait_until_ready(self, timeout: float = START_SECONDS) -> None:
        """Wait until the process has built what it was told to; a process that has not is ended.

        Raises:
            InputError: it could not be built from the settings; the error is of the kind that was raised there.
            TransportError: it was not ready in time, or ended; the message says how and with what last words.
        """
        if self._is_ready:
            return
        try:
            self._transport.note_round_trip(await_speculator(self._transport, timeout, who="draft process"))
        except PeerClosedError as error:
            explained = self._explained(error)
            self.close()
            raise explained from error
        except BaseException:
            self.close()
            raise
        self._is_ready = True

    def send(self, frame: Frame, timeout: float = SEND_SECONDS) -> None:
        """Copy a frame into the ring, waiting at most `timeout` seconds for room.

        Raises:
            FrameSizeError: the frame does not fit the ring.
            BacklogError: the process made no room in time.
            PeerClosedError: the process has ended, or was closed; the message says how and with what last words.
        """
        self.wait_until_ready()
        try:
            self._transport.send(frame, timeout)
        except PeerClosedError as error:
            raise self._explained(error) from error

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        """Return the next frame, or None where none comes within `timeout` seconds.

        Raises:
            PeerClosedError: the process has ended and all its frames were returned, or it was closed.
        """
        self.wait_until_ready()
        try:
            return self._transport.receive(timeout)
        except PeerClosedError as error:
            raise self._explained(error) from error

    def poll(self) -> bool:
        """Return whether a frame is there to be received."""
        return self._transport.poll()

    def is_alive(self) -> bool:
        """Return whether the process runs and listens."""
        return self._transport.is_alive() and self._process.poll() is None

    def log(self) -> str:
        """Return the end of what the process wrote to its standard error."""
        if not self._stop.alive:
            return ""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, _MAX_LOG_BYTES, max(size - _MAX_LOG_BYTES, 0)).decode(errors="replace").strip()

    def close(self) -> None:
        """End the process, by force where it does not go by itself, and give back all it used."""
        self._stop()

    def __enter__(self) -> DraftProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _pin(self, core: int) -> None:
        try:
            os.sched_setaffinity(self._process.pid, {core})
        except ProcessLookupError:
            return
        except (OSError, ValueError, OverflowError) as error:
            self.close()
            raise ConfigError(
                f"the draft cannot run on core {core}: {error}; this machine has {os.cpu_count()}, numbered from 0"
            ) from error

    def _explained(self, error: PeerClosedError) -> PeerClosedError:
        """The error with the way in which the process ended, if it did."""
        if not self._stop.alive:
            return error
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_REASON_SECONDS)
        status, words = self._process.returncode, self.log()
        if status is None:
            return error
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return PeerClosedError(f"the draft process {how}" + (f"; its last words: {words}" if words else ""))


def _spawn(order: Mapping[str, Any], descriptors: tuple[int, int], log: int) -> subprocess.Popen[bytes]:
    line = json.dumps({**order, "descriptors": descriptors, "parent": os.getpid()}).encode() + b"\n"
    # -P keeps the current directory off the import path: a file that lies there must not be taken for a module.
    process = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-m", "forethought.decode.drafter.child"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=os.environ | {name: str(order["num_threads"]) for name in _THREAD_VARIABLES},
        pass_fds=descriptors,
        start_new_session=True,
    )
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(line)
            process.stdin.flush()
    return process


def _stop(process: subprocess.Popen[bytes], transport: SharedMemoryTransport, log: int) -> None:
    transport.close()
    for seconds, ask in ((_CLOSE_SECONDS, process.terminate), (_TERMINATE_SECONDS, process.kill)):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            ask()
    process.wait()
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    os.close(log)
