"""What a step may hold, who goes first, who makes way, and that nobody waits longer than the stated bound (R9, R10)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
from tests.decode.mutants import POOLS, SCHEDULERS, STARVING
from tests.decode.paging import World, a_draft, continuation, new_request, random_arrival, random_load, random_settings

from forethought.core.errors import ConfigError, ForethoughtError, InputError
from forethought.core.rng import generator
from forethought.decode.batching.budget import SchedulerConfig
from forethought.decode.batching.pages import PageManager
from forethought.decode.batching.scheduler import Scheduler
from forethought.decode.request import Request, Status, Work


def world(num_pages: int = 64, page_size: int = 4, **fields: object) -> World:
    """A world of 8 requests, 32 tokens a step and drafts of 4, unless told otherwise."""
    given: dict[str, object] = {
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "num_speculative_tokens": 4,
    }
    return World(SchedulerConfig(**{**given, **fields}), num_pages, page_size)  # pyright: ignore[reportArgumentType]


def shares(works: Sequence[Work]) -> list[tuple[int, int, int, bool]]:
    """Works as (request, tokens, drafted tokens, decides)."""
    return [(work.request.id, len(work.tokens), work.num_draft, work.decides) for work in works]


def prompt(length: int, first: int = 0) -> list[int]:
    return continuation([first], length)


def test_a_long_prompt_is_chunked_behind_what_decodes() -> None:
    sim = world(max_num_batched_tokens=8, max_num_prefill_tokens=5)
    sim.add(prompt(3), 20)
    assert shares(sim.step()) == [(0, 3, 0, True)]
    sim.add(prompt(14, 1), 20)
    assert shares(sim.step()) == [(0, 1, 0, True), (1, 4, 0, False)]
    right = lambda request: a_draft(request.tokens, 4, 4)  # noqa: E731
    # A step of 8: one token and room for a draft of 4 leave 3, half of what the one token leaves is 4.
    assert shares(sim.step(right)) == [(0, 4, 3, True), (1, 4, 0, False)]
    assert shares(sim.step()) == [(0, 1, 0, True), (1, 4, 0, False)]
    assert shares(sim.step()) == [(0, 1, 0, True), (1, 2, 0, True)]
    assert [request.id for request in sim.scheduler.decoding()] == [0, 1]


def test_the_prompt_share_is_bounded_only_beside_decoding() -> None:
    sim = world(max_num_batched_tokens=32, num_speculative_tokens=0, max_num_prefill_tokens=5)
    sim.add(prompt(40), 4)
    assert shares(sim.step()) == [(0, 32, 0, False)]
    sim.step()
    sim.add(prompt(12, 1), 4)
    assert shares(sim.step()) == [(0, 1, 0, True), (1, 5, 0, False)]


def test_a_whole_prompt_waits_until_it_fits_where_chunks_are_off() -> None:
    sim = world(max_model_len=32, enable_chunked_prefill=False)
    sim.add(prompt(2), 3)
    sim.step()
    sim.add(prompt(32 - 1, 1), 1)
    assert shares(sim.step()) == [(0, 1, 0, True), (1, 31, 0, True)]
    sim.add(prompt(2), 3)
    sim.step()
    sim.add(continuation([0, 0], 31), 1)
    sim.add(prompt(1, 1), 1)
    works = shares(sim.step())
    assert [request for request, *_ in works] == [2, 3]


def test_one_request_more_than_a_step_admits_waits() -> None:
    sim = world(max_num_seqs=2)
    for first in range(3):
        sim.add(prompt(4, first % 2), 2)
    sim.step()
    assert [request.status for request in sim.live.values()] == [Status.RUNNING, Status.RUNNING, Status.WAITING]
    sim.drain()


def test_drafts_are_cut_alike_whatever_they_are() -> None:
    """The length that is scheduled must not depend on anybody's draft, its own length included."""
    for seed in range(60):
        rng = generator(seed, "test.scheduler.cut")
        setting = random_settings(rng)
        if setting[0].num_speculative_tokens == 0:
            continue
        allowed: dict[int, int] = {}
        for variant in range(4):
            rng = generator(seed, "test.scheduler.cut.load")
            sim = World(*setting)
            for _ in range(8):
                random_arrival(rng, sim)
                sim.step()
            lengths = generator(seed, "test.scheduler.cut.draft", variant)
            draft = {
                r.id: [0] * (99 if variant == 0 else int(lengths.integers(0, 6))) for r in sim.scheduler.decoding()
            }
            for work in sim.scheduler.schedule(draft):
                identity = work.request.id
                if variant == 0:
                    allowed[identity] = work.num_draft
                elif identity in draft:
                    assert work.num_draft == min(len(draft[identity]), allowed[identity])


