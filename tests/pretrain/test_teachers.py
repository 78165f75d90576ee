"""Distilling reads its teachers and changes nothing of them (R35)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from forethought.pretrain.distil import soft_distil
from forethought.pretrain.members import seeds, train_members
from tests.pretrain.small import small_corpus, small_members


def digests(place: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, by its place there."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_teachers_and_corpus_stay_as_they_were(tmp_path: Path):
    corpus = small_corpus(tmp_path)
    settings = small_members(corpus, members=seeds(2), train_tokens=1024, epochs=1.0)
    train_members(settings, tmp_path / "teachers")
    before = digests(tmp_path / "teachers"), digests(corpus)
    teachers = [tmp_path / "teachers" / "models" / f"member-{k}" for k in (0, 1)]
    soft_distil(
        small_members(corpus, members=seeds(1, first=7), train_tokens=1024, epochs=1.0), teachers, tmp_path / "s"
    )
    assert (digests(tmp_path / "teachers"), digests(corpus)) == before
    assert len(before[0]) > 10
