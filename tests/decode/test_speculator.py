"""The draft's side: the oracle's tokens, laws that are what they say, trunks and trees that stand where they should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.decode.conftest import make_pair
from tests.decode.drafting_bench import Bench, CheckedModel, Pair, make_source, oracle, paged, require

from forethought.core.errors import InputError
from forethought.core.rng import generator
from forethought.decode import Chance, SamplingParams, SSDOptions, draw
from forethought.decode.batching.pages import PageManager
from forethought.decode.drafter import preparation as preparation_module
from forethought.decode.drafter.branches import Branches
from forethought.decode.drafter.drafting import Step
from forethought.decode.drafter.foresight import Foresight
from forethought.decode.drafter.lane import Lane
from forethought.decode.drafter.preparation import Preparation
from forethought.decode.drafter.speculator import Speculator
from forethought.decode.drafter.trunk import Share, Trunk, rows_of
from forethought.decode.sources.remote import RemoteSource
from forethought.decode.wire.messages import decode, encode
from forethought.decode.wire.options import SpeculatorOptions
from forethought.decode.wire.protocol import (
    EMPTY_HASH,
    Demand,
    DraftSampling,
    Fallback,
    Free,
    Outcome,
    Prefill,
    Shutdown,
    Spec,
    Spread,
    Tag,
    extend_hash,
)

GREEDY = SamplingParams(max_tokens=40, temperature=0.0)


def decoded(
    pair: Pair,
    prompts: list[list[int]],
    params: list[SamplingParams],
    demand: Demand,
    options: SpeculatorOptions | None = None,
    **more: object,
) -> tuple[list[list[int]], Speculator, Bench]:
    """The tokens of requests that are decoded together, every draft and every row of the draft model checked."""
    checked = CheckedModel(paged(pair[1], 256))
    source, speculator = make_source(checked, demand, options, **more)
    bench = Bench(pair[0], source, pair[1])
    for prompt, own in zip(prompts, params, strict=True):
        bench.add(prompt, own)
    while bench.round():
        check_trunks(speculator, checked)
    assert source.health.alive
    assert speculator.preparation.pages.num_used == 0
    return [sample.tokens for sample in bench.samples], speculator, bench


def check_trunks(speculator: Speculator, checked: CheckedModel) -> None:
    """Every trunk's slots stand for its text, and no page has two holders but full ones of equal texts."""
    lanes = list(speculator._lanes.values())
    for lane in lanes:
        trunk = lane.trunk
        text = trunk.text[: trunk.num_written].tolist()
        require(trunk.num_written <= trunk.length + trunk.num_drafted, "more is written than there is")
        require(checked.text_of(trunk.pages, trunk.num_written) == text, "a trunk does not stand for its text")
    holders = [lane.trunk.pages for lane in lanes] + [lane.branches._pages for lane in lanes]
    speculator.preparation.pages.check(holders)
    scratch = [page for lane in lanes for page in lane.branches._pages]
    require(len(set(scratch)) == len(scratch), "two trees share scratch pages")
    require(not set(scratch) & {page for lane in lanes for page in lane.trunk.pages}, "a trunk's page is scratch")


@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("budget", [0, 1, 9, 24])
def test_tokens_are_the_oracles(pair: Pair, k: int, budget: int) -> None:
    for temperature, top_k in ((0.0, 0), (0.8, 0), (1.2, 12)):
        params = SamplingParams(max_tokens=32, temperature=temperature, top_k=top_k, seed=10 * k + budget)
        options = SpeculatorOptions(num_speculative_tokens=k, budget=budget)
        ours, _, _ = decoded(pair, [[1, 2, 3]], [params], Demand(k, budget), options)
        ssd = SSDOptions(budget=budget) if budget else None
        assert ours == [oracle(pair, [1, 2, 3], params, k, ssd)]


