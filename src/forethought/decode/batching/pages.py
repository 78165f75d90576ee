"""The pool of pages: who holds which, and which full ones can be used again. It never sees what a page holds.

A page is a number; the keys and values of `page_size` consecutive positions lie in it. Holders share full pages only,
so a page that is written to has one holder.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from forethought.core.errors import ConfigError, ForethoughtError

# The serial of the page before it and the tokens of a page. A serial is given once and never again, so equal keys mean
# equal tokens from position 0 on. The dictionary compares the tokens themselves, so equal hashes alone match nothing.
Key: TypeAlias = tuple[int, tuple[int, ...]]

_ROOT = 0


class PageManager:
    """A pool of pages with reference counts and a cache of full pages by the tokens up to their end.

    A page is free, cached (nobody holds it, its contents can be matched until it is needed otherwise; the one released
    the longest ago goes first) or used. A holder is a list of pages, which these methods change in place.

    Raises:
        ConfigError: the pool or a page would be empty.
    """

    def __init__(self, num_pages: int, page_size: int, prefix_cache: bool = True) -> None:
        if num_pages < 1 or page_size < 1:
            raise ConfigError(f"a pool of {num_pages} pages of {page_size} positions is empty; give at least 1 of each")
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefix_cache = prefix_cache
        self._references = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        # The serial of the contents, once known: also of a page whose twin was registered first.
        self._serials = [_ROOT] * num_pages
        self._last_serial = _ROOT

    @property
    def num_free(self) -> int:
        """How many pages can be taken, those in the cache that nobody holds among them."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """How many pages somebody holds."""
        return self.num_pages - len(self._free) - len(self._cached)

    @property
    def num_cached(self) -> int:
        """How many pages nobody holds and a prefix may still match."""
        return len(self._cached)

    def num_needed(self, length: int) -> int:
        """Return how many pages hold `length` positions."""
        return -(-length // self.page_size)

    def extend(self, pages: list[int], length: int) -> bool:
        """Add pages to a holder until they hold `length` positions; change nothing and return False if too few."""
        num_more = -(-length // self.page_size) - len(pages)
        if num_more > len(self._free) + len(self._cached):
            return False
        for _ in range(num_more):
            pages.append(self._take())
        return True

    def reserve(self, num_pages: int) -> list[int] | None:
        """Return a new holder of scratch pages, or None where fewer are free; `release` gives them back."""
        pages: list[int] = []
        return pages if self.extend(pages, num_pages * self.page_size) else None

    def truncate(self, pages: list[int], length: int) -> None:
        """Give back the pages of a holder that lie wholly behind its first `length` positions."""
        num_kept = -(-length // self.page_size)
        # The last page first: the cache then drops the end of a prefix before its beginning.
        while len(pages) > num_kept:
            self._drop(pages.pop())

    def release(self, pages: list[int]) -> None:
        """Give back all pages of a holder; its list is empty afterwards.

        Raises:
            ForethoughtError: a page of it is not held by anybody.
        """
        while pages:
            self._drop(pages.pop())

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Return the cached pages of the longest known prefix of `tokens`, which leaves at least one token over.

        They are not yet held; `share` does that.
        """
        pages: list[int] = []
        if not self.prefix_cache:
            return pages
        size, serial = self.page_size, _ROOT
        for end in range(size, len(tokens), size):
            page = self._page_of.get(self._key(serial, tokens[end - size : end]))
            if page is None:
                break
            pages.append(page)
            serial = self._serials[page]
        return pages

    def num_free_without(self, pages: Sequence[int]) -> int:
        """Return how many pages could be taken if these were held too."""
        references = self._references
        return self.num_free - sum(references[page] == 0 for page in pages)

    def share(self, pages: Sequence[int]) -> list[int]:
        """Return a new holder of full pages that are cached or that others hold."""
        for page in pages:
            if self._references[page] == 0:
                del self._cached[page]
            self._references[page] += 1
        return list(pages)

    def register(self, pages: Sequence[int], tokens: Sequence[int], start: int, end: int) -> None:
        """Let later requests match the pages that became full as positions `start` to `end` were computed.

        All positions before `end` must be computed, from committed tokens, and all before `start` registered.
        """
        if not self.prefix_cache:
            return
        size = self.page_size
        for index in range(start // size, end // size):
            serial = self._serials[pages[index - 1]] if index else _ROOT
            key = self._key(serial, tokens[index * size : (index + 1) * size])
            page = pages[index]
            known = self._page_of.get(key)
            if known is None:
                self._last_serial += 1
                self._page_of[key], self._key_of[page], self._serials[page] = page, key, self._last_serial
            else:
                self._serials[page] = self._serials[known]

    def forget(self, pages: Iterable[int]) -> None:
        """Let nobody match these pages any more, because what they hold is not to be trusted."""
        for page in pages:
            self._unregister(page)
            if page in self._cached:
                del self._cached[page]
                self._free.append(page)

    def clear_cache(self) -> None:
        """Forget every prefix; holders keep their pages."""
        self.forget(list(self._key_of))

    def check(self, holders: Iterable[Sequence[int]] | None = None) -> None:
        """Verify that every page is free, cached or used exactly once, and by `holders` as often as it is counted.

        Raises:
            ForethoughtError: the book-keeping contradicts itself; the message says where.
        """
        used = [page for page, count in enumerate(self._references) if count > 0]
        places = Counter([*self._free, *self._cached, *used])
        _require(min(self._references) >= 0, "a page is counted less than 0 times")
        _require(places == Counter(range(self.num_pages)), f"pages lost or in two places: {places}")
        _require(set(self._cached) <= set(self._key_of), "a page is cached under no key")
        _require(not set(self._free) & set(self._key_of), "a free page can be matched")
        _require({page: key for key, page in self._page_of.items()} == self._key_of, "keys and pages differ")
        if holders is not None:
            held = Counter(page for pages in holders for page in pages)
            counted = Counter({page: self._references[page] for page in used})
            _require(held == counted, f"pages are held {held} and counted {counted}")

    def _key(self, serial: int, tokens: Sequence[int]) -> Key:
        return serial, tuple(tokens)

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            self._unregister(page)
        self._references[page] = 1
        return page

    def _drop(self, page: int) -> None:
        count = self._references[page] - 1
        if count < 0:
            raise ForethoughtError(f"page {page} is given back more often than it was taken; this is a defect here")
        self._references[page] = count
        if count == 0:
            if page in self._key_of:
                self._cached[page] = None
            else:
                self._free.append(page)

    def _unregister(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ForethoughtError(f"the pool of pages is damaged: {message}")