def test_drafts_go_before_anybody_is_put_back() -> None:
    sim = world(num_pages=4, page_size=2, max_num_batched_tokens=16)
    first, second = sim.add([0, 1], 6), sim.add([1, 1], 6)
    sim.step()
    assert (first.num_computed, second.num_computed) == (2, 2)
    # Two pages are free, each needs one for its next token: a draft of one token fits on the same page.
    works = sim.step(lambda request: a_draft(request.tokens, 4, 0))
    assert shares(works) == [(0, 2, 1, True), (1, 2, 1, True)]
    assert sim.scheduler.preempted == []
    sim.step()
    assert sim.scheduler.preempted == []
    sim.step()
    assert sim.scheduler.preempted == [second]
    assert (second.status, second.epoch, second.num_computed, second.pages) == (Status.WAITING, 1, 0, [])
    assert second.tokens == [1, 1, *continuation([1, 1], 3)]
    assert sim.scheduler.counts.num_preemptions == 1
    while second.status is Status.WAITING:
        sim.step()
    assert sim.scheduler.admitted == [second]
    sim.drain()
    assert sim.scheduler.counts.num_prefix_queries == 4, "a request that was put back counts once"


def test_pages_are_set_aside_for_drafts_whatever_their_lengths() -> None:
    for lengths, expected in [((4, 4), (2, 0)), ((0, 4), (0, 0)), ((1, 1), (1, 0))]:
        sim = world(num_pages=10, page_size=1)
        sim.add(prompt(3), 7)
        sim.add(prompt(3, 1), 7)
        sim.step()
        # Six pages are held and each takes one for its next token: two are left, all for the first one's draft.
        works = sim.step(lambda request, lengths=lengths: a_draft(request.tokens, lengths[request.id], 0))
        assert tuple(work.num_draft for work in works) == expected


def test_a_page_for_everybody_who_runs_is_left_when_another_is_let_in() -> None:
    sim = world(num_pages=5, page_size=2)
    sim.add(prompt(2), 3)
    assert sim.add(prompt(8, 1), 1).status is Status.WAITING
    sim.step()
    assert [request.status for request in sim.live.values()] == [Status.RUNNING, Status.WAITING]
    sim.drain()
    roomy = world(num_pages=6, page_size=2)
    roomy.add(prompt(2), 3)
    roomy.add(prompt(8, 1), 1)
    assert len(roomy.step()) == 2


def test_a_prefix_is_not_matched_again_while_nothing_has_changed() -> None:
    matched: list[int] = []

    class Counting(PageManager):
        def match(self, tokens: Sequence[int]) -> list[int]:
            matched.append(len(tokens))
            return super().match(tokens)

    sim = World(SchedulerConfig(max_model_len=96), 3, 32, pages=Counting)
    sim.add(prompt(4), 20)
    big = sim.add(prompt(70, 1), 4)
    for _ in range(8):
        sim.step()
    assert matched == [4, 70]
    held = weakref.ref(big)
    sim.abort(big)
    sim.finished.clear()
    del big
    sim.step()
    gc.collect()
    assert held() is None
    sim.drain()


def test_the_step_budget_cuts_drafts_evenly() -> None:
    sim = world(max_num_batched_tokens=9, max_num_seqs=3)
    for first in range(3):
        sim.add(prompt(3, first % 2), 30)
        sim.step()
    assert shares(sim.step(lambda request: [0] * 4)) == [(0, 3, 2, True), (1, 3, 2, True), (2, 3, 2, True)]


def test_no_draft_reaches_beyond_the_last_token() -> None:
    sim = world()
    request = sim.add(prompt(3), 3)
    sim.step()
    assert request.remaining == 2
    assert shares(sim.step(lambda request: a_draft(request.tokens, 4, 1))) == [(0, 2, 1, True)]
    assert request.status is Status.FINISHED


def test_rejected_drafts_give_their_pages_back() -> None:
    sim = world(page_size=1)
    request = sim.add(prompt(3), 30)
    sim.step()
    sim.step(lambda request: a_draft(request.tokens, 4, 2))
    assert (request.num_computed, len(request.pages), request.round) == (6, 6, 2)
    assert request.is_decoding


def test_a_sample_waits_for_its_parent_and_shares_full_pages_only() -> None:
    for caching in (True, False):
        sim = world(max_num_batched_tokens=8, enable_prefix_caching=caching)
        parent = sim.add(prompt(14), 8)
        child = sim.add(parent.prompt, 8, parent)
        sim.step()
        assert child.status is Status.WAITING
        assert [work.request.id for work in sim.step()] == [0]
        works = sim.step()
        assert shares(works) == [(0, 1, 0, True), (1, 2, 0, True)]
        assert child.pages[:3] == parent.pages[:3]
        assert child.pages[3] != parent.pages[3]
        sim.drain()
        assert child.tokens == parent.tokens