@pytest.mark.parametrize("spread", list(Spread))
@pytest.mark.parametrize("fallback", list(Fallback))
def test_greedy_tokens_are_the_targets_for_every_fan_out_and_fallback(
    pair: Pair, spread: Spread, fallback: Fallback
) -> None:
    for seed, budget in enumerate((2, 16)):
        prompt = generator(seed, "test.drafting").integers(32, size=6).tolist()
        ours, speculator, _ = decoded(pair, [prompt], [GREEDY], Demand(5, budget, fallback, spread))
        assert ours == [oracle(pair, prompt, GREEDY, 5, method="none")]
        assert speculator.accounts.hits > 0


@pytest.mark.parametrize(
    "options",
    [
        SpeculatorOptions(forced="hit"),
        SpeculatorOptions(forced="miss"),
        SpeculatorOptions(forced="alternating"),
        SpeculatorOptions(stride=3),
        SpeculatorOptions(stride=32),
        SpeculatorOptions(prefill_chunk=1),
        SpeculatorOptions(max_depth=2, extend=True),
        SpeculatorOptions(extend=True),
    ],
)
def test_hits_misses_and_the_size_of_steps_change_no_token(pair: Pair, options: SpeculatorOptions) -> None:
    """A draft's numbers belong to positions and its length is the same, so not even sampled tokens differ."""
    prompts = [[1, 2, 3, 4, 5, 6, 7], [9, 8], [4, 4, 4, 4]]
    params = [SamplingParams(max_tokens=30, temperature=t, seed=s) for s, t in enumerate((0.0, 0.9, 1.1))]
    ours, speculator, _ = decoded(pair, prompts, params, Demand(5, 12), options)
    if options.max_depth is None:
        assert ours == [oracle(pair, prompt, own, 5) for prompt, own in zip(prompts, params, strict=True)]
    else:
        assert ours[0] == oracle(pair, prompts[0], params[0], 5)
    accounts = speculator.accounts
    assert (accounts.hits == 0) == (options.forced == "miss")
    assert (accounts.misses == 0) == (options.forced == "hit")


def test_late_trees_are_answered_with_what_is_ready(pair: Pair) -> None:
    """Whatever depth the tree has reached is sent, or drafted on to the full length; the tokens are the target's."""
    reference = oracle(pair, [1, 2, 3], GREEDY, 6, method="none")
    lengths: dict[int, set[int]] = {}
    for units in (0, 1, 3, 5):
        ours, speculator, bench = decoded(pair, [[1, 2, 3]], [GREEDY], Demand(6, 16, Fallback.NONE), work_limit=units)
        assert ours == [reference]
        drafts = [draft for sample in bench.samples for draft in sample.drafts]
        lengths[units] = {len(draft.tokens) for draft in drafts if draft.source == "cache"}
        # Only the last tree, of which less is wanted, can be complete.
        assert speculator.accounts.complete <= 1
    assert lengths[0] == set()
    assert max(lengths[3]) == 2
    assert max(lengths[5]) == 4
    ours, speculator, bench = decoded(
        pair, [[1, 2, 3]], [GREEDY], Demand(6, 16, Fallback.NONE), SpeculatorOptions(extend=True), work_limit=3
    )
    assert ours == [reference]
    full = [len(draft.tokens) for draft in bench.samples[0].drafts if draft.source == "cache"]
    assert full.count(6) > len(full) // 2


def test_requests_together_are_each_as_alone(pair: Pair) -> None:
    rng = generator(3, "test.together")
    prompts = [rng.integers(32, size=rng.integers(1, 20)).tolist() for _ in range(7)]
    params = [
        SamplingParams(max_tokens=int(rng.integers(1, 40)), temperature=float(rng.choice([0.0, 0.7, 1.3])), seed=seed)
        for seed in range(7)
    ]
    together, _, _ = decoded(pair, prompts, params, Demand(4, 10))
    alone = [decoded(pair, [prompt], [own], Demand(4, 10))[0][0] for prompt, own in zip(prompts, params, strict=True)]
    assert together == alone
    assert together == [oracle(pair, prompt, own, 4) for prompt, own in zip(prompts, params, strict=True)]


