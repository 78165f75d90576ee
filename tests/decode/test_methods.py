"""Every method gives the plain method's tokens at temperature 0, and its law at every other one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from forethought.core.errors import ConfigError, ForethoughtError, InputError
from forethought.core.rng import generator
from forethought.decode import (
    METHODS,
    PROPOSERS,
    CachedModel,
    Chance,
    DecodeState,
    Generation,
    OutcomeSpeculator,
    SamplingParams,
    SSDOptions,
    Verdict,
    acceptance,
    distribution,
    draw,
    generate,
)
from forethought.nn import LanguageModel, load_language_model

Pair = tuple[LanguageModel, LanguageModel]
GREEDY = SamplingParams(max_tokens=48, temperature=0.0)
SSD_VARIANTS = [
    SSDOptions(),
    SSDOptions(fallback="ngram", budget=3),
    SSDOptions(fallback="none", budget=1, fan_out="uniform"),
    SSDOptions(budget=9, fan_out="geometric", saguaro=0.5),
]


def prompts(count: int, vocab_size: int = 32) -> list[list[int]]:
    rng = generator(8, "test.prompts")
    return [rng.integers(vocab_size, size=rng.integers(1, 12)).tolist() for _ in range(count)]


def run(pair: Pair, prompt: list[int], params: SamplingParams, method: str, k: int = 5, **more: object) -> Generation:
    stream = generate(pair[0], prompt, params, method=method, draft=pair[1], num_speculative_tokens=k, **more)  # pyright: ignore
    return stream.result()


def num_greedy_differences(pair: Pair, each: list[list[int]], **chosen: object) -> int:
    wrong = 0
    for prompt in each:
        plain = run(pair, prompt, GREEDY, "none").token_ids
        wrong += sum(a != b for a, b in zip(plain, run(pair, prompt, GREEDY, **chosen).token_ids, strict=True))  # pyright: ignore
    return wrong


def test_plain_greedy_is_the_argmax_of_the_uncached_model(pair: Pair) -> None:
    for prompt in prompts(5):
        text = list(prompt)
        with torch.inference_mode():
            for _ in range(48):
                text.append(int(pair[0](torch.tensor([text]))[0, -1].argmax()))
        assert run(pair, prompt, GREEDY, "none").token_ids == text[len(prompt) :]


@pytest.mark.parametrize("method", ["draft", "ngram", "ssd"])
@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_greedy_speculation_gives_the_plain_tokens(pair: Pair, method: str, k: int) -> None:
    start = 9 * k
    assert num_greedy_differences(pair, prompts(start + 3)[start:], method=method, k=k) == 0


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["draft", "ngram", "ssd"])
@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_greedy_speculation_gives_the_plain_tokens_of_a_hundred_prompts(pair: Pair, method: str, k: int) -> None:
    assert num_greedy_differences(pair, prompts(100), method=method, k=k) == 0


@pytest.mark.parametrize("options", SSD_VARIANTS)
def test_greedy_ssd_gives_the_plain_tokens_for_every_fan_out_and_fallback(pair: Pair, options: SSDOptions) -> None:
    assert num_greedy_differences(pair, prompts(102)[100:], method="ssd", ssd=options) == 0


@pytest.mark.parametrize("method", ["draft", "ssd"])
def test_missing_roll_back_of_the_cache_shows(pair: Pair, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    each = prompts(4)
    plain = [run(pair, prompt, GREEDY, "none").token_ids for prompt in each]

    def keep_all(self: CachedModel, length: int) -> None:
        del self._read[length:]

    monkeypatch.setattr(CachedModel, "rewind", keep_all)
    try:
        broken = [run(pair, prompt, GREEDY, method).token_ids for prompt in each]
    except InputError:
        return  # the stale entries filled the cache
    assert broken != plain


def test_the_draft_that_is_the_target_is_always_right(pair: Pair) -> None:
    same = (pair[0], pair[0])
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=48, temperature=temperature)
        drafted = run(same, [3, 1, 4], params, "draft", k=5)
        assert drafted.statistics.acceptance_rate == 1.0
        assert drafted.statistics.target_forwards == 8
    ssd = run(same, [3, 1, 4], GREEDY, "ssd", k=5).statistics
    assert ssd.acceptance_rate == 1.0
    assert ssd.cache_hit_rate == 1.0


def test_prepared_and_late_drafts_are_the_same_tokens(pair: Pair) -> None:
    """The numbers a draft is drawn with belong to positions, so a hit changes nothing but the time it takes."""
    params = SamplingParams(max_tokens=40, seed=5)
    late = run(pair, [1, 2, 3], params, "draft")
    for budget in (4, 9, 24):
        prepared = run(pair, [1, 2, 3], params, "ssd", ssd=SSDOptions(budget=budget))
        assert prepared.token_ids == late.token_ids
        assert prepared.statistics.drafted == late.statistics.drafted
        assert prepared.statistics.hits > 0


def test_branches_read_as_their_own_texts(pair: Pair) -> None:
    """A chain of the tree pass gives the logits of its text alone: no sibling, no later trunk, its own positions."""
    draft = pair[1]
    trunk, stems, chains = [5, 6, 7, 8, 9, 10], [3, 6, 3, 5], [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]]
    cached = CachedModel(draft, 32, scratch=12)
    cached.logits(trunk, rows=1)
    for depth in range(3):
        tree = cached.branch_logits([chain[depth] for chain in chains], stems, depth)
        for row, stem, chain in zip(tree, stems, chains, strict=True):
            alone = draft(torch.tensor([trunk[:stem] + chain[: depth + 1]]))[0, -1]
            torch.testing.assert_close(row, alone, rtol=0, atol=1e-10)


def test_a_cached_model_is_a_function_of_its_tokens(pair: Pair) -> None:
    cached, rng = CachedModel(pair[0], 40), generator(4, "test.cached")
    text: list[int] = []
    for _ in range(60):
        text = text[: rng.integers(len(text) + 1)] + rng.integers(32, size=rng.integers(1, 6)).tolist()
        text = text[:40]
        rows = int(rng.integers(1, len(text) + 1))
        with torch.inference_mode():
            whole = pair[0](torch.tensor([text]))[0, -rows:]
        torch.testing.assert_close(cached.logits(text, rows=rows), whole, rtol=0, atol=1e-10)


def g_test(counts: np.ndarray, expected: np.ndarray) -> float:
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    return float(stats.power_divergence(counts[keep], expected[keep], lambda_="log-likelihood").pvalue)


def sampled_pairs(pair: Pair, method: str, num_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of (first, second) new tokens over seeds, and what the target's law expects."""
    prompt, size = [2, 0, 1], pair[0].config.vocab_size
    counts = np.zeros((size, size))
    for seed in range(num_seeds):
        first, second, *_ = run(pair, prompt, SamplingParams(max_tokens=3, seed=seed), method, k=2).token_ids
        counts[first, second] += 1
    with torch.inference_mode():
        texts = torch.tensor([[*prompt, first] for first in range(size)])
        both = distribution(pair[0](texts), SamplingParams())
    law = (both[0, -2].unsqueeze(-1) * both[:, -1]).numpy()
    return counts.ravel(), law.ravel() * num_seeds


