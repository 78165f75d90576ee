"""The simulator: closed forms, the published table, and replays of what the real models do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forethought.app.simulate import simulate_verb
from forethought.core import files
from forethought.core.config import to_dict
from forethought.core.errors import ArtefactError, ConfigError, DataError, InputError
from forethought.decode import SamplingParams, generate
from forethought.decode.planning.curves import Curve
from forethought.decode.planning.model_of_speed import CostCurves, Plan
from forethought.decode.simulate import (
    Behaviour,
    Profile,
    RankLaw,
    Recording,
    Simulated,
    VirtualClock,
    comparison,
    critical_batch_size,
    load_profile,
    profile_names,
    simulate,
    ssd_speedup,
    tokens_per_round,
)
from forethought.decode.simulate.behaviour import BEYOND, Fate
from forethought.decode.simulate.calibrating import TimedStep, calibrated, speed
from forethought.decode.simulate.measuring import measure_profile, read_prompts, record
from forethought.nn import LanguageModel

PAPER = "h100-llama70b"
# The unit of time is a verification; a backup of 7 passes takes 0.565 of it.
UNIT = CostCurves(target=Curve.of({1: 1.0, 2048: 1.0}), draft=Curve.of({1: 0.565 / 7, 4096: 0.565 / 7}))


def _always(hit: float) -> RankLaw:
    """A law by which any number of guesses is right with the same chance."""
    return RankLaw(caught=(hit,))


def _steady(
    costs: CostCurves, behaviour: Behaviour, plan: Plan, *, batch_size: int = 1, tokens: int = 20000
) -> Simulated:
    return simulate(
        costs,
        behaviour,
        plan,
        batch_size=batch_size,
        num_requests=batch_size,
        output_tokens=tokens // batch_size,
        draws="stratified",
    )


@pytest.mark.parametrize(("acceptance", "length"), [(0.3, 2), (0.6, 7), (0.87, 6), (0.95, 12), (1.0, 4), (0.0, 3)])
def test_tokens_per_round_are_the_closed_form(acceptance: float, length: int):
    done = _steady(UNIT, Behaviour(acceptance=(acceptance,)), Plan("draft", length))
    assert done.tokens_per_round == pytest.approx(tokens_per_round(acceptance, length), rel=0.005)
    seconds = 1.0 + length * 0.565 / 7
    assert done.tokens_per_second == pytest.approx(tokens_per_round(acceptance, length) / seconds, rel=0.005)


@pytest.mark.parametrize("hit", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("jit_length", [7, 3])
def test_ssd_is_as_fast_as_theorem_7_says(hit: float, jit_length: int):
    behaviour = Behaviour(acceptance=(0.8,), rejected=_always(hit), accepted=_always(hit))
    done = _steady(UNIT, behaviour, Plan("ssd", 7, 16, "uniform", "draft", jit_length))
    backup = jit_length * 0.565 / 7
    wanted = ssd_speedup(hit, tokens_per_round(0.8, 7), tokens_per_round(0.8, jit_length), 0.6, backup)
    assert done.tokens_per_second == pytest.approx(wanted, rel=0.005)
    assert done.sources.get("cache", 0) / len(done.rounds) == pytest.approx(hit, abs=0.005)


def test_batches_wait_for_their_misses_up_to_the_critical_batch_size():
    hit, acceptance, backup = 0.9, 0.87, 0.2
    costs = CostCurves(target=Curve.of({1: 1.0}), draft=Curve.of({1: backup / 7}))
    behaviour = Behaviour(acceptance=(acceptance,), rejected=_always(hit), accepted=_always(hit))
    good = tokens_per_round(acceptance, 7)
    critical = critical_batch_size(hit, good, good, 1.0, backup)
    assert 4.0 < critical < 7.0
    at_critical = [ssd_speedup(hit, good, miss, 0.6, late, critical) for miss, late in ((good, backup), (1.0, 0.0))]
    assert at_critical[0] == pytest.approx(at_critical[1], rel=1e-9)
    for batch_size in (1, 3, 9):
        made = {}
        for fallback, tokens_miss, late in (("draft", good, backup), ("none", 1.0, 0.0)):
            plan = Plan("ssd", 7, 16, "uniform", fallback, 7)
            tokens = max(20000, 5000 * batch_size)
            made[fallback] = simulate(
                costs,
                behaviour,
                plan,
                batch_size=batch_size,
                num_requests=batch_size,
                output_tokens=tokens // batch_size,
            )
            wanted = batch_size * ssd_speedup(hit, good, tokens_miss, 0.6, late, batch_size)
            assert made[fallback].tokens_per_second == pytest.approx(wanted, rel=0.015), (batch_size, fallback)
        slow_wins = made["draft"].tokens_per_second > made["none"].tokens_per_second
        assert slow_wins == (batch_size < critical), batch_size


def test_critical_batch_sizes_are_those_of_the_brief():
    assert critical_batch_size(0.9, 5.1, 5.1, 1.0, 0.565) == pytest.approx(1.6, abs=0.05)
    assert critical_batch_size(0.9, 5.1, 5.1, 1 / 0.7, 0.565) == pytest.approx(1.4, abs=0.05)
    assert critical_batch_size(0.9, 5.1, 5.1, 1.0, 0.01) == np.inf


def test_the_published_table_is_reproduced_within_two_per_cent():
    result = comparison(load_profile(PAPER), num_requests=12)
    assert result["simulated"] is True
    assert [row["dataset"] for row in result["rows"]] == ["HumanEval", "UltraFeedback", "Alpaca", "GSM8K"]
    assert 0.0 < result["largest_difference"] <= 0.02
    for row in result["rows"]:
        for method, figure in result["published"][row["dataset"]].items():
            assert row[method] == pytest.approx(figure, rel=0.02), (row["dataset"], method)
        assert 1.5 < row["ssd_over_sd"] < 1.65
    assert "arXiv 2603.03251" in result["provenance"]
    assert "not measured" in result["note"]


@pytest.mark.parametrize(
    ("hit", "published"), [(0.0, 171), (0.5, 208), (0.7, 228), (0.8, 240), (0.9, 253), (0.95, 260), (1.0, 267)]
)
def test_the_speed_follows_the_hit_rate_as_the_brief_says(hit: float, published: float):
    profile = load_profile(PAPER)
    behaviour = Behaviour(acceptance=(0.872,), rejected=_always(hit), accepted=_always(hit))
    done = _steady(profile.costs, behaviour, profile.ssd.plan("ssd"), tokens=8000)
    assert done.tokens_per_second == pytest.approx(published, rel=0.01)


def test_a_tree_that_is_late_is_used_as_deep_as_it_is():
    # The glue pass and three depths end before the verdict, the fourth 0.2 after it: it is waited for, more are not.
    costs = CostCurves(target=Curve.of({1: 1.0}), draft=Curve.of({1: 0.24}))
    behaviour = Behaviour(acceptance=(1.0,), rejected=_always(1.0), accepted=_always(1.0))
    done = _steady(costs, behaviour, Plan("ssd", 12, 16), tokens=500)
    foreseen = [happened for happened in done.rounds if happened.verdicts[0][0] == "cache"][1:-1]
    assert {happened.verdicts[0][1] for happened in foreseen} == {4}
    assert {round(happened.stall, 9) for happened in foreseen} == {0.2}
    # A draft made after a miss holds up the preparation as it holds up the target: no depth is won by it.
    some = Behaviour(acceptance=(1.0,), rejected=_always(0.5), accepted=_always(0.5))
    mixed = _steady(costs, some, Plan("ssd", 12, 16, "empirical", "draft", 3), tokens=500)
    lengths = {
        name: {h.verdicts[0][1] for h in mixed.rounds[:-2] if h.verdicts[0][0] == name} for name in mixed.sources
    }
    assert lengths["cache"] == {4}
    assert lengths["draft"] == {3}
    # One that has not even forked has nothing to offer.
    slow = CostCurves(target=Curve.of({1: 1.0}), draft=Curve.of({1: 1.5}))
    none = _steady(slow, behaviour, Plan("ssd", 4, 16, "empirical", "none"), tokens=100)
    assert set(none.sources) == {"none"}


def test_the_host_works_while_drafts_are_made():
    behaviour = Behaviour(acceptance=(0.5,))
    costs = CostCurves(target=Curve.of({1: 1.0}), draft=Curve.of({1: 0.1}), host=0.25)
    drafting, plain = (_steady(costs, behaviour, plan, tokens=200) for plan in (Plan("draft", 4), Plan()))
    assert plain.rounds[5].total == pytest.approx(1.25)
    assert drafting.rounds[5].total == pytest.approx(1.4)
    assert drafting.rounds[5].stall == pytest.approx(0.15)


def test_wider_trees_cost_what_their_rows_cost():
    draft = Curve.of({1: 0.01, 8: 0.01, 64: 0.2})
    costs = CostCurves(target=Curve.of({1: 1.0}), draft=draft)
    behaviour = Behaviour(acceptance=(1.0,), rejected=_always(1.0), accepted=_always(1.0))
    narrow, wide = (_steady(costs, behaviour, Plan("ssd", 6, budget), tokens=500) for budget in (8, 64))
    assert narrow.rounds[10].stall == 0.0
    assert narrow.rounds[10].verdicts[0][1] == 6
    # The verdict comes within the fifth depth of 0.2, which ends at 1.01.
    assert wide.rounds[10].stall == pytest.approx(0.01)
    assert wide.rounds[10].verdicts[0][1] == 5


def test_the_same_text_is_met_whatever_the_plan():
    behaviour = Behaviour(acceptance=(0.7,), ngram_found=0.5, ngram_acceptance=0.6)
    first, again = (simulate(UNIT, behaviour, Plan("draft", 5), output_tokens=300) for _ in range(2))
    assert first.rounds == again.rounds
    other = simulate(UNIT, behaviour, Plan("draft", 5), output_tokens=300, seed=1)
    assert other.rounds != first.rounds
    # A position that a short draft got past, a long one gets past too.
    long = simulate(UNIT, behaviour, Plan("draft", 12), output_tokens=300)
    assert long.tokens_per_round > first.tokens_per_round


def test_ranks_follow_their_law():
    law = RankLaw(miss=0.4, exponent=0.8)
    ranks = np.array([law.rank(uniform) for uniform in (np.arange(20000) + 0.5) / 20000])
    for num_guesses in (1, 2, 3, 8, 32):
        assert np.mean(ranks < num_guesses) == pytest.approx(law.hit(num_guesses), abs=2e-3)
    listed = RankLaw(caught=(0.5, 0.7, 0.7, 0.9))
    ranks = np.array([listed.rank(uniform) for uniform in (np.arange(1000) + 0.5) / 1000])
    assert [int((ranks == rank).sum()) for rank in (0, 1, 2, 3, BEYOND)] == [500, 200, 0, 200, 100]
    with pytest.raises(ConfigError, match="must not fall"):
        RankLaw(caught=(0.5, 0.4))


def test_a_recording_is_replayed_token_by_token():
    recording = Recording(ranks=(0, 0, 3, 0, 1, 0, 0, 0, 0, 2), ngrams=((2, 1),) * 10)
    behaviour = Behaviour(recordings=(recording,))

    def accepted(plan: Plan) -> list[tuple[int, int]]:
        done = simulate(UNIT, behaviour, plan, num_requests=1, output_tokens=10)
        return [happened.verdicts[0][1:] for happened in done.rounds]

    # The prompt's own step writes position 0; drafts begin at 1.
    assert accepted(Plan("draft", 3)) == [(3, 1), (3, 1), (3, 3), (0, 0)]
    assert accepted(Plan("ngram", 2, jit_length=2)) == [(2, 1), (2, 1), (2, 1), (2, 1), (0, 0)]


def test_a_rejected_token_is_not_among_the_guesses():
    fate = Fate(Behaviour(recordings=(Recording(ranks=(0, 0, 3, 0, 0)),)), 0, 0, "independent")
    assert fate.verdict("draft", 3, 0, 0) == (2, 2)
    assert fate.verdict("draft", 2, 0, 0) == (2, 3)
    assert fate.verdict("none", 0, 2, 0) == (0, 3)
    assert fate.verdict("draft", 2, 3, 0) == (2, 0)


@pytest.mark.parametrize("length", [1, 3, 6])
def test_replaying_a_real_pair_takes_the_rounds_that_it_took(pair: tuple[LanguageModel, LanguageModel], length: int):
    """A recording of the target's greedy text makes simulated drafting take exactly the real rounds."""
    target, draft = pair
    params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    recordings: list[Recording] = []
    accepted_really: list[int] = []
    for seed in range(4):
        prompt = [(7 * seed + 3 * place) % 32 for place in range(6)]
        text = generate(target, prompt, params, method="none").result().token_ids
        really = generate(target, prompt, params, method="draft", draft=draft, num_speculative_tokens=length).result()
        assert really.token_ids == text
        recordings.append(record(draft, prompt, text))
        accepted_really.append(really.statistics.accepted)
    assert sum(accepted_really) > 0
    for recording, accepted in zip(recordings, accepted_really, strict=True):
        behaviour = Behaviour(recordings=(recording,))
        done = simulate(UNIT, behaviour, Plan("draft", length), num_requests=1, output_tokens=60)
        # The oracle drafts for the first token too, behind the prompt; the engine decides that one with the prompt.
        replayed = sum(happened.verdicts[0][2] for happened in done.rounds)
        fresh = simulate(UNIT, _shifted(recording), Plan("draft", length), num_requests=1, output_tokens=61)
        assert sum(happened.verdicts[0][2] for happened in fresh.rounds) == accepted
        assert abs(replayed - accepted) <= length