def test_the_draft_that_is_the_target_is_always_right_and_always_foreseen(pair: Pair) -> None:
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=48, temperature=temperature)
        for options in (SpeculatorOptions(), SpeculatorOptions(forced="hit")):
            _, speculator, bench = decoded((pair[0], pair[0]), [[3, 1, 4]], [params], Demand(5, 16), options)
            sample = bench.samples[0]
            for draft, verdict in zip(sample.drafts, sample.verdicts, strict=True):
                assert verdict.accepted == len(draft.tokens)
            # One token comes without a draft; the others in rounds of six.
            assert len(sample.drafts) == 1 + -(-47 // 6)
            if temperature == 0.0:
                assert speculator.accounts.misses == 0


def test_logits_behind_the_trunk_are_those_of_a_fresh_reading(pair: Pair) -> None:
    model = paged(pair[1], 256)
    source, speculator = make_source(model, Demand(5, 12))
    bench = Bench(pair[0], source)
    bench.add([1, 2, 3, 4, 5], SamplingParams(max_tokens=40, seed=2))
    num_checked = 0
    while bench.round():
        for lane in speculator._lanes.values():
            trunk = lane.trunk
            end = trunk.num_written
            share = trunk.share(end - 1, end, 1, np.arange(300, dtype=np.int32))
            rows = rows_of([share])
            with torch.inference_mode():
                fresh = pair[1](torch.tensor([trunk.text[:end].tolist()]))[0, -1]
            torch.testing.assert_close(model.logits(rows)[0].double(), fresh, rtol=0, atol=1e-4)
            num_checked += 1
    assert num_checked > 5


def test_saguaro_draws_from_the_law_that_it_sends(pair: Pair) -> None:
    """Below 1 the constant changes laws, the same way in prepared and late drafts, and greedy drafts not at all."""
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=40, temperature=temperature, seed=4)
        options = SpeculatorOptions(saguaro=0.3, budget=12, num_speculative_tokens=4)
        source, _ = make_source(pair[1], Demand(4, 12), options)
        bench = Bench(pair[0], source)
        bench.add([1, 2, 3], params)
        bench.run()
        drafts = [draft for draft in bench.samples[0].drafts if draft.tokens]
        assert {draft.source for draft in drafts} == {"cache", "draft"}
        text = [1, 2, 3]
        if temperature == 0.0:
            assert all(draft.laws_KV is None for draft in drafts)
            continue
        changed: dict[str, list[float]] = {"cache": [], "draft": []}
        for draft, verdict in zip(bench.samples[0].drafts, bench.samples[0].verdicts, strict=True):
            if draft.laws_KV is not None:
                with torch.inference_mode():
                    logits = pair[1](torch.tensor([text + draft.tokens]))[0, len(text) - 1 : -1]
                raw = torch.softmax(logits, dim=-1)
                assert float((draft.laws_KV.sum(-1) - 1).abs().max()) < 1e-12
                changed[draft.source].append(float((raw - draft.laws_KV).abs().amax(-1).min()))
                numbers = [Chance(4).draft(len(text) + at) for at in range(len(draft.tokens))]
                assert draw(draft.laws_KV, numbers) == draft.tokens
            text += [*draft.tokens[: verdict.accepted], int(verdict.bonus or 0)]
        assert min(changed["cache"] + changed["draft"]) > 1e-3


