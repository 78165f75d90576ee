"""Trained points, cached by the content hash of config and data: what was trained once is never trained again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from forethought.core import files
from forethought.core.config import to_dict
from forethought.core.errors import ArtefactError
from forethought.data import open_corpus
from forethought.pretrain.members.config import Member, MembersConfig
from forethought.pretrain.members.run import run_identity
from forethought.pretrain.members.spread import Spread, train_spread
from forethought.pretrain.study.search import Point

Record = dict[str, Any]
Afford = Callable[[MembersConfig, int], bool]


def _always(_settings: MembersConfig, _members: int) -> bool:
    return True


@dataclass
class PointStore:
    """Records of trained members under one root, by the hash of their own config and data.

    `afford` is asked before each batch of members is trained, with its settings and their number, and `tell` is called
    with every record that is found or made.
    """

    root: Path
    spread: Spread = field(default_factory=Spread)
    afford: Afford = _always
    tell: Callable[[Record], None] = lambda _record: None

    def train(self, settings: MembersConfig) -> list[Record | None]:
        """Return the record of each member, training those that are not known; None where it cannot be afforded.

        A member's hash is that of a run of it alone, so it does not matter what it was batched with.

        Raises:
            InputError: the config or the corpus cannot be used.
            InterruptedRunError: interrupted; the same call goes on.
        """
        identity = open_corpus(settings.fit.sources[0]).identity
        keys = [run_identity(replace(settings, members=(member,)), identity) for member in settings.members]
        records: list[Record | None] = [self._read(key) for key in keys]
        missing = [k for k, record in enumerate(records) if record is None]
        if missing and self.afford(settings, len(missing)):
            part = replace(settings, members=tuple(settings.members[k] for k in missing))
            trained = train_spread(part, self.root / "runs", self.spread)
            for k, record in zip(missing, trained.members, strict=True):
                records[k] = self._write(keys[k], settings, settings.members[k], record)
        for record in records:
            if record is not None:
                self.tell(record)
        return records

    def evaluate(self, settings: MembersConfig, points: Sequence[Point], *, seed: int = 0) -> dict[Point, float]:
        """Return the tuning loss of points, those of equal epochs trained together, without what cannot be afforded.

        Raises:
            InputError: the config or the corpus cannot be used.
        """
        losses: dict[Point, float] = {}
        for epochs in sorted({point.epochs for point in points}):
            group = [point for point in points if point.epochs == epochs]
            members = tuple(member_at(point, seed) for point in group)
            records = self.train(replace(settings, members=members, epochs=epochs))
            found = zip(group, records, strict=True)
            losses |= {point: float(record["tune_loss"]) for point, record in found if record is not None}
        return losses

    def _path(self, key: str) -> Path:
        return self.root / "points" / f"{key}.json"

    def _read(self, key: str) -> Record | None:
        path = self._path(key)
        if not path.is_file():
            return None
        record = files.read_json(path, what="trained point")
        if record.get("key") != key:
            raise ArtefactError(f"{path} belongs to another point than its name says; remove it")
        return record

    def _write(self, key: str, settings: MembersConfig, member: Member, record: Record) -> Record:
        whole = {"key": key, **record, "member": to_dict(member), "model": to_dict(settings.fit.model)}
        files.make_directory(self._path(key).parent)
        files.write_json(self._path(key), whole)
        return whole


def member_at(point: Point, seed: int) -> Member:
    """Return a member of a seed with the settings of a point."""
    return Member(seed=seed, lr=point.lr, tau=point.tau)