def _shifted(recording: Recording) -> Behaviour:
    return Behaviour(recordings=(Recording(ranks=(0, *recording.ranks), ngrams=((0, 0), *recording.ngrams)),))


def test_a_recording_knows_what_prompt_lookup_would_do(pair: tuple[LanguageModel, LanguageModel]):
    recording = record(pair[1], [1, 2, 3, 4, 1, 2], [3, 4, 1, 9, 9])
    assert recording.ngrams[0] == (4, 3)
    assert recording.ngrams[1][1] == 2
    assert len(recording.ranks) == 5


def test_profiles_are_found_by_name_or_file_and_refused_with_a_hint(tmp_path: Path):
    assert PAPER in profile_names()
    profile = load_profile(PAPER)
    path = tmp_path / "mine.json"
    files.write_json(path, to_dict(profile))
    assert load_profile(path) == profile
    with pytest.raises(ConfigError, match=PAPER):
        load_profile("h100-lama70b")
    broken: dict[str, Any] = json.loads(path.read_text())
    broken["costs"]["lnk"] = 1.0
    files.write_json(path, broken)
    with pytest.raises(ConfigError, match="link"):
        load_profile(path)
    files.write_json(path, broken | {"format": 2})
    with pytest.raises(ArtefactError, match="format 2"):
        load_profile(path)