def test_misses_of_one_moment_are_drafted_in_one_pass_and_hold_no_hit_up(pair: Pair) -> None:
    checked = CheckedModel(paged(pair[1], 256))
    speculator = Speculator(checked, PageManager(256, 4), SpeculatorOptions(budget=0, defer=True))
    tags = {}
    for request in range(5):
        prompt = [request + 1, 2, 3]
        tags[request] = Tag(request, 0, 0, extend_hash(EMPTY_HASH, prompt))
        sampling = DraftSampling(temperature=float(request % 2), seed=request)
        message = Prefill(tags[request], np.array(prompt, dtype=np.int32), sampling, 60, Demand(6))
        assert speculator.handle(encode(message)) == []
    while speculator.work():
        pass
    passes = checked.num_passes
    for request, tag in tags.items():
        tag = Tag(request, 0, 1, extend_hash(tag.prefix_hash, [9]))
        assert speculator.handle(encode(Outcome(tag, 0, [9], Demand(2 + request)))) == []
    assert speculator.work()
    assert checked.num_passes == passes + 6
    specs = [decode(frame) for frame in speculator.replies()]
    assert [len(spec.tokens) for spec in specs if isinstance(spec, Spec)] == [2, 3, 4, 5, 6]
    assert not speculator.work()


def test_known_texts_are_read_once(pair: Pair) -> None:
    prompt = list(range(1, 30))
    params = SamplingParams(max_tokens=20, temperature=0.0)
    checked = CheckedModel(paged(pair[1], 256))
    source, speculator = make_source(checked, Demand(4, 8))
    bench = Bench(pair[0], source, pair[1])
    first = bench.add(prompt, params)
    bench.run()
    num_read = speculator.accounts.read
    second = bench.add(prompt, params)
    third = bench.add(prompt, params)
    while bench.round():
        check_trunks(speculator, checked)
    assert first.tokens == second.tokens == third.tokens
    assert num_read == 28
    assert speculator.accounts.read == 28


def test_few_pages_mean_fewer_drafts_and_nothing_else(pair: Pair) -> None:
    prompts = [[seed, 1, 2, 3, 4] for seed in range(3)]
    reference = [oracle(pair, prompt, GREEDY, 5, method="none") for prompt in prompts]
    answered = []
    for num_pages in (1, 6, 20, 200):
        checked = CheckedModel(paged(pair[1], num_pages))
        source, speculator = make_source(checked, Demand(5, 8))
        bench = Bench(pair[0], source, pair[1])
        for prompt in prompts:
            bench.add(prompt, GREEDY)
        while bench.round():
            check_trunks(speculator, checked)
        assert [sample.tokens for sample in bench.samples] == reference
        assert speculator.preparation.pages.num_used == 0
        answered.append(speculator.accounts.used + speculator.accounts.drafted)
        assert (speculator.accounts.out_of_pages > 0) == (num_pages < 200)
    assert answered == sorted(answered)
    assert answered[0] == 0


def test_the_end_of_the_context_and_texts_beyond_it(new_pair: Callable[..., Pair]) -> None:
    target = new_pair(16, 1, positions=40)[0]
    for positions in (40, 24, 12, 4):
        pair = (target, new_pair(16, 1, positions=positions)[1])
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=None, temperature=temperature, seed=3)
            ours, speculator, _ = decoded(pair, [[1] * 10], [params], Demand(5, 12))
            assert len(ours[0]) == 30
            if temperature == 0.0:
                assert ours == [oracle(pair, [1] * 10, params, 5, method="none")]
            if positions == 4:
                assert speculator.accounts.drafted == 0
    params = SamplingParams(max_tokens=None, seed=3)
    whole = (target, new_pair(16, 1, positions=40)[1])
    for options in (SpeculatorOptions(), SpeculatorOptions(forced="miss")):
        ours, _, _ = decoded(whole, [[1] * 10], [params], Demand(5, 0), options)
        assert ours == [oracle(whole, [1] * 10, params, 5)]


def test_too_many_requests_push_the_oldest_out_and_they_come_back(pair: Pair) -> None:
    prompts = [[seed, 5] for seed in range(5)]
    ours, speculator, _ = decoded(pair, prompts, [GREEDY] * 5, Demand(4, 8), SpeculatorOptions(max_requests=3))
    assert ours == [oracle(pair, prompt, GREEDY, 4, method="none") for prompt in prompts]
    assert speculator.accounts.evicted > 0
    assert speculator.accounts.resyncs > 0