def test_a_sample_has_a_token_to_compute_and_reads_computed_ones_only() -> None:
    for longer in (0, 3):
        sim = world(enable_prefix_caching=False)
        parent = sim.add(prompt(8 if longer == 0 else 7), 9)
        sim.step()
        child = sim.add(parent.prompt + continuation(parent.prompt, longer), 3, parent)
        sim.step()
        assert child.status is Status.RUNNING
        assert sim.scheduler.counts.num_prefix_hits == 4
        sim.drain()


def test_only_what_agrees_is_shared_with_a_parent() -> None:
    sim = world(enable_prefix_caching=False)
    parent = sim.add([0] * 14, 8)
    other = sim.add([0] * 9 + [1] * 5, 8, parent)
    sim.step()
    sim.step()
    assert sim.scheduler.counts.num_prefix_hits == 8
    assert [page in parent.pages for page in other.pages] == [True, True, False, False]
    sim.drain()


def test_a_sample_goes_alone_when_its_parent_is_gone() -> None:
    sim = world(max_num_batched_tokens=8)
    parent = sim.add(prompt(20), 8)
    child = sim.add(parent.prompt, 8, parent)
    sim.step()
    sim.abort(parent)
    sim.step()
    assert child.status is Status.RUNNING
    late = sim.add(parent.prompt, 2, parent)
    sim.drain()
    assert late.tokens == child.tokens[:22]


def test_the_cache_saves_what_it_says_and_changes_nothing_else() -> None:
    hits = 0
    for seed in range(40):
        texts: list[dict[int, list[int]]] = []
        for caching in (True, False):
            rng = generator(seed, "test.scheduler.caching")
            sim = world(num_pages=200, enable_prefix_caching=caching)
            for _ in range(12):
                root = continuation([int(rng.integers(3))], int(rng.integers(1, 40)))
                sim.add(root, int(rng.integers(1, 9)))
                for _ in range(int(rng.integers(4))):
                    sim.step(lambda request: a_draft(request.tokens, 4, 2))
            sim.drain()
            counts = sim.scheduler.counts
            assert counts.num_preemptions == 0
            num_prompt = sum(len(request.prompt) for request in sim.finished.values())
            assert counts.num_prefix_queries == num_prompt
            assert sim.num_prompt_computed + counts.num_prefix_hits == num_prompt
            assert caching or counts.num_prefix_hits == 0
            texts.append({request.id: request.tokens for request in sim.finished.values()})
            hits += counts.num_prefix_hits
        assert texts[0] == texts[1]
    assert hits > 1000


def test_a_poisoned_request_leaves_nothing_to_match() -> None:
    sim = world()
    request = sim.add(prompt(17), 5)
    sim.step()
    sim.finish(request, poisoned=True)
    assert sim.pages.num_cached == 0
    sim.add(prompt(17), 5)
    sim.step()
    assert sim.scheduler.counts.num_prefix_hits == 0
    sim.drain()
    sim.add(prompt(17), 5)
    sim.step()
    assert sim.scheduler.counts.num_prefix_hits == 16


def test_tokens_behind_a_stop_are_not_cached() -> None:
    sim = world(page_size=1)
    request = sim.add(prompt(3), 20)
    sim.step()
    sim.step(lambda request: a_draft(request.tokens, 4, 4), lambda request, num_kept: 2)
    assert request.status is Status.FINISHED
    assert len(request.tokens) == 6
    assert len(sim.pages.match([*request.tokens, *continuation(request.tokens, 3)])) == 5


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_abort_at_any_moment_frees_everything(steps: int) -> None:
    sim = world(max_num_batched_tokens=8)
    sim.add(prompt(8), 10)
    request = sim.add(prompt(16, 1), 10)
    for _ in range(steps):
        sim.step()
    sim.abort(request)
    sim.check()
    assert request.status is Status.FINISHED
    assert request.pages == []
    sim.drain()


def test_a_verdict_for_an_ended_request_is_dropped() -> None:
    sim = world()
    request = sim.add(prompt(5), 5)
    (work,) = sim.scheduler.schedule({})
    sim.abort(request)
    sim.scheduler.commit(work, 0, [1])
    assert request.tokens == request.prompt
    assert sim.scheduler.abort(99) is None
    sim.scheduler.finish(request)
    sim.check()


