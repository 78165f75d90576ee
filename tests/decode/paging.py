"""A world to run the scheduler in: a text that follows from its prompt, and a cache whose every slot can be checked.

The slot of a position holds a fingerprint of all tokens up to it, as keys and values depend on all of them. So a page
that is read by the wrong request, matched for the wrong tokens, overwritten or not yet computed shows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from forethought.core.rng import generator
from forethought.decode.batching.budget import SchedulerConfig
from forethought.decode.batching.pages import PageManager
from forethought.decode.batching.scheduler import Scheduler
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.request import Request, Status, Work

PARAMS = SamplingParams()
VOCABULARY = 3


def require(condition: bool, message: str = "an expectation does not hold") -> None:
    """An assertion that stands under `python -O` too, outside of a test module."""
    if not condition:
        raise AssertionError(message)


def new_request(identity: int, prompt: Sequence[int], num_new: int, parent: Request | None = None) -> Request:
    """A request for `num_new` tokens after `prompt`."""
    return Request(identity, list(prompt), PARAMS, len(prompt) + num_new, parent=parent)


def fingerprints(tokens: Sequence[int]) -> list[int]:
    """For every position a number that depends on all tokens up to it."""
    values, value = [], 1
    for token in tokens:
        value = hash((value, token))
        values.append(value)
    return values


def continuation(tokens: Sequence[int], num_new: int) -> list[int]:
    """The one text that follows `tokens`; it repeats itself often, so that prefixes meet."""
    value, out = fingerprints(tokens)[-1], []
    for _ in range(num_new):
        out.append(value // 7 % VOCABULARY)
        value = hash((value, out[-1]))
    return out


def a_draft(tokens: Sequence[int], length: int, right: int) -> list[int]:
    """A draft of which the first `right` tokens are those that the target chooses, and no later one."""
    truth = continuation(tokens, length)
    return truth[:right] + [(token + 1) % VOCABULARY for token in truth[right:]]


class World:
    """A scheduler with its pool, the simulated cache, and every expectation that must hold after each step."""

    def __init__(
        self,
        settings: SchedulerConfig,
        num_pages: int,
        page_size: int,
        *,
        scheduler: type[Scheduler] = Scheduler,
        pages: type[PageManager] = PageManager,
        check_order: bool = True,
    ) -> None:
        self.settings = settings
        self.pages = pages(num_pages, page_size, settings.enable_prefix_caching)
        self.scheduler = scheduler(settings, self.pages)
        self.slots = [0] * (num_pages * page_size)
        self.num_steps = 0
        self.check_order = check_order
        self.live: dict[int, Request] = {}
        self.deadlines: dict[int, int] = {}
        self.finished: dict[int, Request] = {}
        self.decided: dict[int, int] = {}
        self.num_prompt_computed = 0
        self.num_ids = 0

    def add(self, prompt: Sequence[int], num_new: int, parent: Request | None = None) -> Request:
        request = new_request(self.num_ids, prompt, num_new, parent)
        self.scheduler.add(request)
        self.num_ids += 1
        self.live[request.id] = request
        self.deadlines[request.id] = self.num_steps + self.scheduler.bound()
        return request

    def step(
        self,
        draft: Callable[[Request], Sequence[int]] = lambda request: (),
        stops: Callable[[Request, int], int | None] = lambda request, num_kept: None,
    ) -> list[Work]:
        """Run one step; `stops` may say after how many of the kept tokens a request ends."""
        scheduler, had_work = self.scheduler, self.scheduler.has_work
        drafts = {request.id: draft(request) for request in scheduler.decoding()}
        works = scheduler.schedule(drafts)
        self._check_works(works, drafts)
        require(bool(works) == had_work, "no progress")
        self.compute(works)
        for work in works:
            self.judge(work, stops)
        self.num_steps += had_work
        self.check()
        return works

    def judge(self, work: Work, stops: Callable[[Request, int], int | None]) -> None:
        request = work.request
        if not work.decides:
            self.scheduler.commit(work, 0, ())
            return
        self.decided[request.id] = request.epoch
        truth = continuation(request.tokens, work.num_draft + 1)
        drafted = work.tokens[len(work.tokens) - work.num_draft :]
        accepted = next((i for i, token in enumerate(drafted) if token != truth[i]), len(drafted))
        kept = truth[: accepted + 1]
        end = stops(request, len(kept))
        self.scheduler.commit(work, accepted, kept if end is None else kept[:end])
        if end is not None or request.remaining == 0:
            self.finish(request)

    def finish(self, request: Request, **how: bool) -> None:
        self.scheduler.finish(request, **how)
        self.finished[request.id] = self.live.pop(request.id)

    def abort(self, request: Request) -> None:
        require(self.scheduler.abort(request.id) is request)
        require(self.scheduler.abort(request.id) is None)
        self.finished[request.id] = self.live.pop(request.id)

    def reset(self) -> None:
        require(self.scheduler.reset() == list(self.live.values()))
        self.finished.update(self.live)
        self.live.clear()
        require(self.pages.num_cached == 0)
        self.check()

    def drain(self) -> None:
        """Run to the end; nothing may be left."""
        while self.live:
            self.step()
        require(not self.scheduler.has_work)
        require(self.pages.num_used == 0)
        require(self.pages.num_free == self.pages.num_pages)

    def compute(self, works: Sequence[Work]) -> None:
        """Write all slots, then read all that each row sees."""
        size, written = self.pages.page_size, set[int]()
        seen: list[tuple[Work, list[int], list[int]]] = []
        for work in works:
            slots = [page * size + place for page in work.request.pages for place in range(size)]
            end = work.start + len(work.tokens)
            require(len(slots) >= end, "a work has too few pages")
            values = fingerprints(work.request.tokens[: work.start] + work.tokens)
            for position in range(work.start, end):
                require(slots[position] not in written, "a slot is written twice")
                written.add(slots[position])
                self.slots[slots[position]] = values[position]
            seen.append((work, slots, values))
            self.num_prompt_computed += max(min(end, len(work.request.prompt)) - work.start, 0)
        for _, slots, values in seen:
            require([self.slots[slot] for slot in slots[: len(values)]] == values, "a work reads what is not its own")

    def check(self) -> None:
        """All that holds between steps."""
        self.scheduler.check()
        order = [request.id for request in self.scheduler.requests()]
        require(sorted(order) == sorted(self.live))
        if self.check_order:
            require(order == sorted(order), "somebody who arrived later goes first")
        running = [request for request in self.live.values() if request.status is Status.RUNNING]
        require(len(running) <= self.settings.max_num_seqs)
        for request in running:
            decided = self.decided.get(request.id) == request.epoch
            covered = request.num_computed if decided else len(request.tokens)
            require(len(request.pages) == self.pages.num_needed(covered), "pages of rejected drafts are kept")
        for request in self.live.values():
            require(self.num_steps < self.deadlines[request.id], "a request starves")
            new = len(request.tokens) - len(request.prompt)
            require(request.tokens == request.prompt + continuation(request.prompt, new))
        counts = self.scheduler.counts
        require((counts.num_running, counts.num_waiting) == (len(running), len(self.live) - len(running)))
        require(counts.num_pages_used + counts.num_pages_free == self.pages.num_pages)

    def _check_works(self, works: Sequence[Work], drafts: dict[int, Sequence[int]]) -> None:
        settings = self.settings
        require(len({work.request.id for work in works}) == len(works))
        require(sum(len(work.tokens) for work in works) <= settings.max_num_batched_tokens)
        asked = [work.request.id in drafts for work in works]
        require(asked == sorted(asked, reverse=True), "a prompt goes before decoding")
        if any(asked) and settings.max_num_prefill_tokens is not None:
            num_prompt = sum(len(work.tokens) for work in works if work.request.id not in drafts)
            require(num_prompt <= settings.max_num_prefill_tokens)
        for work in works:
            request, base = work.request, len(work.tokens) - work.num_draft
            require(work.start == request.num_computed)
            require(work.tokens[:base] == request.tokens[work.start : work.start + base])
            require(work.tokens[base:] == list(drafts.get(request.id, ()))[: work.num_draft])
            require(work.num_draft <= min(settings.num_speculative_tokens, request.remaining - 1))
            require(work.decides == (work.start + base == len(request.tokens)))


def random_settings(rng: np.random.Generator) -> tuple[SchedulerConfig, int, int]:
    """Settings, the number of pages and their size, all so small that everything runs short."""
    num_pages, page_size = int(rng.integers(3, 13)), int(rng.integers(1, 5))
    longest = num_pages * page_size
    num_seqs = int(rng.integers(1, 7))
    chunked = bool(rng.random() < 0.8)
    settings = SchedulerConfig(
        max_model_len=max(longest, 2),
        max_num_seqs=num_seqs,
        max_num_batched_tokens=max(num_seqs, int(rng.integers(1, 20)), 1 if chunked else max(longest, 2)),
        num_speculative_tokens=int(rng.integers(0, 5)),
        max_num_prefill_tokens=int(rng.integers(1, 6)) if chunked and rng.random() < 0.3 else None,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=bool(rng.random() < 0.5),
    )
    return settings, num_pages, page_size


def random_load(seed: int, *, abort: float = 0.02, arrivals: int = 25, **classes: object) -> World:
    """Run one random load to its end: arrivals at any time, drafts of any quality, stops, aborts, samples of a parent.

    Raises AssertionError or ForethoughtError if anything is amiss on the way.
    """
    rng = generator(seed, "test.scheduler.load")
    world = World(*random_settings(rng), **classes)  # pyright: ignore[reportArgumentType]
    pace = rng.random()

    def draft(request: Request) -> list[int]:
        length = int(rng.integers(0, 6))
        return a_draft(request.tokens, length, int(rng.integers(0, length + 1)))

    def stops(request: Request, num_kept: int) -> int | None:
        return int(rng.integers(1, num_kept + 1)) if rng.random() < 0.03 else None

    while arrivals or world.live:
        if arrivals and (not world.live or rng.random() < pace):
            arrivals -= 1
            random_arrival(rng, world)
        if world.live and rng.random() < abort:
            world.abort(list(world.live.values())[int(rng.integers(len(world.live)))])
        world.step(draft, stops)
    world.drain()
    return world


def random_arrival(rng: np.random.Generator, world: World) -> Request:
    """Add a request of a length that fits, whose prompt others share, or another sample of one that is there."""
    longest = world.scheduler.max_length
    parent = None
    if world.live and rng.random() < 0.2:
        parent = list(world.live.values())[int(rng.integers(len(world.live)))]
        prompt = parent.prompt
    else:
        length = int(rng.integers(1, longest))
        prompt = continuation([int(rng.integers(2))], length)
    num_new = int(rng.integers(1, min(longest - len(prompt), 24) + 1))
    return world.add(prompt, num_new, parent)