def answer(speculator: Speculator, tag: Tag, accepted: int, tokens: list[int], demand: Demand) -> list[Spec]:
    replies = [decode(frame) for frame in speculator.handle(encode(Outcome(tag, accepted, tokens, demand)))]
    return [reply for reply in replies if isinstance(reply, Spec)]


def test_frames_about_another_state_are_answered_with_nothing(pair: Pair) -> None:
    speculator = Speculator(paged(pair[1]), PageManager(128, 4))
    prompt, demand = [1, 2, 3], Demand(4, 8)
    start = Tag(1, 1, 0, extend_hash(EMPTY_HASH, prompt))

    def prefill(tag: Tag = start) -> None:
        speculator.handle(encode(Prefill(tag, np.array(prompt, dtype=np.int32), DraftSampling(0.0), 99, demand)))

    def after(tag: Tag, tokens: list[int], **changed: int) -> Tag:
        next_ = Tag(tag.request, tag.epoch, tag.round + 1, extend_hash(tag.prefix_hash, tokens))
        return next_._replace(**changed)

    (unknown,) = answer(speculator, after(start, [5]), 0, [5], demand)
    assert (unknown.resync, unknown.tokens) == (True, [])
    prefill()
    good = after(start, [5])
    (spec,) = answer(speculator, good, 0, [5], demand)
    assert (len(spec.tokens), spec.tag) == (4, good)
    assert answer(speculator, good, 0, [5], demand) == []
    (stale,) = answer(speculator, good._replace(prefix_hash=1), 0, [5], demand)
    assert (stale.resync, stale.tokens) == (False, [])
    (old,) = answer(speculator, after(good, [6], epoch=0), 0, [6], demand)
    assert (old.resync, old.tokens) == (False, [])
    for wrong in (
        after(good, [6], round=5),
        after(good, [6], epoch=2),
        after(good, [6], prefix_hash=7),
    ):
        speculator.handle(encode(Free(start)))
        prefill()
        answer(speculator, good, 0, [5], demand)
        (lost,) = answer(speculator, wrong, 0, [6], demand)
        assert (lost.resync, lost.tokens) == (True, [])
        assert speculator._lanes == {}
    prefill()
    speculator.handle(encode(Free(start._replace(epoch=0))))
    assert 1 in speculator._lanes
    prefill(start._replace(epoch=0))
    assert speculator._lanes[1].trunk.epoch == 1
    speculator.handle(encode(Shutdown()))
    assert speculator._lanes == {}
    assert speculator.accounts.stale == 3
    assert speculator.accounts.repeated == 1


def test_frames_without_sense_are_answered_with_an_error(pair: Pair) -> None:
    speculator = Speculator(paged(pair[1]), PageManager(128, 4))
    rng = generator(2, "test.sense")
    for _ in range(50):
        (reply,) = speculator.handle(rng.bytes(int(rng.integers(0, 200))))
        assert "frame" in decode(reply).text  # pyright: ignore
    wrong = Prefill(Tag(1), np.array([1, 2], dtype=np.int32), DraftSampling(), 9, Demand(1))
    assert speculator.handle(encode(wrong)) == []
    assert speculator._lanes == {}
    assert speculator.accounts.malformed == 51


def test_a_damaged_model_leaves_requests_without_drafts(new_pair: Callable[..., Pair]) -> None:
    target, draft = new_pair(16, 0)
    with torch.no_grad():
        draft.norm.weight.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        source, _ = make_source(draft, Demand(4, 8))
        bench = Bench(target, source)
        bench.add([1, 2], SamplingParams(max_tokens=20, temperature=temperature))
        bench.run()
        assert {draft.source for draft in bench.samples[0].drafts} <= {"none", "ngram"}
        assert "no numbers" in str(source.health.warning) or "damaged" in str(source.health.warning)


