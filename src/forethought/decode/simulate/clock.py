"""Time that passes only when somebody says so."""

from __future__ import annotations

from forethought.core.errors import InputError


class VirtualClock:
    """Seconds since the start of a simulation; calling it reads it, as `time.perf_counter` is called."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            InputError: the seconds are negative.
        """
        if seconds < 0.0:
            raise InputError(f"{seconds} seconds would turn the clock back; give none or more")
        self._now += seconds

    def advance_to(self, moment: float) -> None:
        """Wait until a moment; one that has passed is no wait."""
        self._now = max(self._now, moment)
