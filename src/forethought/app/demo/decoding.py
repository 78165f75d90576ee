"""The job of decoding: the same prompts plainly, with a draft and by SSD, equality checked, costs measured in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from forethought.app.demo.settings import PROMPTS, DemoConfig
from forethought.app.distil import held_out_acceptance
from forethought.app.generate import Method, continue_prompt, generation_result, open_engine
from forethought.core.progress import track
from forethought.decode import LLM, SamplingParams, open_model
from forethought.stats import median_interval, paired_ratio

METHODS: tuple[Method, ...] = ("none", "draft", "ssd")


def decode_text(settings: DemoConfig, out: Path, *, write: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Decode every prompt with every method, and return equality, costs and samples; `write` hears text as it comes."""
    with ExitStack() as opened:
        engines = {
            method: opened.enter_context(
                open_engine(
                    out / "target",
                    method=method,
                    draft=out / "draft",
                    num_speculative_tokens=settings.num_speculative_tokens,
                )
            )
            for method in METHODS
        }
        samples = _stream_samples(settings, engines["draft"], write or sys.stderr.write)
        measured = _compare(settings, engines)
    target, draft = open_model(out / "target"), open_model(out / "draft")
    agreement = held_out_acceptance(target, draft, out / "corpus", settings.target.context, settings.agreement_tokens)
    return {"samples": samples, **measured, **agreement}


def _stream_samples(settings: DemoConfig, llm: LLM, write: Callable[[str], object]) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = []
    for name, temperature in (("greedy", 0.0), ("sampled at temperature 0.8", 0.8)):
        params = SamplingParams(max_tokens=settings.max_tokens, temperature=temperature, seed=1)
        write(f"\n--- {name}, by speculation ---\n{PROMPTS[0]}")
        completion, seconds = continue_prompt(llm, PROMPTS[0], params, write=write)
        write("\n")
        samples.append({"name": name, "prompt": PROMPTS[0], **generation_result(completion, seconds)})
    return samples


def _compare(settings: DemoConfig, engines: Mapping[str, LLM]) -> dict[str, Any]:
    """Decode every prompt with every method in turn, greedily, and check that the tokens are the same."""
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=0.0, ignore_eos=True)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    accounts: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    equal = True
    prompts = PROMPTS[: settings.num_prompts]
    for llm in engines.values():  # the first call of each pays for what is made once
        continue_prompt(llm, "import ", SamplingParams(max_tokens=8))
    with track("decode", len(prompts), unit="prompts") as progress:
        for done, prompt in enumerate(prompts, start=1):
            expected: list[int] | None = None
            for method, llm in engines.items():
                completion, taken = continue_prompt(llm, prompt, params)
                expected = completion.token_ids if expected is None else expected
                equal = equal and completion.token_ids == expected
                seconds[method].append(taken)
                accounts[method].append(completion.statistics.to_dict())
            progress.update(done)
    return {
        "greedy_tokens_equal": equal,
        "num_prompts": len(prompts),
        "methods": {method: _method_figures(method, seconds, accounts[method]) for method in METHODS},
    }


def _method_figures(method: str, seconds: dict[str, list[float]], accounts: list[dict[str, Any]]) -> dict[str, Any]:
    totals = {name: sum(a[name] for a in accounts) for name in ("emitted", "target_forwards", "accepted", "rejected")}
    judged = totals["accepted"] + totals["rejected"]
    lookups = sum(a["lookups"] for a in accounts)
    speed = median_interval([a["emitted"] / s for a, s in zip(accounts, seconds[method], strict=True)])
    ratio = paired_ratio(seconds["none"], seconds[method])
    return {
        "acceptance_rate": totals["accepted"] / judged if judged else None,
        "tokens_per_target_forward": totals["emitted"] / totals["target_forwards"],
        "cache_hit_rate": sum(a["hits"] for a in accounts) / lookups if lookups else None,
        "tokens_per_second": speed.estimate,
        "tokens_per_second_interval": [speed.low, speed.high],
        "speed_over_plain": ratio.estimate,
        "speed_over_plain_interval": [ratio.low, ratio.high],
    }
