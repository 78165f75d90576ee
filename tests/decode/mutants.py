"""Schedulers and pools with a planted defect each; a suite that lets one of them pass is worth nothing."""

from __future__ import annotations

from collections.abc import Sequence

from forethought.decode.batching.pages import PageManager
from forethought.decode.batching.scheduler import Scheduler
from forethought.decode.request import Request, Status, Work


class LatestServed(Scheduler):
    """Puts back the earliest arrival instead of the latest."""

    def _preempt_latest(self) -> Request:
        first = next(iter(self._running))
        self._running[first] = self._running.pop(first)
        return super()._preempt_latest()


class BackOfTheQueue(Scheduler):
    """Makes whoever was put back wait behind everybody."""

    def _preempt_latest(self) -> Request:
        request = super()._preempt_latest()
        self._waiting.move_to_end(request.id)
        return request


class LastComeFirstServed(Scheduler):
    """Lets the latest of those who wait in first."""

    def _prefill(self, prefilling: Sequence[Request], limit: int) -> list[Work]:
        if self._waiting:
            self._waiting.move_to_end(next(reversed(self._waiting)), last=False)
        return super()._prefill(prefilling, limit)


class AbortSkipsTheQueue(Scheduler):
    """Forgets that a request may still wait when it is aborted."""

    def abort(self, request_id: int) -> Request | None:
        request = self._running.get(request_id)
        if request is not None:
            self.finish(request)
        return request


class GivesBackTwice(Scheduler):
    """Gives the pages of an ended request back twice."""

    def finish(self, request: Request, *, poisoned: bool = False) -> None:
        pages = list(request.pages)
        super().finish(request, poisoned=poisoned)
        self.pages.release(pages)


class RollsBackTooLittle(Scheduler):
    """Counts one rejected token as computed."""

    def commit(self, work: Work, accepted: int, kept: Sequence[int]) -> None:
        super().commit(work, accepted, kept)
        if work.num_draft > accepted and work.request.status is Status.RUNNING:
            work.request.num_computed += 1


class RollsBackTooMuch(Scheduler):
    """Gives back the page of the last token that stays."""

    def commit(self, work: Work, accepted: int, kept: Sequence[int]) -> None:
        super().commit(work, accepted, kept)
        if work.num_draft > accepted and work.request.status is Status.RUNNING:
            self.pages.truncate(work.request.pages, work.request.num_computed - 1)


class KeepsRejectedPages(Scheduler):
    """Registers the pages of a draft before the verdict on it."""

    def commit(self, work: Work, accepted: int, kept: Sequence[int]) -> None:
        request = work.request
        if request.status is Status.RUNNING and work.num_draft:
            tokens = request.tokens[: work.start] + work.tokens
            self.pages.register(request.pages, tokens, work.start, len(tokens))
        super().commit(work, accepted, kept)


class UncountedRelease(PageManager):
    """Gives a shared page back at its first release."""

    def _drop(self, page: int) -> None:
        self._references[page] = 1
        super()._drop(page)


class HashOnly(PageManager):
    """Matches by a hash, here a poor one, so that equals come soon."""

    def _key(self, serial: int, tokens: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        return serial, (hash(tuple(tokens)) % 2,)


class ForgetsTheParent(PageManager):
    """Matches a page by its own tokens, whatever came before it."""

    def _key(self, serial: int, tokens: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        return 0, tuple(tokens)


class KeepsTheKey(PageManager):
    """Takes a page out of the cache and leaves its tokens matched."""

    def _unregister(self, page: int) -> None:
        pass


class MatchesAll(PageManager):
    """Leaves no token to compute where a whole prompt is known."""

    def match(self, tokens: Sequence[int]) -> list[int]:
        return super().match([*tokens, 0])


class RegistersPartialPages(PageManager):
    """Takes a page for full one token too early."""

    def register(self, pages: Sequence[int], tokens: Sequence[int], start: int, end: int) -> None:
        super().register(pages, tokens, start, end + 1 if end < len(tokens) else end)


STARVING = [LatestServed, BackOfTheQueue, LastComeFirstServed]
SCHEDULERS = [AbortSkipsTheQueue, GivesBackTwice, RollsBackTooLittle, RollsBackTooMuch, KeepsRejectedPages]
POOLS = [UncountedRelease, HashOnly, ForgetsTheParent, KeepsTheKey, MatchesAll, RegistersPartialPages]
