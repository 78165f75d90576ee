"""A transport that loses, repeats, delays, reorders and damages frames, and dies, by a seeded plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from forethought.core.rng import generator
from forethought.decode.transports.transport import Capabilities, Frame, PeerClosedError, Transport


@dataclass(frozen=True)
class Chaos:
    """How likely each mishap is for a frame, either way; `close_after` frames the connection is gone.

    A delayed frame comes `max_delay` calls later at most, and frames behind it overtake it; a reordered one comes right
    after the next one, or as late as a delayed one where there is none.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0
    damage: float = 0.0
    max_delay: int = 8
    close_after: int | None = None
    sending: bool = True
    receiving: bool = True


class ChaosTransport:
    """Another transport with mishaps; `mishaps` counts them."""

    def __init__(self, inner: Transport, chaos: Chaos, seed: int) -> None:
        self.mishaps: Counter[str] = Counter()
        self._inner, self._chaos, self._seed = inner, chaos, seed
        self._calls = self._frames = 0
        self._outgoing: list[tuple[int, int, bytes]] = []
        self._incoming: list[tuple[int, int, bytes]] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def send(self, frame: Frame, timeout: float = 1.0) -> None:
        self._tick()
        self._meet(bytes(frame), self._outgoing, self._chaos.sending)
        for due in self._due(self._outgoing):
            self._inner.send(due, timeout)

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        self._tick()
        # What waits to be sent is late by calls of either kind: a side that only listens gets it too.
        for due in self._due(self._outgoing):
            self._inner.send(due)
        wait = 0.0 if any(when <= self._calls for when, *_ in self._incoming) else timeout
        frame = self._inner.receive(wait)
        while frame is not None:
            self._meet(frame, self._incoming, self._chaos.receiving)
            frame = self._inner.receive(0.0)
        due = min((entry for entry in self._incoming if entry[0] <= self._calls), default=None)
        if due is None:
            return None
        self._incoming.remove(due)
        return due[2]

    def poll(self) -> bool:
        return self._inner.poll() or any(when <= self._calls for when, *_ in self._incoming)

    def is_alive(self) -> bool:
        return self._inner.is_alive()

    def close(self) -> None:
        self._inner.close()

    def _tick(self) -> None:
        self._calls += 1
        if self._chaos.close_after is not None and self._frames >= self._chaos.close_after:
            self.mishaps["close"] += 1
            self._inner.close()
            raise PeerClosedError("chaos closed the transport")

    def _meet(self, frame: bytes, queue: list[tuple[int, int, bytes]], is_on: bool) -> None:
        """Decide what becomes of a frame, and queue it with the call at which it comes out."""
        self._frames += 1
        chaos, order = self._chaos, 2 * self._frames
        if not is_on:
            queue.append((self._calls, order, frame))
            return
        random = generator(self._seed, "test.chaos", self._frames)
        drop, duplicate, delay, reorder, damage = (random.random() < chance for chance in _chances(chaos))
        if drop:
            self.mishaps["drop"] += 1
            return
        if damage and frame:
            self.mishaps["damage"] += 1
            place = int(random.integers(len(frame)))
            frame = frame[:place] + bytes([frame[place] ^ (1 << int(random.integers(8)))]) + frame[place + 1 :]
        when = self._calls
        if delay:
            self.mishaps["delay"] += 1
            when += int(random.integers(1, chaos.max_delay + 1))
        if reorder:
            self.mishaps["reorder"] += 1
            when, order = when + chaos.max_delay, order + 3
        # The next frame has come: what waited for it (the odd ones) follows it.
        queue[:] = [(min(then, self._calls) if place % 2 else then, place, other) for then, place, other in queue]
        queue.append((when, order, frame))
        if duplicate:
            self.mishaps["duplicate"] += 1
            queue.append((when + int(random.integers(0, chaos.max_delay + 1)), order, frame))

    def _due(self, queue: list[tuple[int, int, bytes]]) -> list[bytes]:
        due = sorted(entry for entry in queue if entry[0] <= self._calls)
        for entry in due:
            queue.remove(entry)
        return [frame for _, _, frame in due]


def _chances(chaos: Chaos) -> tuple[float, ...]:
    return chaos.drop, chaos.duplicate, chaos.delay, chaos.reorder, chaos.damage