def test_abort_of_a_parent_and_reset() -> None:
    sim = world()
    parent = sim.add(prompt(9), 5)
    sim.add(prompt(9), 5, parent)
    sim.step()
    sim.reset()
    assert not sim.scheduler.has_work
    assert sim.scheduler.schedule({}) == []
    sim.add(prompt(9), 5)
    sim.drain()
    assert sim.scheduler.counts.num_prefix_hits == 0


REFUSED = [
    (lambda: new_request(1, [], 3), "no tokens"),
    (lambda: new_request(1, [1] * 30, 11), r"30 tokens and up to 11 may follow, together 41; at most 40 fit"),
    (lambda: new_request(1, [1] * 40, 0), "so that a token can follow"),
    (lambda: new_request(0, [1], 1), "in use"),
    (lambda: new_request(1, [1], 1, new_request(7, [1], 1)), "waits for request 7"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_can_never_be_served_is_refused(build: object, message: str) -> None:
    sim = world(num_pages=10)
    assert sim.scheduler.max_length == 40
    sim.add([1], 2)
    assert callable(build)
    with pytest.raises(InputError, match=message):
        sim.scheduler.add(build())
    assert len(sim.scheduler.requests()) == 1
    assert world(max_model_len=9).scheduler.max_length == 9
    sim.drain()


def test_a_request_of_all_pages_is_served() -> None:
    sim = world(num_pages=5, page_size=2)
    sim.add([0, 1], 4)
    sim.add(prompt(9), 1)
    sim.add([1], 9)
    sim.drain()


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="below max_num_seqs 9"):
        SchedulerConfig(max_model_len=8, max_num_seqs=9, max_num_batched_tokens=8)
    with pytest.raises(ConfigError, match="must reach max_model_len 64"):
        SchedulerConfig(max_model_len=64, max_num_seqs=8, max_num_batched_tokens=63, enable_chunked_prefill=False)
    with pytest.raises(ConfigError, match="needs enable_chunked_prefill"):
        SchedulerConfig(max_model_len=64, enable_chunked_prefill=False, max_num_prefill_tokens=4)
    with pytest.raises(ConfigError, match="give both the same"):
        Scheduler(SchedulerConfig(max_model_len=64), PageManager(4, 4, prefix_cache=False))


def test_a_verdict_that_does_not_fit_is_refused() -> None:
    sim = world()
    request = sim.add(prompt(3), 3)
    (work,) = sim.scheduler.schedule({})
    with pytest.raises(ForethoughtError, match="1 of 0 drafted tokens"):
        sim.scheduler.commit(work, 1, [1])
    with pytest.raises(ForethoughtError, match="2 kept"):
        sim.scheduler.commit(work, 0, [1, 1])
    sim.scheduler.commit(work, 0, [1])
    with pytest.raises(ForethoughtError, match="committed before"):
        sim.scheduler.commit(work, 0, [1])
    (work,) = sim.scheduler.schedule({0: [2, 2]})
    with pytest.raises(ForethoughtError, match="not the accepted ones"):
        sim.scheduler.commit(work, 1, [1, 1])
    sim.scheduler.commit(work, 1, [2, 1])
    assert request.remaining == 0
    (work,) = sim.scheduler.schedule({})
    with pytest.raises(ForethoughtError, match="all its 6 tokens"):
        sim.scheduler.commit(work, 0, [1])


def test_a_step_that_failed_can_be_repeated() -> None:
    sim = world(page_size=2)
    request = sim.add(prompt(5), 9)
    sim.scheduler.schedule({})
    sim.step()
    sim.scheduler.schedule({0: [0, 0, 0, 0]})
    sim.step()
    assert request.round == 2
    sim.drain()


def test_prompts_of_a_step_that_failed_take_turns() -> None:
    sim = world(max_num_batched_tokens=12, max_num_prefill_tokens=4)
    for length in (1, 8, 3):
        sim.add(prompt(length), 9)
    assert shares(sim.scheduler.schedule({})) == [(0, 1, 0, True), (1, 8, 0, True), (2, 3, 0, True)]
    assert shares(sim.step()) == [(0, 1, 0, True), (1, 4, 0, False)]
    assert shares(sim.step()) == [(0, 1, 0, True), (1, 4, 0, True)]
    assert shares(sim.step()) == [(0, 1, 0, True), (1, 1, 0, True), (2, 3, 0, True)]


def damage_alias(first: Request, second: Request) -> None:
    first.pages[-1] = second.pages[-1]


def damage_prefix(first: Request, second: Request) -> None:
    second.tokens[0] += 1


def damage_status(first: Request, second: Request) -> None:
    first.status = Status.WAITING


def damage_count(first: Request, second: Request) -> None:
    first.num_computed = len(first.tokens)


def damage_pages(first: Request, second: Request) -> None:
    first.num_computed += 4
    first.tokens.extend([0] * 8)


def damage_repeat(first: Request, second: Request) -> None:
    first.pages[1] = first.pages[0]


@pytest.mark.parametrize(
    "damage", [damage_alias, damage_prefix, damage_status, damage_count, damage_pages, damage_repeat]
)
def test_the_check_sees_damage(damage: object) -> None:
    sim = world()
    first = sim.add(prompt(9), 9)
    sim.step()
    second = sim.add(prompt(9), 9)
    sim.step()
    sim.check()
    assert callable(damage)
    damage(first, second)
    with pytest.raises(ForethoughtError):
        sim.scheduler.check()


def storm(num_requests: int) -> World:
    """Submit and abort at random points, at a random pace."""
    rng = generator(0, "test.scheduler.storm")
    sim = world(num_pages=40, max_num_batched_tokens=16)
    for index in range(num_requests):
        sim.add(prompt(int(rng.integers(1, 60)), index % 2), int(rng.integers(1, 30)))
        while sim.live and (len(sim.live) > 20 or rng.random() < 0.5):
            sim.abort(list(sim.live.values())[int(rng.integers(len(sim.live)))])
        if rng.random() < 0.3:
            sim.step(lambda request: a_draft(request.tokens, 3, 1))
    return sim


def test_nothing_is_left_after_an_abort_storm() -> None:
    """R9 in full as far as pages and requests go: 10,000 requests submitted and aborted, in any state."""
    sim = storm(10_000)
    assert sim.scheduler.counts.num_preemptions > 0
    for request in list(sim.live.values()):
        sim.abort(request)
    assert len(sim.finished) == 10_000
    assert sim.scheduler.requests() == []
    assert not sim.scheduler.has_work
    assert (sim.pages.num_used, sim.pages.num_free) == (0, 40)
    sim.reset()


def test_a_long_queue_is_aborted_in_no_time() -> None:
    sim = world(max_num_seqs=1)
    for _ in range(10_000):
        sim.scheduler.add(new_request(sim.num_ids, [1], 1))
        sim.num_ids += 1
    for identity in reversed(range(10_000)):
        assert sim.scheduler.abort(identity) is not None
    assert not sim.scheduler.has_work


def test_nobody_starves() -> None:
    """R10: each of these loads holds every request to `Scheduler.bound` as it was when the request arrived."""
    preemptions = sum(random_load(seed).scheduler.counts.num_preemptions for seed in range(500))
    assert preemptions > 200, "the loads must run short of pages to mean anything"


@pytest.mark.nightly
def test_nobody_starves_in_5000_loads() -> None:
    for seed in range(500, 5000):
        random_load(seed)


def test_the_bound_is_what_it_says() -> None:
    sim = world(max_num_batched_tokens=12, max_num_seqs=3, num_speculative_tokens=4)
    sim.add(prompt(23), 7)
    sim.add(prompt(5), 2)
    # Ten tokens are left beside two that decode, and half of them are a prompt's.
    assert sim.scheduler.bound() == (5 + 7) + (1 + 2)
    capped = world(max_num_batched_tokens=12, max_num_seqs=3, max_num_prefill_tokens=2)
    capped.add(prompt(23), 7)
    assert capped.scheduler.bound() == 12 + 7
    whole = world(max_model_len=32, enable_chunked_prefill=False)
    whole.add(prompt(23), 7)
    assert whole.scheduler.bound() == 1 + 7


def is_caught(reason: str = "", **classes: object) -> int | None:
    """Return the first of the loads that shows the defect, with this reason in its message."""
    for seed in range(500):
        try:
            random_load(seed, **classes)  # pyright: ignore[reportArgumentType]
        except (AssertionError, ForethoughtError, LookupError) as error:
            if reason in str(error):
                return seed
    return None


@pytest.mark.parametrize("mutant", STARVING)
def test_a_planted_starvation_is_caught_by_the_bound_alone(mutant: type[Scheduler]) -> None:
    assert is_caught("starves", scheduler=mutant, check_order=False, arrivals=60) is not None


@pytest.mark.parametrize("mutant", SCHEDULERS)
def test_a_planted_defect_of_the_scheduler_is_caught(mutant: type[Scheduler]) -> None:
    assert is_caught(scheduler=mutant) is not None


@pytest.mark.parametrize("mutant", POOLS)
def test_a_planted_defect_of_the_pool_is_caught(mutant: type[PageManager]) -> None:
    assert is_caught(pages=mutant) is not None
