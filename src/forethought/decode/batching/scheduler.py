"""Continuous batching: which requests compute what in the next step. No tensor and no model is in sight here.

Requests are served strictly in the order of their arrival: whoever runs arrived before whoever waits, the latest one is
pre-empted first and waits at the head of the queue. So the earliest request can always go on, with every page if it
needs them, and nobody waits longer than if all before it were served alone, one after the other (`Scheduler.bound`).

How much of a draft is scheduled depends on what has been committed and on the settings, never on the drafts at hand,
their lengths included: a length that depended on the tokens it cuts off would bend the law of those that stay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from forethought.core.errors import ConfigError, ForethoughtError, InputError
from forethought.decode.batching.budget import SchedulerConfig, SchedulerCounts, prefill_limit, step_bound
from forethought.decode.batching.pages import PageManager
from forethought.decode.request import Request, Status, Work


class Scheduler:
    """Decides what every step computes, and hands out the pages for it; nobody else may take pages from its pool.

    A step is `schedule`, the model's pass, then `commit` for each work and `finish` for each request that has ended.
    `admitted` and `preempted` name the requests that the latest `schedule` let in and put back.

    Raises:
        ConfigError: the settings and the pool disagree on the prefix cache.
    """

    def __init__(self, settings: SchedulerConfig, pages: PageManager) -> None:
        if settings.enable_prefix_caching != pages.prefix_cache:
            raise ConfigError(
                f"enable_prefix_caching is {settings.enable_prefix_caching} and the pool's prefix_cache is "
                f"{pages.prefix_cache}; give both the same"
            )
        self.settings = settings
        self.pages = pages
        self.admitted: list[Request] = []
        self.preempted: list[Request] = []
        # Both in the order of arrival.
        self._waiting: OrderedDict[int, Request] = OrderedDict()
        self._running: dict[int, Request] = {}
        # The head of the queue that did not fit, and how much room there was: no use in matching its prefix again.
        self._refused: tuple[Request, int] | None = None
        self._num_prefix_queries = self._num_prefix_hits = self._num_preemptions = 0

    @property
    def max_length(self) -> int:
        """The longest request, prompt and output together, that is taken."""
        return min(self.settings.max_model_len, self.pages.num_pages * self.pages.page_size)

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs; if so, the next step computes something."""
        return bool(self._running or self._waiting)

    @property
    def counts(self) -> SchedulerCounts:
        """The figures of this moment."""
        return SchedulerCounts(
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_pages_used=self.pages.num_used,
            num_pages_free=self.pages.num_free,
            num_pages_cached=self.pages.num_cached,
            num_prefix_queries=self._num_prefix_queries,
            num_prefix_hits=self._num_prefix_hits,
            num_preemptions=self._num_preemptions,
        )

    def requests(self) -> list[Request]:
        """Return all requests here in the order of arrival, the running ones first."""
        return [*self._running.values(), *self._waiting.values()]

    def decoding(self) -> list[Request]:
        """Return the requests that drafts may be given for in the next step."""
        return [request for request in self._running.values() if request.is_decoding]

    def bound(self) -> int:
        """Return the most steps until all requests now here have ended, whatever arrives meanwhile."""
        return step_bound(self.settings, self.requests())

    def add(self, request: Request) -> None:
        """Queue a new request behind all others.

        Raises:
            InputError: it can never be served; the message says what is allowed.
        """
        if request.id in self._waiting or request.id in self._running:
            raise InputError(f"request id {request.id} is in use; give every request its own")
        if not request.prompt:
            raise InputError("the prompt has no tokens; give at least one")
        if request.max_length > self.max_length:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens and up to {request.remaining} may follow, together "
                f"{request.max_length}; at most {self.max_length} fit (max_model_len {self.settings.max_model_len}, "
                f"{self.pages.num_pages} pages of {self.pages.page_size}): shorten the prompt or lower max_tokens"
            )
        if request.remaining < 1:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens and the request may have {request.max_length} in all "
                f"(max_model_len {self.settings.max_model_len}): shorten the prompt, so that a token can follow"
            )
        parent = request.parent
        if parent is not None and parent.status is not Status.FINISHED and not self._knows(parent):
            raise InputError(f"request {request.id} waits for request {parent.id}, which was not added before it")
        request.status = Status.WAITING
        self._waiting[request.id] = request

    def abort(self, request_id: int) -> Request | None:
        """End a request wherever it stands and return it; None where it has ended already or never was."""
        request = self._waiting.get(request_id) or self._running.get(request_id)
        if request is not None:
            self.finish(request)
        return request

    def finish(self, request: Request, *, poisoned: bool = False) -> None:
        """Let a request go, with its pages; what it computed is kept for later prefixes unless it is `poisoned`."""
        if not self._knows(request):
            return
        self._running.pop(request.id, None)
        self._waiting.pop(request.id, None)
        self._refused = None
        if poisoned:
            self.pages.forget(request.pages)
        self.pages.release(request.pages)
        request.status = Status.FINISHED

    def reset(self) -> list[Request]:
        """End all requests, forget all prefixes, and return those that were ended."""
        ended = self.requests()
        for request in ended:
            self.finish(request)
        self.pages.clear_cache()
        return ended

    def schedule(self, drafts: Mapping[int, Sequence[int]]) -> list[Work]:
        """Return the next step: one token and a draft, perhaps cut, for each decoding request, then chunks of prompts.

        Drafts for requests that do not decode are ignored. There is always work as long as `has_work`.
        """
        self.admitted, self.preempted = [], []
        decoding: list[Request] = []
        prefilling: list[Request] = []
        for request in self._running.values():
            (decoding if len(request.tokens) - request.num_computed == 1 else prefilling).append(request)
        self._make_room(decoding)
        if self.preempted:
            decoding = [request for request in decoding if request.status is Status.RUNNING]
            prefilling = [request for request in prefilling if request.status is Status.RUNNING]
        chunks: list[Work] = []
        if prefilling or self._waiting:
            chunks = self._prefill(prefilling, prefill_limit(self.settings, len(decoding)))
        room = self.settings.max_num_batched_tokens - len(decoding) - sum(len(work.tokens) for work in chunks)
        return [*self._decode(decoding, drafts, room), *chunks]

    def commit(self, work: Work, accepted: int, kept: Sequence[int]) -> None:
        """Take over a verdict: `accepted` drafted tokens stay; `kept`, they and what follows them, are committed.

        `kept` is empty where nothing was to be decided, and may be cut short where the request ends. The pages of
        rejected drafts are given back. A request that was ended while its work was computed stays as it is.

        Raises:
            ForethoughtError: the verdict does not belong to this work, or the work not to this moment.
        """
        request = work.request
        if request.status is Status.FINISHED:
            return
        self._require_fit(work, accepted, kept)
        computed = work.start + len(work.tokens) - work.num_draft + accepted
        if work.decides:
            request.tokens.extend(kept)
            request.round += 1
            computed = min(computed, len(request.tokens) - 1)
            self.pages.truncate(request.pages, computed)
        request.num_computed = computed
        if computed // self.pages.page_size > work.start // self.pages.page_size:
            self.pages.register(request.pages, request.tokens, work.start, computed)

    def check(self) -> None:
        """Verify the pool and that requests share nothing but full pages of a common prefix.

        Raises:
            ForethoughtError: the book-keeping contradicts itself; the message says where.
        """
        self.pages.check([request.pages for request in self.requests()])
        users: dict[int, tuple[int, Request]] = {}
        for request in self.requests():
            runs = request.id in self._running
            _require(request.status is (Status.RUNNING if runs else Status.WAITING), request, "has a wrong status")
            _require(runs or not (request.pages or request.num_computed), request, "waits and holds pages")
            _require(0 <= request.num_computed < len(request.tokens), request, "has no token left to compute")
            _require(self.pages.num_needed(request.num_computed) <= len(request.pages), request, "lacks pages")
            for index, page in enumerate(request.pages):
                first, other = users.setdefault(page, (index, request))
                end = (index + 1) * self.pages.page_size
                alike = first == index and other.tokens[:end] == request.tokens[:end]
                full = end <= min(other.num_computed, request.num_computed)
                _require(other is request or (alike and full), request, f"shares page {page} with {other.id}")
                _require(other is not request or first == index, request, f"uses page {page} twice")

    def _knows(self, request: Request) -> bool:
        return self._running.get(request.id) is request or self._waiting.get(request.id) is request

    def _make_room(self, decoding: Sequence[Request]) -> None:
        """Give each decoding request the page of its next token; the latest arrivals make way where none is free."""
        for request in decoding:
            if request.status is not Status.RUNNING:
                continue
            while not self.pages.extend(request.pages, request.num_computed + 1):
                if self._preempt_latest() is request:
                    break

    def _preempt_latest(self) -> Request:
        _, request = self._running.popitem()
        self.pages.release(request.pages)
        request.status, request.num_computed = Status.WAITING, 0
        request.epoch += 1
        self._waiting[request.id] = request
        self._waiting.move_to_end(request.id, last=False)
        self.preempted.append(request)
        self._num_preemptions += 1
        return request

    def _prefill(self, prefilling: Sequence[Request], limit: int) -> list[Work]:
        chunks: list[Work] = []
        for request in prefilling:
            num_tokens = self._chunk(len(request.tokens) - request.num_computed, limit)
            if num_tokens == 0:
                return chunks
            chunks.append(_chunk_of(request, num_tokens))
            limit -= num_tokens
        # Whoever was put back in this step does not come in again: of the pages it gave up, one at least was needed.
        while self._waiting and limit and len(self._running) < self.settings.max_num_seqs:
            request = next(iter(self._waiting.values()))
            num_tokens = self._admit(request, limit)
            if num_tokens == 0:
                break
            chunks.append(_chunk_of(request, num_tokens))
            limit -= num_tokens
        return chunks

    def _chunk(self, num_left: int, limit: int) -> int:
        return num_left if num_left <= limit else limit if self.settings.enable_chunked_prefill else 0

    def _admit(self, request: Request, limit: int) -> int:
        """Let the head of the queue in if all its tokens find pages; return how many of them this step computes."""
        parent, pages = request.parent, self.pages
        if parent is not None and parent.status is not Status.FINISHED and parent.num_computed < len(parent.prompt):
            return 0
        # One page for each running request is left over, so that it does not have to put this one back at once.
        level = pages.num_free - len(self._running)
        if self._refused is not None and self._refused[0] is request and level <= self._refused[1]:
            return 0
        prefix = self._prefix(request)
        start = len(prefix) * pages.page_size
        num_tokens = self._chunk(len(request.tokens) - start, limit)
        if num_tokens == 0:
            return 0
        num_new = pages.num_needed(len(request.tokens)) - len(prefix)
        if num_new > pages.num_free_without(prefix) - len(self._running):
            self._refused = (request, level)
            return 0
        self._refused = None
        request.pages = pages.share(prefix)
        pages.extend(request.pages, len(request.tokens))
        request.num_computed, request.status = start, Status.RUNNING
        del self._waiting[request.id]
        self._running[request.id] = request
        self.admitted.append(request)
        if request.epoch == 0:
            self._num_prefix_queries += len(request.tokens)
            self._num_prefix_hits += start
        return num_tokens

    def _prefix(self, request: Request) -> list[int]:
        """Return the full pages that need not be computed: cached ones, or the parent's where there is no cache."""
        if self.pages.prefix_cache:
            return self.pages.match(request.tokens)
        parent = request.parent
        if parent is None:
            return []
        size = self.pages.page_size
        num_pages = min(parent.num_computed, len(request.tokens) - 1) // size
        while num_pages and parent.tokens[: num_pages * size] != request.tokens[: num_pages * size]:
            num_pages -= 1
        return parent.pages[:num_pages]  # none where it has ended

    def _decode(self, decoding: Sequence[Request], drafts: Mapping[int, Sequence[int]], room: int) -> list[Work]:
        works: list[Work] = []
        if not decoding:
            return works
        size, num_free = self.pages.page_size, self.pages.num_free
        longest = min(room // len(decoding), self.settings.num_speculative_tokens)
        for request in decoding:
            start, held = request.num_computed, len(request.pages)
            allowed = min(longest, request.remaining - 1, (held + num_free) * size - start - 1)
            # Pages are set aside for the longest draft, so that nobody's length decides over anybody's.
            num_free -= max(-(-(start + 1 + allowed) // size) - held, 0)
            draft = drafts.get(request.id, ())[: max(allowed, 0)]
            self.pages.extend(request.pages, start + 1 + len(draft))
            works.append(Work(request, start, [request.tokens[-1], *draft], len(draft), True))
        return works

    def _require_fit(self, work: Work, accepted: int, kept: Sequence[int]) -> None:
        request, base = work.request, len(work.tokens) - work.num_draft
        if request.status is not Status.RUNNING or work.start != request.num_computed:
            raise ForethoughtError(f"request {request.id}: this work was committed before, or scheduled before a newer")
        if not 0 <= accepted <= work.num_draft or len(kept) > (accepted + 1 if work.decides else 0):
            raise ForethoughtError(
                f"request {request.id}: {accepted} of {work.num_draft} drafted tokens accepted, {len(kept)} kept; "
                f"at most one more than was accepted may be kept, and none of a work that decides nothing"
            )
        if accepted and list(kept[:accepted]) != work.tokens[base : base + min(accepted, len(kept))]:
            raise ForethoughtError(f"request {request.id}: the kept tokens are not the accepted ones")
        if len(request.tokens) + len(kept) > request.max_length:
            raise ForethoughtError(f"request {request.id} has all its {request.max_length} tokens; finish it")


def _chunk_of(request: Request, num_tokens: int) -> Work:
    start = request.num_computed
    end = start + num_tokens
    return Work(request, start, request.tokens[start:end], 0, end == len(request.tokens))


def _require(condition: bool, request: Request, message: str) -> None:
    if not condition:
        raise ForethoughtError(f"request {request.id} {message}")
