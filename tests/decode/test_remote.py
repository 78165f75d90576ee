"""The target's side of a draft elsewhere: whatever happens to frames or to the draft, the tokens are the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decode.chaos import Chaos, ChaosTransport
from tests.decode.drafting_bench import Bench, Pair, oracle, paged

from forethought.core.errors import ConfigError
from forethought.decode import PROPOSERS, Chance, DecodeState, SamplingParams
from forethought.decode.batching.pages import PageManager
from forethought.decode.draft import NO_DRAFT, Judged
from forethought.decode.drafter.speculator import Speculator
from forethought.decode.request import Request
from forethought.decode.sources.links import law_rows
from forethought.decode.sources.ngram import NgramIndex, NgramSource, NoSource
from forethought.decode.sources.remote import RemoteSource
from forethought.decode.sources.shadow import Shadow, ShadowCaster
from forethought.decode.transports.in_process import InProcessTransport
from forethought.decode.transports.transport import BacklogError, Frame, PeerClosedError
from forethought.decode.wire.messages import decode, encode
from forethought.decode.wire.options import RemoteOptions
from forethought.decode.wire.protocol import (
    Demand,
    Failure,
    Fallback,
    Hello,
    Origin,
    Outcome,
    Prefill,
    Shutdown,
    Spec,
    Tag,
)

GREEDY = SamplingParams(max_tokens=40, temperature=0.0)
VOCABULARY = 32


class Script(InProcessTransport):
    """The draft's side in this process, with a say in what passes; it notes what was sent."""

    def __init__(self, speculator: Speculator) -> None:
        super().__init__(speculator)
        self.sent: list[object] = []
        self.dead = self.mute = self.full = False
        self.on_reply: Callable[[bytes], list[bytes]] = lambda frame: [frame]
        self._ready: list[bytes] = []

    def send(self, frame: Frame, timeout: float = 1.0) -> None:
        if self.dead:
            raise PeerClosedError("gone")
        if self.full:
            raise BacklogError("no room")
        self.sent.append(decode(bytes(frame)))
        super().send(frame, timeout)

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        if self.dead:
            raise PeerClosedError("gone")
        if self.mute:
            return None
        while not self._ready:
            frame = super().receive(timeout)
            if frame is None:
                return None
            self._ready += self.on_reply(frame)
        return self._ready.pop(0)

    def poll(self) -> bool:
        return bool(self._ready) or super().poll()


def scripted(pair: Pair, demand: Demand | None = None, **more: object) -> tuple[RemoteSource, Script, Speculator]:
    speculator = Speculator(paged(pair[1], 256), PageManager(256, 4))
    transport = Script(speculator)
    demand = Demand(4, 8) if demand is None else demand
    return RemoteSource(transport, Hello(VOCABULARY), demand, **more), transport, speculator  # pyright: ignore


def reference(pair: Pair, prompts: list[list[int]]) -> list[list[int]]:
    return [oracle(pair, prompt, GREEDY, 4, method="none") for prompt in prompts]


@pytest.mark.parametrize(
    "chaos",
    [
        Chaos(drop=0.15),
        Chaos(duplicate=0.5),
        Chaos(delay=0.4),
        Chaos(reorder=0.4),
        Chaos(damage=0.2),
        Chaos(drop=0.1, duplicate=0.2, delay=0.2, reorder=0.2, damage=0.05),
    ],
    ids=repr,
)
def test_mishaps_to_frames_change_no_token_and_no_law(pair: Pair, chaos: Chaos) -> None:
    prompts = [[1, 2, 3], [9, 9, 9, 9], [5]]
    for seed in range(2):
        speculator = Speculator(paged(pair[1], 256), PageManager(256, 4))
        transport = ChaosTransport(InProcessTransport(speculator), Chaos(), seed)
        source = RemoteSource(transport, Hello(VOCABULARY), Demand(4, 8), RemoteOptions(silence=60.0))
        transport._chaos = chaos
        bench = Bench(pair[0], source, pair[1])
        greedy = [bench.add(prompt, GREEDY) for prompt in prompts]
        bench.add([3, 2, 1], SamplingParams(max_tokens=40, seed=seed))
        bench.run()
        assert [sample.tokens for sample in greedy] == reference(pair, prompts)
        assert source.health.alive
        assert sum(transport.mishaps.values()) > 5
        assert {draft.source for sample in greedy for draft in sample.drafts} & {"cache", "draft"}


