"""Two ranks of torch.distributed: gloo between CPUs, NCCL between GPUs of one machine or several.

A frame is one message of a fixed size, so that the receiver can post it before the frame exists, and where it is longer
a second one with the rest. A thread receives: neither backend can be asked whether a receive is done (gloo says no
until it is waited for), and giving up one that is posted breaks gloo's connection.

Shape suffix: U bytes.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from forethought.core.errors import ConfigError
from forethought.decode.transports.lane import Lane
from forethought.decode.transports.transport import (
    SEND_SECONDS,
    Capabilities,
    Frame,
    PeerClosedError,
    closed_here,
    peer_closed,
    size_checked,
)

_NAME = "torch.distributed"
_LENGTH_BYTES = 8
_GOODBYE = -1
_FOREVER = timedelta(days=365)
# A send that gloo gives up breaks the connection, so it gets longer than a caller in a hurry would wait.
_LEAST_SEND_SECONDS = 10.0
_GOODBYE_SECONDS = 2.0
_MAX_WAITING = 4096


def exchange_groups(target: int, draft: int, backend: str | None = None) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Make the two groups of a target's and a draft's rank, one for each direction; every rank of the world must call.

    Two, because NCCL runs what a pair does in the order it was asked for, and a receive posted ahead would hold up all
    sends behind it. Their timeout is a year, since an engine may be idle for long.

    Raises:
        ConfigError: the ranks are equal, or there is no process group yet.
    """
    if target == draft or not dist.is_initialized():
        raise ConfigError(
            f"ranks {target} and {draft} make no pair; give two ranks after torch.distributed.init_process_group"
        )
    return _new_group([target, draft], backend), _new_group([target, draft], backend)


class TorchDistributedTransport:
    """One side; `peer` is the other one's rank in the world, `device` where the backend's messages lie.

    Both sides are built and closed together. `outgoing` and `incoming` are the groups of `exchange_groups`, in one
    order here and in the other there. A rank that dies is noticed with gloo; with NCCL only by its silence.
    """

    def __init__(
        self,
        peer: int,
        outgoing: dist.ProcessGroup,
        incoming: dist.ProcessGroup,
        *,
        device: torch.device | str = "cpu",
        slot: int = 4096,
        max_frame: int = 64 << 20,
    ) -> None:
        if slot <= _LENGTH_BYTES:
            raise ConfigError(f"a slot of {slot} bytes leaves no room for a frame; give more than {_LENGTH_BYTES}")
        self._sender = _Sender(peer, outgoing, torch.device(device), slot)
        self._lane = Lane(_MAX_WAITING)
        self._closed = False
        self._capabilities = Capabilities(_NAME, False, True, False, max_frame)
        listener = _Listener(peer, incoming, torch.device(device), slot, max_frame)
        self._thread = threading.Thread(
            target=listener.run, args=(self._lane, self._sender), name="forethought-listener", daemon=True
        )
        self._thread.start()
        self._stop = weakref.finalize(self, _stop, self._sender, self._lane, self._thread)

    @property
    def capabilities(self) -> Capabilities:
        """What this transport is."""
        return self._capabilities

    def note_round_trip(self, seconds: float) -> None:
        """Put a measured round trip among the capabilities."""
        self._capabilities = replace(self._capabilities, round_trip=seconds)

    def send(self, frame: Frame, timeout: float = SEND_SECONDS) -> None:
        """Send a frame; where the other rank takes nothing for `timeout`, and at least ten, seconds, the link is lost.

        Raises:
            FrameSizeError: the frame is larger than `max_frame`.
            PeerClosedError: the other rank has gone or is stuck, or this side was closed.
        """
        view = size_checked(frame, self._capabilities.max_frame)
        if self._closed:
            raise closed_here(_NAME)
        if self._lane.is_closed:
            raise peer_closed(_NAME)
        try:
            self._sender.send(view, timeout)
        except RuntimeError as error:
            self._lane.close()
            raise PeerClosedError(f"the other rank takes no frames: {error}") from error

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        """Return the next frame, or None where none comes within `timeout` seconds.

        Raises:
            PeerClosedError: the other rank has gone and all its frames were returned, or this side was closed.
        """
        if self._closed:
            raise closed_here(_NAME)
        frame = self._lane.take(timeout)
        if frame is None and self._lane.is_closed:
            frame = self._lane.take(0.0)
            if frame is None:
                raise peer_closed(_NAME)
        return frame

    def poll(self) -> bool:
        """Return whether a frame is there to be received."""
        return not self._closed and not self._lane.is_empty

    def is_alive(self) -> bool:
        """Return whether the other rank has neither closed nor been lost."""
        return not self._closed and not self._lane.is_closed

    def close(self) -> None:
        """Say goodbye and wait, at most two seconds, for the other rank to do so: no receive stays posted."""
        self._closed = True
        self._stop()