def test_the_clock_only_goes_forward():
    clock = VirtualClock()
    clock.advance(2.0)
    clock.advance_to(1.0)
    assert clock() == 2.0
    with pytest.raises(InputError):
        clock.advance(-1.0)


def test_the_verb_prints_the_table_and_returns_it(capsys: pytest.CaptureFixture[str]):
    result = simulate_verb(["--profile", PAPER, "--num-requests", "2", "--json"])
    assert result["kind"] == "simulate"
    assert result["simulated"] is True
    assert {"dataset", "ar", "sd", "ssd"} <= set(result["rows"][0])
    assert result["largest_difference"] < 0.05
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "SIMULATED" in shown.err
    json.dumps(result, allow_nan=False)
    batched = simulate_verb(["--profile", PAPER, "--num-requests", "4", "--batch-size", "4", "--json"])
    assert batched["published"] == {}
    assert batched["largest_difference"] is None
    assert batched["rows"][0]["ar"] > 3 * result["rows"][0]["ar"]


def test_the_verb_refuses_what_it_cannot_use(tmp_path: Path):
    with pytest.raises(ConfigError, match="batch_size 0"):
        simulate_verb(["--batch-size", "0"])
    with pytest.raises(ConfigError, match="--prompts"):
        simulate_verb(["--measure", "a", "b"])
    empty = tmp_path / "prompts.txt"
    empty.write_text("\n\n")
    with pytest.raises(DataError, match="no prompt"):
        read_prompts(empty, 4)
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt", 4)
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "one"}\n{"prompt": "two\\nlines"}\n')
    assert read_prompts(lines, 4) == ["one", "two\nlines"]