def test_the_pool_must_be_the_models(pair: Pair) -> None:
    with pytest.raises(InputError, match="pages of 8"):
        Speculator(paged(pair[1]), PageManager(128, 8))
    with pytest.raises(InputError, match="129 pages"):
        Speculator(paged(pair[1]), PageManager(129, 4))


def test_foresight_follows_what_it_sees() -> None:
    foresight = Foresight("empirical", 16, 4)
    assert sum(foresight.fan_out("cache", 4)) == sum(foresight.fan_out("none", 0)) == 16
    for _ in range(300):
        foresight.observe("draft", 1, 4, 3)
    after_rejection = foresight.fan_out("cache", 4)
    assert after_rejection[1] >= 4
    assert after_rejection[1] == max(after_rejection)
    assert foresight.acceptance == pytest.approx(0.5, abs=0.02)
    assert sum(foresight.fan_out("cache", 2, budget=5)) == 5
    assert foresight.fan_out("cache", 4, kind="uniform") == [4, 3, 3, 3, 3]
    others = Foresight("empirical", 16, 4)
    for _ in range(300):
        others.observe("ngram", 0, 3, 0)
    assert others.acceptance == pytest.approx(0.7)


def battery(pair: Pair) -> None:
    """What must catch a defect: the oracle's tokens, true laws, slots that stand for texts, a draft that is right."""
    prompts, params = [[1, 2, 3], [7, 7]], [SamplingParams(max_tokens=30, seed=1), GREEDY]
    ours, _, _ = decoded(pair, prompts, params, Demand(5, 12), SpeculatorOptions(num_speculative_tokens=5))
    require(ours == [oracle(pair, each, own, 5) for each, own in zip(prompts, params, strict=True)], "other tokens")
    _, _, bench = decoded((pair[0], pair[0]), [[3, 1, 4]], [SamplingParams(max_tokens=48)], Demand(5, 12))
    sample = bench.samples[0]
    kept = [
        verdict.accepted == len(draft.tokens) for draft, verdict in zip(sample.drafts, sample.verdicts, strict=True)
    ]
    require(all(kept) and len(kept) == 9, "a draft that is the target is not always right")


def position_by_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Branches.share

    def share(self: Branches, only: int | None = None) -> Share:
        right = made(self, only)
        return right._replace(positions_N=right.positions_N + np.int32(self.ready > 0))

    monkeypatch.setattr(Branches, "share", share)


def ancestors_of_a_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Branches.share

    def share(self: Branches, only: int | None = None) -> Share:
        right = made(self, only)
        assert right.extra_NE is not None
        mixed = right.extra_NE.copy()
        mixed[:, :-1] = np.roll(mixed[:, :-1], 1, axis=0)
        return right._replace(extra_NE=mixed)

    monkeypatch.setattr(Branches, "share", share)


def laws_of_a_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Branches.chain

    def chain(self: Branches, branch: int) -> tuple[list[int], torch.Tensor | None]:
        return made(self, branch)[0], made(self, (branch + 1) % self.num_branches)[1]

    monkeypatch.setattr(Branches, "chain", chain)


def key_without_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: Preparation, lane: Lane, accepted: int, token: int) -> int | None:
        self._to_glue.pop(lane.trunk.request, None)
        self._to_grow.pop(lane.trunk.request, None)
        guesses = [] if not lane.branches.num_branches else lane.branches._tokens_DB[0].tolist()
        return guesses.index(token) if token in guesses else None

    monkeypatch.setattr(Preparation, "take", take)


def roll_back_one_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Trunk.commit

    def commit(self: Trunk, tokens: list[int]) -> int:
        written = self.num_written
        matched = made(self, tokens)
        self.num_written = min(written, self.num_written + 1)
        return matched

    monkeypatch.setattr(Trunk, "commit", commit)


