"""The pool of pages alone: counts, the prefix cache, what it must never match, and that its check sees damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import ConfigError, ForethoughtError
from forethought.decode.batching.pages import PageManager


class Colliding(int):
    """A token id whose hash is that of every other one."""

    def __hash__(self) -> int:
        return 7


def computed(pool: PageManager, tokens: Sequence[int], num_computed: int | None = None) -> list[int]:
    """A holder that computed all of `tokens`, or the first `num_computed`, in one go."""
    pages: list[int] = []
    assert pool.extend(pages, len(tokens))
    pool.register(pages, tokens, 0, len(tokens) if num_computed is None else num_computed)
    return pages


def test_a_holder_grows_and_shrinks_by_pages() -> None:
    pool = PageManager(4, 3)
    pages: list[int] = []
    for length, num_pages in [(0, 0), (1, 1), (3, 1), (4, 2), (4, 2), (2, 2), (12, 4)]:
        assert pool.extend(pages, length)
        assert len(pages) == num_pages
        assert (pool.num_used, pool.num_free) == (num_pages, 4 - num_pages)
        pool.check([pages])
    pool.truncate(pages, 7)
    assert len(pages) == 3
    pool.truncate(pages, 6)
    assert len(pages) == 2
    pool.check([pages])
    pool.release(pages)
    assert pages == []
    assert pool.num_free == 4
    pool.check([])


def test_too_few_pages_change_nothing() -> None:
    pool = PageManager(3, 2)
    first, second = list[int](), list[int]()
    assert pool.extend(first, 3)
    assert not pool.extend(second, 3)
    assert second == []
    assert not pool.extend(first, 7)
    assert len(first) == 2
    assert pool.reserve(2) is None
    scratch = pool.reserve(1)
    pool.check()
    assert scratch is not None
    assert len(scratch) == 1
    pool.check([first, scratch])
    pool.release(scratch)
    pool.check([first])


def test_giving_back_twice_is_refused() -> None:
    pool = PageManager(2, 2)
    pages = pool.reserve(1)
    assert pages is not None
    twice = list(pages)
    pool.release(pages)
    with pytest.raises(ForethoughtError, match="given back more often"):
        pool.release(twice)


def test_the_longest_known_prefix_is_matched_and_leaves_a_token() -> None:
    pool = PageManager(8, 2)
    pages = computed(pool, [1, 2, 3, 4, 5])
    assert pool.match([1, 2, 3, 4, 9, 9, 9]) == pages[:2]
    assert pool.match([1, 2, 9, 4, 5]) == pages[:1]
    assert pool.match([9, 2, 3, 4, 5]) == []
    assert pool.match([3, 4, 1, 2, 5]) == [], "a page is matched in its place only"
    assert pool.match([1, 2, 3, 4]) == pages[:1], "one token must be left to compute"
    assert pool.match([1, 2]) == []
    assert pool.match([]) == []


def test_a_page_that_is_not_full_of_computed_tokens_is_not_matched() -> None:
    pool = PageManager(8, 4)
    pages = computed(pool, [1, 2, 3, 4, 5, 6, 7, 8], num_computed=7)
    assert pool.match([1, 2, 3, 4, 5, 6, 7, 8, 9]) == pages[:1]
    pool.register(pages, [1, 2, 3, 4, 5, 6, 7, 8], 7, 8)
    assert pool.match([1, 2, 3, 4, 5, 6, 7, 8, 9]) == pages


def test_tokens_are_compared_and_never_only_hashes() -> None:
    pool = PageManager(8, 2)
    one, two, three = Colliding(1), Colliding(2), Colliding(3)
    assert hash((0, (one, two))) == hash((0, (two, one)))
    pages = computed(pool, [one, two, three, three])
    assert pool.match([two, one, three]) == []
    assert pool.match([one, two, three, two, one]) == pages[:1]
    other = computed(pool, [two, one, three, three])
    assert pool.match([two, one, three, three, one]) == other
    assert pool.match([one, two, three, three, one]) == pages
    pool.check([pages, other])


def test_a_hash_only_match_would_be_seen() -> None:
    class HashOnly(PageManager):
        def _key(self, serial: int, tokens: Sequence[int]) -> tuple[int, tuple[int, ...]]:
            return serial, (hash(tuple(tokens)),)

    pool = HashOnly(8, 2)
    computed(pool, [Colliding(1), Colliding(2)])
    assert pool.match([Colliding(2), Colliding(1), Colliding(3)]) != []


def test_the_parent_is_part_of_what_is_compared() -> None:
    pool = PageManager(3, 1, True)
    pages = computed(pool, [1, 2])
    child = pages[1]
    pool.share([child])
    pool.release(pages)
    # Only the parent is free to go; the page then holds another token, and the child must not follow it.
    others = computed(pool, [5])
    more = computed(pool, [6])
    assert set(others) | set(more) | {child} == {0, 1, 2}
    assert pool.match([5, 2, 0]) == others
    assert pool.match([6, 2, 0]) == more
    assert pool.match([1, 2, 0]) == []


def test_what_was_released_the_longest_ago_goes_first_and_a_prefix_from_its_end() -> None:
    pool = PageManager(6, 1)
    first, second = computed(pool, [1, 2, 3]), computed(pool, [4, 5, 6])
    pool.release(first)
    pool.release(second)
    assert (pool.num_free, pool.num_cached, pool.num_used) == (6, 6, 0)
    taken = pool.reserve(2)
    assert taken is not None
    assert (len(pool.match([1, 2, 3, 9])), len(pool.match([4, 5, 6, 9]))) == (1, 3)
    touched = pool.share(pool.match([1, 9]))
    pool.release(touched)
    more = pool.reserve(3)
    assert more is not None
    assert (len(pool.match([1, 2, 3, 9])), len(pool.match([4, 5, 6, 9]))) == (1, 0)
    pool.check([taken, more])


def test_shared_pages_are_counted_once_a_holder() -> None:
    pool = PageManager(4, 2)
    pages = computed(pool, [1, 2, 3, 4])
    shared = pool.share(pool.match([1, 2, 3, 4, 5]))
    assert shared == pages
    assert pool.num_used == 2
    pool.release(pages)
    pool.check([shared])
    assert (pool.num_used, pool.num_cached) == (2, 0)
    pool.release(shared)
    assert (pool.num_used, pool.num_cached) == (0, 2)
    assert pool.num_free_without(pool.match([1, 2, 3, 4, 5])) == 2


def test_twins_of_a_page_lead_to_the_same_prefix() -> None:
    pool = PageManager(6, 2)
    first = computed(pool, [1, 2])
    second = computed(pool, [1, 2, 3, 4])
    assert pool.match([1, 2, 3, 4, 5]) == [first[0], second[1]]
    pool.check([first, second])


def test_forgotten_pages_are_never_matched_again() -> None:
    pool = PageManager(6, 2)
    pages = computed(pool, [1, 2, 3, 4])
    later = [*pool.share(pages), *(pool.reserve(1) or [])]
    pool.forget(pages)
    assert pool.match([1, 2, 3, 4, 5]) == []
    pool.register(later, [1, 2, 3, 4, 5, 6], 4, 6)
    fresh = computed(pool, [1, 2, 3, 4])
    assert pool.match([1, 2, 3, 4, 5, 6, 7]) == fresh, "what was computed after a bad page must not be found"
    pool.release(later)
    pool.release(pages)
    pool.check([fresh])
    pool.release(fresh)
    pool.clear_cache()
    assert pool.num_cached == 0
    assert pool.num_free == 6
    pool.check([])


def test_without_a_cache_nothing_is_matched() -> None:
    pool = PageManager(4, 1, prefix_cache=False)
    pages = computed(pool, [1, 2])
    assert pool.match([1, 2, 3]) == []
    pool.release(pages)
    assert pool.num_cached == 0


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 1), (1, 0), (-1, 4)])
def test_an_empty_pool_is_refused(num_pages: int, page_size: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 of each"):
        PageManager(num_pages, page_size)


DAMAGE: dict[str, Callable[[PageManager, list[int]], object]] = {
    "lost": lambda pool, pages: pool._free.pop(),
    "twice": lambda pool, pages: pool._free.append(pages[0]),
    "negative": lambda pool, pages: pool._references.__setitem__(pool._free[0], -1),
    "count": lambda pool, pages: pool._references.__setitem__(pages[0], 2),
    "holder": lambda pool, pages: pages.pop(),
    "key": lambda pool, pages: pool._key_of.clear(),
    "entry": lambda pool, pages: pool._page_of.clear(),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_the_check_sees_damage(name: str) -> None:
    pool = PageManager(6, 1)
    pool.release(computed(pool, [7, 8]))
    pages = computed(pool, [1, 2])
    pool.check([pages])
    DAMAGE[name](pool, pages)
    with pytest.raises(ForethoughtError, match="damaged"):
        pool.check([pages])


_texts = st.lists(st.integers(0, 1), min_size=1, max_size=9)
_moves = st.lists(st.tuples(st.sampled_from(["compute", "release", "truncate", "forget"]), _texts, st.integers(0, 9)))


@settings(deadline=None, max_examples=150)
@given(moves=_moves, num_pages=st.integers(2, 8), page_size=st.integers(1, 3), collide=st.booleans())
def test_a_match_holds_exactly_its_tokens(
    moves: list[tuple[str, list[int], int]], num_pages: int, page_size: int, collide: bool
) -> None:
    pool = PageManager(num_pages, page_size)
    contents: dict[int, list[int]] = {}  # page -> all tokens up to its end, where it is full and computed
    holders: list[tuple[list[int], list[int]]] = []
    for move, plain, number in moves:
        tokens = [Colliding(token) for token in plain] if collide else plain
        if move == "compute":
            prefix = pool.match(tokens)
            for index, page in enumerate(prefix):
                assert contents[page] == tokens[: (index + 1) * page_size]
            assert len(prefix) * page_size < len(tokens)
            pages = pool.share(prefix)
            if not pool.extend(pages, len(tokens)):
                pool.release(pages)
                continue
            for index in range(len(prefix), len(pages)):
                contents[pages[index]] = tokens[: (index + 1) * page_size]
            pool.register(pages, tokens, len(prefix) * page_size, len(tokens))
            assert len(pool.match([*tokens, 0])) == len(tokens) // page_size, "what was just computed is found"
            holders.append((pages, tokens))
        elif holders:
            pages, tokens = holders[number % len(holders)]
            if move == "release":
                pool.release(pages)
            elif move == "truncate":
                pool.truncate(pages, number)
            else:
                pool.forget(pages)
        pool.check([pages for pages, _ in holders])
    for pages, _ in holders:
        pool.release(pages)
    pool.check([])
    assert pool.num_free == num_pages