@pytest.mark.parametrize(("method", "num_seeds"), [("draft", 250), ("ssd", 150)])
def test_sampled_law_is_the_targets(new_pair: Callable[..., Pair], method: str, num_seeds: int) -> None:
    assert g_test(*sampled_pairs(new_pair(4, 3, noise=0.6), method, num_seeds)) > 1e-4


def test_draft_and_verification_may_not_share_their_numbers(
    new_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shared:
        def __init__(self, chance: Chance, position: int) -> None:
            self.chance, self.position = chance, position

        def random(self, count: int) -> np.ndarray:
            return np.array([self.chance.draft(self.position + offset) for offset in range(count)])

    monkeypatch.setattr(Chance, "verification", lambda chance, position: Shared(chance, position))
    assert g_test(*sampled_pairs(new_pair(4, 3, noise=0.6), "draft", 250)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_tokens_and_no_global_randomness(pair: Pair, method: str) -> None:
    params = SamplingParams(max_tokens=24, seed=9, temperature=1.3, top_k=20, top_p=0.95, min_p=0.001)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()
    first = run(pair, [1, 2], params, method)
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))
    assert run(pair, [1, 2], params, method).token_ids == first.token_ids
    assert run(pair, [1, 2], SamplingParams(max_tokens=24, seed=10), method).token_ids != first.token_ids


