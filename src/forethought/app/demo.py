"""The main job: a corpus becomes a target and its draft, and the draft makes the target faster without changing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from forethought.app.arguments import parse, say, table
from forethought.app.distil import held_out_acceptance
from forethought.app.generate import Method, continue_prompt, generation_result, open_engine
from forethought.app.recipes.pretrain import draft as draft_recipe
from forethought.app.recipes.pretrain import small, tiny
from forethought.app.report import write_report
from forethought.core.config import config
from forethought.core.errors import unknown_name
from forethought.core.progress import track
from forethought.core.run import Exists, Run
from forethought.data import STDLIB, stdlib_facts
from forethought.decode import LLM, SamplingParams, open_model
from forethought.pretrain import DistillationConfig, FitConfig, ModelShape, fit, prepare
from forethought.stats import median_interval, paired_ratio
from forethought.train import LoopConfig

PARTS = ("pretrain", "decode")
METHODS: tuple[Method, ...] = ("none", "draft", "ssd")
PROMPTS = (
    "def ",
    "import os\nimport sys\n\n",
    "class Reader:\n    def __init__(self, ",
    "    # Return the ",
    '    """Return a new ',
    "    for name in ",
    "    if not isinstance(",
    "    try:\n        return self.",
)


@config
class DemoConfig:
    """What the demo trains and decodes."""

    target: FitConfig = Field(default_factory=small)
    draft: FitConfig = Field(default_factory=draft_recipe)
    sources: tuple[str, ...] = (STDLIB,)
    max_tokens: int = Field(default=96, ge=1)
    num_speculative_tokens: int = Field(default=4, ge=1)
    num_prompts: int = Field(default=len(PROMPTS), ge=1, le=len(PROMPTS))
    agreement_tokens: int = Field(default=8192, ge=256)


@dataclass(frozen=True)
class DemoArguments:
    """The main job on text: corpus, target, distilled draft, speculation with equality checked, one report."""

    quick: bool = False
    """Tiny models and short texts: about a minute."""
    only: str = ",".join(PARTS)
    """Which parts to show, of: pretrain, decode; what a part needs is made as well."""
    out: Path = Path("runs/demo")
    """The directory to write."""
    exists: Literal["resume", "refuse", "replace"] = "resume"
    """What to do when the directory is already there."""
    json: bool = False
    """Print result.json as one last line on standard output."""


def full() -> DemoConfig:
    """Return the demo as `make demo` runs it: under eight minutes on two cores."""
    return DemoConfig()


def quick() -> DemoConfig:
    """Return the demo in about a minute."""
    target = tiny()
    smaller = replace(
        target,
        model=ModelShape(hidden_size=32, num_layers=1, num_heads=1),
        distillation=DistillationConfig(share=1.0),
        loop=LoopConfig(steps=200, evaluate_every=100, checkpoint_every=100),
    )
    corpus = replace(target.corpus, max_bytes=2 << 20)
    return DemoConfig(
        target=replace(target, corpus=corpus),
        draft=replace(smaller, corpus=corpus),
        max_tokens=48,
        num_prompts=3,
        agreement_tokens=2048,
    )


def demo_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought demo` and return its result.

    Raises:
        InputError: a flag or the directory cannot be used.
    """
    given = parse(DemoArguments, arguments, verb="demo")
    parts = tuple(part.strip() for part in given.only.split(",") if part.strip())
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of the demo", part, PARTS)
    settings = quick() if given.quick else full()
    recipe = "demo.quick" if given.quick else "demo"
    result = run_demo(settings, given.out, recipe=recipe, exists=given.exists, parts=parts, as_json=given.json)
    say(_summary(result, given.out), as_json=given.json)
    return result


def run_demo(
    settings: DemoConfig,
    out: Path,
    *,
    recipe: str,
    exists: Exists = "resume",
    parts: Sequence[str] = PARTS,
    as_json: bool = False,
) -> dict[str, Any]:
    """Make the corpus, the target and the draft, decode with and without speculation, and write the report.

    Every stage is a directory inside `out` that is finished once; an interrupted demo goes on where it was.

    Raises:
        InputError: the sources or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
    """
    with Run.open(out, config=settings, recipe=recipe, recipe_config=settings, exists=exists) as run:
        finished = run.result()
        if finished is not None and ("decode" in finished or "decode" not in parts):
            return finished | {"report": str(write_report(out))}
        corpus = _make_corpus(settings, out, as_json)
        shared = {"sources": (str(corpus),)}
        target = fit(replace(settings.target, **shared), out / "target", recipe=recipe, exists="resume", title="target")
        taught = replace(settings.draft, **shared, teacher=str(out / "target" / "model"))
        draft = fit(taught, out / "draft", recipe=recipe, exists="resume", title="draft")
        result: dict[str, Any] = {"kind": "demo", "recipe": recipe, "target": target, "draft": draft}
        if "decode" in parts:
            result["decode"] = _decode(settings, out, as_json)
        run.write_result(result)
    path = write_report(out)
    return result | {"report": str(path)}


def _make_corpus(settings: DemoConfig, out: Path, as_json: bool) -> Path:
    if STDLIB in settings.sources:
        facts = stdlib_facts()
        say(
            f"corpus: the standard library of Python {facts.version}: {facts.num_files:,} files, "
            f"{facts.num_bytes:,} bytes, SHA-256 {facts.sha256[:16]}",
            as_json=as_json,
        )
    return prepare(settings.sources, out / "corpus", settings.target.corpus).path


def _decode(settings: DemoConfig, out: Path, as_json: bool) -> dict[str, Any]:
    stream = sys.stderr if as_json else sys.stdout
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
        samples = _stream_samples(settings, engines["draft"], stream.write)
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


def _summary(result: dict[str, Any], out: Path) -> str:
    target, draft = result["target"], result["draft"]
    rows: dict[str, object] = {
        "target": f"{target['parameters']:,} parameters, validation {target['validation_loss']:.3f} nats a token "
        f"(5-gram Kneser-Ney {target['kneser_ney_5_loss']:.3f}, unigram {target['unigram_loss']:.3f})",
        "draft": f"{draft['parameters']:,} parameters, validation {draft['validation_loss']:.3f} nats a token",
    }
    if "decode" in result:
        decoded = result["decode"]
        rows["overlap"] = f"{decoded['held_out_overlap']:.3f} of a drafted token is kept on held-out text"
        for method in ("draft", "ssd"):
            figures = decoded["methods"][method]
            rows[method] = (
                f"{figures['tokens_per_target_forward']:.2f} tokens a target forward, acceptance "
                f"{figures['acceptance_rate']:.2f}, same greedy tokens: {decoded['greedy_tokens_equal']}"
            )
    rows["report"] = out / "report.html"
    return "\n" + table(rows)