def test_costs_are_read_off_steps_as_they_were_paid():
    loop = CostCurves(
        target=Curve(sizes=(1, 8, 16), seconds=((1.0, 1.2, 2.0), (1.4, 1.6, 2.4)), contexts=(0, 400)),
        draft=Curve.of({1: 0.05, 16: 0.2}),
    )
    added, factor, pace, contention = 0.1, 1.3, 1.5, 1.2

    def paid(rows: int, context: int) -> float:
        return added + loop.target(rows, context) * (factor if rows > 1 else 1.0)

    def step(rows: int, context: int, source: str, *, wait: float, host: float, slowed: float = 1.0) -> TimedStep:
        verify = slowed * paid(rows, context)
        return TimedStep(rows, context, 2, source, verify, wait, verify + wait + host)

    plain = [step(1, context, "none", wait=0.0, host=0.09) for context in (50, 200, 350)]
    classic = [step(8, context, "draft", wait=7 * pace * 0.05, host=0.2) for context in (50, 200, 350)]
    foreseen = [step(8, 100, "cache", wait=0.1, host=0.25, slowed=contention) for _ in range(3)]
    foreseen.append(step(8, 300, "draft", wait=9.0, host=0.25, slowed=contention))
    costs = calibrated(loop, plain, classic, foreseen)
    for rows, context in ((1, 0), (8, 100), (16, 400)):
        assert costs.target(rows, context) == pytest.approx(paid(rows, context))
    assert costs.draft is not None
    assert costs.draft(1) == pytest.approx(pace * 0.05)
    found = (costs.host, costs.draft_link, costs.link, costs.contention)
    assert found == pytest.approx((0.09, 0.2, 0.35, contention))
    assert speed(plain) == pytest.approx(6 / sum(each.total for each in plain))