@pytest.mark.parametrize("method", METHODS)
def test_accounts_are_exact(pair: Pair, method: str) -> None:
    rng = generator(6, "test.accounts")
    for case in range(12):
        params = SamplingParams(
            max_tokens=int(rng.integers(1, 30)), temperature=float(rng.choice([0.0, 1.0])), seed=case
        )
        stream = generate(
            pair[0], [1, 2, 1, 2], params, method=method, draft=pair[1], num_speculative_tokens=int(rng.integers(1, 9)),
            eos_token_id=int(rng.integers(32)),
        )  # fmt: skip
        sizes = [len(chunk.token_ids) for chunk in stream]
        counts = stream.statistics
        assert counts.drafted == counts.accepted + counts.rejected + counts.discarded
        assert counts.emitted == sum(sizes) == len(stream.result().token_ids)
        assert counts.target_forwards == len(sizes)
        # Every round ends with a token of the target's own, but for a last one that ended inside its draft.
        assert counts.emitted - counts.accepted in (counts.target_forwards, counts.target_forwards - 1)
        assert counts.rejected <= counts.target_forwards
        assert all(size >= 1 for size in sizes)


def test_saguaro_draws_from_the_law_that_it_reports(pair: Pair) -> None:
    """With C below 1 the coming guesses weigh less, in late and prepared drafts alike; greedy is left alone."""
    prompt, options = [1, 2, 3], SSDOptions(saguaro=0.3, budget=12)
    for params in (SamplingParams(), GREEDY):
        speculator = OutcomeSpeculator(options, 3)
        state = DecodeState(list(prompt), params, Chance(1), 32, CachedModel(pair[1], 64, scratch=speculator.num_slots))
        late = speculator(state, 3)
        outcome = (3, int(pair[1](torch.tensor([[*prompt, *late.tokens]]))[0, -1].argmax()))
        state.commit([*late.tokens, outcome[1]], Verdict(*outcome))
        prepared = speculator(state, 3)
        assert (late.source, prepared.source) == ("draft", "cache")
        for proposal, text in ((late, prompt), (prepared, state.tokens)):
            with torch.inference_mode():
                raw = distribution(pair[1](torch.tensor([[*text, *proposal.tokens]]))[0, len(text) - 1 : -1], params)
            changed = (proposal.probabilities_KV - raw).abs().amax(-1)
            assert bool((changed > 1e-3).all()) == (params is not GREEDY)
            numbers = [Chance(1).draft(len(text) + offset) for offset in range(3)]
            assert draw(proposal.probabilities_KV, numbers) == proposal.tokens
            assert float((proposal.probabilities_KV.sum(-1) - 1).abs().max()) < 1e-12