def test_lost_outcomes_lead_to_the_whole_text_being_sent_again(pair: Pair) -> None:
    source, transport, speculator = scripted(pair)
    bench = Bench(pair[0], source, pair[1])
    sample = bench.add([1, 2, 3], GREEDY)
    real, count = speculator.handle, 0

    def lossy(frame: bytes) -> list[bytes]:
        nonlocal count
        count += isinstance(decode(frame), Outcome)
        return [] if isinstance(decode(frame), Outcome) and count == 3 else real(frame)

    speculator.handle = lossy
    bench.run()
    assert [sample.tokens] == reference(pair, [[1, 2, 3]])
    assert (source.health.resyncs, source.health.late) == (1, 1)
    assert sum(isinstance(message, Prefill) for message in transport.sent) == 2
    after = [draft.source for draft in sample.drafts[6:-1]]
    assert "none" not in after
    assert set(after) <= {"cache", "draft"}


def test_a_draft_that_dies_is_done_without(pair: Pair) -> None:
    for when in (0, 3, 7):
        source, transport, _ = scripted(pair)
        bench = Bench(pair[0], source)
        sample = bench.add([1, 2, 3], GREEDY)
        for _ in range(when):
            bench.round()
        transport.dead = True
        bench.run()
        assert [sample.tokens] == reference(pair, [[1, 2, 3]])
        assert not source.health.alive
        assert "gone" in str(source.health.warning)
        assert source.statistics()["healthy"] is False
        assert not {draft.source for draft in sample.drafts[when + 2 :]} & {"cache", "draft"}
        source.close()


def test_a_silent_draft_is_given_up_after_a_bounded_time(pair: Pair) -> None:
    times = iter(np.arange(0.0, 1000.0, 0.05))
    source, transport, _ = scripted(
        pair, options=RemoteOptions(patience=0.1, silence=0.5), clock=lambda: float(next(times))
    )
    bench = Bench(pair[0], source)
    sample = bench.add([1, 2, 3], GREEDY)
    for _ in range(3):
        bench.round()
    transport.mute = True
    rounds = 0
    while source.health.alive:
        bench.round()
        rounds += 1
        assert rounds < 12
    assert source.health.late == rounds
    assert "said nothing for" in str(source.health.warning)
    num_sent = len(transport.sent)
    bench.run()
    assert len(transport.sent) == num_sent
    assert [sample.tokens] == reference(pair, [[1, 2, 3]])


def test_another_draft_can_take_over(pair: Pair) -> None:
    source, transport, _ = scripted(pair)
    bench = Bench(pair[0], source, pair[1])
    sample = bench.add([1, 2, 3], GREEDY)
    bench.round()
    transport.dead = True
    bench.round()
    assert not source.health.alive
    fresh = Script(Speculator(paged(pair[1], 256), PageManager(256, 4)))
    source.restart(fresh)
    bench.run()
    assert [sample.tokens] == reference(pair, [[1, 2, 3]])
    assert {draft.source for draft in sample.drafts[5:-1]} <= {"cache", "draft"}


def test_an_answer_of_another_round_is_dropped(pair: Pair) -> None:
    """Every answer comes one round late, and an old one is repeated: none may be used, and nothing goes wrong."""
    source, transport, _ = scripted(pair, options=RemoteOptions(silence=60.0))
    held: list[bytes] = []

    def one_late(frame: bytes) -> list[bytes]:
        if not isinstance(decode(frame), Spec):
            return [frame]
        held.append(frame)
        return held[-2:-1]

    transport.on_reply = one_late
    bench = Bench(pair[0], source, pair[1])
    sample = bench.add([1, 2, 3], SamplingParams(max_tokens=40, seed=3))
    bench.run()
    assert {draft.source for draft in sample.drafts} <= {"none", "ngram"}
    assert source.health.stale > 5