def test_passes_beside_a_draft_take_as_much_longer_as_the_profile_says():
    behaviour = Behaviour(acceptance=(0.7,))
    plan = Plan("ssd", 4, 8, jit_length=4)
    for policy, ratio in ((plan, 1.5), (Plan(), 1.0), (Plan("draft", 4), 1.0)):
        seconds = [
            sum(happened.verify for happened in simulate(costs, behaviour, policy, num_requests=1).rounds)
            for costs in (UNIT, replace(UNIT, contention=1.5))
        ]
        assert seconds[1] / seconds[0] == pytest.approx(ratio, rel=0.1)


@pytest.mark.nightly
def test_this_machine_can_be_measured_and_simulated(shared_data: Path, tmp_path: Path):
    models = shared_data / "models" / "pair"
    prompts = read_prompts(shared_data / "prompts" / "HumanEval.jsonl.gz", 3)
    profile: Profile = measure_profile(models / "target", models / "draft", prompts, output_tokens=48, repeats=5)
    files.write_json(tmp_path / "box.json", to_dict(profile))
    assert load_profile(tmp_path / "box.json") == profile
    result = comparison(profile, num_requests=3)
    assert set(profile.published["prompts"]) == {"ar", "sd", "ssd"}
    assert result["rows"][0]["ar"] > 0
    assert profile.costs.draft is not None
    assert profile.costs.draft(1) < profile.costs.target(1)
