"""The draft's side of a transport, whatever the transport: how it starts, its loop, and how the target awaits it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from forethought.core.errors import (
    ArtefactError,
    CheckpointError,
    ConfigError,
    DataError,
    ForethoughtError,
    InputError,
    MissingExtraError,
    StorageError,
)
from forethought.decode.transports.transport import (
    SEND_SECONDS,
    BacklogError,
    FrameHandler,
    PeerClosedError,
    Transport,
    TransportError,
    answer_pings,
    measure_round_trip,
)

_HERE = b"here"
_PINGS_SECONDS = 30.0
_ERRORS: dict[str, type[ForethoughtError]] = {
    kind.__name__: kind
    for kind in (
        ArtefactError,
        CheckpointError,
        ConfigError,
        DataError,
        InputError,
        MissingExtraError,
        StorageError,
    )
}


def run_speculator(speculator: FrameHandler, transport: Transport) -> None:
    """Answer frames until the other side goes: all that are there first, then work ahead unit by unit, then wait.

    A frame waits for no more than the unit of work under way.

    Raises:
        BacklogError: the other side is there and takes no replies.
        FrameSizeError: a reply is larger than the transport takes.
    """
    busy = False
    try:
        while True:
            frame = transport.receive(0.0 if busy else None)
            if frame is None:
                busy = speculator.work()
                replies = speculator.replies()
            else:
                busy = True
                replies = speculator.handle(frame)
            for reply in replies:
                transport.send(reply, SEND_SECONDS)
    except PeerClosedError:
        return


def serve_speculator(transport: Transport, build: Callable[[], FrameHandler]) -> None:
    """Be the draft's side from start to end: let the round trip be measured, build, say how that went, then the loop.

    Raises:
        TransportError: the other side did not do its part in time.
    """
    try:
        transport.send(_HERE)
        answer_pings(transport, _PINGS_SECONDS)
        try:
            speculator = build()
        except ForethoughtError as error:
            transport.send(_report(error))
            return
        transport.send(_report(None))
    except PeerClosedError:
        return
    run_speculator(speculator, transport)


def await_speculator(transport: Transport, timeout: float, *, who: str = "draft") -> float:
    """Be the target's side of a start: return the measured round trip in seconds once the other side is ready.

    Raises:
        BacklogError: the other side was not ready within `timeout` seconds.
        PeerClosedError: the other side ended without a word.
        ForethoughtError: the other side could not be built; the error is of the kind that was raised there.
    """
    deadline = time.monotonic() + timeout
    if _next(transport, deadline, f"the {who} did not come up within {timeout:g} s") != _HERE:
        raise TransportError(f"the {who} speaks another protocol; run one release on both sides")
    round_trip = measure_round_trip(transport)
    report = json.loads(_next(transport, deadline, f"the {who} did not open its model within {timeout:g} s"))
    if report["error"] is not None:
        raise _ERRORS.get(report["error"], TransportError)(f"the {who} could not start: {report['message']}")
    return round_trip


def _report(error: ForethoughtError | None) -> bytes:
    kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS), "other")
    return json.dumps({"error": None if error is None else kind, "message": str(error)}).encode()


def _next(transport: Transport, deadline: float, late: str) -> bytes:
    frame = transport.receive(max(deadline - time.monotonic(), 0.0))
    if frame is None:
        raise BacklogError(late)
    return frame
