"""The two ledgers of a certificate: bits, item by item, and delta, shared by all certificates of a data set."""

from __future__ import annotations

import fcntl
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forethought.core import files
from forethought.core.errors import ArtefactError, InputError

LEDGER_FORMAT = 1
_MAX_ENTRIES = 100_000


@dataclass(frozen=True)
class BitLedger:
    """What a hypothesis costs in bits: symbols, codebook, choices and buffers; ln 1/P(h) is the total times ln 2.

    Raises:
        InputError: an item is negative or not finite. There are no credits.
    """

    symbols: float
    codebook: float = 0.0
    choices: float = 0.0
    buffers: float = 0.0

    def __post_init__(self) -> None:
        for name, bits in asdict(self).items():
            if isinstance(bits, bool) or not 0.0 <= bits < math.inf:
                raise InputError(f"{name} {bits!r} bits: every item of a ledger is a finite number, 0 or more")

    @property
    def total(self) -> float:
        """The sum of the items, rounded up."""
        total = math.fsum((self.symbols, self.codebook, self.choices, self.buffers))
        return total if total == 0.0 else math.nextafter(total, math.inf)

    def to_dict(self) -> dict[str, float]:
        """Return the items and their total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class DeltaEntry:
    """One certificate's share of the failure probability of its data set."""

    purpose: str
    delta: float


class DeltaLedger:
    """The failure probability of one data set, from which every certificate printed for it draws.

    All certificates of the ledger hold at once with probability 1 - total over the draw of the data set. With a path,
    the ledger is a JSON file that other runs continue, also at the same time: a draw locks the file, reads it again,
    and writes. Without, it lives in memory.

    Raises:
        InputError: the total is not between 0 and 1.
        ArtefactError: the file is no ledger, or one of another data set or total.
    """

    def __init__(self, data_sha256: str, total: float = 0.05, *, path: Path | str | None = None) -> None:
        if not 0.0 < total < 1.0:
            raise InputError(f"total {total!r} must be a failure probability between 0 and 1, such as 0.05")
        self.data_sha256, self.total = data_sha256, total
        self.path = None if path is None else Path(path)
        self._entries: list[DeltaEntry] = [] if self.path is None or not self.path.exists() else self._read(self.path)

    @property
    def entries(self) -> tuple[DeltaEntry, ...]:
        """What was drawn so far, in order."""
        return tuple(self._entries)

    @property
    def spent(self) -> float:
        """The sum of what was drawn."""
        return math.fsum(entry.delta for entry in self._entries)

    @property
    def left(self) -> float:
        """What can still be drawn."""
        return max(0.0, self.total - self.spent)

    def draw(self, purpose: str, delta: float | None = None) -> DeltaEntry:
        """Draw a share for one certificate and write it down; a purpose drawn before is returned, not paid twice.

        Without a delta, half of what is left is drawn, so that the ledger never ends.

        Raises:
            InputError: the share is not positive or more than is left, or the purpose was drawn with another delta.
        """
        if self.path is None:
            return self._drawn(purpose, delta)
        with _locked(self.path):
            # Another process may have drawn since this one looked.
            self._entries = self._read(self.path) if self.path.exists() else []
            before = len(self._entries)
            entry = self._drawn(purpose, delta)
            if len(self._entries) > before:
                files.write_json(self.path, self.to_dict())
            return entry

    def _drawn(self, purpose: str, delta: float | None) -> DeltaEntry:
        for entry in self._entries:
            if entry.purpose == purpose:
                if delta is not None and delta != entry.delta:
                    raise InputError(f"{purpose!r} was drawn at delta {entry.delta}; give that or another purpose")
                return entry
        share = self.left / 2.0 if delta is None else delta
        if not 0.0 < share < 1.0:
            raise InputError(f"delta {share!r} is no share; give a number above 0 of at most {self.left}")
        if math.fsum((self.spent, share)) > self.total * (1.0 + 1e-12):
            raise InputError(
                f"delta {share} for {purpose!r} exceeds what is left: {self.left} of {self.total} for this data set, "
                f"after {len(self._entries)} certificates. Give a smaller delta, or a larger total to all of them"
            )
        entry = DeltaEntry(purpose, share)
        self._entries.append(entry)
        return entry

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON values."""
        return {
            "format": LEDGER_FORMAT,
            "data_sha256": self.data_sha256,
            "total": self.total,
            "entries": [asdict(entry) for entry in self._entries],
        }

    def _read(self, path: Path) -> list[DeltaEntry]:
        facts = files.read_json(path, what="delta ledger", limit=64 << 20)
        if facts.get("format") != LEDGER_FORMAT or facts.get("data_sha256") != self.data_sha256:
            raise ArtefactError(f"{path} is no delta ledger of this data set; give another path for another data set")
        if facts.get("total") != self.total:
            raise ArtefactError(
                f"{path} was opened with a total of {facts.get('total')!r}; its certificates were sold under that one"
            )
        return entries_of(facts.get("entries"), source=str(path))


def ledgers_beside(directory: Path, data_sha256: str, name: str) -> list[Path]:
    """Return the ledgers of a data set in the other run directories of the same folder, `RUN/work/NAME`, sorted.

    Certificates of one data set that stand in ledgers of their own hold one by one, and not together.
    """
    found: list[Path] = []
    for path in sorted(directory.parent.glob(f"*/work/{name}")):
        if path.parent.parent.name != directory.name:
            try:
                facts = files.read_json(path, what="delta ledger", limit=64 << 20)
            except ArtefactError:
                continue
            if facts.get("data_sha256") == data_sha256:
                found.append(path)
    return found


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Hold the one lock of a ledger file, waiting for whoever has it; the lock is a file beside it, and stays."""
    with files.explained("lock", path):
        files.make_directory(path.parent)
        handle = files.open_write(path.with_name(f"{path.name}.lock"), append=True)
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def entries_of(values: object, *, source: str) -> list[DeltaEntry]:
    """Return ledger entries from JSON values.

    Raises:
        ArtefactError: they are not a list of {"purpose", "delta"} with positive deltas.
    """
    if not isinstance(values, list) or len(values) > _MAX_ENTRIES:
        raise ArtefactError(f"{source}: the entries of a delta ledger are a list of at most {_MAX_ENTRIES}")
    entries: list[DeltaEntry] = []
    for value in values:
        if not isinstance(value, dict) or value.keys() != {"purpose", "delta"}:
            raise ArtefactError(f"{source}: an entry of a delta ledger has a purpose and a delta, and nothing else")
        purpose, delta = value["purpose"], value["delta"]
        if not isinstance(purpose, str) or isinstance(delta, bool) or not isinstance(delta, int | float):
            raise ArtefactError(f"{source}: an entry of a delta ledger has a text as purpose and a number as delta")
        if not 0.0 < delta < 1.0:
            raise ArtefactError(f"{source}: delta {delta} of {purpose[:80]!r} is not between 0 and 1")
        entries.append(DeltaEntry(purpose, float(delta)))
    return entries