class _Sender:
    """Sends frames and, once, the goodbye; for several threads."""

    def __init__(self, peer: int, group: dist.ProcessGroup, device: torch.device, slot: int) -> None:
        self._peer, self._group, self._device, self._slot = peer, group, device, slot
        self._lock = threading.Lock()
        self._said_goodbye = False

    def send(self, frame: memoryview, timeout: float) -> None:
        room = self._slot - _LENGTH_BYTES
        with self._lock:
            self._post(len(frame), frame[:room], timeout)
            if len(frame) > room:
                self._transmit(_tensor(bytearray(frame[room:])), timeout)

    def say_goodbye(self) -> None:
        with self._lock:
            if not self._said_goodbye:
                self._said_goodbye = True
                self._post(_GOODBYE, memoryview(b""), _GOODBYE_SECONDS)

    def _post(self, length: int, head: memoryview, timeout: float) -> None:
        message = bytearray(self._slot)
        message[:_LENGTH_BYTES] = length.to_bytes(_LENGTH_BYTES, "little", signed=True)
        message[_LENGTH_BYTES : _LENGTH_BYTES + len(head)] = head
        self._transmit(_tensor(message), timeout)

    def _transmit(self, message_U: Tensor, timeout: float) -> None:
        work = dist.isend(message_U.to(self._device), self._peer, self._group)
        if work is not None:
            work.wait(timedelta(seconds=max(timeout, _LEAST_SEND_SECONDS)))


class _Listener:
    """Receives frames until the goodbye, with the next receive posted before a frame is passed on."""

    def __init__(self, peer: int, group: dist.ProcessGroup, device: torch.device, slot: int, max_frame: int) -> None:
        self._peer, self._group, self._device = peer, group, device
        self._slot, self._max_frame = slot, max_frame

    def run(self, lane: Lane, sender: _Sender) -> None:
        try:
            self._listen(lane)
            sender.say_goodbye()
        except RuntimeError:
            # The connection is lost. Who asks the closed lane is told so.
            return
        finally:
            lane.close()

    def _listen(self, lane: Lane) -> None:
        slot_U = torch.empty(self._slot, dtype=torch.uint8, device=self._device)
        posted = dist.irecv(slot_U, self._peer, self._group)
        while True:
            message = self._await(posted, slot_U)
            length = int.from_bytes(message[:_LENGTH_BYTES], "little", signed=True)
            if not 0 <= length <= self._max_frame or not lane.has_room:
                return
            frame = message[_LENGTH_BYTES : _LENGTH_BYTES + length]
            if length > len(frame):
                rest_U = torch.empty(length - len(frame), dtype=torch.uint8, device=self._device)
                frame += self._await(dist.irecv(rest_U, self._peer, self._group), rest_U)
            posted = dist.irecv(slot_U, self._peer, self._group)
            lane.put(frame)

    def _await(self, posted: dist.Work | None, buffer_U: Tensor) -> bytes:
        if posted is not None:
            posted.wait(_FOREVER)
        return buffer_U.cpu().numpy().tobytes()


def _new_group(ranks: list[int], backend: str | None) -> dist.ProcessGroup:
    # A rank that is not in the group is given a mark in place of one, which it has no use for.
    return cast(dist.ProcessGroup, dist.new_group(ranks, timeout=_FOREVER, backend=backend))


def _tensor(content: bytearray) -> Tensor:
    return torch.frombuffer(content, dtype=torch.uint8)


def _stop(sender: _Sender, lane: Lane, thread: threading.Thread) -> None:
    try:
        if thread.is_alive():
            sender.say_goodbye()
    except RuntimeError:
        # Gone already; its end of the connection is closed, so the thread is ending too.
        pass
    thread.join(_GOODBYE_SECONDS)
    lane.close()
