"""The outcome cache against a model of it, and the bugs that would serve stale work."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import InputError
from forethought.lookahead import OutcomeCache

Key = tuple[int, str]


def group(outcome: Key) -> int:
    return outcome[0]


def test_a_hit_returns_the_work_and_closes_the_epoch() -> None:
    cache: OutcomeCache[Key, str] = OutcomeCache(8, group)
    assert cache.prepare("a", 0, {(0, "x"): "work 0x", (1, "y"): "work 1y"}) == 2
    assert cache.take("a", 0, (1, "y")) == "work 1y"
    assert cache.take("a", 0, (0, "x")) is None, "an epoch has one outcome"
    assert len(cache) == 0
    found = cache.statistics
    assert (found.hits, found.misses, found.prepared, found.wasted, found.hit_rate) == (1, 1, 2, 1, 0.5)
    assert (found.by_group[1].hits, found.by_group[0].misses, found.by_group[0].wasted) == (1, 1, 1)
    assert json.loads(json.dumps(found.to_dict()))["by_group"]["1"]["hit_rate"] == 1.0


def test_a_stale_epoch_never_answers() -> None:
    cache: OutcomeCache[str, int] = OutcomeCache(8)
    cache.prepare("a", 1, {"x": 1})
    assert cache.take("a", 2, "x") is None
    assert cache.prepare("a", 2, {"x": 2}) == 0, "late work for an epoch that is closed"
    assert cache.prepare("a", 1, {"x": 2}) == 0
    assert cache.take("a", 3, "x") is None
    assert cache.statistics.stale == 2
    cache.prepare("a", 5, {"x": 5})
    assert cache.prepare("a", 4, {"x": 4}) == 0, "older than what is live"
    assert cache.take("a", 4, "x") is None, "a late question does not disturb the newer epoch"
    assert cache.take("a", 5, "x") == 5


def test_a_newer_epoch_replaces_and_a_second_call_adds() -> None:
    cache: OutcomeCache[str, int] = OutcomeCache(8)
    cache.prepare("a", 0, {"x": 1})
    cache.prepare("a", 0, {"x": 2, "y": 3})
    assert len(cache) == 2
    cache.prepare("a", 1, {"z": 4})
    assert len(cache) == 1
    assert cache.take("a", 1, "x") is None
    assert cache.statistics.wasted == 4


def test_owners_are_apart_and_can_be_forgotten() -> None:
    cache: OutcomeCache[str, int] = OutcomeCache(8)
    cache.prepare("a", 3, {"x": 1})
    cache.prepare("b", 3, {"x": 2})
    assert cache.take("b", 3, "x") == 2
    cache.forget("a")
    cache.forget("never seen")
    assert len(cache) == 0
    assert cache.prepare("a", 0, {"x": 7}) == 1, "a new life may start at any epoch"
    assert cache.take("a", 0, "x") == 7


def test_capacity_drops_the_longest_untouched_and_cuts_the_tail() -> None:
    cache: OutcomeCache[str, int] = OutcomeCache(3)
    cache.prepare("a", 0, {"x": 1})
    cache.prepare("b", 0, {"x": 2})
    cache.prepare("a", 0, {"y": 3})
    cache.prepare("c", 0, {"x": 4})
    assert cache.take("b", 0, "x") is None
    assert cache.take("a", 0, "x") == 1
    assert cache.prepare("d", 0, {"1": 1, "2": 2, "3": 3, "4": 4}) == 3, "the likeliest come first"
    assert cache.take("d", 0, "4") is None
    with pytest.raises(InputError):
        OutcomeCache(0)


def test_work_may_be_none() -> None:
    cache: OutcomeCache[str, None] = OutcomeCache(1)
    cache.prepare("a", 0, {"x": None})
    cache.take("a", 0, "x")
    assert cache.statistics.hits == 1
    assert len(cache) == 0


operations = st.lists(
    st.tuples(st.sampled_from(["prepare", "take", "forget"]), st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)),
    max_size=40,
)


@given(operations)
@settings(deadline=None, max_examples=200)
def test_behaves_as_its_model(steps: list[tuple[str, int, int, int]]) -> None:
    cache: OutcomeCache[int, tuple[int, int, int]] = OutcomeCache(100)
    live: dict[int, tuple[int, set[int]]] = {}
    closed: dict[int, int] = {}
    num_takes = 0
    for what, owner, epoch, outcome in steps:
        if what == "forget":
            cache.forget(owner)
            live.pop(owner, None)
            closed.pop(owner, None)
        elif what == "prepare":
            cache.prepare(owner, epoch, {outcome: (owner, epoch, outcome)})
            if epoch > closed.get(owner, -1) and epoch >= live.get(owner, (0, set()))[0]:
                if owner not in live or live[owner][0] < epoch:
                    live[owner] = (epoch, set())
                live[owner][1].add(outcome)
        else:
            expected = owner in live and live[owner][0] == epoch and outcome in live[owner][1]
            assert cache.take(owner, epoch, outcome) == ((owner, epoch, outcome) if expected else None)
            num_takes += 1
            if owner in live and live[owner][0] <= epoch:
                del live[owner]
            closed[owner] = max(epoch, closed.get(owner, -1))
        assert len(cache) == sum(len(outcomes) for _, outcomes in live.values())
    found = cache.statistics
    assert found.hits + found.misses == num_takes
    assert found.prepared == found.hits + found.wasted + len(cache), "every piece is used, wasted or held"


def test_threads_share_it() -> None:
    cache: OutcomeCache[int, int] = OutcomeCache(1000)

    def live(owner: int) -> None:
        for epoch in range(200):
            cache.prepare(owner, epoch, {0: epoch, 1: -epoch})
            assert cache.take(owner, epoch, 0) == epoch

    threads = [threading.Thread(target=live, args=(owner,)) for owner in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.statistics.hits == 800
    assert cache.statistics.wasted == 800
    assert len(cache) == 0
