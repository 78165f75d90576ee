"""The streaming writer: what was appended comes back, whatever was killed in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forethought.core.errors import ConfigError, DataError, RunExistsError, StorageError
from forethought.core.faults import faults
from forethought.data import EpisodeWriter, open_episodes


def rows(index: int) -> dict[str, Any]:
    rng = np.random.default_rng(index)
    length = 3 + index
    return {
        "observations": rng.normal(size=(length, 2)).astype(np.float32),
        "actions": rng.normal(size=(length, 1)).astype(np.float32),
        "rewards": rng.normal(size=length).astype(np.float32),
    }


def append(writer: EpisodeWriter, index: int) -> None:
    final = {"observations": np.full(2, index, np.float32)}
    writer.append(rows(index), terminated=index % 2 == 0, truncated=index % 2 == 1, finals=final)


def check(place: Path, count: int) -> None:
    episodes = open_episodes(place, verify=True)
    assert episodes.num_episodes == count
    for index in range(count):
        for name, value in rows(index).items():
            assert np.array_equal(episodes.episode(index)[name], value)
    assert episodes.finals["observations"][:, 0].tolist() == list(range(count))
    assert episodes.terminated.tolist() == [index % 2 == 0 for index in range(count)]


def test_what_is_appended_comes_back(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e", settings={"seed": 1}, env_id="X-v0", fps=20.0) as writer:
        for index in range(4):
            append(writer, index)
        episodes = writer.finish()
    assert (episodes.env_id, episodes.fps, episodes.metadata) == ("X-v0", 20.0, {"settings": {"seed": 1}})
    check(tmp_path / "e", 4)
    assert os.listdir(tmp_path) == ["e"]
    with pytest.raises(RunExistsError):
        EpisodeWriter(tmp_path / "e")


def test_a_part_is_taken_up_where_the_journal_ends(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e", settings={"seed": 1}) as writer:
        append(writer, 0)
        append(writer, 1)
    part = tmp_path / "e.part"
    # What a crash leaves: rows without a line, and half a line.
    with open(part / "steps" / "actions.bin", "ab") as out:
        out.write(b"half an episode")
    with open(part / "journal.jsonl", "ab") as out:
        out.write(b'{"length": 5, "term')
    with pytest.raises(ConfigError, match="was begun with settings"):
        EpisodeWriter(tmp_path / "e", settings={"seed": 2})
    with EpisodeWriter(tmp_path / "e", settings={"seed": 1}) as writer:
        assert (writer.num_episodes, writer.num_steps) == (2, 7)
        append(writer, 2)
        writer.finish()
    check(tmp_path / "e", 3)


def test_a_part_shorter_than_its_journal_is_damaged(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e") as writer:
        append(writer, 0)
    os.truncate(tmp_path / "e.part" / "steps" / "rewards.bin", 4)
    with pytest.raises(DataError, match=r"rewards.bin has 4 bytes where the journal says 12"):
        EpisodeWriter(tmp_path / "e")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((3, 1), np.float64)}, "actions is float64"),
        ({"actions": np.zeros((3, 2), np.float32)}, r"where the first episode has float32 \(1,\)"),
        ({"actions": np.zeros((2, 1), np.float32)}, "arrays of one length"),
        ({"actons": np.zeros((3, 1), np.float32)}, "Did you mean 'actions'"),
        ({"rewards": np.array([0, np.nan, 0], np.float32)}, "rewards is not finite at step 1"),
        ({"rewards": np.array(["a", "b", "c"])}, "give numbers"),
    ],
)
def test_an_episode_unlike_the_first_is_refused_and_the_rest_stays(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with EpisodeWriter(tmp_path / "e") as writer:
        append(writer, 0)
        final = {"observations": np.zeros(2, np.float32)}
        with pytest.raises(DataError, match=message):
            writer.append({**rows(0), **change}, terminated=True, truncated=False, finals=final)
        append(writer, 1)
        writer.finish()
    check(tmp_path / "e", 2)


def test_nothing_appended_is_not_published(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e") as writer, pytest.raises(DataError, match="no episode"):
        writer.finish()


class _Killed(BaseException):
    """Stands for a process that is gone: no handler of the library may swallow it."""


def collect(place: Path, count: int) -> None:
    if place.exists():
        return
    with EpisodeWriter(place, settings={"seed": 1}) as writer:
        for index in range(writer.num_episodes, count):
            append(writer, index)
            writer.flush()
        writer.finish()


@pytest.mark.parametrize("kind", [OSError, _Killed])
def test_a_failure_at_any_point_loses_nothing_that_was_flushed(tmp_path: Path, kind: type[BaseException]) -> None:
    failures = 0
    for number in range(1000):
        place, seen = tmp_path / str(number) / "e", 0

        def table(point: str, number: int = number) -> None:
            nonlocal seen
            seen += 1
            if seen == number + 1:
                raise kind(f"at {point}")

        try:
            with faults(table):
                collect(place, 3)
        except (OSError, _Killed):
            failures += 1
        if seen <= number:
            break
        collect(place, 3)
        check(place, 3)
    # Every file is opened, written and made durable for every episode: the table has met them all.
    assert failures > 60


def test_a_failed_append_is_not_followed_by_another(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "e")
    append(writer, 0)
    writer.flush()

    def table(point: str) -> None:
        if point == "file.open":
            raise OSError("full")

    writer.close()
    with faults(table), pytest.raises(StorageError, match="could not open"):
        append(writer, 1)
    for attempt in (lambda: append(writer, 1), writer.finish):
        with pytest.raises(StorageError, match="open the writer again"):
            attempt()
    writer.close()
    with EpisodeWriter(tmp_path / "e") as again:
        append(again, 1)
        again.finish()
    check(tmp_path / "e", 2)