def test_stale_answers_would_be_wrong(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above sees a side that does not look at rounds."""
    monkeypatch.setattr(Tag, "__ne__", lambda left, right: left.request != right.request)
    with pytest.raises(AssertionError):
        test_an_answer_of_another_round_is_dropped(pair)


def test_damaged_laws_are_not_used(pair: Pair) -> None:
    source, transport, _ = scripted(pair)

    def damage(frame: bytes) -> list[bytes]:
        message = decode(frame)
        if not isinstance(message, Spec) or message.laws_KV is None:
            return [frame]
        damaged = bytearray(frame)
        damaged[-1] ^= 0x40
        return [bytes(damaged)]

    transport.on_reply = damage
    bench = Bench(pair[0], source)
    sample = bench.add([1, 2, 3], SamplingParams(max_tokens=20, seed=1))
    bench.run()
    assert source.health.malformed > 3
    assert not {draft.source for draft in sample.drafts} & {"cache", "draft"}


def test_laws_come_exact_or_not_at_all() -> None:
    rng = np.random.Generator(np.random.Philox(3))
    laws = rng.dirichlet(np.ones(50), size=4).astype(np.float32)
    exact = law_rows(laws, 50)
    assert exact is not None
    assert float((exact.sum(-1) - 1).abs().max()) < 1e-15
    assert torch.equal(exact.argsort(-1), torch.from_numpy(laws).double().argsort(-1))
    for wrong in (laws * 1.1, -laws, laws * np.float32("nan"), np.where(laws == laws.max(), np.float32("inf"), laws)):
        assert law_rows(wrong, 50) is None
    assert law_rows(laws, 51) is None


def test_no_room_for_a_verdict_is_made_good_later(pair: Pair) -> None:
    source, transport, _ = scripted(pair)
    bench = Bench(pair[0], source, pair[1])
    sample = bench.add([1, 2, 3], GREEDY)
    bench.round()
    transport.full = True
    bench.round()
    transport.full = False
    bench.run()
    assert [sample.tokens] == reference(pair, [[1, 2, 3]])
    assert (source.health.alive, source.health.unsent) == (True, 1)
    assert {draft.source for draft in sample.drafts[6:-1]} <= {"cache", "draft"}


def test_requests_that_do_not_speculate_are_never_sent(pair: Pair) -> None:
    source, transport, _ = scripted(pair)
    bench = Bench(pair[0], source)
    sample = bench.add([1, 2, 3], SamplingParams(max_tokens=10, temperature=0.0, speculate=False))
    bench.run()
    assert [type(message) for message in transport.sent] == [Hello]
    assert all(not draft.tokens for draft in sample.drafts)


def test_sides_that_do_not_fit_are_refused_at_the_start(pair: Pair) -> None:
    speculator = Speculator(paged(pair[1]), PageManager(128, 4), identity=Hello(VOCABULARY, bytes([7] * 32)))
    with pytest.raises(ConfigError, match="different tokenizers"):
        RemoteSource(InProcessTransport(speculator), Hello(VOCABULARY, bytes([8] * 32)), Demand(4))
    with pytest.raises(ConfigError, match="32 tokens and the target 33"):
        RemoteSource(InProcessTransport(speculator), Hello(33), Demand(4))


def test_a_draft_that_never_says_a_word_is_done_without(pair: Pair) -> None:
    class Silence(InProcessTransport):
        def receive(self, timeout: float | None = 0.0) -> bytes | None:
            return None

    times = iter(range(1000))
    speculator = Speculator(paged(pair[1]), PageManager(128, 4))
    source = RemoteSource(Silence(speculator), Hello(VOCABULARY), Demand(4), clock=lambda: float(next(times)))
    assert "said nothing within 10 s" in str(source.health.warning)
    bench = Bench(pair[0], source)
    sample = bench.add([1, 2, 3], GREEDY)
    bench.run()
    assert [sample.tokens] == reference(pair, [[1, 2, 3]])


def test_the_demand_may_change_between_any_two_rounds(pair: Pair) -> None:
    """The planner's doing: other lengths, budgets and fallbacks, none at all, and back."""
    source, _, speculator = scripted(pair)
    bench = Bench(pair[0], source, pair[1])
    samples = [bench.add([1, 2, 3], SamplingParams(max_tokens=120, temperature=0.0)), bench.add([4], GREEDY)]
    demands = [
        Demand(1, 3),
        Demand(7, 16),
        Demand(7, 0),
        Demand(0),
        Demand(0),
        Demand(5, 16, Fallback.NGRAM),
        Demand(32, 200),
        Demand(3, 4, Fallback.NONE),
        Demand(6, 12, Fallback.DRAFT, jit_length=2),
    ]
    rounds = 0
    while bench.round():
        source.demand = demands[rounds % len(demands)]
        rounds += 1
    for sample in samples:
        assert sample.tokens == oracle(pair, sample.request.prompt, sample.request.params, 4, method="none")
    assert source.health.resyncs == source.health.stale == 0
    assert max(len(draft.tokens) for draft in samples[0].drafts) == 7
    assert speculator.accounts.hits > 0


def test_where_no_draft_is_wanted_the_other_side_is_told_seldom_and_reads_on_by_itself(pair: Pair) -> None:
    source, transport, speculator = scripted(pair, Demand(0))
    bench = Bench(pair[0], source, pair[1])
    sample = bench.add([1, 2, 3], SamplingParams(max_tokens=120, temperature=0.0))
    for _ in range(60):
        bench.round()
    told = [message for message in transport.sent if isinstance(message, Outcome)]
    assert [len(message.tokens) for message in told] == [24, 24]
    assert [message.accepted for message in told] == [-1, -1]
    trunk = next(iter(speculator._lanes.values())).trunk
    assert (trunk.length, trunk.num_written) == (3 + 48, 3 + 48 - 1)
    due = len(sample.tokens) - 48 + 1
    source.demand = Demand(4, 8)
    bench.run()
    assert sample.tokens == oracle(pair, [1, 2, 3], sample.request.params, 4, method="none")
    # What was held back goes with the first verdict that wants a draft, and nothing has to be sent again.
    told = [message for message in transport.sent if isinstance(message, Outcome)]
    assert len(told[2].tokens) == due
    assert source.health.resyncs == source.health.stale == 0
    assert sum(isinstance(message, Prefill) for message in transport.sent) == 1
    assert any(draft.source == "cache" for draft in sample.drafts)


def test_long_lookups_never_make_a_message_too_long(pair: Pair) -> None:
    source, transport, _ = scripted(pair, Demand(0))
    request = Request(0, [1, 2, 3], SamplingParams(max_tokens=400, temperature=0.0), max_length=403)
    source.start(request)
    for length in (20, 20, 33, 1, 33, 5):
        kept = [length % VOCABULARY] * length
        source.judged(request, NO_DRAFT, Judged(length - 1, kept[-1]), kept)
        request.tokens.extend(kept)
    told = [message.tokens for message in transport.sent if isinstance(message, Outcome)]
    assert [len(tokens) for tokens in told] == [20, 20, 33, 1, 33]
    assert [token for tokens in told for token in tokens] == request.tokens[3:-5]
    assert source.health.alive


def test_an_answer_that_comes_while_tokens_are_held_back_is_no_draft(pair: Pair) -> None:
    """An answer, sent twice by the line, to the state before the tokens that the other side was not yet told of."""
    source, transport, _ = scripted(pair, Demand(4, 8))
    request = Request(0, [1, 2, 3], GREEDY, max_length=43)
    source.start(request)
    source.judged(request, NO_DRAFT, Judged(0, 4), [4])
    seen: list[bytes] = []
    transport.on_reply = lambda frame: seen.append(frame) or [frame]
    assert source.collect([request])[0].tokens
    source.demand = Demand(0)
    source.judged(request, NO_DRAFT, Judged(0, 5), [5])
    transport._ready.append(seen[-1])
    assert source.collect([request]) == {}
    assert source.health.stale == 1


def test_a_few_texts_at_a_time_are_watched(pair: Pair) -> None:
    class Watch:
        def __init__(self) -> None:
            self.count = 0

        def observe_rank(self, source: str, num_drafted: int, accepted: int, rank: int | None) -> None:
            pass

        def observe_shadow(self, shadow: Shadow) -> None:
            self.count += 1

    watch = Watch()
    source, _, _ = scripted(pair, Demand(0), observer=watch)
    requests = [Request(place, [1 + place], GREEDY, max_length=41) for place in range(6)]
    for request in requests:
        source.start(request)
    # The first token of a text with nothing to copy is a proposal of nothing, known at once.
    for request in requests:
        source.judged(request, NO_DRAFT, Judged(0, 20 + request.id), [20 + request.id])
    assert watch.count == 4
    source.stop(requests[0])
    source.judged(requests[5], NO_DRAFT, Judged(0, 9), [9])
    assert watch.count == 5


def test_a_preempted_request_comes_back_in_a_new_epoch(pair: Pair) -> None:
    source, _, speculator = scripted(pair)
    bench = Bench(pair[0], source, pair[1])
    sample = bench.add([1, 2, 3], GREEDY)
    for turn in range(8):
        if turn in (2, 5):
            source.stop(sample.request)
            sample.request.epoch += 1
            source.start(sample.request)
        bench.round()
    bench.run()
    assert [sample.tokens] == reference(pair, [[1, 2, 3]])
    # The answers to the last verdicts of the two epochs that ended came when nobody waited for them any more.
    assert (source.health.stale, source.health.resyncs) == (2, 0)
    assert speculator.accounts.hits > 0


def test_drafts_may_be_cut_and_verdicts_may_wait(pair: Pair) -> None:
    """A scheduler short of pages takes part of a draft, or none, or leaves a request out of a step."""
    source, _, speculator = scripted(pair, Demand(5, 16))
    bench = Bench(pair[0], source, pair[1])
    sample = bench.add([1, 2, 3], SamplingParams(max_tokens=80, temperature=0.0))
    rounds = 0
    while sample.request.remaining > 0:
        first = source.collect([sample.request]).get(sample.request.id, NO_DRAFT)
        again = source.collect([sample.request]).get(sample.request.id, NO_DRAFT)
        assert first.tokens == again.tokens
        bench._judge(sample, first.cut((5, 2, 0, 1)[rounds % 4]))
        rounds += 1
    assert [sample.tokens] == [oracle(pair, [1, 2, 3], sample.request.params, 4, method="none")]
    assert source.health.stale == source.health.resyncs == 0
    # A cut draft that was right goes on where it was cut: what is left of it is still at hand.
    assert speculator.accounts.hits > speculator.accounts.misses


def test_whoever_watches_learns_ranks_and_shadows(pair: Pair) -> None:
    class Watch:
        def __init__(self) -> None:
            self.ranks: list[tuple[str, int, int, int | None]] = []
            self.shadows: list[Shadow] = []

        def observe_rank(self, source: str, num_drafted: int, accepted: int, rank: int | None) -> None:
            self.ranks.append((source, num_drafted, accepted, rank))

        def observe_shadow(self, shadow: Shadow) -> None:
            self.shadows.append(shadow)

    watch = Watch()
    source, _, speculator = scripted(pair, observer=watch)
    bench = Bench(pair[0], source)
    bench.add([1, 2, 1, 2], SamplingParams(max_tokens=80, temperature=0.0))
    bench.run()
    accounts = speculator.accounts
    assert len(watch.ranks) == int(accounts.ranks_rejected.sum() + accounts.ranks_accepted.sum())
    assert all(0 <= accepted <= drafted <= 4 for _, drafted, accepted, _ in watch.ranks)
    assert all(rank is None or 0 <= rank < 16 for *_, rank in watch.ranks)
    assert all(0 <= shadow.accepted <= shadow.num_drafted <= 8 for shadow in watch.shadows)
    assert {shadow.after_miss for shadow in watch.shadows} == {False, True}
    known = source.statistics()["draft"]
    assert (known["hits"], known["misses"]) == (accounts.hits, accounts.misses)
    assert known["hit_rate"] == accounts.hits / (accounts.hits + accounts.misses)


def test_closing_tells_the_other_side(pair: Pair) -> None:
    source, transport, speculator = scripted(pair)
    Bench(pair[0], source).add([1, 2, 3], GREEDY)
    source.close()
    assert isinstance(transport.sent[-1], Shutdown)
    assert speculator.preparation.pages.num_used == 0
    assert not transport.is_alive()


def test_errors_of_the_other_side_are_kept_as_a_warning(pair: Pair) -> None:
    source, transport, _ = scripted(pair)
    bench = Bench(pair[0], source)
    sample = bench.add([1, 2, 3], GREEDY)
    transport.on_reply = lambda frame: [encode(Failure("out of luck")), frame]
    bench.run()
    assert source.health.warning == "out of luck"
    assert source.health.alive
    assert [sample.tokens] == reference(pair, [[1, 2, 3]])


def test_an_answer_in_time_is_never_mixed_with_the_texts_own(pair: Pair) -> None:
    source, transport, _ = scripted(pair, Demand(4, 0))
    bench = Bench(pair[0], source)
    request = bench.add([1, 2, 1, 2, 1], GREEDY).request
    spec = source.collect([request])[request.id]
    assert spec.source in ("draft", "cache")
    transport.mute = True
    source.judged(request, spec, Judged(0, 5), [5])
    late = source.collect([request]).get(request.id, NO_DRAFT)
    assert late.source in ("ngram", "none")
    outcome = next(message for message in reversed(transport.sent) if isinstance(message, Outcome))
    assert outcome.accepted == 0
    source.judged(request, late, Judged(0, 6), [6])
    outcome = next(message for message in reversed(transport.sent) if isinstance(message, Outcome))
    assert outcome.accepted == -1
    assert Origin.NONE == 0


@given(tokens=st.lists(st.integers(0, 2), min_size=4, max_size=80), data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_shadow_is_what_lookup_would_have_brought_however_the_text_is_cut_into_rounds(
    tokens: list[int], data: st.DataObject
) -> None:
    index, caster, at = NgramIndex(tokens[:3]), ShadowCaster(), 3
    began, first_miss = 3, False
    while at < len(tokens):
        step = data.draw(st.integers(1, 6))
        kept, after_miss = tokens[at : at + step], data.draw(st.booleans())
        if not caster._proposed:
            began, first_miss = at, after_miss
        shadow = caster.commit(index, kept, 100, after_miss=after_miss)
        index.extend(kept)
        at += len(kept)
        if shadow is not None:
            proposed = PROPOSERS["ngram"](DecodeState(tokens[:began], SamplingParams(), Chance(0), 8), 8).tokens
            right = [a == b for a, b in zip(proposed, tokens[began:], strict=False)]
            accepted = right.index(False) if False in right else len(right)
            assert (shadow.num_drafted, shadow.accepted) == (len(proposed), accepted)
            assert shadow.after_miss == first_miss


@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60), k=st.integers(0, 6), data=st.data())
@settings(deadline=None, max_examples=200)
def test_the_index_gives_what_a_scan_gives(tokens: list[int], k: int, data: st.DataObject) -> None:
    index, at = NgramIndex(), 0
    while at < len(tokens):
        step = data.draw(st.integers(1, 7))
        index.extend(tokens[at : at + step])
        at += step
        scanned = PROPOSERS["ngram"](DecodeState(tokens[:at], SamplingParams(), Chance(0), 4), k).tokens
        assert index.continuation(k) == scanned


def test_the_index_grows_with_the_text_only() -> None:
    index = NgramIndex(range(1000))
    index.continuation(3)
    held = {length: len(ends) for length, ends in index._ends.items()}
    for _ in range(5):
        index.continuation(3)
    assert {length: len(ends) for length, ends in index._ends.items()} == held
    assert max(held.values()) < 1000


def test_prompt_lookup_as_a_source_of_the_engine(pair: Pair) -> None:
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=60, temperature=temperature, seed=2)
        bench = Bench(pair[0], NgramSource(5))
        sample = bench.add([1, 2, 1, 2, 1, 2], params)
        bench.run()
        assert sample.tokens == oracle(pair, [1, 2, 1, 2, 1, 2], params, 5, method="ngram")
    plain = Bench(pair[0], NoSource())
    sample = plain.add([1, 2, 3], GREEDY)
    assert plain.run() == reference(pair, [[1, 2, 3]])
    plain.source.close()
    assert NgramSource(3).collect([Request(1, [1, 2], GREEDY, 9)]) == {}