def test_ngram_proposes_what_followed_the_latest_match() -> None:
    def proposed(tokens: list[int], k: int) -> list[int]:
        return PROPOSERS["ngram"](DecodeState(tokens, SamplingParams(), Chance(0), 32), k).tokens

    assert proposed([1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 2) == [4, 8]
    assert proposed([1, 2, 3, 9, 5, 2, 4, 8, 1, 2, 3], 2) == [9, 5]
    assert proposed([7, 7, 7, 7], 5) == [7]
    assert proposed([1, 2, 3], 5) == []
    assert proposed([1], 5) == []


def test_limits_of_the_context(new_pair: Callable[..., Pair]) -> None:
    small = new_pair(16, 1, positions=24)
    for method in METHODS:
        out = run(small, [1] * 10, SamplingParams(max_tokens=None, temperature=0.0), method)
        assert (len(out.token_ids), out.finish_reason) == (14, "length")
        assert out.token_ids == run(small, [1] * 10, SamplingParams(max_tokens=14, temperature=0.0), "none").token_ids
    shorter = (small[0], new_pair(16, 1, positions=12)[1])
    for method in ("draft", "ssd"):
        out = run(shorter, [1] * 10, SamplingParams(max_tokens=None, temperature=0.0), method)
        assert out.token_ids == run(small, [1] * 10, SamplingParams(max_tokens=14, temperature=0.0), "none").token_ids


def test_wrong_arguments_are_named(pair: Pair, new_pair: Callable[..., Pair]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'draft'"):
        run(pair, [1], GREEDY, "drafts")
    with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
        SamplingParams(temprature=1.0)  # pyright: ignore
    with pytest.raises(ConfigError, match="needs a draft model"):
        generate(pair[0], [1], method="ssd")
    with pytest.raises(ConfigError, match="16 tokens and the target 32"):
        generate(pair[0], [1], method="draft", draft=new_pair(16, 0)[1])
    with pytest.raises(ConfigError, match="num_speculative_tokens is 0"):
        run(pair, [1], GREEDY, "draft", k=0)
    with pytest.raises(InputError, match="no tokens"):
        generate(pair[0], [])
    with pytest.raises(InputError, match=r"shape \(0, 4\)"):
        acceptance(pair[0], pair[1], torch.zeros(0, 4, dtype=torch.int64))
    prompt = np.array([1, 2, 3])
    assert run(pair, prompt, GREEDY, "ngram").token_ids == run(pair, [1, 2, 3], GREEDY, "none").token_ids  # pyright: ignore
    with pytest.raises(InputError, match="token 32"):
        generate(pair[0], [1, 32])
    with pytest.raises(InputError, match="context of 256"):
        generate(pair[0], [1] * 256)
    with pytest.raises(ConfigError, match="decode="):
        generate(pair[0], [1], SamplingParams(stop=("x",)))


def test_damaged_weights_are_an_error_and_not_tokens(new_pair: Callable[..., Pair]) -> None:
    target, _ = new_pair(8, 0)
    with torch.no_grad():
        target.norm.weight.fill_(float("nan"))
    with pytest.raises(ForethoughtError, match="damaged"):
        generate(target, [1]).result()


def test_acceptance_is_what_decoding_measures(new_pair: Callable[..., Pair]) -> None:
    """Over sampled text, the share of judged tokens that are kept is the teacher-forced overlap of the laws."""
    pair = new_pair(16, 2, noise=0.4)
    accepted = judged = 0
    texts = []
    for seed in range(6):
        out = run(pair, [1], SamplingParams(max_tokens=100, seed=seed), "draft", k=1)
        accepted += out.statistics.accepted
        judged += out.statistics.accepted + out.statistics.rejected
        texts.append([1, *out.token_ids])
    offline = acceptance(pair[0], pair[1], torch.tensor(texts))
    assert offline.num_tokens == 6 * 101
    assert abs(accepted / judged - offline.overlap) < 4 * (0.25 / judged) ** 0.5
    assert acceptance(pair[0], pair[0], torch.tensor(texts)).greedy_agreement == 1.0
    assert abs(acceptance(pair[0], pair[0], torch.tensor(texts)).overlap - 1.0) < 1e-12


def test_the_real_pair_in_float32(shared_data: Path) -> None:
    """In float32 one token and several at a time differ in the last bits, so a tie in the logits could show here."""
    folder = shared_data / "models" / "pair"
    real = load_language_model(folder / "target"), load_language_model(folder / "draft")
    params = SamplingParams(max_tokens=24, temperature=0.0)
    for prompt in ([17, 200, 31, 7], [1000, 12, 12, 99, 5]):
        plain = run(real, prompt, params, "none").token_ids
        for method in ("draft", "ngram", "ssd"):
            assert run(real, prompt, params, method).token_ids == plain, smallest_margin(real[0], prompt, plain)


def smallest_margin(model: LanguageModel, prompt: list[int], tokens: list[int]) -> str:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 :]
    top = logits.topk(2).values
    return f"smallest gap between the two largest logits: {float((top[:, 0] - top[:, 1]).min()):.2e}"


@pytest.mark.parametrize(
    "asked", [{"n": 2}, {"min_tokens": 3}, {"logprobs": 1}, {"repetition_penalty": 1.2}, {"logit_bias": {1: 2.0}}]
)
def test_what_only_the_engine_does_is_refused_by_name(pair: Pair, asked: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(asked))):
        run(pair, [1, 2], SamplingParams(**asked), "none")  # pyright: ignore[reportArgumentType]