def branches_in_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Branches.reserve

    def reserve(self: Branches, budget: int, depth: int) -> bool:
        got = made(self, budget, depth)
        last = self._trunk.slots[self._trunk.length - 1]
        self._slots_DB[0, 0] = self._extra_BD[0, 0] = last
        return got

    monkeypatch.setattr(Branches, "reserve", reserve)


def rejected_token_may_be_the_bonus(monkeypatch: pytest.MonkeyPatch) -> None:
    made = preparation_module.guess
    monkeypatch.setattr(
        preparation_module, "guess", lambda model, shares, drafted, width: made(
            model, shares, [[-1] * len(tokens) for tokens in drafted], width
        ),
    )  # fmt: skip


DEFECTS = [
    position_by_slot,
    ancestors_of_a_sibling,
    laws_of_a_sibling,
    key_without_length,
    roll_back_one_too_few,
    branches_in_the_trunk,
]


def test_the_battery_passes(pair: Pair) -> None:
    battery(pair)


@pytest.mark.parametrize("plant", DEFECTS, ids=lambda plant: plant.__name__)
def test_planted_defects_are_seen(
    pair: Pair, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        battery(pair)


def test_a_trunk_with_a_hole_is_right_less_often(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """This defect breaks no law: the tokens stay the target's, and only the draft's quality tells."""

    def accepted_share() -> float:
        source, _ = make_source(pair[1], Demand(4, 0))
        bench = Bench(pair[0], source)
        samples = [bench.add([seed, 3], SamplingParams(max_tokens=50, temperature=0.0)) for seed in range(4)]
        assert bench.run() == [oracle(pair, s.request.prompt, s.request.params, 4, method="none") for s in samples]
        kept = sum(verdict.accepted for sample in samples for verdict in sample.verdicts)
        return kept / sum(len(draft.tokens) for sample in samples for draft in sample.drafts)

    right = accepted_share()
    made = Preparation._next_step

    def feed_the_last_only(self: Preparation, trunk: Trunk, depth: int, num_later: int) -> Step:
        trunk.num_written = trunk.length + depth - 1
        return made(self, trunk, depth, num_later)

    monkeypatch.setattr(Preparation, "_next_step", feed_the_last_only)
    assert accepted_share() < right - 0.02


def test_foreseen_verdicts_leave_the_rejected_token_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a rejected token again wastes a slot: fewer verdicts are foreseen."""

    def hits() -> int:
        prompts = [[seed, 3] for seed in range(4)]
        _, speculator, _ = decoded(pair, prompts, [GREEDY] * 4, Demand(5, 8, spread=Spread.UNIFORM))
        return speculator.accounts.hits

    right = hits()
    rejected_token_may_be_the_bonus(monkeypatch)
    assert hits() < right


def test_sources_of_another_request_are_never_used(pair: Pair) -> None:
    """Equal texts, equal rounds, other requests: what was prepared for one is not taken for the other."""
    params = [SamplingParams(max_tokens=30, seed=seed) for seed in (1, 2)]
    ours, _, _ = decoded(pair, [[1, 2, 3]] * 2, params, Demand(5, 16))
    assert ours == [oracle(pair, [1, 2, 3], own, 5) for own in params]


def test_the_pair_used_here_is_not_trivial(pair: Pair) -> None:
    source: RemoteSource
    source, speculator = make_source(make_pair(32, 0)[1], Demand(5, 12))
    bench = Bench(pair[0], source)
    bench.add([1, 2, 3], SamplingParams(max_tokens=60, temperature=0.0))
    bench.run()
    accounts = speculator.accounts
    assert min(accounts.hits, accounts.misses) > 0
    assert int((accounts.hits_by_length > 0).sum()) >= 2
    assert int(accounts.ranks_rejected.sum() + accounts.ranks_accepted.sum()) > 5
    assert accounts.hits_after_miss + accounts.misses_after_miss <= accounts.misses
