"""The outcome cache: work prepared for outcomes that are still unknown, taken when one of them comes true.

An owner (a sequence, a robot) lives through epochs (rounds, action chunks). While an epoch's outcome is open, work is
prepared for the likely ones; when it is known, the work for it is taken and the rest of the epoch is waste. Outcomes
and work are the caller's; nothing here knows tokens, states or tensors. (arXiv 2603.03251, Algorithm 1.)
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from forethought.core.errors import InputError

Outcome = TypeVar("Outcome", bound=Hashable)
Work = TypeVar("Work")


@dataclass(frozen=True)
class GroupStatistics:
    """The counts of one group of outcomes."""

    hits: int = 0
    misses: int = 0
    prepared: int = 0
    wasted: int = 0

    @property
    def hit_rate(self) -> float:
        """Return hits over takes, 0 before the first."""
        takes = self.hits + self.misses
        return self.hits / takes if takes else 0.0


@dataclass(frozen=True)
class CacheStatistics(GroupStatistics):
    """The counts of the whole cache, and of each group; `stale` counts prepared work that came too late to keep."""

    stale: int = 0
    by_group: Mapping[Hashable, GroupStatistics] = field(default_factory=dict[Hashable, GroupStatistics])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, groups by their text."""
        own = {name: getattr(self, name) for name in ("hits", "misses", "hit_rate", "prepared", "wasted", "stale")}
        groups = {
            str(group): {name: getattr(counts, name) for name in ("hits", "misses", "hit_rate", "prepared", "wasted")}
            for group, counts in self.by_group.items()
        }
        return {**own, "by_group": groups}


class OutcomeCache(Generic[Outcome, Work]):
    """Prepared work by (owner, epoch, outcome), bounded in size and safe between threads.

    `capacity` bounds the pieces of work held; the owners untouched for longest give way first. `group_of` maps an
    outcome to the group under which it is counted.
    """

    def __init__(self, capacity: int, group_of: Callable[[Outcome], Hashable] | None = None) -> None:
        """Make an empty cache.

        Raises:
            InputError: the capacity is below 1.
        """
        if capacity < 1:
            raise InputError(f"capacity {capacity} must be at least 1 piece of work")
        self.capacity = capacity
        self._group_of = group_of
        self._lock = threading.RLock()
        self._live: OrderedDict[Hashable, tuple[int, dict[Outcome, Work]]] = OrderedDict()
        self._next_epoch: dict[Hashable, int] = {}
        self._num_held = 0
        self._stale = 0
        self._counts: dict[str, Counter[Hashable]] = {
            name: Counter() for name in ("hits", "misses", "prepared", "wasted")
        }

    def __len__(self) -> int:
        """Return how many pieces of work are held."""
        return self._num_held

    def prepare(self, owner: Hashable, epoch: int, work: Mapping[Outcome, Work]) -> int:
        """Hold work for the outcomes of an owner's epoch, the likeliest first; return how many pieces were kept.

        A newer epoch drops the owner's older one; work for an epoch that is older, or was already taken, is refused.
        A second call for one epoch adds to it and replaces what it names again. More than the capacity is cut.
        """
        with self._lock:
            live_epoch = self._live[owner][0] if owner in self._live else None
            if epoch < self._next_epoch.get(owner, epoch) or (live_epoch is not None and epoch < live_epoch):
                self._stale += len(work)
                return 0
            if live_epoch is not None and epoch > live_epoch:
                self._drop(owner)
            held = self._live.setdefault(owner, (epoch, {}))[1]
            self._live.move_to_end(owner)
            num_kept = 0
            for outcome, piece in work.items():
                if outcome in held:
                    self._count("wasted", outcome)
                elif self._make_room(owner):
                    self._num_held += 1
                else:
                    break
                held[outcome] = piece
                self._count("prepared", outcome)
                num_kept += 1
            return num_kept

    def take(self, owner: Hashable, epoch: int, outcome: Outcome) -> Work | None:
        """Return the work prepared for what came true, or None, and close the epoch: its other work is dropped.

        Every take is a hit or a miss, whatever the work is; work of an older epoch never answers for a newer one.
        """
        with self._lock:
            live_epoch, held = self._live.get(owner, (epoch, {}))
            is_hit = live_epoch == epoch and outcome in held
            self._count("hits" if is_hit else "misses", outcome)
            piece = held.pop(outcome) if is_hit else None
            self._num_held -= is_hit
            if live_epoch <= epoch:
                self._drop(owner)
            self._next_epoch[owner] = max(epoch + 1, self._next_epoch.get(owner, epoch + 1))
            return piece

    def forget(self, owner: Hashable) -> None:
        """Drop everything about an owner that has ended; its name may be used again from any epoch."""
        with self._lock:
            self._drop(owner)
            self._next_epoch.pop(owner, None)

    @property
    def statistics(self) -> CacheStatistics:
        """Return the counts so far; work still held is neither hit nor wasted."""
        with self._lock:
            groups = {group for counter in self._counts.values() for group in counter}
            by_group = {
                group: GroupStatistics(**{name: counter[group] for name, counter in self._counts.items()})
                for group in groups
            }
            totals = {name: counter.total() for name, counter in self._counts.items()}
            return CacheStatistics(**totals, stale=self._stale, by_group=by_group)

    def _count(self, name: str, outcome: Outcome) -> None:
        group = self._group_of(outcome) if self._group_of else None
        self._counts[name][group] += 1

    def _drop(self, owner: Hashable) -> None:
        _, held = self._live.pop(owner, (0, {}))
        self._num_held -= len(held)
        for outcome in held:
            self._count("wasted", outcome)

    def _make_room(self, owner: Hashable) -> bool:
        while self._num_held >= self.capacity:
            oldest = next(iter(self._live))
            if oldest == owner:
                return False
            self._drop(oldest)
        return True
